//! Arrows point one way: what a source file must not name, it does not name.

use std::fs;
use std::path::{Path, PathBuf};

/// Rust files below `folder`, as paths from the project's root.
fn sources(folder: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    let mut folders = vec![root.join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => files.push(path.strip_prefix(root).unwrap().to_owned()),
            }
        }
    }
    files.retain(|path| path.extension().is_some_and(|extension| extension == "rs"));
    assert!(!files.is_empty(), "no sources in {folder}");
    files
}

/// The code of a file: no comments, no tests.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

/// Whether `name` occurs in `code` as a whole word that is a path's start or part.
fn names(code: &str, name: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(name).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = &code[at + name.len()..];
        !before.is_some_and(is_word) && !after.starts_with(is_word)
    })
}

/// Whether a path in `code` starts with the crate `name`.
fn starts_path(code: &str, name: &str) -> bool {
    let before = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    let paths = format!("{name}::");
    code.match_indices(&paths).any(|(at, _)| !code[..at].ends_with(before))
}

#[test]
fn an_outside_crate_is_named_in_one_place() {
    let owners = [
        ("tract_onnx", "src/model"),
        ("vggd_kernels", "src/model"),
        ("prost", "src/model"),
        ("memmap2", "src/model"),
        ("rumqttc", "src/publish src/demo/"),
        ("rustls", "src/publish/connection"),
        ("bytes", "src/demo/broker"),
        ("tempfile", "src/demo"),
        ("config", "src/config"),
        ("toml", "src/config src/manifest"),
        ("image", "src/preprocess"),
        ("zune_jpeg", "src/preprocess"),
        ("v4l", "src/source/camera"),
        ("notify", "src/watch"),
        ("fastrand", "src/publish src/simulate src/source"),
        ("humantime", "src/event"),
        ("bytemuck", "src/model"),
        ("sha2", "src/manifest src/source"),
        (
            "rustix",
            "src/commands/table.rs src/config src/measure src/model/engine.rs src/source src/thermal src/web.rs",
        ),
        ("fast_image_resize", "src/preprocess"),
        ("systemd_journal_logger", "src/logging"),
        ("tracing_subscriber", "src/logging"),
        ("crc32fast", "src/outbox src/web/page.rs"),
        ("sd_notify", "src/service"),
        ("tokio", "src/board src/daemon src/overview src/publish src/service src/web src/demo"),
        ("axum", "src/web"),
        ("hyper", "src/web.rs"),
        ("hyper_util", "src/web.rs"),
        ("futures_util", "src/web"),
        ("base64", "src/web/guard.rs"),
        ("prometheus_client", "src/metrics.rs"),
        ("clap", "src/main src/arguments"),
        ("anstream", "src/commands"),
        ("csv", "src/simulate"),
    ];
    for path in sources("src") {
        let code = code(&path);
        for (name, owners) in owners {
            let owned = owners.split(' ').any(|owner| path.to_str().unwrap().starts_with(owner));
            let found = match name {
                // The crate, not the module of the same name.
                "config" => ["config::Config::builder", "config::File", "config::Environment"]
                    .iter()
                    .any(|name| code.contains(name)),
                name => starts_path(&code, name),
            };
            assert!(owned || !found, "{} names {name}", path.display());
        }
    }
}

#[test]
fn arrows_point_one_way() {
    let layers: [&[&str]; 13] = [
        &["manifest", "event", "select", "distribution", "svg", "pulse"],
        &["config"],
        &[
            "preprocess",
            "watch",
            "logging",
            "simulate",
            "control",
            "thermal",
            "service",
            "secret",
            "metrics",
        ],
        &["source", "model", "stats", "stable", "homeassistant", "outbox"],
        &["pipeline"],
        &["publish", "measure"],
        &["profile", "compare"],
        &["lineup"],
        &["classify"],
        &["board"],
        &["overview"],
        &["web"],
        &["daemon"],
    ];
    let layer_of = |module: &str| layers.iter().position(|layer| layer.contains(&module));
    for path in sources("src") {
        let module = path.iter().nth(1).unwrap().to_str().unwrap().trim_end_matches(".rs");
        if ["lib", "main", "arguments", "commands", "demo"].contains(&module) {
            continue;
        }
        let own = layer_of(module).unwrap_or_else(|| panic!("{module} has no layer in this test"));
        let code = code(&path);
        let grouped = code.contains("crate::{");
        assert!(!grouped, "{}: one use per module, so that this test sees it", path.display());
        for (index, layer) in layers.iter().enumerate() {
            for other in layer.iter().filter(|other| **other != module) {
                let named = names(&code, &format!("crate::{other}"));
                assert!(!named || index < own, "{} names crate::{other}", path.display());
            }
        }
    }
}

#[test]
fn kernels_know_slices_only() {
    let files = sources("kernels/src");
    let texts = files.iter().map(|path| fs::read_to_string(path).unwrap());
    let all = texts.collect::<String>();
    // Modules for tests may do as they like.
    let is_test = |path: &PathBuf| {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        all.contains(&format!("#[cfg(test)]\nmod {name};"))
    };
    for path in files.iter().filter(|path| !is_test(path)) {
        let code = code(path);
        let is_pool = path.ends_with("pool.rs");
        let others = ["std::thread", "std::time"].into_iter().filter(|_| !is_pool);
        for name in ["tract", "std::fs", "rayon"].into_iter().chain(others) {
            assert!(!names(&code, name), "{} names {name}", path.display());
        }
    }
}

#[test]
fn no_training_under_the_daemon() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let manifest: toml::Table = toml::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let dependencies = manifest["dependencies"].as_table().unwrap();
    for name in ["burn", "candle-core", "vggd-models", "safetensors"] {
        assert!(!dependencies.contains_key(name), "{name} under the daemon");
    }
}
