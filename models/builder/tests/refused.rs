//! What is wrong with an input is said with its name and value, and nothing is left behind.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use vggd_models::import::{Import, import};
use vggd_models::tensor::Tensor;
use vggd_models::{source, tiny};

type Tensors = BTreeMap<String, Tensor<'static>>;

fn request(folder: &Path) -> Import {
    Import {
        source: folder.join("tiny.safetensors"),
        labels: folder.join("labels.txt"),
        out: folder.join("set"),
        name: "tiny".to_owned(),
        force: false,
    }
}

/// Breaks what would be a good import and expects every one of `words` in the message.
#[track_caller]
fn check(break_it: impl FnOnce(&mut Import), words: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let mut request = request(folder.path());
    tiny::write(&request.source, 10).unwrap();
    fs::write(&request.labels, "a\nb\nc\nd\ne\nf\ng\nh\ni\nj\n").unwrap();
    break_it(&mut request);
    let before = names(folder.path());
    let message = import(&request, &mut ()).unwrap_err().to_string();
    for word in words {
        assert!(message.contains(word), "no '{word}' in: {message}");
    }
    assert!(!message.ends_with('.'), "{message}");
    assert_eq!(names(folder.path()), before, "{message}");
}

#[track_caller]
fn check_tensors(break_it: impl FnOnce(&mut Tensors), words: &[&str]) {
    let rewrite = |request: &mut Import| {
        let mut tensors = tiny::tensors(&tiny::topology(10));
        break_it(&mut tensors);
        source::write(&request.source, &tensors).unwrap();
    };
    check(rewrite, words);
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = (fs::read_dir(folder).unwrap())
        .map(|entry| entry.unwrap().path().display().to_string())
        .collect();
    names.sort();
    names
}

fn zeros(shape: &[usize]) -> Tensor<'static> {
    Tensor::new(shape.to_vec(), vec![0.0; shape.iter().product()])
}

#[test]
fn a_file_that_is_not_there() {
    check(
        |request| request.source = "/nowhere/vgg19.safetensors".into(),
        &["/nowhere/vgg19.safetensors", "No such file"],
    );
    check(
        |request| request.labels = "/nowhere/labels.txt".into(),
        &["/nowhere/labels.txt", "No such file"],
    );
    check(|request| request.source = request.source.parent().unwrap().to_owned(), &["directory"]);
}

#[test]
fn a_file_that_is_cut_off_or_something_else() {
    let overwrite = |bytes: &'static [u8]| {
        move |request: &mut Import| fs::write(&request.source, bytes).unwrap()
    };
    let expected = ["tiny.safetensors", "not a complete safetensors file"];
    check(overwrite(b""), &expected);
    check(overwrite(b"1234"), &expected);
    check(overwrite(b"PK\x03\x04 archive/data.pkl and more"), &expected);
    check(overwrite(b"\x10\0\0\0\0\0\0\0{ no header here"), &expected);
    let cut = |request: &mut Import| {
        let content = fs::read(&request.source).unwrap();
        fs::write(&request.source, &content[..content.len() - 1]).unwrap();
    };
    check(cut, &expected);
    let cut = |request: &mut Import| {
        let content = fs::read(&request.source).unwrap();
        fs::write(&request.source, &content[..100]).unwrap();
    };
    check(cut, &expected);
}

#[test]
fn a_tensor_that_is_missing_or_misnamed() {
    check_tensors(
        |tensors| {
            tensors.remove("features.16.weight");
        },
        &["'features.16.weight' is missing", "37 tensors"],
    );
    check_tensors(
        |tensors| {
            let bias = tensors.remove("classifier.3.bias").unwrap();
            tensors.insert("fc7.bias".to_owned(), bias);
        },
        &["'classifier.3.bias' is missing"],
    );
    check_tensors(Tensors::clear, &["'features.0.weight' is missing"]);
}

#[test]
fn a_tensor_too_many() {
    check_tensors(
        |tensors| {
            tensors.insert("features.1.running_mean".to_owned(), zeros(&[16]));
        },
        &["'features.1.running_mean'", "another network"],
    );
}

#[test]
fn a_tensor_of_another_shape() {
    for (name, shape, words) in [
        ("features.0.weight", &[16, 1, 3, 3][..], "[16, 1, 3, 3], expected [any, 3, 3, 3]"),
        ("features.5.weight", &[16, 16, 5, 5], "[16, 16, 5, 5], expected [any, 16, 3, 3]"),
        ("features.19.weight", &[32, 15, 3, 3], "[32, 15, 3, 3], expected [any, 16, 3, 3]"),
        ("features.19.bias", &[31], "[31], expected [32]"),
        ("features.19.bias", &[32, 1], "[32, 1], expected [32]"),
        ("features.34.weight", &[0, 64, 3, 3], "[0, 64, 3, 3], expected [any, 64, 3, 3]"),
        ("classifier.0.weight", &[128, 64], "[128, 64], expected [any, 3136]"),
        ("classifier.6.weight", &[10, 100], "[10, 100], expected [any, 128]"),
    ] {
        check_tensors(
            |tensors| {
                tensors.insert(name.to_owned(), zeros(shape));
            },
            &[&format!("'{name}' has shape {words}")],
        );
    }
}

#[test]
fn a_tensor_of_another_type() {
    let retype = |request: &mut Import| {
        let mut content = fs::read(&request.source).unwrap();
        let at = content.windows(5).position(|window| window == b"\"F32\"").unwrap();
        content[at..at + 5].copy_from_slice(b"\"I32\"");
        fs::write(&request.source, content).unwrap();
    };
    check(retype, &["'classifier.0.bias'", "I32", "F32, F16 or BF16"]);
}

#[test]
fn a_weight_that_is_no_number() {
    for (value, word) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf")] {
        check_tensors(
            |tensors| {
                let mut values = tensors["classifier.0.weight"].values().into_owned();
                values[300_000] = value;
                let tensor = Tensor::new(vec![128, 3136], values);
                tensors.insert("classifier.0.weight".to_owned(), tensor);
            },
            &["'classifier.0.weight'", word, "index 300000"],
        );
    }
}

#[test]
fn labels_of_another_network() {
    for (labels, words) in [
        ("a\nb\n", &["labels.txt", "2 labels", "10 classes"][..]),
        ("", &["labels.txt", "0 labels", "10 classes"]),
        ("a\nb\n\nd\ne\nf\ng\nh\ni\nj\n", &["line 3 is empty"]),
    ] {
        check(|request| fs::write(&request.labels, labels).unwrap(), words);
    }
    check(|request| fs::write(&request.labels, b"caf\xe9\n").unwrap(), &["labels.txt", "UTF-8"]);
}

#[test]
fn widths_that_groups_do_not_divide() {
    check_tensors(
        |tensors| {
            let mut topology = tiny::topology(10);
            topology.hidden[1] = 100;
            *tensors = tiny::tensors(&topology);
        },
        &["'classifier.6.weight' has 100 columns", "64"],
    );
}

#[test]
fn a_folder_that_is_in_use() {
    let with_file = |name: &'static str, force| {
        move |request: &mut Import| {
            request.force = force;
            fs::create_dir(&request.out).unwrap();
            fs::write(request.out.join(name), "mine").unwrap();
        }
    };
    check(with_file("notes.txt", false), &["set", "not empty", "--force"]);
    check(with_file("manifest.toml", false), &["not empty", "--force"]);
    check(with_file("notes.txt", true), &["not a model set"]);
    let a_file = |request: &mut Import| fs::write(&request.out, "mine").unwrap();
    check(a_file, &["set", "not a model set"]);
    let dangling = |request: &mut Import| symlink("nowhere", &request.out).unwrap();
    check(dangling, &["set"]);
    check(|request| request.out = "/proc/vggd-test/set".into(), &["/proc/vggd-test"]);
}

#[test]
fn weights_within_the_folder_to_be_replaced() {
    let move_inside = |request: &mut Import| {
        fs::create_dir(&request.out).unwrap();
        fs::write(request.out.join("manifest.toml"), "").unwrap();
        let inside = request.out.join("tiny.safetensors");
        fs::rename(&request.source, &inside).unwrap();
        request.source = inside;
        request.force = true;
    };
    check(move_inside, &["tiny.safetensors", "move it out"]);
}
