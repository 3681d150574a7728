//! What an imported set consists of: every file and tensor where the manifest and graphs say.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use prost::Message;
use tract_onnx::pb::{GraphProto, ModelProto};
use vggd::manifest::ModelSet;
use vggd_models::topology::Topology;
use vggd_models::{import, quantize, source, tiny};

const CLASSES: usize = 10;

struct Initializer {
    shape: Vec<i64>,
    file: String,
    offset: usize,
    bytes: Vec<u8>,
}

impl Initializer {
    fn floats(&self) -> Vec<f32> {
        let (numbers, rest) = self.bytes.as_chunks::<4>();
        assert!(rest.is_empty());
        numbers.iter().map(|n| f32::from_le_bytes(*n)).collect()
    }
}

fn graph(set: &ModelSet, variant: &str) -> (ModelProto, GraphProto) {
    let bytes = set.read_graph(set.variant(variant).unwrap()).unwrap();
    let model = ModelProto::decode(&bytes[..]).unwrap();
    let graph = model.graph.clone().unwrap();
    (model, graph)
}

fn initializers(set: &ModelSet, variant: &str) -> BTreeMap<String, Initializer> {
    let (_, graph) = graph(set, variant);
    (graph.initializer.iter())
        .filter(|tensor| !tensor.external_data.is_empty())
        .map(|tensor| {
            let entry = |key: &str| {
                let mut entries = tensor.external_data.iter();
                entries.find(|entry| entry.key == key).unwrap().value.clone()
            };
            let file = entry("location");
            let offset: usize = entry("offset").parse().unwrap();
            let length: usize = entry("length").parse().unwrap();
            let content = fs::read(set.directory.join(&file)).unwrap();
            let initializer = Initializer {
                shape: tensor.dims.clone(),
                file,
                offset,
                bytes: content[offset..offset + length].to_owned(),
            };
            (tensor.name.clone(), initializer)
        })
        .collect()
}

fn tiny_set(folder: &Path) -> ModelSet {
    let set = ModelSet::open(&tiny::set(folder, CLASSES).unwrap()).unwrap();
    set.verify().unwrap();
    set
}

#[test]
fn the_manifest_says_what_there_is() {
    let folder = tempfile::tempdir().unwrap();
    let set = tiny_set(folder.path());
    let topology: Topology = tiny::topology(CLASSES);

    assert_eq!(set.names(), ["baseline", "quantized", "scaled"]);
    assert_eq!(set.manifest.name, "tiny");
    assert_eq!(set.labels, tiny::labels(CLASSES));
    for (variant, side) in [("baseline", 224), ("quantized", 224), ("scaled", 160)] {
        let variant = set.variant(variant).unwrap();
        assert_eq!(variant.input, [1, 3, side, side]);
        assert_eq!(variant.output, [1, CLASSES]);
        assert_eq!(variant.parameters, topology.parameters(side));
        assert_eq!(variant.macs, topology.macs(side));
        let files = variant.weights.iter().chain([&variant.graph]);
        let sizes = files.map(|file| fs::metadata(set.directory.join(file)).unwrap().len());
        assert_eq!(variant.bytes, sizes.sum::<u64>());
    }

    let found: BTreeSet<String> = (fs::read_dir(&set.directory).unwrap())
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let manifest = &set.manifest;
    let expected = (manifest.files.iter().map(|file| file.path.clone()))
        .chain(manifest.variants.iter().map(|variant| variant.graph.clone()))
        .chain(["manifest.toml".to_owned(), manifest.labels.clone()]);
    assert_eq!(found, expected.collect());
}

#[test]
fn graphs_are_standard_and_named_like_torchvision() {
    let folder = tempfile::tempdir().unwrap();
    let set = tiny_set(folder.path());
    for variant in &set.manifest.variants {
        let (model, graph) = graph(&set, &variant.name);
        assert_eq!((model.ir_version, model.opset_import[0].version), (8, 13));
        assert_eq!(model.producer_name, "vggd-models");
        assert_eq!(graph.input[0].name, "input");
        assert_eq!(graph.output[0].name, "logits");
        let count = |operator| (graph.node.iter()).filter(|n| n.op_type == operator).count();
        assert_eq!(count("Conv"), 16);
        assert_eq!(count("Relu"), 18);
        assert_eq!(count("MaxPool"), 5);
        assert_eq!(count("Flatten"), 1);
        assert_eq!(count("Gemm"), 3);
        let dequantized = if variant.name == "quantized" { 3 } else { 0 };
        assert_eq!(count("DequantizeLinear"), dequantized);
        assert_eq!(count("Reshape"), dequantized);
        assert_eq!(graph.node.len(), 43 + 2 * dequantized);
    }
    let (_, baseline) = graph(&set, "baseline");
    let names: BTreeSet<_> = baseline.initializer.into_iter().map(|tensor| tensor.name).collect();
    let expected = tiny::tensors(&tiny::topology(CLASSES)).into_keys().collect();
    assert_eq!(names, expected);
}

#[test]
fn every_tensor_is_aligned_and_on_disk_once() {
    let folder = tempfile::tempdir().unwrap();
    let set = tiny_set(folder.path());
    let mut places = BTreeMap::new();
    for variant in &set.manifest.variants {
        let mut files = BTreeSet::new();
        for (name, tensor) in initializers(&set, &variant.name) {
            assert_eq!(tensor.offset % 64, 0, "{name} of {}", variant.name);
            files.insert(tensor.file.clone());
            let place = (tensor.file, tensor.offset);
            let other = places.insert(tensor.bytes, place.clone());
            assert_eq!(other.unwrap_or(place.clone()), place, "{name} of {}", variant.name);
        }
        assert_eq!(files, variant.weights.iter().cloned().collect());
    }
    let tensors: usize = places.keys().map(|bytes| bytes.len().next_multiple_of(64)).sum();
    let on_disk: u64 = set.manifest.files.iter().map(|file| file.bytes).sum();
    assert!(on_disk <= tensors as u64, "{on_disk} bytes for {tensors}");
}

#[test]
fn the_baseline_is_what_was_imported() {
    let folder = tempfile::tempdir().unwrap();
    let set = tiny_set(folder.path());
    let initializers = initializers(&set, "baseline");
    for (name, tensor) in tiny::tensors(&tiny::topology(CLASSES)) {
        let found = &initializers[&name];
        let shape: Vec<i64> = tensor.shape().iter().map(|&n| n as i64).collect();
        assert_eq!((&found.shape, found.floats()), (&shape, tensor.values().into_owned()));
    }
}

#[test]
fn int8_weights_are_within_half_a_scale() {
    let folder = tempfile::tempdir().unwrap();
    let set = tiny_set(folder.path());
    let initializers = initializers(&set, "quantized");
    for (name, tensor) in tiny::tensors(&tiny::topology(CLASSES)) {
        if !(name.starts_with("classifier") && name.ends_with("weight")) {
            continue;
        }
        let values = &initializers[&format!("{name}.int8")];
        let scales = &initializers[&format!("{name}.scale")];
        let groups = (tensor.values().len() / quantize::GROUP) as i64;
        assert_eq!(values.shape, [groups, 64]);
        assert_eq!(scales.shape, [groups]);
        let scales = scales.floats();
        for (i, weight) in tensor.values().iter().enumerate() {
            let scale = scales[i / quantize::GROUP];
            let back = scale * f32::from(values.bytes[i] as i8);
            assert!((back - weight).abs() <= 0.501 * scale, "{name} at {i}: {weight}, {back}");
        }
    }
}

#[test]
fn half_precision_weights_give_a_float32_set() {
    let folder = tempfile::tempdir().unwrap();
    let expected = tiny_set(folder.path());
    let weights = folder.path().join("tiny.safetensors");
    let half = folder.path().join("half.safetensors");
    narrow_to_bf16(&weights, &half);
    let request = import::Import {
        source: half,
        labels: folder.path().join("labels.txt"),
        preprocess: Default::default(),
        out: folder.path().join("from-half"),
        name: "half".to_owned(),
        force: false,
    };
    import::import(&request, &mut ()).unwrap();
    let set = ModelSet::open(&request.out).unwrap();
    set.verify().unwrap();
    let expected = initializers(&expected, "baseline");
    for (name, tensor) in initializers(&set, "baseline") {
        for (found, expected) in tensor.floats().iter().zip(expected[&name].floats()) {
            assert!((found - expected).abs() <= expected.abs() / 128.0, "{name}");
        }
    }
}

/// Rewrites a float32 file with the upper halves of its numbers.
fn narrow_to_bf16(from: &Path, to: &Path) {
    let content = fs::read(from).unwrap();
    let start = 8 + u64::from_le_bytes(content[..8].try_into().unwrap()) as usize;
    let mut header: serde_json::Value = serde_json::from_slice(&content[8..start]).unwrap();
    for tensor in header.as_object_mut().unwrap().values_mut() {
        tensor["dtype"] = "BF16".into();
        for offset in tensor["data_offsets"].as_array_mut().unwrap() {
            *offset = (offset.as_u64().unwrap() / 2).into();
        }
    }
    let header = serde_json::to_vec(&header).unwrap();
    let mut narrowed = (header.len() as u64).to_le_bytes().to_vec();
    narrowed.extend(header);
    narrowed.extend(content[start..].chunks(4).flat_map(|number| &number[2..]));
    fs::write(to, narrowed).unwrap();
    source::Source::open(to).unwrap();
}
