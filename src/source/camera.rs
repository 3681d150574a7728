//! A camera that the kernel drives (V4L2): the only file that names nokhwa.
//!
//! Owns finding and opening a camera, what is asked of it, and what its errors mean. It takes frames as
//! the driver gives them and decodes none: most are dropped, because newer ones come.
//!
//! Reading a frame has no deadline of its own and waits for as long as a camera says nothing. So a thread
//! reads all frames as soon as they are there, which keeps the driver's queue empty, and is left alone
//! when it hangs. It wakes when the camera goes on or is pulled out, and ends then. Until it does the
//! camera is not opened a second time, which would only be refused: no more than one thread hangs at one
//! camera.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use nokhwa::utils::{
    ApiBackend, CameraFormat, CameraIndex, FrameFormat, RequestedFormat, RequestedFormatType,
    Resolution,
};
use nokhwa::{Buffer, NokhwaError};

use super::live::{Live, Reader, Reports};
use super::{Condition, Handoff, Picture, Source, jpeg};
use crate::config;
use crate::config::{Format, SourceKind};
use crate::preprocess::{PixelFormat, Raw};

/// Where the kernel lists its cameras.
const LISTED: &str = "/sys/class/video4linux";

/// Formats as they are preferred: those that are small on the bus first, the one without colours last.
/// nokhwa 0.10 looks for grey under a name that the kernel does not use, and so never finds it.
const FORMATS: [(Format, FrameFormat); 5] = [
    (Format::Mjpeg, FrameFormat::MJPEG),
    (Format::Yuyv, FrameFormat::YUYV),
    (Format::Nv12, FrameFormat::NV12),
    (Format::Rgb, FrameFormat::RAWRGB),
    (Format::Grey, FrameFormat::GRAY),
];

/// A camera, found anew by its number, path or name whenever it is opened.
pub struct Camera {
    device: Arc<Device>,
    live: Live,
}

impl Camera {
    /// The configured camera; nothing is opened yet.
    pub fn new(config: &config::Source) -> Self {
        let (width, height) = config.size();
        let wanted = Mode { format: config.format, width, height, rate: config.rate };
        let device = Device {
            name: config.device.clone(),
            wanted,
            oldest: config.timeout(),
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
                if let Err(why) = device.read(&reports) {
                    reports.failed(why);
                }
            };
            thread::Builder::new().name("camera".to_owned()).spawn(read).map(|_| Reading)
        });
    }

    fn stop(&self) {
        self.live.stop();
    }
}

/// A thread that reads a camera. It ends by itself, after the next frame.
struct Reading;

impl Reader for Reading {
    fn close(self, _failed: bool) -> Option<String> {
        None
    }
}

/// What cameras can be asked for, and what they offer.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Mode {
    format: Format,
    width: u32,
    height: u32,
    /// Frames a second.
    rate: u32,
}

impl Mode {
    fn of(found: CameraFormat) -> Option<Self> {
        let (format, _) = FORMATS.into_iter().find(|(_, theirs)| *theirs == found.format())?;
        let (width, height, rate) = (found.width(), found.height(), found.frame_rate());
        Some(Self { format, width, height, rate })
    }

    /// The one of `offered` that comes nearest: in its format, else the most preferred one, then in size,
    /// then in rate; the larger of two that are as near.
    fn nearest(self, offered: impl Iterator<Item = Self>) -> Option<Self> {
        offered.min_by_key(|mode| {
            let format = FORMATS.iter().position(|(format, _)| *format == mode.format);
            let pixels = u64::from(mode.width) * u64::from(mode.height);
            let rate = mode.rate.abs_diff(self.rate);
            let size = (mode.differs_in_size(self), Reverse(pixels));
            (mode.format != self.format, format, size, rate, Reverse(mode.rate))
        })
    }

    fn differs_in_size(self, other: Self) -> u64 {
        let [width, height] = [(self.width, other.width), (self.height, other.height)]
            .map(|(one, other)| u64::from(one.abs_diff(other)));
        width + height
    }

    /// The same in its own format first, then in the others.
    fn in_each_format(self) -> impl Iterator<Item = Self> {
        let others = FORMATS.into_iter().map(|(format, _)| format);
        let formats = std::iter::once(self.format).chain(others);
        formats.map(move |format| Self { format, ..self })
    }

    /// As the library says it.
    fn exactly(self) -> Option<CameraFormat> {
        let (_, format) = FORMATS.into_iter().find(|(ours, _)| *ours == self.format)?;
        let size = Resolution::new(self.width, self.height);
        Some(CameraFormat::new(size, format, self.rate))
    }
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { format, width, height, rate } = self;
        let format = format!("{format:?}").to_uppercase();
        write!(f, "{width} x {height} {format}, {rate} frames a second")
    }
}

/// What all readers of a camera share.
struct Device {
    name: String,
    wanted: Mode,
    /// No frame is older than this when it is read; a driver that says so has its own idea of time.
    oldest: Duration,
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
    /// Reports frame after frame.
    ///
    /// # Errors
    /// Why there are none, or no more.
    fn read(&self, reports: &Reports) -> Result<(), String> {
        let number = find(&self.name, &listed(Path::new(LISTED)))?;
        let _hold = self.hold(number)?;
        let fails = |error: NokhwaError| explain(number, &error);
        let mut camera = self.open(number).map_err(fails)?;
        camera.open_stream().map_err(fails)?;
        let mode = Mode::of(camera.camera_format()).ok_or_else(|| unknown(number))?;
        let name = camera.info().human_name();
        reports.opened(format!("/dev/video{number} {name}, {mode}"));
        while reports.wanted() {
            let frame = camera.frame().map_err(fails)?;
            let age = self.age(&frame);
            if let Some(picture) = picture(&frame) {
                reports.picture(picture, age);
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

    /// Opens a camera in the mode that comes nearest to the wanted one.
    fn open(&self, number: u32) -> Result<nokhwa::Camera, NokhwaError> {
        let theirs = FORMATS.map(|(_, theirs)| theirs);
        let ask = |what| RequestedFormat::with_formats(what, &theirs);
        let (index, any) = (CameraIndex::Index(number), ask(RequestedFormatType::None));
        let mut camera = nokhwa::Camera::with_backend(index, any, ApiBackend::Video4Linux)?;
        let offered = camera.compatible_camera_formats()?;
        let nearest = self.wanted.nearest(offered.into_iter().filter_map(Mode::of));
        // Of sizes without gaps only the ends are listed, or nothing, so what is wanted is tried first. A
        // driver may adjust what it is asked for, which the library calls an error: what counts is what
        // it has then.
        let modes = match nearest {
            Some(nearest) => vec![Mode { format: nearest.format, ..self.wanted }, nearest],
            None => self.wanted.in_each_format().collect(),
        };
        for mode in modes {
            let Some(exactly) = mode.exactly() else { continue };
            let answer = camera.set_camera_requset(ask(RequestedFormatType::Exact(exactly)));
            let now = Mode::of(camera.refresh_camera_format()?);
            tracing::debug!(?mode, ?now, ?answer, "camera asked");
            let far = |mode: Mode| mode.differs_in_size(self.wanted);
            let enough = |now: Mode| nearest.is_none_or(|nearest| far(now) <= far(nearest));
            if now.is_some_and(|now| now.format == mode.format && enough(now)) {
                break;
            }
        }
        Ok(camera)
    }

    fn age(&self, frame: &Buffer) -> Duration {
        let taken = frame.capture_timestamp().map(|since| UNIX_EPOCH + since);
        let age = taken.and_then(|taken| taken.elapsed().ok());
        age.filter(|age| *age <= self.oldest).unwrap_or_default()
    }
}

/// The picture in a frame, if there is a whole one.
fn picture(frame: &Buffer) -> Option<Picture> {
    let (size, format) = (frame.resolution(), frame.source_frame_format());
    let format = match format {
        FrameFormat::MJPEG => return jpeg::first(frame.buffer()).map(Picture::Encoded),
        FrameFormat::YUYV => PixelFormat::Yuyv,
        FrameFormat::NV12 => PixelFormat::Nv12,
        FrameFormat::RAWRGB => PixelFormat::Rgb,
        FrameFormat::GRAY => PixelFormat::Grey,
        FrameFormat::RAWBGR => return None,
    };
    let data = frame.buffer().to_vec();
    Some(Picture::Raw(Raw { format, width: size.width(), height: size.height(), data }))
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

/// What an error of the library means. It keeps the system's error as text only.
fn explain(number: u32, error: &NokhwaError) -> String {
    let text = error.to_string();
    let code = text.rsplit_once("(os error ").and_then(|(_, code)| code.strip_suffix(')'));
    let path = format!("/dev/video{number}");
    match code.and_then(|code| code.parse().ok()) {
        Some(2 | 6 | 19) => format!("{path} is not there, or was pulled out"),
        Some(1 | 13) => format!("{path} may not be opened: put this user into group video"),
        Some(16) => format!("{path} is busy: another program uses it"),
        None if lists_nothing(error) => unknown(number),
        _ => format!("{path}: {text}"),
    }
}

/// Whether a camera lists no mode that was asked for.
fn lists_nothing(error: &NokhwaError) -> bool {
    matches!(error, NokhwaError::GetPropertyError { property, .. } if property == "CameraFormat")
}

fn unknown(number: u32) -> String {
    format!(
        "/dev/video{number} offers neither MJPEG, YUYV, NV12 nor RGB, or not as asked for: try another size and rate"
    )
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn mode(format: Format, width: u32, height: u32, rate: u32) -> Mode {
        Mode { format, width, height, rate }
    }

    #[test]
    fn the_nearest_mode_is_chosen() {
        use Format::{Auto, Grey, Mjpeg, Nv12, Rgb, Yuyv};
        let webcam = [
            mode(Grey, 640, 480, 15),
            mode(Yuyv, 640, 480, 30),
            mode(Yuyv, 640, 480, 10),
            mode(Yuyv, 640, 480, 20),
            mode(Yuyv, 320, 240, 30),
            mode(Rgb, 640, 480, 15),
            mode(Mjpeg, 1280, 720, 30),
            mode(Mjpeg, 1920, 1080, 30),
            mode(Mjpeg, 1280, 720, 5),
        ];
        let check = |wanted: Mode, expected: Mode| {
            let found = wanted.nearest(webcam.into_iter());
            assert_eq!(found, Some(expected), "{wanted:?}");
            let found = wanted.nearest(webcam.into_iter().rev());
            assert_eq!(found, Some(expected), "{wanted:?}, listed backwards");
        };
        check(mode(Auto, 640, 480, 15), mode(Mjpeg, 1280, 720, 5));
        check(mode(Auto, 640, 480, 25), mode(Mjpeg, 1280, 720, 30));
        check(mode(Auto, 4000, 3000, 1), mode(Mjpeg, 1920, 1080, 30));
        check(mode(Yuyv, 640, 480, 15), mode(Yuyv, 640, 480, 20));
        check(mode(Yuyv, 640, 480, 11), mode(Yuyv, 640, 480, 10));
        check(mode(Yuyv, 100, 100, 11), mode(Yuyv, 320, 240, 30));
        check(mode(Yuyv, 480, 360, 30), mode(Yuyv, 640, 480, 30));
        check(mode(Grey, 9000, 9000, 90), mode(Grey, 640, 480, 15));
        check(mode(Nv12, 1280, 720, 30), mode(Mjpeg, 1280, 720, 30));
        assert_eq!(mode(Auto, 640, 480, 15).nearest([].into_iter()), None);
        let without = webcam.into_iter().filter(|mode| mode.format != Mjpeg);
        let found = mode(Auto, 640, 480, 30).nearest(without);
        assert_eq!(found, Some(mode(Yuyv, 640, 480, 30)));
    }

    #[test]
    fn modes_are_translated_both_ways() {
        for (format, _) in FORMATS {
            let mode = mode(format, 640, 480, 15);
            assert_eq!(Mode::of(mode.exactly().unwrap()), Some(mode));
        }
        assert_eq!(mode(Format::Auto, 640, 480, 15).exactly(), None);
        let yuyv = mode(Format::Yuyv, 640, 480, 15).to_string();
        assert_eq!(yuyv, "640 x 480 YUYV, 15 frames a second");
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
            let text = format!("V4L2 Error: {}", io::Error::from_raw_os_error(code));
            let error = NokhwaError::OpenDeviceError("3".to_owned(), text);
            let found = explain(3, &error);
            assert!(found.starts_with("/dev/video3") && found.contains(expected), "{found}");
        };
        check(2, "is not there");
        check(19, "pulled out");
        check(13, "group video");
        check(16, "another program");
        check(5, "Input/output error");
        let error = NokhwaError::GeneralError("(os error )".to_owned());
        assert_eq!(explain(3, &error), "/dev/video3: Error: (os error )");
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
