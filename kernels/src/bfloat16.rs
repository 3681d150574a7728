//! Numbers of the upper half of float32's bits: its range with a precision of 8 bits. Knows no kernel.

/// The bits of the nearest number to `value`, of two the even one; what is too large becomes infinite.
#[inline]
pub fn to_bits(value: f32) -> u16 {
    const QUIET: u32 = 1 << 22;
    let bits = value.to_bits();
    let rounded = if value.is_nan() { bits | QUIET } else { bits + 0x7fff + (bits >> 16 & 1) };
    (rounded >> 16) as u16
}

/// The number of these bits.
#[inline]
pub fn of_bits(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_comes_back() {
        for bits in 0..=u16::MAX {
            let value = of_bits(bits);
            let expected = if value.is_nan() { bits | 1 << 6 } else { bits };
            assert_eq!(to_bits(value), expected, "{value}");
        }
    }

    #[test]
    fn what_lies_between_two_goes_to_the_nearest_and_a_tie_to_the_even_one() {
        for bits in 0..0x7f80 {
            let middle = f32::from_bits(u32::from(bits) << 16 | 0x8000);
            let even = bits + bits % 2;
            for (sign, middle) in [(0, middle), (0x8000, -middle)] {
                let [less, more] =
                    [-1, 1].map(|step| f32::from_bits(middle.to_bits().wrapping_add_signed(step)));
                assert_eq!(to_bits(less), sign | bits, "{less}");
                assert_eq!(to_bits(middle), sign | even, "{middle}");
                assert_eq!(to_bits(more), sign | (bits + 1), "{more}");
            }
        }
    }

    #[test]
    fn what_is_no_number_stays_so() {
        for nan in [f32::NAN, -f32::NAN, f32::from_bits(0x7f80_0001), f32::from_bits(0xffff_ffff)] {
            assert!(of_bits(to_bits(nan)).is_nan(), "{:#x}", nan.to_bits());
        }
    }
}
