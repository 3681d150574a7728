//! One outside crate, one file that names it; ONNX has a writer and a reader.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Every source file below a folder: its path from there, and its text.
fn sources(folder: &Path, within: &str) -> Vec<(String, String)> {
    let mut texts = Vec::new();
    for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        let name = format!("{within}{}", path.file_name().unwrap().to_str().unwrap());
        if path.is_dir() {
            texts.extend(sources(&path, &format!("{name}/")));
        } else {
            texts.push((name, fs::read_to_string(path).unwrap()));
        }
    }
    texts
}

/// Whether a path begins with the crate, and not with a module or a method of that name.
fn names(text: &str, outside: &str) -> bool {
    let path = format!("{outside}::");
    text.match_indices(&path).any(|(at, _)| {
        !text[..at].ends_with(|c: char| c.is_alphanumeric() || matches!(c, '_' | ':'))
    })
}

#[test]
fn outside_crates_are_named_where_the_map_says() {
    let texts = sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "");
    for (crates, files) in [
        (&["bytes", "memmap2"][..], &["source.rs"][..]),
        (&["safetensors"], &["source/safetensors.rs"]),
        (&["zip"], &["source/torch.rs"]),
        (&["half"], &["regression.rs", "tensor.rs"]),
        (&["bytemuck"], &["forward.rs", "tensor.rs"]),
        (&["tract_onnx", "prost"], &["onnx.rs", "source/onnx.rs"]),
        (&["ureq"], &["fetch/http.rs"]),
        (&["sha2"], &["checksum.rs"]),
        (&["csv"], &["photos.rs"]),
        (
            &["candle_core"],
            &[
                "finetune/checkpoint.rs",
                "finetune/convolution.rs",
                "finetune/convolution/weights.rs",
                "finetune/loss.rs",
                "finetune/model.rs",
                "finetune/optimizer.rs",
            ],
        ),
        (&["indicatif", "signal_hook"], &["bar.rs"]),
        (&["serde_json"], &["report.rs"]),
        (&["clap"], &["arguments.rs", "main.rs"]),
        (&["anyhow"], &["commands.rs"]),
    ] {
        for outside in crates {
            let found: BTreeSet<&str> = (texts.iter())
                .filter(|(_, text)| names(text, outside))
                .map(|(file, _)| file.as_str())
                .collect();
            assert_eq!(found, files.iter().copied().collect(), "{outside}");
        }
    }
    let unsafe_in: Vec<&str> = (texts.iter())
        .filter(|(_, text)| text.contains("unsafe {"))
        .map(|(file, _)| file.as_str())
        .collect();
    assert_eq!(unsafe_in, ["source.rs"]);
}
