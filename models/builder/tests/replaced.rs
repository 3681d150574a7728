//! Where a set is written: whole or not at all, and what is in its place stays until then.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use vggd::manifest::ModelSet;
use vggd_models::import::{Import, import};
use vggd_models::progress::{Interrupted, Progress};
use vggd_models::tiny;

/// Goes along for a number of steps.
struct Until(usize);

impl Progress for Until {
    fn begin(&mut self, _bytes: u64) {}

    fn now(&mut self, _what: &str) {}

    fn advance(&mut self, _bytes: u64) -> Result<(), Interrupted> {
        self.0 = self.0.checked_sub(1).ok_or(Interrupted)?;
        Ok(())
    }
}

/// Counts what it is told.
#[derive(Default)]
struct Count {
    steps: usize,
    begun: u64,
    done: u64,
}

impl Progress for Count {
    fn begin(&mut self, bytes: u64) {
        self.begun += bytes;
    }

    fn now(&mut self, _what: &str) {}

    fn advance(&mut self, bytes: u64) -> Result<(), Interrupted> {
        self.steps += 1;
        self.done += bytes;
        Ok(())
    }
}

fn request(folder: &Path, out: PathBuf) -> Import {
    let request = Import {
        source: folder.join("tiny.safetensors"),
        labels: folder.join("labels.txt"),
        preprocess: Default::default(),
        out,
        name: "tiny".to_owned(),
        force: true,
    };
    tiny::write(&request.source, 2).unwrap();
    fs::write(&request.labels, "\u{feff}yes\r\n no\n\n").unwrap();
    request
}

fn entries(folder: &Path) -> usize {
    fs::read_dir(folder).unwrap().count()
}

#[test]
fn a_step_that_is_stopped_leaves_nothing_and_takes_nothing_away() {
    let folder = tempfile::tempdir().unwrap();
    let parent = folder.path().join("sets");
    fs::create_dir(&parent).unwrap();
    let mut request = request(folder.path(), parent.join("set"));

    let mut count = Count::default();
    import(&request, &mut count).unwrap();
    assert_eq!(count.done, count.begun);
    let manifest = fs::read(request.out.join("manifest.toml")).unwrap();

    // Another network, of which nothing can be taken over.
    tiny::write(&request.source, 3).unwrap();
    fs::write(&request.labels, "yes\nno\nperhaps\n").unwrap();
    request.name = "another".to_owned();
    for steps in (0..count.steps).step_by(count.steps / 20) {
        let message = import(&request, &mut Until(steps)).unwrap_err().to_string();
        assert_eq!(message, "interrupted, nothing was written");
        assert_eq!(entries(&parent), 1, "after {steps} steps");
        assert_eq!(fs::read(request.out.join("manifest.toml")).unwrap(), manifest);
    }
    ModelSet::open(&request.out).unwrap().verify().unwrap();
}

#[test]
fn force_replaces_a_set_also_behind_a_link_and_leaves_what_is_no_part_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let parent = folder.path().join("sets");
    let mut request = request(folder.path(), parent.join("set"));
    import(&request, &mut ()).unwrap();
    let parts = entries(&request.out);
    fs::rename(request.out.join("quantized.onnx"), request.out.join("old.onnx")).unwrap();
    let manifest = fs::read_to_string(request.out.join("manifest.toml")).unwrap();
    let manifest =
        manifest.replace("quantized.onnx", "old.onnx").replace("\"quantized\"", "\"old\"");
    fs::write(request.out.join("manifest.toml"), manifest).unwrap();
    fs::create_dir(request.out.join("photos")).unwrap();
    fs::write(request.out.join("photos/cat.jpg"), "of the user").unwrap();

    symlink(&request.out, folder.path().join("link")).unwrap();
    request.out = folder.path().join("link");
    request.name = "another".to_owned();
    import(&request, &mut ()).unwrap();

    let set = ModelSet::open(&parent.join("set")).unwrap();
    assert_eq!(set.manifest.name, "another");
    assert_eq!(set.labels, ["yes", "no"]);
    assert!(!set.directory.join("old.onnx").exists());
    assert_eq!(fs::read(set.directory.join("photos/cat.jpg")).unwrap(), b"of the user");
    assert_eq!(entries(&set.directory), parts + 1);
    assert!(request.out.is_symlink());
    assert_eq!(entries(&parent), 1);
}

#[test]
fn an_empty_folder_is_used_and_others_may_read_the_set() {
    let folder = tempfile::tempdir().unwrap();
    let by_hand = folder.path().join("by-hand");
    fs::create_dir(&by_hand).unwrap();
    let mut request = request(folder.path(), folder.path().join("set"));
    request.force = false;
    fs::create_dir(&request.out).unwrap();
    import(&request, &mut ()).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode(&request.out), mode(&by_hand));
    let manifest = request.out.join("manifest.toml");
    assert_eq!(mode(&manifest), mode(&request.labels));
}
