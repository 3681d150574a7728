//! How output channels are cut into panels, whose sums stay in registers.

use std::ops::Range;

use crate::layout::CHANNEL_BLOCK;

/// The panels of a convolution. Each has as many blocks of sixteen output channels as the instruction
/// set has vectors for; the last one takes those that are left over besides, so that no part of a
/// panel is empty. Only of fewer blocks than a panel has, a part is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Panels {
    vectors: usize,
    blocks: usize,
}

impl Panels {
    /// Of `vectors` blocks each.
    pub(crate) fn new(out_channels: usize, vectors: usize) -> Panels {
        let blocks = out_channels.div_ceil(CHANNEL_BLOCK);
        Panels { vectors, blocks: if blocks == 0 { 0 } else { blocks.max(vectors) } }
    }

    /// How many there are.
    pub(crate) fn count(self) -> usize {
        self.blocks / self.vectors
    }

    /// The blocks of output channels in all of them.
    pub(crate) fn blocks(self) -> usize {
        self.blocks
    }

    /// The first block of a panel, or the end of the last one.
    pub(crate) fn first(self, panel: usize) -> usize {
        if panel == self.count() { self.blocks } else { panel * self.vectors }
    }

    /// How many blocks a panel has.
    pub(crate) fn vectors(self, panel: usize) -> usize {
        self.first(panel + 1) - self.first(panel)
    }

    /// The panel of a block.
    pub(crate) fn of(self, block: usize) -> usize {
        (block / self.vectors).min(self.count() - 1)
    }

    /// The most blocks that one of `parts` equal parts of the panels has, see [`part`].
    pub(crate) fn most(self, parts: usize) -> usize {
        let blocks = |number| {
            let part = part(self.count(), parts, number);
            self.first(part.end) - self.first(part.start)
        };
        (0..parts).map(blocks).max().unwrap_or(0)
    }
}

/// Part `number` of `0..items` in `parts` parts as equal as possible, larger ones first.
pub(crate) fn part(items: usize, parts: usize, number: usize) -> Range<usize> {
    let start = |number: usize| items / parts * number + number.min(items % parts);
    start(number)..start(number + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_is_in_one_panel() {
        for vectors in [1, 2] {
            for out_channels in 0..200 {
                let panels = Panels::new(out_channels, vectors);
                let mut blocks = 0;
                for panel in 0..panels.count() {
                    assert_eq!(panels.first(panel), blocks, "{panels:?}");
                    assert!((vectors..2 * vectors).contains(&panels.vectors(panel)), "{panels:?}");
                    for _ in 0..panels.vectors(panel) {
                        assert_eq!(panels.of(blocks), panel, "{panels:?}");
                        blocks += 1;
                    }
                }
                let needed = out_channels.div_ceil(CHANNEL_BLOCK);
                assert_eq!(blocks, panels.blocks());
                assert!(blocks == needed || needed == 1 && blocks == vectors, "{panels:?}");
            }
        }
    }

    #[test]
    fn parts_are_equal_and_complete() {
        for items in 0..40 {
            for parts in 1..10 {
                let mut end = 0;
                for number in 0..parts {
                    let part = part(items, parts, number);
                    assert_eq!(part.start, end, "part {number} of {items} in {parts}");
                    assert!((items / parts..=items.div_ceil(parts)).contains(&part.len()));
                    end = part.end;
                }
                assert_eq!(end, items, "{items} in {parts}");
            }
        }
        assert_eq!(part(14, 4, 0), 0..4);
        assert_eq!(Panels::new(14 * 32 + 16, 2).most(4), 8);
        assert_eq!(Panels::new(12 * 32 + 16, 2).most(4), 7);
    }
}
