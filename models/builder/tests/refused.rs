//! What is wrong with an input is said with its name and value, and nothing is left behind.

mod graphs;
mod saved;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use prost::Message;
use tract_onnx::pb::tensor_proto::{DataLocation, DataType};
use tract_onnx::pb::{GraphProto, ModelProto, NodeProto, StringStringEntryProto};
use vggd_models::import::{Import, import};
use vggd_models::tensor::Tensor;
use vggd_models::{source, tiny};

use crate::graphs::{Dialects, graph, int, node};
use crate::saved::{Dialect, Pickle, Style, Tensors};

fn request(folder: &Path) -> Import {
    Import {
        source: folder.join("tiny.safetensors"),
        labels: folder.join("labels.txt"),
        preprocess: Default::default(),
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
    let something_else = ["tiny.safetensors", "not a file of weights but"];
    check(overwrite(b""), &[&something_else[..], &["empty (0 bytes)"]].concat());
    check(overwrite(b"1234"), &[&something_else[..], &["text (4 bytes)"]].concat());
    check(
        overwrite(b"\n<!DOCTYPE html>\n<html>"),
        &[&something_else[..], &["a web page"]].concat(),
    );
    check(overwrite(b"PK\x03\x04 archive/data.pkl and more"), &["not a usable .pth file"]);
    check(overwrite(b"\x08\x08\x12\x07pytorch"), &["not a usable ONNX file", "no graph in it"]);
    let expected = ["tiny.safetensors", "not a complete safetensors file"];
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

#[track_caller]
fn check_file(bytes: Vec<u8>, words: &[&str]) {
    check(|request| fs::write(&request.source, bytes).unwrap(), words);
}

fn tensors() -> Tensors {
    tiny::tensors(&tiny::topology(10))
}

#[test]
fn a_file_of_torch_that_is_cut_off() {
    let storages = saved::storages(&tensors(), Style::NOW);
    let pickle = saved::state_dict(&tensors(), Style::NOW);
    let zip = saved::zipped(&pickle, &storages);
    check_file(zip[..zip.len() / 2].to_vec(), &["not a usable .pth file"]);
    let mut damaged = zip.clone();
    let at = zip.windows(9).position(|window| window == b"_metadata").unwrap();
    damaged[at - 6] = 0xff;
    check_file(damaged, &["not a usable .pth file", "opcode 0xff"]);

    let legacy = saved::legacy(&pickle, &storages);
    let last = format!("storage '{}' are missing or cut off", storages.len() - 1);
    check_file(legacy[..legacy.len() - 1].to_vec(), &["not a usable .pth file", &last]);
    check_file(legacy[..2000].to_vec(), &["not a usable .pth file", "ends in the middle"]);
    check_file(saved::legacy(&pickle, &storages[..3]), &["storage '3' are missing"]);
    check_file(saved::zipped(&pickle, &storages[..3]), &["storage '3' are missing"]);
    let mut short = storages.clone();
    short[0].pop();
    check_file(saved::zipped(&pickle, &short), &["'classifier.0.bias'", "within its storage"]);
    check_file(saved::legacy(&pickle, &short), &["'classifier.0.bias'", "within its storage"]);
}

#[test]
fn a_file_of_torch_that_is_no_state_dict() {
    let of = |build: &dyn Fn(&mut Pickle)| {
        let mut pickle = Pickle::new();
        build(&mut pickle);
        pickle.stop()
    };
    let raw = |bytes: &[u8]| [b"\x80\x02", bytes, b"."].concat();
    let run = |name: &'static str| {
        move |pickle: &mut Pickle| {
            let (module, name) = name.rsplit_once('.').unwrap();
            pickle.global(module, name).text("touch /tmp/owned", false).op(b"\x85R");
        }
    };
    for name in ["os.system", "builtins.eval", "torch.hub.load", "torchvision.models.vgg.VGG"] {
        let pickle = of(&run(name));
        check_file(saved::legacy(&pickle, &[]), &[&format!("needs {name}, "), "not run"]);
        check_file(saved::zipped(&pickle, &[]), &[&format!("needs {name}, "), "state_dict()"]);
    }
    let view = |shape: &'static [usize], strides: &'static [usize]| {
        of(&move |pickle: &mut Pickle| {
            pickle.op(b"}").text("x", false);
            pickle.view("0", shape, strides, 0, Style::NOW).op(b"s");
        })
    };
    for (pickle, words) in [
        (raw(b"]"), "no dict with tensors"),
        (raw(b"}"), "no dict with tensors"),
        (raw(b"N"), "no dict with tensors"),
        (raw(b"}X\x01\0\0\0aK\x01s"), "no dict with tensors"),
        (raw(b"u"), "damaged"),
        (raw(b"h\x07"), "damaged"),
        (raw(b"\x8c\x01a"), "opcode 0x8c at byte 2"),
        (raw(&b"N".repeat(2_000_000)), "more than 1048576 steps"),
        (view(&[4, 4], &[5, 1]), "'x' does not lie within its storage"),
        (view(&[4, 4], &[0, 1]), "'x' does not lie within its storage"),
        (view(&[4, 4], &[4]), "'x' does not lie within its storage"),
        (view(&[0xffff_ffff, 0xffff_ffff], &[1, 1]), "'x' does not lie within its storage"),
        (view(&[1; 9], &[1; 9]), "'x' does not lie within its storage"),
    ] {
        check_file(saved::legacy(&pickle, &[vec![1.0; 16]]), &[words]);
        check_file(saved::zipped(&pickle, &[vec![1.0; 16]]), &[words]);
    }
    check_file(saved::archive(&[("word/document.xml", b"<a/>")]), &["without data.pkl"]);
    let script = [("m/data.pkl", &b"\x80\x02N."[..]), ("m/constants.pkl", b"\x80\x02N.")];
    check_file(saved::archive(&script), &["TorchScript"]);
    let big = [("m/data.pkl", &b"\x80\x02N."[..]), ("m/byteorder", b"big")];
    check_file(saved::archive(&big), &["big-endian"]);
}

#[test]
fn a_file_of_torch_of_another_network() {
    let mut dialects = [Dialect::First, Dialect::Then, Dialect::Now].into_iter();
    let mut file = |tensors: &Tensors| {
        let style = Style { dialect: dialects.next().unwrap(), ..Style::NOW };
        saved::legacy(&saved::state_dict(tensors, style), &saved::storages(tensors, style))
    };
    let mut other = tensors();
    other.remove("features.16.bias");
    check_file(file(&other), &["'features.16.bias' is missing", "37 tensors"]);
    let mut other = tensors();
    other.insert("features.0.weight".to_owned(), zeros(&[64, 3, 7, 7]));
    check_file(
        file(&other),
        &["'features.0.weight' has shape [64, 3, 7, 7], expected [any, 3, 3, 3]"],
    );
    let mut other = tensors();
    other.insert("module.features.0.bias".to_owned(), zeros(&[15]));
    let words = "'features.0.bias' ('module.features.0.bias' in the file) has shape [15]";
    check_file(file(&other), &[words]);
}

/// Changes a good graph and expects every one of `words` in the message.
#[track_caller]
fn check_graph(change: impl FnOnce(&mut GraphProto), words: &[&str]) {
    let mut model = graph(&tensors(), &Dialects::default());
    change(model.graph.as_mut().unwrap());
    check_file(model.encode_to_vec(), words);
}

fn position(graph: &GraphProto, operator: &str) -> usize {
    graph.node.iter().position(|node| node.op_type == operator).unwrap()
}

#[test]
fn a_graph_of_another_network() {
    let replace = |operator: &'static str, with: &'static str| {
        move |graph: &mut GraphProto| {
            let at = position(graph, operator);
            graph.node[at].op_type = with.to_owned();
        }
    };
    for (with, words) in [
        ("Sigmoid", &["node 'features1' computes Sigmoid", "another network"][..]),
        ("Transpose", &["node 'features1' computes Transpose"]),
        ("Add", &["node 'features1' computes Add"]),
        ("QuantizeLinear", &["node 'features1' are int8"]),
        ("AveragePool", &["'features.2.weight' is missing"]),
    ] {
        check_graph(replace("Relu", with), words);
    }
    check_graph(replace("MaxPool", "AveragePool"), &["'features.5.weight' is missing"]);
    check_graph(replace("Conv", "ConvTranspose"), &["'features0' computes ConvTranspose"]);
    let words = "'classifier.0.weight' ('classifier.3.weight' in the file) has shape [128, 128]";
    check_graph(replace("Gemm", "Conv"), &[words]);

    let attribute = |attribute| {
        move |graph: &mut GraphProto| {
            let at = position(graph, "Gemm");
            graph.node[at].attribute.push(attribute);
        }
    };
    check_graph(attribute(int("transA", 1)), &["node 'linear0' has transA 1, expected 0"]);
    check_graph(attribute(int("alpha", 2)), &["node 'linear0' has alpha 2, expected 1"]);
    let skip = |graph: &mut GraphProto| {
        let at = position(graph, "Reshape");
        graph.node.insert(at, node("Add", &["features36", "features27"], "features36"));
    };
    check_graph(skip, &["node 'features36' computes Add"]);
}

#[test]
fn a_graph_without_usable_weights() {
    let gemm = |change: &dyn Fn(&mut NodeProto) -> Option<NodeProto>| {
        let mut model = graph(&tensors(), &Dialects::default());
        let graph = model.graph.as_mut().unwrap();
        let at = position(graph, "Gemm");
        if let Some(before) = change(&mut graph.node[at]) {
            graph.node.insert(at, before);
        }
        model.encode_to_vec()
    };
    let behind = |operator: &'static str| {
        move |gemm: &mut NodeProto| {
            let before = node(operator, &[&gemm.input[1]], "computed");
            gemm.input[1] = "computed".to_owned();
            Some(before)
        }
    };
    check_file(
        gemm(&behind("DequantizeLinear")),
        &["weights of node 'linear0' are int8", "float32"],
    );
    check_file(
        gemm(&behind("Mul")),
        &["'computed', which node 'linear0' reads, is no initializer"],
    );
    let missing = |gemm: &mut NodeProto| {
        gemm.input[1] = "nowhere".to_owned();
        None
    };
    check_file(gemm(&missing), &["'nowhere', which node 'linear0' reads, is no initializer"]);
    let itself = |gemm: &mut NodeProto| {
        gemm.input[1] = "round".to_owned();
        Some(node("Identity", &["round"], "round"))
    };
    check_file(gemm(&itself), &["'round', which node 'linear0' reads, is no initializer"]);

    check_graph(
        |graph| graph.initializer[1].data_type = DataType::Double.into(),
        &["tensor 'features.0.bias' has numbers of type F64"],
    );
    check_graph(
        |graph| graph.initializer[0].raw_data.truncate(100),
        &["tensor 'features.0.weight' has shape [16, 3, 3, 3] and 100 bytes"],
    );
    check_graph(
        |graph| graph.initializer[0].dims = vec![i64::MAX, i64::MAX],
        &["tensor 'features.0.weight' has shape", "do not fit"],
    );
    check_graph(|graph| graph.initializer[0].dims = vec![-1], &["shape [-1]"]);

    let external = |location: &'static str, offset: &'static str| {
        move |graph: &mut GraphProto| {
            let tensor = &mut graph.initializer[0];
            tensor.data_location = Some(DataLocation::External.into());
            let entry = |key: &str, value: &str| StringStringEntryProto {
                key: key.to_owned(),
                value: value.to_owned(),
            };
            tensor.external_data = vec![entry("location", location), entry("offset", offset)];
        }
    };
    for location in ["/etc/passwd", "../labels.txt", "a/../../b", ""] {
        let words = ["'features.0.weight'", location, "not in the folder of the graph"];
        check_graph(external(location, "0"), &words);
    }
    check_graph(external("gone.bin", "0"), &["'features.0.weight'", "gone.bin", "No such file"]);
    let words = ["ends at byte 1732 of", "labels.txt, which has 20"];
    check_graph(external("labels.txt", "4"), &words);
    check_graph(external("labels.txt", "18446744073709551615"), &["ends at byte"]);
    check_graph(external("labels.txt", "minus one"), &["'features.0.weight' has shape"]);
}

#[test]
fn a_graph_that_is_cut_off() {
    let model = graph(&tensors(), &Dialects::default()).encode_to_vec();
    for length in [3, 100, model.len() / 2, model.len() - 1] {
        check_file(model[..length].to_vec(), &["not a usable ONNX file"]);
    }
    let empty =
        ModelProto { ir_version: 8, producer_name: "nobody".to_owned(), ..ModelProto::default() };
    check_file(empty.encode_to_vec(), &["not a usable ONNX file", "no graph in it"]);
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
