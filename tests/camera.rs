//! A camera that is not there, as on most machines that run tests. A real one is in `tests/vm/camera`.
#![cfg(feature = "camera")]

use std::fs;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use vggd::config::Config;
use vggd::source::camera::Camera;
use vggd::source::{Condition, Handoff, Source};

#[test]
fn a_camera_that_is_missing_is_told_once_and_stopping_is_prompt() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("vggd.toml");
    let check = |device: &str, expected: &str| {
        fs::write(&file, format!("[source]\nkind = 'camera'\ndevice = '{device}'\n")).unwrap();
        let camera = Camera::new(&Config::load(Some(&file)).unwrap().source);
        let handoff = Handoff::default();
        let (sender, told) = channel::<Condition>();
        thread::scope(|scope| {
            scope.spawn(|| camera.run(&handoff, &move |condition| sender.send(condition).unwrap()));
            let condition = told.recv_timeout(Duration::from_secs(60)).unwrap();
            let right = !condition.working && condition.detail.contains(expected);
            assert!(right, "{device}: {condition:?}");
            assert!(told.recv_timeout(Duration::from_millis(600)).is_err(), "{device}: told twice");
            camera.stop();
        });
    };
    check("250", "/dev/video250 is not there");
    check("/dev/v4l/by-id/usb-none-index0", "/dev/v4l/by-id/usb-none-index0: No such file");
    check("/dev/null", "/dev/null is no camera");
    check("No such camera", "no camera 'No such camera'");
}
