//! Another input side for the same weights.
//!
//! A VGG-19 that sees 160 x 160 pixels has 5 x 5 positions in its last feature map; torchvision
//! pools them to 7 x 7, adaptively: along each side, position p of 7 is the mean of the positions
//! floor(5p/7) up to, not including, ceil(5(p+1)/7). That is linear, and so is the layer after it:
//! both are one linear layer with fewer or more columns. No accuracy is lost to this, only to the
//! smaller picture.

use thiserror::Error;

use crate::topology::{POOLED_SIDE, REDUCTION};

/// The smallest and largest input side that [`Fold::new`] takes, in pixels.
pub const SIDES: [usize; 2] = [96, 288];

/// A side that VGG-19's five poolings do not divide evenly, or out of range.
#[derive(Debug, Error)]
#[error(
    "input side {side}: must be a multiple of {REDUCTION} from {} to {}",
    SIDES[0],
    SIDES[1]
)]
pub struct SideError {
    /// What was asked for, in pixels.
    pub side: usize,
}

/// The adaptive average pooling of one input side, ready to be folded into rows of weights.
#[derive(Clone, Debug)]
pub struct Fold {
    /// Positions of the last feature map.
    positions: usize,
    /// For each position, row-major: the pooled positions that it is part of, and its share.
    shares: Vec<Vec<(usize, f64)>>,
}

impl Fold {
    /// The pooling behind an input of `side` x `side` pixels.
    ///
    /// # Errors
    /// [`SideError`] unless `side` is one of the multiples of 32 in [`SIDES`].
    pub fn new(side: usize) -> Result<Self, SideError> {
        if !side.is_multiple_of(REDUCTION) || !(SIDES[0]..=SIDES[1]).contains(&side) {
            return Err(SideError { side });
        }
        let from = side / REDUCTION;
        let mut shares = vec![Vec::new(); from * from];
        for (pooled_row, rows) in windows(from).into_iter().enumerate() {
            for (pooled_column, columns) in windows(from).into_iter().enumerate() {
                let share = 1.0 / (rows.len() * columns.len()) as f64;
                let pooled = pooled_row * POOLED_SIDE + pooled_column;
                for row in rows.clone() {
                    for column in columns.clone() {
                        shares[row * from + column].push((pooled, share));
                    }
                }
            }
        }
        Ok(Self { positions: from * from, shares })
    }

    /// Columns per channel of the layer before it is folded.
    pub fn row_length(&self) -> usize {
        POOLED_SIDE * POOLED_SIDE
    }

    /// Columns of the folded layer behind `channels` channels.
    pub fn columns(&self, channels: usize) -> usize {
        channels * self.positions
    }

    /// One row of the first linear layer, channels x 7 x 7, as it acts on the unpooled map.
    ///
    /// # Panics
    /// If `weights` is not a whole number of channels.
    pub fn row(&self, weights: &[f32]) -> Vec<f32> {
        let (channels, rest) = weights.as_chunks::<{ POOLED_SIDE * POOLED_SIDE }>();
        assert!(rest.is_empty(), "{} weights", weights.len());
        (channels.iter())
            .flat_map(|channel| {
                self.shares.iter().map(|shares| {
                    let sum: f64 = (shares.iter())
                        .map(|&(pooled, share)| share * f64::from(channel[pooled]))
                        .sum();
                    sum as f32
                })
            })
            .collect()
    }
}

/// What each of the 7 pooled positions along one side averages.
pub(crate) fn windows(from: usize) -> [std::ops::Range<usize>; POOLED_SIDE] {
    std::array::from_fn(|p| p * from / POOLED_SIDE..((p + 1) * from).div_ceil(POOLED_SIDE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    #[test]
    fn windows_are_those_of_torch() {
        let spans = |from| windows(from).map(|window| (window.start, window.end));
        assert_eq!(spans(5), [(0, 1), (0, 2), (1, 3), (2, 3), (2, 4), (3, 5), (4, 5)]);
        assert_eq!(spans(7), [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (6, 7)]);
        assert_eq!(spans(9), [(0, 2), (1, 3), (2, 4), (3, 6), (5, 7), (6, 8), (7, 9)]);
        assert_eq!(spans(3), [(0, 1), (0, 1), (0, 2), (1, 2), (1, 3), (2, 3), (2, 3)]);
    }

    #[test]
    fn a_folded_row_equals_pooling_then_the_row() {
        let mut random = Random::new(3);
        let channels = 5;
        for side in (96..=288).step_by(32) {
            let from = side / REDUCTION;
            let map: Vec<f32> = (0..channels * from * from).map(|_| random.normal()).collect();
            let weights: Vec<f32> = (0..channels * 49).map(|_| random.normal()).collect();

            let mut expected = 0.0;
            for (channel, weights) in weights.chunks(49).enumerate() {
                for (pooled, weight) in weights.iter().enumerate() {
                    let (rows, columns) =
                        (windows(from)[pooled / 7].clone(), windows(from)[pooled % 7].clone());
                    let mut sum = 0.0;
                    for row in rows.clone() {
                        for column in columns.clone() {
                            sum += f64::from(map[(channel * from + row) * from + column]);
                        }
                    }
                    let mean = sum / (rows.len() * columns.len()) as f64;
                    expected += mean * f64::from(*weight);
                }
            }

            let fold = Fold::new(side).unwrap();
            let row = fold.row(&weights);
            assert_eq!(row.len(), fold.columns(channels));
            let found: f64 = (row.iter().zip(&map))
                .map(|(weight, value)| f64::from(*weight) * f64::from(*value))
                .sum();
            assert!((found - expected).abs() < 1e-5, "{side}: {found}, expected {expected}");
            if side == 224 {
                assert_eq!(row, weights);
            }
        }
    }

    #[test]
    fn other_sides_are_refused() {
        for side in [0, 32, 64, 100, 223, 320] {
            let message = Fold::new(side).unwrap_err().to_string();
            assert!(message.contains(&side.to_string()), "{message}");
        }
    }
}
