//! Float32 storage that starts at a cache line.

/// One cache line of float32.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [f32; 16]);

/// A buffer of whole cache lines.
pub(crate) struct Aligned(Vec<Line>);

impl Aligned {
    /// Zeros, at least `length` of them.
    pub(crate) fn zeroed(length: usize) -> Self {
        Aligned(vec![Line([0.0; 16]); length.div_ceil(16)])
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [f32] {
        // SAFETY: a Line is sixteen float32 without padding.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() * 16) }
    }

    pub(crate) fn as_ptr(&self) -> *const f32 {
        self.0.as_ptr().cast()
    }
}

/// `scratch` from its first cache line on.
pub(crate) fn from_first_line(scratch: &mut [f32]) -> &mut [f32] {
    let skip = scratch.as_ptr().align_offset(align_of::<Line>()).min(scratch.len());
    &mut scratch[skip..]
}
