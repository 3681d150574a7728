//! Storage that starts at a cache line.

/// Bytes of a cache line.
pub(crate) const LINE: usize = align_of::<Line>();

/// One cache line of float32.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [f32; 16]);

/// A buffer that starts at a cache line.
pub(crate) struct Aligned<T> {
    storage: Vec<T>,
    skip: usize,
}

impl Aligned<f32> {
    /// Zeros, `length` of them; pages come into being when they are written.
    pub(crate) fn zeroed(length: usize) -> Self {
        Aligned::of(vec![0.0; length + LINE / size_of::<f32>() - 1])
    }
}

impl Aligned<u8> {
    /// Zeros, `length` of them; pages come into being when they are written.
    pub(crate) fn zeroed_bytes(length: usize) -> Self {
        Aligned::of(vec![0; length + LINE - 1])
    }
}

impl<T> Aligned<T> {
    fn of(storage: Vec<T>) -> Self {
        prefer_huge_pages(&storage);
        let skip = storage.as_ptr().align_offset(LINE);
        Aligned { storage, skip }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [T] {
        &mut self.storage[self.skip..]
    }

    pub(crate) fn len(&self) -> usize {
        self.storage.len() + 1 - LINE / size_of::<T>()
    }

    pub(crate) fn as_ptr(&self) -> *const T {
        self.storage[self.skip..].as_ptr()
    }
}

/// `scratch` from its first cache line on.
pub(crate) fn from_first_line<T>(scratch: &mut [T]) -> &mut [T] {
    let skip = scratch.as_ptr().align_offset(LINE).min(scratch.len());
    &mut scratch[skip..]
}

/// Asks Linux to back a large buffer with huge pages before it is first written: fewer
/// page faults at load, fewer page walks in each frame. Refusal is no error.
#[cfg(target_os = "linux")]
fn prefer_huge_pages<T>(storage: &[T]) {
    const HUGE_PAGE: usize = 2 << 20;
    const MADV_HUGEPAGE: i32 = 14;
    unsafe extern "C" {
        fn madvise(address: *const u8, length: usize, advice: i32) -> i32;
    }
    let (start, bytes) = (storage.as_ptr().cast::<u8>(), size_of_val(storage));
    let skip = start.align_offset(HUGE_PAGE);
    if skip < bytes {
        // SAFETY: the range lies in our own allocation and starts at a page; the advice
        // changes no contents.
        unsafe { madvise(start.wrapping_add(skip), bytes - skip, MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
fn prefer_huge_pages<T>(_storage: &[T]) {}
