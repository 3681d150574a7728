//! A day in ten minutes: as many photos as a camera gives in a day, with brokers that go, variants that
//! change and photos that are none. Memory and file handles must stay flat. Not run with the others:
//!
//! ```sh
//! cargo test --test soak -- --ignored --nocapture
//! ```
//!
//! VGGD_SOAK_S sets how many seconds it takes.

mod common;

use std::fs;
use std::time::{Duration, Instant};

use common::{Broker, Daemon, jpeg, until};

/// Resident memory in KiB and the number of open files of the daemon.
fn held(daemon: &Daemon) -> (u64, usize) {
    let files = fs::read_dir(format!("/proc/{}/fd", daemon.id())).unwrap();
    (daemon.memory("VmRSS:"), files.count())
}

#[test]
#[ignore = "takes ten minutes"]
fn a_day_of_faults_leaves_memory_and_file_handles_flat() {
    let seconds = std::env::var("VGGD_SOAK_S").map_or(600, |text| text.parse().unwrap());
    let mut random = fastrand::Rng::with_seed(24);
    let mut broker = Broker::running();
    let mut daemon = Daemon::new(&broker);
    daemon.configure(broker.port, "baseline", "afterwards = 'delete'");
    daemon.replace("'trace'", "'info'");
    daemon.start();
    let photos: Vec<Vec<u8>> = (0..32).map(jpeg).collect();
    let start = Instant::now();
    let (mut count, mut samples) = (0, Vec::new());
    while start.elapsed() < Duration::from_secs(seconds) {
        for _ in 0..20 {
            count += 1;
            match random.u32(0..50) {
                0 => daemon.drop_photo(&format!("{count}.jpg"), b"no photo"),
                _ => daemon.drop_photo(&format!("{count}.jpg"), &photos[count % photos.len()]),
            }
        }
        match random.u32(0..20) {
            0 => broker.end(if random.bool() { "KILL" } else { "TERM" }),
            1 => {
                let variants = ["baseline", "quantized", "scaled"];
                let variant = variants[random.usize(0..3)];
                daemon.configure(broker.port, variant, "afterwards = 'delete'");
                daemon.replace("'trace'", "'info'");
            }
            2 if broker.is_running() => broker.publish("vggd/test/compare/set", "", &[]),
            3 if broker.is_running() => broker.publish("vggd/test/budget/set", "nonsense", &[]),
            _ if !broker.is_running() => broker.start(),
            _ => {}
        }
        until("the photos are done", || daemon.list("").len() < 20);
        samples.push(held(&daemon));
        for name in daemon.list("failed") {
            fs::remove_file(daemon.incoming().join("failed").join(name)).unwrap();
        }
    }
    if !broker.is_running() {
        broker.start();
    }
    until("all photos are done", || daemon.list("").is_empty());

    // The first fifth warms up.
    let settled = &samples[samples.len() / 5..];
    let (early, late) = settled.split_at(settled.len() / 2);
    let most = |samples: &[(u64, usize)]| {
        let memory = samples.iter().map(|sample| sample.0).max().unwrap();
        (memory, samples.iter().map(|sample| sample.1).max().unwrap())
    };
    let (early, late) = (most(early), most(late));
    println!(
        "{count} photos: at most {} KiB, {} files; then {} KiB, {} files",
        early.0, early.1, late.0, late.1
    );
    assert!(late.0 < early.0 + early.0 / 10, "memory grows");
    assert!(late.1 <= early.1 + 2, "file handles grow");
    assert!(daemon.end("TERM").success());
}
