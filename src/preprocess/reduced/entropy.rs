//! The entropy-coded part of a baseline JPEG (ITU-T T.81, F.2.2): bits, codes, the coefficients of a
//! block. It knows nothing of pixels.

/// Where the coefficient at each place of the zigzag lies in a block of 8 rows.
const ZIGZAG: [u8; 64] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20,
    13, 6, 7, 14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59,
    52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
];

/// Codes of up to this many bits are looked up in one step.
const FAST: u32 = 10;

/// A Huffman code (T.81, Annex C).
pub(super) struct Code {
    /// Length and symbol for each beginning; 0 for longer codes.
    fast: [u16; 1 << FAST],
    /// The first 16 bits that are no code of that length or less.
    ends: [u32; 17],
    /// What makes the index of a symbol of a code of that length.
    offsets: [i32; 17],
    symbols: Vec<u8>,
}

impl Code {
    /// The code with so many symbols of each length, 1 to 16 bits, if there is one.
    pub(super) fn new(counts: &[u8; 16], symbols: &[u8]) -> Option<Self> {
        let mut code = Self {
            fast: [0; 1 << FAST],
            ends: [0; 17],
            offsets: [0; 17],
            symbols: symbols.to_vec(),
        };
        let (mut next, mut index) = (0u32, 0usize);
        for (bits, count) in (1..).zip(counts) {
            code.offsets[bits as usize] = index as i32 - next as i32;
            for _ in 0..*count {
                if bits <= FAST {
                    let first = (next << (FAST - bits)) as usize;
                    code.fast
                        .get_mut(first..first + (1 << (FAST - bits)))?
                        .fill((bits as u16) << 8 | u16::from(symbols[index]));
                }
                next += 1;
                index += 1;
            }
            if next > 1 << bits {
                return None;
            }
            code.ends[bits as usize] = next << (16 - bits);
            next <<= 1;
        }
        Some(code)
    }
    #[inline(always)]
    fn symbol(&self, bits: &mut Bits) -> Option<u8> {
        bits.fill();
        let entry = self.fast[bits.peek(FAST) as usize];
        if entry != 0 {
            bits.skip(u32::from(entry >> 8));
            return Some(entry as u8);
        }
        let word = bits.peek(16);
        let length = (FAST + 1..=16).find(|length| word < self.ends[*length as usize])?;
        bits.skip(length);
        let index = (word >> (16 - length)) as i32 + self.offsets[length as usize];
        self.symbols.get(index as usize).copied()
    }
    /// The next difference of a block's mean to the one before.
    #[inline(always)]
    pub(super) fn difference(&self, bits: &mut Bits) -> Option<i32> {
        let size = u32::from(self.symbol(bits)?);
        if size > 11 {
            return None;
        }
        Some(bits.value(size))
    }
    /// The other coefficients of a block, times `quantization`, which is in the order of the zigzag; and
    /// whether there are any.
    #[inline(always)]
    pub(super) fn block(
        &self,
        bits: &mut Bits,
        quantization: &[f32; 64],
        block: &mut [f32; 64],
    ) -> Option<bool> {
        let mut at = 1;
        let mut any = false;
        while at < 64 {
            let symbol = self.symbol(bits)?;
            let (run, size) = (usize::from(symbol >> 4), u32::from(symbol & 15));
            if size == 0 {
                match run {
                    0 => break,
                    15 => {
                        at += 16;
                        continue;
                    }
                    _ => return None,
                }
            }
            at += run;
            if size > 10 || at > 63 {
                return None;
            }
            let value = bits.value(size);
            block[usize::from(ZIGZAG[at])] = value as f32 * quantization[at];
            any = true;
            at += 1;
        }
        (at <= 64).then_some(any)
    }
}

/// A scan's bits.
pub(super) struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
    /// The next bits, the first one highest, and how many.
    buffer: u64,
    count: u32,
    /// How many of them are zeros that stand for what comes after the end.
    borrowed: u32,
}

impl<'a> Bits<'a> {
    /// The bits from the beginning of `bytes` to the first marker.
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, buffer: 0, count: 0, borrowed: 0 }
    }

    /// Whether more was read than there was.
    pub(super) fn are_spent(&self) -> bool {
        self.count < self.borrowed
    }

    #[inline(always)]
    fn fill(&mut self) {
        if self.count > 32 {
            return;
        }
        if let Some(four) = self.bytes.get(self.at..self.at + 4) {
            let word = u32::from_be_bytes(four.try_into().unwrap());
            // No byte is 0xff.
            if (!word).wrapping_sub(0x0101_0101) & word & 0x8080_8080 == 0 {
                self.buffer |= u64::from(word) << (32 - self.count);
                self.count += 32;
                self.at += 4;
                return;
            }
        }
        self.fill_slowly();
    }
    #[cold]
    fn fill_slowly(&mut self) {
        while self.count <= 56 {
            let byte =
                match (self.borrowed > 0, self.bytes.get(self.at), self.bytes.get(self.at + 1)) {
                    (false, Some(0xff), Some(0)) => {
                        self.at += 2;
                        0xff
                    }
                    (false, Some(byte), _) if *byte != 0xff => {
                        self.at += 1;
                        *byte
                    }
                    _ => {
                        self.borrowed += 8;
                        0
                    }
                };
            self.buffer |= u64::from(byte) << (56 - self.count);
            self.count += 8;
        }
    }
    #[inline(always)]
    fn peek(&self, bits: u32) -> u32 {
        (self.buffer >> (64 - bits)) as u32
    }
    #[inline(always)]
    fn skip(&mut self, bits: u32) {
        self.buffer <<= bits;
        self.count -= bits;
    }
    /// The number of `size` bits, at most 16, that follows a symbol: there are enough for both.
    #[inline(always)]
    fn value(&mut self, size: u32) -> i32 {
        if size == 0 {
            return 0;
        }
        let value = self.peek(size) as i32;
        self.skip(size);
        if value < 1 << (size - 1) { value - (1 << size) + 1 } else { value }
    }
    /// Goes on behind `marker`, if less than a byte is left before it.
    pub(super) fn marker(&mut self, marker: u8) -> Option<()> {
        if self.are_spent() || self.count - self.borrowed >= 8 {
            return None;
        }
        while self.bytes.get(self.at..self.at + 2)? == [0xff, 0xff] {
            self.at += 1;
        }
        if self.bytes[self.at..self.at + 2] != [0xff, marker] {
            return None;
        }
        *self = Self { bytes: self.bytes, at: self.at + 2, buffer: 0, count: 0, borrowed: 0 };
        Some(())
    }
}
