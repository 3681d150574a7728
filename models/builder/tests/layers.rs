//! One outside crate, one file that names it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

#[test]
fn outside_crates_are_named_where_the_map_says() {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let texts: Vec<(String, String)> = (fs::read_dir(sources).unwrap())
        .map(|entry| entry.unwrap().path())
        .map(|path| {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, fs::read_to_string(path).unwrap())
        })
        .collect();
    for (crates, file) in [
        (&["safetensors::", "memmap2::"][..], "source.rs"),
        (&["half::", "bytemuck::"], "tensor.rs"),
        (&["tract_onnx::", "prost::"], "onnx.rs"),
        (&["sha2::", "tempfile::", "toml::"], "set.rs"),
        (&["indicatif::", "signal_hook::"], "bar.rs"),
        (&["serde_json::"], "report.rs"),
        (&["clap::", "anyhow::"], "main.rs"),
    ] {
        for name in crates {
            let found: BTreeSet<&str> = (texts.iter())
                .filter(|(_, text)| text.contains(name))
                .map(|(file, _)| file.as_str())
                .collect();
            assert_eq!(found, BTreeSet::from([file]), "{name}");
        }
    }
    let unsafe_in: Vec<&str> = (texts.iter())
        .filter(|(_, text)| text.contains("unsafe {"))
        .map(|(file, _)| file.as_str())
        .collect();
    assert_eq!(unsafe_in, ["source.rs"]);
}
