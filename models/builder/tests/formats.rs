//! The same network comes out of every format it can be in.

mod graphs;
mod plain;
mod saved;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use prost::Message;
use vggd_models::network::Network;
use vggd_models::source::Source;
use vggd_models::tensor::Tensor;
use vggd_models::{source, tiny};

use crate::graphs::{Dialects, graph};
use crate::plain::Map;
use crate::saved::{Dialect, Style, Tensors};

fn tensors() -> Tensors {
    tiny::tensors(&tiny::topology(10))
}

/// The layers of a network by torchvision's names.
fn by_name<'a>(network: &'a Network<'_>) -> BTreeMap<String, Tensor<'a>> {
    let layers = network.layers().flat_map(|layer| {
        let name = |part| format!("{}.{part}", layer.name);
        [(name("weight"), layer.weight.clone()), (name("bias"), layer.bias.clone())]
    });
    layers.collect()
}

/// Expects that the file has exactly the tensors of `expected`, or within a `tolerated` part.
#[track_caller]
fn check(path: &Path, expected: &Tensors, tolerated: f32, what: &str) {
    let source = Source::open(path).unwrap_or_else(|error| panic!("{what}: {error}"));
    let network = Network::read(&source).unwrap_or_else(|error| panic!("{what}: {error}"));
    let found = by_name(&network);
    assert_eq!(found.len(), expected.len(), "{what}");
    for (name, expected) in expected {
        assert_eq!(found[name].shape(), expected.shape(), "{what}: {name}");
        for (found, expected) in found[name].values().iter().zip(expected.values().iter()) {
            let off = (found - expected).abs();
            assert!(off <= tolerated * expected.abs(), "{what}: {name}: {found}, {expected}");
        }
    }
}

#[track_caller]
fn check_bytes(bytes: &[u8], expected: &Tensors, tolerated: f32, what: &str) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights");
    fs::write(&path, bytes).unwrap();
    check(&path, expected, tolerated, what);
}

#[test]
fn files_of_torch_compute_what_torch_computed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let logits = fs::read(folder.join("logits.json")).unwrap();
    let logits: BTreeMap<String, Vec<f32>> = serde_json::from_slice(&logits).unwrap();
    let mut files = 0;
    for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        let file = path.file_name().unwrap().to_str().unwrap().to_owned();
        if !(file.ends_with(".pth") || file.ends_with(".onnx")) {
            continue;
        }
        let source = Source::open(&path).unwrap_or_else(|error| panic!("{error}"));
        let network = Network::read(&source).unwrap_or_else(|error| panic!("{file}: {error}"));
        let mut random = tiny::Random::new(1);
        let mut channel = || (0..64 * 64).map(|_| 4.0 * random.uniform() - 2.0).collect();
        let photo = Map { channels: vec![channel(), channel(), channel()], side: 64 };
        let found = plain::logits(&by_name(&network), photo);

        let expected = &logits[file.split('.').next().unwrap()];
        let tolerated = if file.contains("half") { 0.05 } else { 1e-4 };
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            let off = (found - expected).abs();
            assert!(off < tolerated, "{file}: {found}, expected {expected}");
        }
        files += 1;
    }
    assert!(files >= 6, "only {files}");
}

#[test]
fn whatever_torch_and_python_wrote_them() {
    let tensors = tensors();
    for dialect in [Dialect::First, Dialect::Then, Dialect::Now] {
        for bits in 0..16 {
            let style = Style {
                dialect,
                python2: bits & 1 != 0,
                parameters: bits & 2 != 0,
                cuda: bits & 4 != 0,
                parts: bits & 8 != 0,
            };
            let pickle = saved::state_dict(&tensors, style);
            let storages = saved::storages(&tensors, style);
            let what = format!("{style:?}");
            check_bytes(&saved::legacy(&pickle, &storages), &tensors, 0.0, &what);
            check_bytes(&saved::zipped(&pickle, &storages), &tensors, 0.0, &what);
        }
    }
}

#[test]
fn strides_are_followed() {
    let expected = Tensor::new(vec![3, 2, 2], (0..12).map(|n| n as f32).collect());
    for (strides, offset) in [([4, 2, 1], 0), ([1, 3, 6], 0), ([2, 1, 6], 0), ([5, 2, 1], 7)] {
        let mut storage = vec![f32::NAN; 30];
        for (i, value) in expected.values().iter().enumerate() {
            let at = [i / 4, i / 2 % 2, i % 2];
            let at: usize = at.iter().zip(strides).map(|(at, stride)| at * stride).sum();
            storage[offset + at] = *value;
        }
        let mut pickle = saved::Pickle::new();
        pickle.op(b"}").text("module.x", false);
        let pickle = pickle.view("0", &[3, 2, 2], &strides, offset, Style::NOW).op(b"s").stop();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("strided.pth");
        fs::write(&path, saved::legacy(&pickle, &[storage])).unwrap();
        let source = Source::open(&path).unwrap();
        let found = source.tensor("x").unwrap().unwrap();
        assert_eq!(found.shape(), expected.shape());
        assert_eq!(found.values(), expected.values(), "{strides:?}");
    }
}

#[test]
fn names_of_wrapped_modules() {
    for prefix in ["module.", "_orig_mod.", "_orig_mod.module."] {
        let renamed = |name: &str| match name.strip_prefix("features.") {
            Some(rest) => format!("{prefix}features.module.{rest}"),
            None => format!("{prefix}{name}"),
        };
        let wrapped: Tensors =
            tensors().into_iter().map(|(name, tensor)| (renamed(&name), tensor)).collect();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("wrapped.safetensors");
        source::write(&path, &wrapped).unwrap();
        check(&path, &tensors(), 0.0, prefix);
    }
}

#[test]
fn graphs_of_other_programs() {
    let tensors = tensors();
    let plain = Dialects::default;
    let expected = [tensors.clone(), large_enough(&tensors)];
    for dialects in [
        plain(),
        Dialects { zoo: true, inputs: true, ..plain() },
        Dialects { zoo: true, floats: true, ..plain() },
        Dialects { half: true, ..plain() },
        Dialects { half_integers: true, ..plain() },
        Dialects { matmul: true, zoo: true, ..plain() },
        Dialects { by_columns: true, ..plain() },
        Dialects { turned: true, half: true, zoo: true, ..plain() },
    ] {
        let is_half = dialects.half || dialects.half_integers;
        let expected = &expected[usize::from(is_half)];
        let tolerated = if is_half { 1.0 / 512.0 } else { 0.0 };
        let bytes = graph(expected, &dialects).encode_to_vec();
        check_bytes(&bytes, expected, tolerated, &format!("{dialects:?}"));
    }
}

/// Without numbers that float16 has fewer digits for.
fn large_enough(tensors: &Tensors) -> Tensors {
    let large = |value: &f32| if value.abs() < 1e-4 { 0.0 } else { *value };
    let round = |tensor: &Tensor<'_>| {
        let values = tensor.values().iter().map(large).collect();
        Tensor::new(tensor.shape().to_owned(), values)
    };
    tensors.iter().map(|(name, tensor)| (name.clone(), round(tensor))).collect()
}

#[test]
fn a_graph_with_its_numbers_in_other_files() {
    let tensors = tensors();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vgg19.onnx");
    let model = graph(&tensors, &Dialects { external: true, ..Dialects::default() });
    fs::write(&path, model.encode_to_vec()).unwrap();
    for (name, tensor) in &tensors {
        let numbers = tensor.values().iter().flat_map(|value| value.to_le_bytes()).collect();
        fs::write(folder.path().join(name), [b"12345".to_vec(), numbers].concat()).unwrap();
    }
    check(&path, &tensors, 0.0, "external");
}

#[test]
fn sets_of_this_program() {
    let folder = tempfile::tempdir().unwrap();
    let set = tiny::set(folder.path(), 10).unwrap();
    let tensors = tensors();
    check(&set.join("baseline.onnx"), &tensors, 0.0, "baseline");

    let scaled = Source::open(&set.join("scaled.onnx")).unwrap();
    assert_eq!(scaled.names().collect::<Vec<_>>(), tensors.keys().collect::<Vec<_>>());
    let folded = scaled.tensor("classifier.0.weight").unwrap().unwrap();
    assert_eq!(folded.shape(), [128, 64 * 25]);
    let last = scaled.tensor("classifier.6.weight").unwrap().unwrap();
    assert_eq!(last.values(), tensors["classifier.6.weight"].values());

    let error = Source::open(&set.join("quantized.onnx")).unwrap_err().to_string();
    assert!(error.contains("'classifier.0' are int8"), "{error}");
}
