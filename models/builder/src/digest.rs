//! Numbers that tell apart what something was made of: FNV-1a, which finds accidents, not attacks,
//! and is the same on every machine.

use crate::network::Network;

/// A finished checksum as 16 digits.
pub fn hex(digest: u64) -> String {
    format!("{digest:016x}")
}

/// A checksum on its way.
#[derive(Clone, Copy, Debug)]
pub struct Digest(u64);

impl Default for Digest {
    fn default() -> Self {
        Self::new()
    }
}

impl Digest {
    /// Of nothing yet.
    pub fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    /// A number, and where it ends.
    pub fn word(self, word: u64) -> Self {
        Self((self.0 ^ word).wrapping_mul(0x0100_0000_01b3))
    }

    /// Text, or other bytes, and where they end.
    pub fn bytes(self, bytes: &[u8]) -> Self {
        bytes.iter().fold(self, |digest, byte| digest.word((*byte).into())).word(256)
    }

    /// Numbers as their bits.
    pub fn values(self, values: &[f32]) -> Self {
        values.iter().fold(self, |digest, value| digest.word(value.to_bits().into()))
    }

    /// Shapes and weights.
    pub fn network(mut self, network: &Network<'_>) -> Self {
        const PIECE: usize = 1 << 18;
        for tensor in network.layers().flat_map(|layer| [&layer.weight, &layer.bias]) {
            for length in tensor.shape() {
                self = self.word(*length as u64);
            }
            self = tensor.chunks(PIECE).fold(self, |digest, piece| digest.values(&piece));
        }
        self
    }

    /// The checksum, its bits mixed once more (as SplitMix64 does) so that all of them are good.
    pub fn end(self) -> u64 {
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }
}
