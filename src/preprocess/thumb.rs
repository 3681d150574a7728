//! Whether a frame differs from another one, told by small pictures of them.

use super::{Framing, Photo};

const SIDE: usize = 32;

/// A small picture of what the network sees of a photo: 32 x 32 pixels, or less in the proportions of a
/// letterbox, brightness alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thumb(Vec<u8>);

impl Thumb {
    /// That of `photo`, framed in this way; `resize` is that of the network's rule.
    pub fn new(photo: &Photo, framing: &Framing, resize: f64) -> Self {
        let brightness = |[red, green, blue]: [u8; 3]| {
            let weighted = 299 * u32::from(red) + 587 * u32::from(green) + 114 * u32::from(blue);
            ((weighted + 500) / 1000) as u8
        };
        Self(framing.picture(photo, SIDE, resize).pixels.into_iter().map(brightness).collect())
    }

    /// The mean difference of brightness as a share of its range, from 0 to 1. Pictures of other
    /// proportions are as different as can be.
    pub fn difference(&self, other: &Self) -> f64 {
        if self.0.len() != other.0.len() {
            return 1.0;
        }
        let pairs = self.0.iter().zip(&other.0);
        let sum: u64 = pairs.map(|(one, other)| u64::from(one.abs_diff(*other))).sum();
        sum as f64 / (255 * self.0.len()) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thumb(width: u32, height: u32, pixel: impl Fn(u32, u32) -> [u8; 3]) -> Thumb {
        let rows = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
        let rgb = rows.flat_map(|(x, y)| pixel(x, y)).collect();
        Thumb::new(&Photo::new(width, height, rgb), &Framing::default(), 1.0)
    }

    #[test]
    fn the_difference_is_a_share_of_the_range() {
        let check = |one: &Thumb, other: &Thumb, expected: f64| {
            let found = one.difference(other);
            assert!((found - expected).abs() < 0.004, "{found} instead of {expected}");
            assert_eq!(found, other.difference(one));
        };
        let plain = |pixel| thumb(64, 64, move |_, _| pixel);
        let (black, white) = (plain([0; 3]), plain([255; 3]));
        let half = thumb(64, 64, |x, _| [if x < 32 { 0 } else { 255 }; 3]);
        check(&black, &black, 0.0);
        check(&black, &white, 1.0);
        check(&black, &half, 0.5);
        check(&black, &plain([255, 0, 0]), 0.299);
        check(&plain([0, 0, 255]), &black, 0.114);
        check(&plain([100; 3]), &plain([110; 3]), 0.039);
    }

    #[test]
    fn noise_counts_less_than_what_moves() {
        let mut state = 1u32;
        let mut noise = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 28) as u8
        };
        let values: Vec<u8> = (0..2 * 640 * 480).map(|_| noise()).collect();
        let scene = |offset: usize, moved: bool| {
            thumb(640, 480, |x, y| {
                let object = moved && (200..300).contains(&x) && (100..200).contains(&y);
                [120 + 80 * u8::from(object) + values[offset + (y * 640 + x) as usize]; 3]
            })
        };
        let before = scene(0, false);
        let noise = before.difference(&scene(640 * 480, false));
        let motion = before.difference(&scene(640 * 480, true));
        assert!(noise < 0.005 && motion > 0.01, "{noise} {motion}");
    }
}
