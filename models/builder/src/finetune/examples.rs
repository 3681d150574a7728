//! Photos to learn from: which are held back, in which order the others come, and how each is seen.

use std::error::Error;
use std::sync::mpsc::SyncSender;
use std::thread;

use super::FinetuneError;
use crate::digest::Digest;
use crate::random::Random;

/// Photos that a network is tuned on, with or without labels.
pub trait Examples: Sync {
    /// How many there are.
    fn count(&self) -> usize;

    /// Another name for each, the same whenever they are opened again, such as the file's path
    /// within its folder.
    fn name(&self, photo: usize) -> String;

    /// Index of its class, where that is known.
    fn label(&self, photo: usize) -> Option<usize>;

    /// The normalised input, 3 x side x side.
    ///
    /// # Errors
    /// Whatever keeps the photo from being read.
    fn input(
        &self,
        photo: usize,
        view: View,
        side: usize,
    ) -> Result<Vec<f32>, Box<dyn Error + Send + Sync>>;
}

/// How a photo is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// As it is classified.
    Whole,
    /// Some part of it, perhaps mirrored: see [`View::frame`].
    Crop(u64),
}

/// A part of a photo, in its pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Frame {
    /// Distance from the left edge.
    pub left: u32,
    /// Distance from the upper edge.
    pub top: u32,
    /// At least 1.
    pub width: u32,
    /// At least 1.
    pub height: u32,
    /// Whether left and right are exchanged afterwards.
    pub mirrored: bool,
}

/// Share of a photo that a crop shows, at least.
const LEAST_AREA: f32 = 0.25;

/// Width of a crop by its height, at most; at least the inverse.
const WIDEST: f32 = 4.0 / 3.0;

impl View {
    /// What a crop shows of a photo of `width` x `height`: between a quarter and all of it, 3:4 to
    /// 4:3, mirrored or not, always the same (Szegedy et al. 2015, with a larger least area). What
    /// is whole is framed as for classification: `None`.
    pub fn frame(self, width: u32, height: u32) -> Option<Frame> {
        let Self::Crop(seed) = self else {
            return None;
        };
        let mut random = Random::new(seed);
        let mirrored = random.uniform() < 0.5;
        let [full_width, full_height] = [width, height].map(|side| side as f32);
        for _ in 0..10 {
            let area =
                full_width * full_height * (LEAST_AREA + random.uniform() * (1.0 - LEAST_AREA));
            let ratio = WIDEST.powf(2.0 * random.uniform() - 1.0);
            let [w, h] = [(area * ratio).sqrt(), (area / ratio).sqrt()].map(|side| side.round());
            if w >= 1.0 && h >= 1.0 && w <= full_width && h <= full_height {
                let left = random.uniform() * (full_width - w + 1.0);
                let top = random.uniform() * (full_height - h + 1.0);
                let (w, h) = (w as u32, h as u32);
                let left = (left as u32).min(width - w);
                let top = (top as u32).min(height - h);
                return Some(Frame { left, top, width: w, height: h, mirrored });
            }
        }
        let side = width.min(height);
        let (left, top) = ((width - side) / 2, (height - side) / 2);
        Some(Frame { left, top, width: side, height: side, mirrored })
    }
}

/// At least this many photos are held back, and at least as many are learned from.
pub(super) const LEAST: usize = 16;

/// More do not make a judgement better by much.
const MOST: usize = 512;

/// Which photos are for what.
pub(crate) struct Split {
    /// Those to judge by: a tenth, the same whenever the photos are the same.
    pub(crate) held_back: Vec<usize>,
    /// Those to learn from.
    pub(crate) lessons: Vec<usize>,
    /// Checksum of each photo's name.
    names: Vec<u64>,
}

impl Split {
    pub(crate) fn of(examples: &dyn Examples) -> Self {
        let name = |photo| Digest::new().bytes(examples.name(photo).as_bytes()).end();
        let names: Vec<u64> = (0..examples.count()).map(name).collect();
        let mut photos: Vec<usize> = (0..names.len()).collect();
        photos.sort_by_key(|&photo| (names[photo], photo));
        let lessons = photos.split_off((names.len() / 10).clamp(LEAST, MOST).min(names.len()));
        Self { held_back: photos, lessons, names }
    }

    /// Tells these photos and labels from others.
    pub(super) fn digest(&self, examples: &dyn Examples) -> u64 {
        let photos = self.held_back.iter().chain(&self.lessons);
        let label = |photo| examples.label(photo).map_or(0, |label| label as u64 + 1);
        photos
            .fold(Digest::new(), |digest, &photo| digest.word(self.names[photo]).word(label(photo)))
            .end()
    }

    /// Tells a view of a photo from all others.
    pub(super) fn key(&self, seen: Seen) -> u64 {
        let digest = Digest::new().word(self.names[seen.photo]);
        match seen.view {
            View::Whole => digest.word(0).end(),
            View::Crop(seed) => digest.word(1).word(seed).end(),
        }
    }

    /// All photos to judge by, whole.
    pub(super) fn exam(&self) -> Vec<Seen> {
        self.held_back.iter().map(|&photo| Seen { photo, view: View::Whole }).collect()
    }
}

/// A photo, and how it is looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub(super) photo: usize,
    pub(super) view: View,
}

/// Which photos are learned from at which step: all of them once in an epoch, in another order and
/// in another of a few crops each time.
#[derive(Clone)]
pub(super) struct Course<'a> {
    pub(super) split: &'a Split,
    pub(super) batch: usize,
    pub(super) crops: u64,
    pub(super) seed: u64,
}

impl Course<'_> {
    /// Steps of an epoch. What does not fill a batch is left for another epoch.
    pub(super) fn steps(&self) -> u64 {
        (self.split.lessons.len() / self.batch).max(1) as u64
    }

    fn lesson(&self, step: u64) -> Vec<Seen> {
        let (epoch, step) = (step / self.steps(), (step % self.steps()) as usize);
        let mut order = self.split.lessons.clone();
        let mut random = Random::new(Digest::new().word(self.seed).word(epoch).end());
        for last in (1..order.len()).rev() {
            let other = (random.uniform() * (last + 1) as f32) as usize;
            order.swap(last, other.min(last));
        }
        let lesson = order.into_iter().skip(step * self.batch).take(self.batch);
        lesson.map(|photo| Seen { photo, view: self.crop(photo, epoch) }).collect()
    }

    fn crop(&self, photo: usize, epoch: u64) -> View {
        let seed = Digest::new().word(self.seed).word(self.split.names[photo]);
        View::Crop(seed.word(epoch % self.crops).end())
    }

    /// Reads the lessons from step `first` on until nobody wants them any more.
    pub(super) fn read(
        &self,
        examples: &dyn Examples,
        side: usize,
        threads: usize,
        first: u64,
        to: &SyncSender<Result<Lesson, FinetuneError>>,
    ) {
        for step in first.. {
            let seen = self.lesson(step);
            let lesson = read(examples, &seen, side, threads).map(|inputs| Lesson { seen, inputs });
            let failed = lesson.is_err();
            if to.send(lesson).is_err() || failed {
                return;
            }
        }
    }
}

/// What is learned from in one step.
pub(super) struct Lesson {
    pub(super) seen: Vec<Seen>,
    /// Photos x 3 x side x side.
    pub(super) inputs: Vec<f32>,
}

/// Photos x 3 x side x side.
pub(super) fn read(
    examples: &dyn Examples,
    seen: &[Seen],
    side: usize,
    threads: usize,
) -> Result<Vec<f32>, FinetuneError> {
    let some = |seen: &[Seen]| {
        let mut inputs = Vec::with_capacity(seen.len() * 3 * side * side);
        for Seen { photo, view } in seen {
            let input = examples
                .input(*photo, *view, side)
                .map_err(|error| FinetuneError::Photo { name: examples.name(*photo), error })?;
            assert_eq!(input.len(), 3 * side * side, "numbers of '{}'", examples.name(*photo));
            inputs.extend(input);
        }
        Ok(inputs)
    };
    thread::scope(|scope| {
        let parts = seen.chunks(seen.len().div_ceil(threads).max(1));
        let parts: Vec<_> = parts.map(|part| scope.spawn(move || some(part))).collect();
        let parts: Result<Vec<_>, _> =
            parts.into_iter().map(|part| part.join().expect("reading does not panic")).collect();
        parts.map(|parts| parts.concat())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crop_lies_within_its_photo_and_is_always_the_same() {
        for (width, height) in [(1, 1), (640, 480), (480, 640), (2000, 3), (3, 2000), (7, 7)] {
            let (mut mirrored, mut lefts) = (0, 0);
            for seed in 0..200 {
                let view = View::Crop(Digest::new().word(seed).end());
                let frame = view.frame(width, height).unwrap();
                assert_eq!(view.frame(width, height), Some(frame));
                assert!(frame.width >= 1 && frame.left + frame.width <= width, "{frame:?}");
                assert!(frame.height >= 1 && frame.top + frame.height <= height, "{frame:?}");
                mirrored += u32::from(frame.mirrored);
                lefts += u32::from(frame.left > 0);
            }
            assert!((60..140).contains(&mirrored), "{mirrored} of 200");
            assert!(width < 100 || lefts > 100, "{lefts} of 200");
        }
        assert_eq!(View::Whole.frame(10, 10), None);
    }
}
