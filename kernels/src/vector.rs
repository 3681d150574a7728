//! Sixteen float32 lanes, the one width every kernel is written in: one register
//! of AVX-512, two of AVX2, four of NEON, an array in plain Rust. Knows nothing of
//! what is computed.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
pub(crate) mod plain;
#[cfg(test)]
mod plain16;

/// The number of lanes.
pub(crate) const LANES: usize = 16;

/// Sixteen float32 lanes.
///
/// Every method is `#[inline(always)]`, so that it takes on the target features of
/// the kernel it is used in. A value can only come from the unsafe constructors,
/// whose caller vouches for the instruction set; operations on values are safe.
///
/// Kernels hold vectors in arrays and loops, never in closures or `array::from_fn`: a
/// closure does not take on the features, and then each operation is a call.
///
/// # Safety
///
/// `zero`, `splat`, `load`, `load_bf16`, `load_i8` and `quad` need the instruction set of the implementing
/// type. Pointers need no alignment; they are read or written for sixteen elements.
pub(crate) trait Vector: Copy {
    /// Four scalars, each to be multiplied with a vector: a register where there is an
    /// instruction by element, else the place they are broadcast from.
    type Quad: Copy;

    /// All lanes zero.
    unsafe fn zero() -> Self;
    /// All lanes `value`.
    unsafe fn splat(value: f32) -> Self;
    /// Sixteen values.
    unsafe fn load(from: *const f32) -> Self;
    /// Sixteen values of bfloat16, as bits.
    unsafe fn load_bf16(from: *const u16) -> Self;
    /// Sixteen int8 values, converted exactly.
    unsafe fn load_i8(from: *const i8) -> Self;
    /// Writes sixteen values.
    unsafe fn store(self, to: *mut f32);
    /// Lane by lane `self + other`.
    fn add(self, other: Self) -> Self;
    /// Lane by lane `self - other`.
    fn sub(self, other: Self) -> Self;
    /// Lane by lane `self * other`.
    fn mul(self, other: Self) -> Self;
    /// Lane by lane `self * factor + term`; rounded once, except in plain Rust.
    fn mul_add(self, factor: Self, term: Self) -> Self;
    /// Four scalars.
    unsafe fn quad(from: *const f32) -> Self::Quad;
    /// [`Vector::mul_add`] with scalar number `L` of a quad as the factor; the quad's
    /// memory must still be there.
    unsafe fn mul_add_quad<const L: i32>(self, factors: Self::Quad, term: Self) -> Self;
    /// Lane by lane the larger one; `other` if that is not a number.
    fn max(self, other: Self) -> Self;
    /// The sum of all lanes, as a tree.
    fn sum(self) -> f32;
    /// Lane by lane the larger one of `self`, which has no sign, and the magnitude of
    /// `other`; what is not a number is larger than any.
    fn larger_magnitude(self, other: Self) -> Self;
    /// The largest of lanes without sign; what is not a number is larger than any.
    fn largest(self) -> f32;
    /// Asks for the cache line at `at` (any address, never a fault) in the core's own
    /// second cache: what is asked for far ahead would push out the first.
    fn prefetch(at: *const f32);
    /// The same in the core's first cache.
    fn prefetch_near(at: *const f32);
}

/// Numbers of 16 bits: int16, whose sums are int32.
pub(crate) struct Int16;

/// Numbers of 16 bits: float16, whose sums are float16 too.
#[cfg(any(test, target_arch = "aarch64"))]
pub(crate) struct Float16;

/// Products at half the width: pairs of numbers `N` of 16 bits. The pairs are two neighbouring
/// input channels.
///
/// # Safety
///
/// The constructors `no_sums`, `weights` and `inputs` need the instruction set as those of [`Vector`]
/// do, on AVX-512 VNNI besides, and on NEON fp16 arithmetic.
pub(crate) trait Pairs<N>: Vector {
    /// Sixteen sums.
    type Sums: Copy;
    /// Sixteen pairs.
    type Weights: Copy;
    /// Four pairs, each to be multiplied with sixteen: a register where there is an instruction by
    /// element, else the place they are broadcast from.
    type Inputs: Copy;

    /// Sixteen sums, zero.
    unsafe fn no_sums() -> Self::Sums;
    /// Sixteen pairs, in the order that `N` has them in.
    unsafe fn weights(from: *const f32) -> Self::Weights;
    /// Four pairs.
    unsafe fn inputs(from: *const f32) -> Self::Inputs;
    /// Lane by lane `sums` and both products of two pairs, that of a lane and number `L` of the
    /// inputs, whose memory must still be there. Integers are exact unless the result is no int32;
    /// floats are rounded after each product.
    unsafe fn dot<const L: usize>(
        weights: Self::Weights,
        inputs: Self::Inputs,
        sums: Self::Sums,
    ) -> Self::Sums;
    /// Sums in float32, rounded once if they need to be.
    fn of_sums(sums: Self::Sums) -> Self;
    /// Writes sixteen numbers, the nearest to the lanes, which must be in their range.
    unsafe fn store_rounded(self, to: *mut u16);
}

/// Float32 rounded to bfloat16. On AVX-512 that needs BF16 besides, where these vectors are made.
pub(crate) trait Narrow: Vector {
    /// Writes sixteen numbers, the nearest to the lanes, of two the even one. Those too small for a
    /// normal number may become zero.
    ///
    /// # Safety
    ///
    /// The instruction set, and room for sixteen numbers.
    unsafe fn store_bfloat16(self, to: *mut u16);
}
