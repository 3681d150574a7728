//! Where an activation lies: `[C / 16, H, W, 16]`, blocks of sixteen channels, so that
//! one pixel of a block is one vector. The lanes after the last channel are zero.

use crate::vector::LANES;

/// Channels in a block.
pub const CHANNEL_BLOCK: usize = LANES;

/// How many elements a blocked activation has.
pub fn blocked_len(channels: usize, height: usize, width: usize) -> usize {
    channels.div_ceil(CHANNEL_BLOCK) * CHANNEL_BLOCK * height * width
}

/// From `[C, H, W]` to blocks; `pixels` is H x W.
///
/// # Panics
///
/// If the lengths do not fit each other.
pub fn block(channels: usize, pixels: usize, planar: &[f32], blocked: &mut [f32]) {
    check_lengths(channels, pixels, planar.len(), blocked.len());
    for (index, value) in blocked.iter_mut().enumerate() {
        let (pixel, lane) = (index / CHANNEL_BLOCK % pixels, index % CHANNEL_BLOCK);
        let channel = index / (pixels * CHANNEL_BLOCK) * CHANNEL_BLOCK + lane;
        *value = if channel < channels { planar[channel * pixels + pixel] } else { 0.0 };
    }
}

/// From blocks to `[C, H, W]`; `pixels` is H x W.
///
/// # Panics
///
/// If the lengths do not fit each other.
pub fn unblock(channels: usize, pixels: usize, blocked: &[f32], planar: &mut [f32]) {
    check_lengths(channels, pixels, planar.len(), blocked.len());
    if pixels == 0 {
        return;
    }
    for channel in 0..channels {
        let (block, lane) = (channel / CHANNEL_BLOCK, channel % CHANNEL_BLOCK);
        let from = &blocked[block * pixels * CHANNEL_BLOCK + lane..];
        let to = &mut planar[channel * pixels..][..pixels];
        for (to, from) in to.iter_mut().zip(from.iter().step_by(CHANNEL_BLOCK)) {
            *to = *from;
        }
    }
}

fn check_lengths(channels: usize, pixels: usize, planar: usize, blocked: usize) {
    assert!(
        planar == channels * pixels,
        "{planar} planar elements for {channels} channels of {pixels} pixels"
    );
    assert!(
        blocked == blocked_len(channels, pixels, 1),
        "{blocked} blocked elements for {channels} channels of {pixels} pixels"
    );
}
