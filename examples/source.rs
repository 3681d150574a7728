//! What a camera or a command gives, without any model: a line for each change of its condition and for
//! each frame. It is configured as the daemon is; for the second camera, in grey:
//!
//! ```sh
//! VGGD__SOURCE__KIND=camera VGGD__SOURCE__DEVICE=1 VGGD__SOURCE__FORMAT=grey \
//!     cargo run --example source
//! ```

use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::SystemTime;

use vggd::config::{Config, SourceKind};
use vggd::preprocess::{self, Limits};
#[cfg(feature = "camera")]
use vggd::source::camera::Camera;
use vggd::source::stream::Stream;
use vggd::source::{Handoff, Picture, Source};

fn main() -> ExitCode {
    let file = std::env::args_os().nth(1).map(PathBuf::from);
    let config = match Config::load(file.as_deref()) {
        Ok(config) => config.source,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(78);
        }
    };
    let source: Box<dyn Source> = match config.kind {
        #[cfg(feature = "camera")]
        SourceKind::Camera => Box::new(Camera::new(&config)),
        SourceKind::Stream => Box::new(Stream::new(&config)),
        kind => {
            eprintln!("source.kind = '{}': must be camera or stream here", kind.as_str());
            return ExitCode::from(78);
        }
    };
    let limits = Limits::within(config.decode_memory());
    let handoff = Handoff::default();
    thread::scope(|scope| {
        scope.spawn(|| {
            source.run(&handoff, &|condition| {
                println!("condition working={} {}", condition.working, condition.detail);
            });
        });
        while let Some(frame) = handoff.take() {
            let age = SystemTime::now().duration_since(frame.captured_at).unwrap_or_default();
            let photo = match &frame.picture {
                Picture::Raw(raw) => raw.decode(),
                Picture::Encoded(bytes) => preprocess::decode(bytes, &limits),
                Picture::File(_) => continue,
            };
            let mean = photo.map(|photo| mean(photo.rgb()));
            let age = age.as_micros();
            println!(
                "frame {:?} mean={mean:?} age_us={age} dropped={}",
                frame.picture,
                handoff.dropped()
            );
        }
    });
    ExitCode::SUCCESS
}

fn mean(bytes: &[u8]) -> u64 {
    bytes.iter().map(|byte| u64::from(*byte)).sum::<u64>() / bytes.len().max(1) as u64
}
