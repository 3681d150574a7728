//! Numbers of half the width of float32 (IEEE 754 binary16), as bits: stable Rust has no type for
//! them. Knows no kernel.

/// The nearest number to `value`, of two the even one; what is too large becomes infinite.
pub(crate) fn to_bits(value: f32) -> u16 {
    const SMALLEST_NORMAL: f32 = f32::from_bits((127 - 14) << 23);
    /// Half the way from the largest number to what would follow it.
    const TOO_LARGE: f32 = 65_520.0;
    let (sign, magnitude) = ((value.to_bits() >> 16 & 0x8000) as u16, value.abs());
    let bits = if value.is_nan() {
        0x7e00
    } else if magnitude >= TOO_LARGE {
        0x7c00
    } else if magnitude < SMALLEST_NORMAL {
        // The last bit of a float32 from 1/2 to 1 is the smallest denormal.
        ((magnitude + 0.5).to_bits() - 0.5f32.to_bits()) as u16
    } else {
        let bits = magnitude.to_bits() - ((127 - 15) << 23);
        ((bits + 0xfff + (bits >> 13 & 1)) >> 13) as u16
    };
    sign | bits
}

/// The number of these bits.
#[cfg(test)]
pub(crate) fn of_bits(bits: u16) -> f32 {
    let (exponent, fraction) = (u32::from(bits >> 10 & 31), u32::from(bits & 0x3ff));
    let magnitude = match exponent {
        0 => fraction as f32 * f32::from_bits((127 - 24) << 23),
        31 => f32::from_bits(0xff << 23 | fraction << 13),
        _ => f32::from_bits((exponent + 127 - 15) << 23 | fraction << 13),
    };
    if bits >> 15 == 1 { -magnitude } else { magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_comes_back() {
        for bits in 0..=u16::MAX {
            let value = of_bits(bits);
            if value.is_nan() {
                assert_eq!(to_bits(value) & 0x7fff, 0x7e00, "{bits:#x}");
            } else {
                assert_eq!(to_bits(value), bits, "{value}");
            }
        }
    }

    #[test]
    fn what_lies_between_two_goes_to_the_nearest_and_a_tie_to_the_even_one() {
        for bits in 0..0x7bff {
            let (low, high) = (of_bits(bits), of_bits(bits + 1));
            let middle = (low + high) / 2.0;
            let even = bits + bits % 2;
            for sign in [0, 0x8000] {
                let rounded = |value: f32| to_bits(if sign == 0 { value } else { -value });
                assert_eq!(rounded(middle.next_down()), sign | bits, "{low}");
                assert_eq!(rounded(middle), sign | even, "{low}");
                assert_eq!(rounded(middle.next_up()), sign | (bits + 1), "{low}");
            }
        }
        assert_eq!(to_bits(65_519.996), 0x7bff);
        assert_eq!(to_bits(65_520.0), 0x7c00);
        assert_eq!(to_bits(f32::NEG_INFINITY), 0xfc00);
    }
}
