//! The plain twin of arithmetic on float16: products and sums rounded one by one.

use super::plain::Plain;
use super::{Float16, LANES, Pairs, Vector};
use crate::float16::{of_bits, to_bits};

impl Pairs<Float16> for Plain {
    /// Each value is a float16.
    type Sums = [f32; LANES];
    type Weights = [[f32; LANES]; 2];
    type Inputs = *const f32;

    unsafe fn no_sums() -> Self::Sums {
        [0.0; LANES]
    }

    unsafe fn weights(from: *const f32) -> Self::Weights {
        // SAFETY: the caller gives sixteen readable elements; the read is unaligned.
        let bits = unsafe { from.cast::<[[u16; LANES]; 2]>().read_unaligned() };
        bits.map(|channel| channel.map(of_bits))
    }

    unsafe fn inputs(from: *const f32) -> Self::Inputs {
        from
    }

    unsafe fn dot<const L: usize>(
        weights: Self::Weights,
        inputs: Self::Inputs,
        mut sums: Self::Sums,
    ) -> Self::Sums {
        // SAFETY: the inputs are four elements.
        let inputs = unsafe { inputs.add(L).cast::<[u16; 2]>().read_unaligned() }.map(of_bits);
        for (weights, input) in weights.iter().zip(inputs) {
            for (sum, weight) in sums.iter_mut().zip(weights) {
                *sum = round(f64::from(*sum) + f64::from(weight * input));
            }
        }
        sums
    }

    fn of_sums(sums: Self::Sums) -> Self {
        // SAFETY: plain Rust runs everywhere; sixteen elements.
        unsafe { Plain::load(sums.as_ptr()) }
    }

    unsafe fn store_rounded(self, to: *mut u16) {
        let mut lanes = [0.0; LANES];
        // SAFETY: room for sixteen elements, here and at the caller's; the write is unaligned.
        unsafe {
            self.store(lanes.as_mut_ptr());
            to.cast::<[u16; LANES]>().write_unaligned(lanes.map(to_bits));
        }
    }
}

/// The nearest float16 to `value`, of two the even one.
fn round(value: f64) -> f32 {
    let exponent = (value.to_bits() >> 52 & 0x7ff).max(1023 - 14);
    if exponent > 1023 + 15 {
        return of_bits(to_bits(value as f32));
    }
    // 3/2 of a number whose last bit in float64 is that of a float16 of this exponent.
    let shift = f64::from_bits(((exponent + 52 - 10) << 52) | (1 << 51));
    let rounded = ((value + shift) - shift) as f32;
    if rounded.abs() > 65_504.0 { f32::INFINITY.copysign(rounded) } else { rounded }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_rounded_as_numbers_are() {
        for bits in 0..=0x7fff {
            let value = of_bits(bits);
            for value in [value, -value, value * 1.0001, value * 0.9998, value + 1e-8] {
                let expected = of_bits(to_bits(value));
                let found = round(value.into());
                assert!(found == expected || found.is_nan() && expected.is_nan(), "{value}");
            }
        }
    }
}
