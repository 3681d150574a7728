//! Weights as int8, symmetric: linear layers with a float32 scale per row and 64 columns,
//! convolutions with one per filter.
//!
//! The weights w that share a scale become q = round(w / scale) in -127..=127 with scale =
//! max |w| / 127, and w is taken as scale x q: within half a scale of what it was.

/// Weights that share a scale: neighbours in a row.
pub const GROUP: usize = 64;

/// Quantizes whole groups, one after the other, and appends to `values` and `scales`.
///
/// Weights must be finite. A scale is never 0, also where all weights are, since not every runtime
/// takes that.
///
/// # Panics
/// If `weights` does not divide into groups.
pub fn quantize(weights: &[f32], values: &mut Vec<i8>, scales: &mut Vec<f32>) {
    let (groups, rest) = weights.as_chunks::<GROUP>();
    assert!(rest.is_empty(), "{} weights", weights.len());
    for group in groups {
        scales.push(round(group, values));
    }
}

/// Quantizes weights that share a scale, such as a filter's, appends to `values` and gives the scale.
pub fn round(weights: &[f32], values: &mut Vec<i8>) -> f32 {
    let largest = weights.iter().fold(0f32, |most, weight| most.max(weight.abs()));
    let scale = (largest / 127.0).max(f32::MIN_POSITIVE);
    values.extend(weights.iter().map(|w| (w / scale).round().clamp(-127.0, 127.0) as i8));
    scale
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    fn check(weights: &[f32]) {
        let (mut values, mut scales) = (Vec::new(), Vec::new());
        quantize(weights, &mut values, &mut scales);
        assert_eq!(values.len(), weights.len());
        assert_eq!(scales.len(), weights.len() / GROUP);
        for (i, (&value, &weight)) in values.iter().zip(weights).enumerate() {
            let scale = scales[i / GROUP];
            let back = f64::from(scale) * f64::from(value);
            let off = (back - f64::from(weight)).abs();
            assert!(off <= f64::from(scale) * 0.500_001, "{weight} became {back}, scale {scale}");
        }
    }

    #[test]
    fn every_weight_comes_back_within_half_a_scale() {
        let mut random = Random::new(7);
        for magnitude in [1.0, 1e-6, 1e-30, 1e-37, 1e-44, 1e30, 3e37, 0.0] {
            let weights: Vec<f32> = (0..GROUP * 9).map(|_| random.normal() * magnitude).collect();
            check(&weights);
        }
        check(&[f32::MAX; GROUP]);
        check(&[-f32::MAX; GROUP]);
        check(&[f32::MIN_POSITIVE; GROUP]);
    }

    #[test]
    fn the_largest_weight_of_a_group_uses_the_whole_range() {
        let mut weights = [0.01; 2 * GROUP];
        weights[3] = -2.0;
        weights[GROUP + 5] = 0.5;
        let (mut values, mut scales) = (Vec::new(), Vec::new());
        quantize(&weights, &mut values, &mut scales);
        assert_eq!((values[3], values[GROUP + 5]), (-127, 127));
        assert_eq!(scales, [2.0 / 127.0, 0.5 / 127.0]);
    }
}
