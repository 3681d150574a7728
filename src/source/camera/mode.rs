//! What a camera is asked for, what it offers and what it grants: format, size and rate.
//!
//! Owns the kernel's names of formats and which of them are preferred. It reads no frames.

use std::cmp::{Ordering, Reverse};
use std::io;

use v4l::format::FourCC;
use v4l::fraction::Fraction;
use v4l::frameinterval::FrameIntervalEnum;
use v4l::framesize::FrameSizeEnum;
use v4l::video::Capture;
use v4l::video::capture::Parameters;

use crate::config::Format;
use crate::preprocess::{PixelFormat, Raw};
use crate::source::{Picture, jpeg};

/// Formats as they are preferred, with the kernel's names: those that are small on the bus first, the one
/// without colours last.
const FORMATS: [(Format, &[u8; 4]); 6] = [
    (Format::Mjpeg, b"MJPG"),
    (Format::Mjpeg, b"JPEG"),
    (Format::Yuyv, b"YUYV"),
    (Format::Nv12, b"NV12"),
    (Format::Rgb, b"RGB3"),
    (Format::Grey, b"GREY"),
];

/// What is wished for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) format: Format,
    pub(super) width: u32,
    pub(super) height: u32,
    /// Frames a second.
    pub(super) rate: f64,
}

/// What a camera offers.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Mode {
    /// Which of [`FORMATS`].
    format: usize,
    width: u32,
    height: u32,
    /// From frame to frame, numerator and denominator of seconds.
    interval: (u32, u32),
}

/// How a camera was opened.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Granted {
    format: Format,
    width: u32,
    height: u32,
    /// Bytes from line to line, if the format has lines.
    stride: u32,
    /// Frames a second, if the camera says so.
    rate: Option<f64>,
}

impl Wanted {
    /// Puts `device` into the mode that comes nearest, whatever mode it was left in. What it grants may
    /// differ from what it offers. Nothing if that, or all that it offers, is not among [`FORMATS`].
    pub(super) fn ask(&self, device: &v4l::Device) -> io::Result<Option<Granted>> {
        let Some(mode) = self.nearest(self.offered(device)?.into_iter()) else {
            return Ok(None);
        };
        let fourcc = FourCC::new(FORMATS[mode.format].1);
        let format = device.set_format(&v4l::Format::new(mode.width, mode.height, fourcc))?;
        let interval = Fraction::new(mode.interval.0, mode.interval.1);
        // Many cameras have but one rate and refuse to be asked for any.
        let parameters = device.set_params(&Parameters::new(interval));
        let parameters = parameters.or_else(|_| device.params()).ok();
        let rate = parameters.and_then(|parameters| rate(parameters.interval));
        tracing::debug!(wanted = ?self, asked = ?mode, granted = %format, "camera asked");
        let known = FORMATS.into_iter().find(|(_, name)| FourCC::new(name) == format.fourcc);
        Ok(known.map(|(known, _)| Granted {
            format: known,
            width: format.width,
            height: format.height,
            stride: format.stride,
            rate,
        }))
    }

    /// All modes of `device` in formats that are known here; where it has sizes or rates without gaps, or
    /// does not list them, what comes nearest of those.
    fn offered(&self, device: &v4l::Device) -> io::Result<Vec<Mode>> {
        let listed = device.enum_formats()?;
        let mut modes = Vec::new();
        for (format, (_, name)) in FORMATS.into_iter().enumerate() {
            let fourcc = FourCC::new(name);
            if !listed.iter().any(|listed| listed.fourcc == fourcc) {
                continue;
            }
            let sizes = device.enum_framesizes(fourcc).unwrap_or_default();
            for (width, height) in or_wanted(sizes.iter().map(|size| self.size(&size.size)), || {
                (self.width, self.height)
            }) {
                let intervals = device.enum_frameintervals(fourcc, width, height);
                let intervals = intervals.unwrap_or_default();
                let intervals = intervals.iter().map(|found| self.interval(&found.interval));
                for interval in or_wanted(intervals, || fraction(self.rate)) {
                    modes.push(Mode { format, width, height, interval });
                }
            }
        }
        Ok(modes)
    }

    /// Of some sizes the nearest.
    fn size(&self, sizes: &FrameSizeEnum) -> (u32, u32) {
        let near = |wanted: u32, least: u32, most: u32, step: u32| {
            let wanted = wanted.min(most).max(least);
            least + (wanted - least) / step.max(1) * step
        };
        match sizes {
            FrameSizeEnum::Discrete(size) => (size.width, size.height),
            FrameSizeEnum::Stepwise(sizes) => (
                near(self.width, sizes.min_width, sizes.max_width, sizes.step_width),
                near(self.height, sizes.min_height, sizes.max_height, sizes.step_height),
            ),
        }
    }

    /// Of some intervals the nearest.
    fn interval(&self, intervals: &FrameIntervalEnum) -> (u32, u32) {
        let parts = |interval: Fraction| (interval.numerator, interval.denominator);
        match intervals {
            FrameIntervalEnum::Discrete(interval) => parts(*interval),
            FrameIntervalEnum::Stepwise(intervals) => {
                let is = |bound, side| {
                    rate(bound).is_some_and(|rate| self.rate.total_cmp(&rate) == side)
                };
                match () {
                    () if is(intervals.min, Ordering::Greater) => parts(intervals.min),
                    () if is(intervals.max, Ordering::Less) => parts(intervals.max),
                    () => fraction(self.rate),
                }
            }
        }
    }

    /// The one of `offered` that comes nearest: in its format, else the most preferred one, then in size,
    /// then in rate; the larger of two that are as near.
    fn nearest(&self, offered: impl Iterator<Item = Mode>) -> Option<Mode> {
        let distance = |mode: &Mode| {
            let size = [(mode.width, self.width), (mode.height, self.height)];
            let size: u64 = size.map(|(one, other)| u64::from(one.abs_diff(other))).iter().sum();
            let pixels = u64::from(mode.width) * u64::from(mode.height);
            let rate = rate(Fraction::new(mode.interval.0, mode.interval.1)).unwrap_or_default();
            let is_other = FORMATS[mode.format].0 != self.format;
            (is_other, mode.format, size, Reverse(pixels), (rate - self.rate).abs(), -rate)
        };
        offered.min_by(|one, other| {
            distance(one).partial_cmp(&distance(other)).expect("rates are numbers")
        })
    }
}

/// What there is, or `wanted` if there is nothing.
fn or_wanted<T>(found: impl Iterator<Item = T>, wanted: impl Fn() -> T) -> Vec<T> {
    let mut found: Vec<T> = found.collect();
    if found.is_empty() {
        found.push(wanted());
    }
    found
}

/// Frames a second, if there is such an interval.
fn rate(interval: Fraction) -> Option<f64> {
    let known = interval.numerator > 0 && interval.denominator > 0;
    known.then(|| f64::from(interval.denominator) / f64::from(interval.numerator))
}

/// The interval of so many frames a second, to a thousandth.
fn fraction(rate: f64) -> (u32, u32) {
    match rate.fract() == 0.0 {
        true => (1, rate as u32),
        false => (1000, (rate * 1000.0).round() as u32),
    }
}

impl Granted {
    /// The picture in what the camera has put into a buffer, if there is a whole one.
    pub(super) fn picture(&self, bytes: &[u8]) -> Option<Picture> {
        let format = match self.format {
            Format::Yuyv => PixelFormat::Yuyv,
            Format::Nv12 => PixelFormat::Nv12,
            Format::Rgb => PixelFormat::Rgb,
            Format::Grey => PixelFormat::Grey,
            Format::Mjpeg | Format::Auto => return jpeg::first(bytes).map(Picture::Encoded),
        };
        Raw::from_lines(format, self.width, self.height, self.stride, bytes).map(Picture::Raw)
    }
}

impl std::fmt::Display for Granted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { format, width, height, .. } = self;
        write!(f, "{width} x {height} {}", format!("{format:?}").to_uppercase())?;
        match self.rate {
            Some(rate) => write!(f, ", {} frames a second", (rate * 100.0).round() / 100.0),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use v4l::{frameinterval, framesize};

    use super::*;

    fn wanted(format: Format, width: u32, height: u32, rate: f64) -> Wanted {
        Wanted { format, width, height, rate }
    }

    fn mode(name: &[u8; 4], width: u32, height: u32, interval: (u32, u32)) -> Mode {
        let format = FORMATS.iter().position(|(_, known)| *known == name).unwrap();
        Mode { format, width, height, interval }
    }

    #[test]
    fn the_nearest_mode_is_chosen() {
        use Format::{Auto, Grey, Mjpeg, Nv12, Yuyv};
        let webcam = [
            mode(b"GREY", 640, 480, (1, 15)),
            mode(b"YUYV", 640, 480, (1, 30)),
            mode(b"YUYV", 640, 480, (1, 10)),
            mode(b"YUYV", 640, 480, (2, 25)),
            mode(b"YUYV", 640, 480, (1, 20)),
            mode(b"YUYV", 320, 240, (1, 30)),
            mode(b"RGB3", 640, 480, (1, 15)),
            mode(b"MJPG", 1280, 720, (1, 30)),
            mode(b"MJPG", 1920, 1080, (1, 30)),
            mode(b"MJPG", 1280, 720, (1, 5)),
            mode(b"JPEG", 640, 480, (1, 15)),
        ];
        let check = |wanted: Wanted, expected: Mode| {
            let found = wanted.nearest(webcam.into_iter());
            assert_eq!(found, Some(expected), "{wanted:?}");
            let found = wanted.nearest(webcam.into_iter().rev());
            assert_eq!(found, Some(expected), "{wanted:?}, listed backwards");
        };
        check(wanted(Auto, 640, 480, 15.0), mode(b"MJPG", 1280, 720, (1, 5)));
        check(wanted(Auto, 640, 480, 25.0), mode(b"MJPG", 1280, 720, (1, 30)));
        check(wanted(Auto, 4000, 3000, 0.5), mode(b"MJPG", 1920, 1080, (1, 30)));
        check(wanted(Yuyv, 640, 480, 15.0), mode(b"YUYV", 640, 480, (2, 25)));
        check(wanted(Yuyv, 640, 480, 11.25), mode(b"YUYV", 640, 480, (2, 25)));
        check(wanted(Yuyv, 640, 480, 11.0), mode(b"YUYV", 640, 480, (1, 10)));
        check(wanted(Yuyv, 640, 480, 25.0), mode(b"YUYV", 640, 480, (1, 30)));
        check(wanted(Yuyv, 100, 100, 11.0), mode(b"YUYV", 320, 240, (1, 30)));
        check(wanted(Yuyv, 480, 360, 30.0), mode(b"YUYV", 640, 480, (1, 30)));
        check(wanted(Grey, 9000, 9000, 90.0), mode(b"GREY", 640, 480, (1, 15)));
        check(wanted(Nv12, 1280, 720, 30.0), mode(b"MJPG", 1280, 720, (1, 30)));
        assert!(wanted(Auto, 640, 480, 15.0).nearest([].into_iter()).is_none());
        let without = webcam.into_iter().filter(|mode| FORMATS[mode.format].0 != Mjpeg);
        let found = wanted(Auto, 640, 480, 30.0).nearest(without);
        assert_eq!(found, Some(mode(b"YUYV", 640, 480, (1, 30))));
    }

    #[test]
    fn of_sizes_and_rates_without_gaps_the_nearest_is_asked_for() {
        let sizes = FrameSizeEnum::Stepwise(framesize::Stepwise {
            min_width: 32,
            max_width: 2592,
            step_width: 16,
            min_height: 32,
            max_height: 1944,
            step_height: 0,
        });
        let check = |size: (u32, u32), expected: (u32, u32)| {
            assert_eq!(wanted(Format::Auto, size.0, size.1, 1.0).size(&sizes), expected);
        };
        check((640, 480), (640, 32));
        check((650, 1), (640, 32));
        check((9999, 9999), (2592, 32));
        let intervals = FrameIntervalEnum::Stepwise(frameinterval::Stepwise {
            min: Fraction::new(1, 90),
            max: Fraction::new(2, 1),
            step: Fraction::new(1, 1),
        });
        let check = |rate: f64, expected: (u32, u32)| {
            let found = wanted(Format::Auto, 1, 1, rate).interval(&intervals);
            assert_eq!(found, expected, "{rate}");
        };
        check(100.0, (1, 90));
        check(90.0, (1, 90));
        check(12.5, (1000, 12_500));
        check(29.97, (1000, 29_970));
        check(0.25, (2, 1));
    }

    #[test]
    fn what_was_granted_is_told() {
        let check = |format: Format, rate: Option<f64>, expected: &str| {
            let granted = Granted { format, width: 640, height: 480, stride: 0, rate };
            assert_eq!(granted.to_string(), expected);
        };
        check(Format::Yuyv, Some(15.0), "640 x 480 YUYV, 15 frames a second");
        check(Format::Mjpeg, Some(12.5), "640 x 480 MJPEG, 12.5 frames a second");
        let rate = rate(Fraction::new(1001, 30_000));
        check(Format::Grey, rate, "640 x 480 GREY, 29.97 frames a second");
        check(Format::Grey, super::rate(Fraction::new(0, 0)), "640 x 480 GREY");
    }

    #[test]
    fn a_buffer_has_a_whole_picture_or_none() {
        let granted = |format, stride| Granted { format, width: 3, height: 2, stride, rate: None };
        let data = |picture: Option<Picture>| match picture {
            Some(Picture::Raw(raw)) => Some(raw.data),
            other => other.map(|other| panic!("{other:?}")),
        };
        let lines = [1, 2, 3, 0, 4, 5, 6, 0];
        let grey = granted(Format::Grey, 4);
        assert_eq!(data(grey.picture(&lines)), Some(vec![1, 2, 3, 4, 5, 6]));
        assert_eq!(data(grey.picture(&lines[..6])), None);
        assert_eq!(data(granted(Format::Rgb, 9).picture(&[7; 17])), None);
        assert!(granted(Format::Mjpeg, 0).picture(&[0xff; 100]).is_none());
    }
}
