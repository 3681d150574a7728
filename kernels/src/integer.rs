//! Sixteen integer lanes, the one width the quantized kernels are written in, and the
//! instructions that multiply and sum. Knows nothing of what is computed.
//!
//! All arithmetic wraps. Every method is `#[inline(always)]`, for the reasons that
//! [`crate::vector`] has.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
pub(crate) mod plain;

/// Sixteen int16 lanes.
///
/// # Safety
///
/// `widen` and `splat` need the instruction set of the implementing type. Pointers need
/// no alignment; they are read or written for sixteen elements.
pub(crate) trait Words: Copy {
    /// All lanes `value`.
    unsafe fn splat(value: i16) -> Self;
    /// Sixteen bytes.
    unsafe fn widen(from: *const u8) -> Self;
    /// Writes sixteen values.
    unsafe fn store(self, to: *mut i16);
    /// Lane by lane `self + other`.
    fn add(self, other: Self) -> Self;
    /// Lane by lane `self - other`.
    fn sub(self, other: Self) -> Self;
}

/// Sixteen int32 lanes.
///
/// # Safety
///
/// `load` and `splat` need the instruction set of the implementing type. Pointers need no
/// alignment; they are read or written for sixteen elements.
pub(crate) trait Sums: Copy {
    /// All lanes `value`.
    unsafe fn splat(value: i32) -> Self;
    /// Sixteen values.
    unsafe fn load(from: *const i32) -> Self;
    /// Writes sixteen values.
    unsafe fn store(self, to: *mut i32);
    /// Lane by lane `self + other`.
    fn add(self, other: Self) -> Self;
    /// Lane by lane `self - other`.
    fn sub(self, other: Self) -> Self;
    /// Lane by lane `self * other`.
    fn mul(self, other: Self) -> Self;
    /// Lane by lane `self << N`.
    fn shl<const N: i32>(self) -> Self;
    /// Lane by lane `self >> N`, with the sign.
    fn shr<const N: i32>(self) -> Self;
    /// Lane by lane the larger one.
    fn max(self, other: Self) -> Self;
    /// Writes sixteen bytes: lane by lane `self`, rounded to float32, times a scale, rounded to
    /// the nearest integer, to the even one of two, and not below 0 nor above 255.
    unsafe fn store_scaled(self, scales: *const f32, to: *mut u8);
    /// Asks for the cache line at `at` (any address, never a fault) in the core's own second cache.
    fn prefetch(at: *const i16);
    /// The same in the core's first cache.
    fn prefetch_near(at: *const i16);
}

/// What weights and inputs are stored as.
pub(crate) trait Stored: Copy {
    /// The lowest bits of `value`.
    fn of(value: i32) -> Self;
}

macro_rules! stored {
    ($($type:ty),*) => {$(
        impl Stored for $type {
            #[inline(always)]
            fn of(value: i32) -> Self {
                value as $type
            }
        }
    )*};
}

stored!(i8, u8, i16);

/// An instruction that multiplies weights of sixteen output channels with inputs, and adds.
///
/// A step takes `GROUP` input channels: the inputs are that many neighbours, the same for all
/// lanes; the weights are `[16, GROUP]`.
///
/// # Safety
///
/// `weights` and `inputs` need the instruction set of the implementing type, and elements for one
/// step.
pub(crate) trait Dot: Copy {
    /// Input channels of a step.
    const GROUP: usize;
    /// Inputs are stored as so much less than they are.
    const OFFSET: i32;
    /// A weight as it is stored.
    type Weight: Stored;
    /// An input as it is stored.
    type Input: Stored;
    /// What is added to.
    type Sums: Sums;
    /// The inputs of a step.
    type Inputs: Copy;

    /// A weight of a direct convolution, or of Winograd's, as it is stored.
    #[inline(always)]
    fn weight(value: i16) -> Self::Weight {
        Self::Weight::of(i32::from(value))
    }
    /// An input of a direct convolution as it is stored.
    #[inline(always)]
    fn input(value: u8) -> Self::Input {
        Self::Input::of(i32::from(value) - Self::OFFSET)
    }
    /// The weights of a step.
    unsafe fn weights(from: *const Self::Weight) -> Self;
    /// The inputs of a step.
    unsafe fn inputs(from: *const Self::Input) -> Self::Inputs;
    /// Lane by lane `sums` plus the products of a step.
    fn add_to(self, sums: Self::Sums, inputs: Self::Inputs) -> Self::Sums;

    /// The same for `T` pixels whose inputs lie side by side, each times `P` vectors of weights.
    ///
    /// # Safety
    ///
    /// Elements for one step of `T` pixels at `from`.
    #[inline(always)]
    unsafe fn add_pixels<const P: usize, const T: usize>(
        weights: &[Self; P],
        sums: &mut [[Self::Sums; P]; T],
        from: *const Self::Input,
    ) {
        for (pixel, sums) in sums.iter_mut().enumerate() {
            // SAFETY: the caller's, and the weights prove the instruction set.
            let inputs = unsafe { Self::inputs(from.add(pixel * Self::GROUP)) };
            for (sum, weights) in sums.iter_mut().zip(weights) {
                *sum = weights.add_to(*sum, inputs);
            }
        }
    }
}
