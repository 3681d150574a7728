//! A camera that the kernel drives (V4L2): only here and below is v4l named.
//!
//! Owns finding and opening a camera and what its errors mean; what is asked of it is in `mode`. It takes
//! frames as the driver gives them and decodes none: most are dropped, because newer ones come.
//!
//! A thread reads all frames as soon as they are there, which keeps the driver's queue empty. It looks
//! often whether somebody listens, and closes the camera if not. A driver that hangs in a system call
//! keeps it from that: until it wakes up, or the camera is pulled out, the camera is not opened a second
//! time, which would only be refused. So no more than one thread hangs at one camera.

mod mode;

use std::any::Any;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use v4l::buffer::{Flags, Metadata, Type};
use v4l::device::Handle;
use v4l::io::traits::{CaptureStream, Stream as _};

use self::mode::{Granted, Wanted};
use super::live::{Live, Reader, Reports};
use super::{Condition, Handoff, Source};
use crate::config;
use crate::config::SourceKind;

/// Where the kernel lists its cameras.
const LISTED: &str = "/sys/class/video4linux";

/// How many frames the driver may have ready. The newest is taken.
const BUFFERS: u32 = 4;

/// How often a reader looks whether somebody listens.
const LOOK: Duration = Duration::from_millis(200);

/// How long a reader may take to end before its camera counts as one that hangs.
const GRACE: Duration = Duration::from_secs(1);

/// `POLLIN` of poll(2).
const READABLE: i16 = 1;

/// The system's errors that are told apart, of errno(3).
const EPERM: i32 = 1;
const ENOENT: i32 = 2;
const ENXIO: i32 = 6;
const EACCES: i32 = 13;
const EBUSY: i32 = 16;
const ENODEV: i32 = 19;
const ENOSPC: i32 = 28;

/// A camera, found anew by its number, path or name whenever it is opened.
pub struct Camera {
    device: Arc<Device>,
    live: Live,
}

impl Camera {
    /// The configured camera; nothing is opened yet.
    pub fn new(config: &config::Source) -> Self {
        let (width, height) = config.size();
        let device = Device {
            name: config.device.clone(),
            wanted: Wanted { format: config.format, width, height, rate: config.rate },
            timeout: config.timeout(),
            held: Mutex::default(),
        };
        Self { device: Arc::new(device), live: Live::new(SourceKind::Camera, config.timeout()) }
    }
}

impl Source for Camera {
    fn run(&self, handoff: &Handoff, tell: &dyn Fn(Condition)) {
        self.live.run(handoff, tell, |reports| {
            let device = self.device.clone();
            let read = move || {
                // v4l panics where a driver does what it does not know.
                let end = catch_unwind(AssertUnwindSafe(|| device.read(&reports)));
                match end.unwrap_or_else(|panic| Err(misunderstood(&*panic))) {
                    Ok(()) => {}
                    Err(why) => reports.failed(why),
                }
            };
            thread::Builder::new().name("camera".to_owned()).spawn(read).map(Reading)
        });
    }

    fn stop(&self) {
        self.live.stop();
    }
}

/// A thread that reads a camera. It ends by itself as soon as it sees that nobody listens.
struct Reading(JoinHandle<()>);

impl Reader for Reading {
    fn close(self, _failed: bool) -> Option<String> {
        let deadline = Instant::now() + GRACE;
        while !self.0.is_finished() && Instant::now() < deadline {
            thread::sleep(LOOK / 20);
        }
        None
    }
}

/// What all readers of a camera share.
struct Device {
    name: String,
    wanted: Wanted,
    /// How long it may give no frame. None is older than this when it is read; a driver that says so has
    /// its own idea of time.
    timeout: Duration,
    /// Numbers of the cameras that readers have open, or are about to open or close.
    held: Mutex<BTreeSet<u32>>,
}

/// A reader's claim on a camera.
struct Hold<'a>(&'a Device, u32);

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.1);
    }
}

impl Device {
    /// Reports frame after frame, until nobody listens or there is none in time.
    ///
    /// # Errors
    /// Why there are none, or no more.
    fn read(&self, reports: &Reports) -> Result<(), String> {
        let deadline = Instant::now() + self.timeout;
        let cameras = listed(Path::new(LISTED));
        let number = find(&self.name, &cameras)?;
        let _hold = self.hold(number)?;
        let fails = |error: io::Error| explain(number, &error);
        let device = v4l::Device::new(number as usize).map_err(fails)?;
        let granted = self.wanted.ask(&device).map_err(fails)?;
        let granted = granted.ok_or_else(|| unknown(number))?;
        let mut stream = Stream::new(&device, deadline).map_err(fails)?;
        let name = cameras.iter().find(|(listed, _)| *listed == number);
        let name = name.map_or("camera", |(_, name)| name);
        reports.opened(format!("/dev/video{number} {name}, {granted}"));
        match self.pass_on(&mut stream, &granted, reports) {
            // Whoever listens has the same deadline, and says so.
            Err(error) if error.kind() == io::ErrorKind::TimedOut => Ok(()),
            end => end.map_err(fails),
        }
    }

    /// Reports the newest of the frames that are there, whenever there are some.
    ///
    /// # Errors
    /// The system's; none may be asked for then.
    fn pass_on(&self, stream: &mut Stream, granted: &Granted, reports: &Reports) -> io::Result<()> {
        let stream = stream.0.as_mut().expect("only dropping takes it");
        let handle = stream.handle();
        let mut count = Count::default();
        // The first call starts the camera, and waits by itself.
        let mut is_ready = true;
        while reports.wanted() {
            if !is_ready {
                is_ready = ready(&handle, LOOK)?;
                continue;
            }
            let (bytes, about) = stream.next()?;
            count.read();
            is_ready = ready(&handle, Duration::ZERO)?;
            if is_ready || about.flags.contains(Flags::ERROR) {
                continue;
            }
            let used = bytes.len().min(about.bytesused as usize);
            if let Some(picture) = granted.picture(&bytes[..used]) {
                reports.dropped(count.given(about.sequence));
                reports.picture(picture, self.age(about));
            }
        }
        Ok(())
    }

    fn hold(&self, number: u32) -> Result<Hold<'_>, String> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        match held.insert(number) {
            true => Ok(Hold(self, number)),
            false => Err(format!("/dev/video{number} hangs: pull it out and plug it in again")),
        }
    }

    /// How long ago a frame was taken, by the system's monotonic clock.
    fn age(&self, frame: &Metadata) -> Duration {
        let now = clock_gettime(ClockId::Monotonic);
        let now = Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32);
        let age = now.checked_sub(Duration::from(frame.timestamp));
        age.filter(|age| *age <= self.timeout).unwrap_or_default()
    }
}

/// Whether there is a frame within `patience`, or an error.
fn ready(handle: &Handle, patience: Duration) -> io::Result<bool> {
    match handle.poll(READABLE, patience.as_millis() as i32) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(false),
        count => count.map(|count| count > 0),
    }
}

/// Frames on their way out of the driver. After an error it cannot be used any more.
struct Stream(Option<v4l::io::mmap::Stream<'static>>);

impl Stream {
    /// A stream that waits until `deadline` for its first frame.
    fn new(device: &v4l::Device, deadline: Instant) -> io::Result<Self> {
        let mut stream = v4l::io::mmap::Stream::with_buffers(device, Type::VideoCapture, BUFFERS)?;
        stream.set_timeout(deadline.saturating_duration_since(Instant::now()));
        Ok(Self(Some(stream)))
    }
}

impl Drop for Stream {
    /// Stops the camera. v4l panics where that fails, and where the buffers are not taken back then once
    /// more, which would end the program. A camera that was pulled out is none of these.
    fn drop(&mut self) {
        let Some(mut stream) = self.0.take() else { return };
        match stream.stop() {
            Err(error) if error.raw_os_error() != Some(ENODEV) => {
                tracing::error!(%error, "camera cannot be stopped, and stays open");
                mem::forget(stream);
            }
            _ => drop(stream),
        }
    }
}

/// How many frames were not given, whether they were passed over here or by the driver, which numbers them.
#[derive(Debug, Default)]
struct Count {
    read: u64,
    last: Option<u32>,
}

impl Count {
    /// A frame was read.
    fn read(&mut self) {
        self.read += 1;
    }

    /// The one that was read last is given, the driver's number `sequence`. Returns how many were not
    /// since the one before. Some drivers number nothing.
    fn given(&mut self, sequence: u32) -> u64 {
        let step = self.last.replace(sequence).map_or(0, |last| sequence.wrapping_sub(last));
        let passed = mem::take(&mut self.read).saturating_sub(1);
        match step <= u32::MAX / 2 {
            true => passed.max(u64::from(step).saturating_sub(1)),
            false => passed,
        }
    }
}

/// The cameras that the kernel lists in `folder`: number and name, in order.
fn listed(folder: &Path) -> Vec<(u32, String)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let cameras = entries.filter_map(|entry| {
        let number = entry.file_name().to_str()?.strip_prefix("video")?.parse().ok()?;
        let name = fs::read_to_string(entry.path().join("name")).ok()?;
        Some((number, name.trim().to_owned()))
    });
    let mut cameras: Vec<_> = cameras.collect();
    cameras.sort();
    cameras
}

/// The number of the camera `device`, which is its number, its path or the beginning of its name. Of
/// several of that name it is the first: the others are its further channels.
fn find(device: &str, cameras: &[(u32, String)]) -> Result<u32, String> {
    if let Ok(number) = device.parse() {
        return Ok(number);
    }
    if device.starts_with('/') {
        let path = fs::canonicalize(device).map_err(|error| format!("{device}: {error}"))?;
        let number = path.to_str().and_then(|path| path.strip_prefix("/dev/video")?.parse().ok());
        return number.ok_or_else(|| format!("{device} is no camera, which is /dev/video0 or so"));
    }
    let exact = cameras.iter().find(|(_, name)| name == device);
    let found = exact.or_else(|| cameras.iter().find(|(_, name)| name.starts_with(device)));
    found.map(|(number, _)| *number).ok_or_else(|| match cameras {
        [] => format!("no camera '{device}', nor any other"),
        _ => {
            let names: Vec<&str> = cameras.iter().map(|(_, name)| name.as_str()).collect();
            format!("no camera '{device}', but '{}'", names.join("', '"))
        }
    })
}

/// What an error of the system means.
fn explain(number: u32, error: &io::Error) -> String {
    let path = format!("/dev/video{number}");
    match error.raw_os_error() {
        Some(ENOENT | ENXIO | ENODEV) => format!("{path} is not there, or was pulled out"),
        Some(EPERM | EACCES) => format!("{path} may not be opened: put this user into group video"),
        Some(EBUSY) => format!("{path} is busy: another program uses it"),
        Some(ENOSPC) => {
            format!(
                "{path} finds no room on its bus: try a smaller size, a lower rate or another port"
            )
        }
        _ => format!("{path}: {error}"),
    }
}

/// What a panic of the library means.
fn misunderstood(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no reason given");
    format!("the camera's driver does what is not understood: {text}")
}

fn unknown(number: u32) -> String {
    format!("/dev/video{number} offers neither MJPEG, YUYV, NV12, RGB nor GREY")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_that_are_not_given_are_counted() {
        let check = |frames: &[(bool, u32)], expected: &[u64]| {
            let (mut count, mut found) = (Count::default(), Vec::new());
            for (is_given, sequence) in frames {
                count.read();
                found.extend(is_given.then(|| count.given(*sequence)));
            }
            assert_eq!(found, expected, "{frames:?}");
        };
        check(&[(true, 7), (true, 8), (true, 9)], &[0, 0, 0]);
        check(&[(true, 0), (true, 4), (true, 5)], &[0, 3, 0]);
        check(&[(false, 0), (true, 1), (false, 2), (false, 3), (true, 4)], &[1, 2]);
        check(&[(true, 0), (false, 2), (true, 6)], &[0, 5]);
        check(&[(true, u32::MAX), (true, 0), (true, 2)], &[0, 0, 1]);
        check(&[(true, 0), (false, 0), (true, 0), (true, 0)], &[0, 1, 0]);
        check(&[(true, 500), (true, 1), (true, 2)], &[0, 0, 0]);
    }

    #[test]
    fn a_camera_is_found_by_number_path_and_name() {
        let folder = tempfile::tempdir().unwrap();
        for (node, name) in [
            ("video0", "Integrated Camera: IR\n"),
            ("video2", "Integrated Camera\n"),
            ("video10", "HD Webcam\n"),
            ("video1", "Integrated Camera: IR\n"),
            ("v4l-subdev0", "sensor\n"),
        ] {
            fs::create_dir(folder.path().join(node)).unwrap();
            fs::write(folder.path().join(node).join("name"), name).unwrap();
        }
        let cameras = listed(folder.path());
        assert_eq!(cameras.iter().map(|camera| camera.0).collect::<Vec<_>>(), [0, 1, 2, 10]);
        assert_eq!(listed(&folder.path().join("none")), []);
        let link = folder.path().join("usb-HD_Webcam-index0");
        std::os::unix::fs::symlink(folder.path().join("video10"), &link).unwrap();
        let check = |device: &str, expected: Result<u32, &str>| {
            let found = find(device, &cameras);
            let same = match (&found, expected) {
                (Ok(found), Ok(expected)) => *found == expected,
                (Err(found), Err(expected)) => found.contains(expected),
                _ => false,
            };
            assert!(same, "{device}: {found:?}");
        };
        check("7", Ok(7));
        check("HD", Ok(10));
        check("Integrated Camera", Ok(2));
        check("Integrated", Ok(0));
        check("Webcam", Err("no camera 'Webcam', but 'Integrated Camera: IR', 'Integ"));
        check("/dev/video77", Err("/dev/video77: No such file"));
        check("/dev/null", Err("/dev/null is no camera"));
        check(link.to_str().unwrap(), Err("is no camera"));
        assert_eq!(find("x", &[]).unwrap_err(), "no camera 'x', nor any other");
    }

    #[test]
    fn errors_say_what_to_do() {
        let check = |code: i32, expected: &str| {
            let found = explain(3, &io::Error::from_raw_os_error(code));
            assert!(found.starts_with("/dev/video3") && found.contains(expected), "{found}");
        };
        check(2, "is not there");
        check(19, "pulled out");
        check(13, "group video");
        check(16, "another program");
        check(28, "no room on its bus");
        check(5, "Input/output error");
        let panic = catch_unwind(|| panic!("Invalid {}", "colorspace")).unwrap_err();
        let expected = "the camera's driver does what is not understood: Invalid colorspace";
        assert_eq!(misunderstood(&*panic), expected);
    }

    #[test]
    fn a_camera_that_hangs_is_not_opened_again() {
        let config = config::Config::load(None).unwrap();
        let camera = Camera::new(&config.source);
        let hold = camera.device.hold(3).unwrap();
        assert!(camera.device.hold(3).is_err_and(|why| why.contains("/dev/video3 hangs")));
        assert!(camera.device.hold(4).is_ok());
        drop(hold);
        assert!(camera.device.hold(3).is_ok());
    }
}
