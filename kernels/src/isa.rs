//! Which instruction set a kernel uses. Knows processors, no kernel.

use std::fmt;

/// An instruction set that this machine has: a value exists only after the
/// processor was asked, which is what makes the safe entry points sound.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Isa(Kind);

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// Portable Rust, on every machine.
    Plain,
    /// x86-64 with AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ and VL.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// The same with VNNI, which multiplies bytes and sums in one instruction.
    #[cfg(target_arch = "x86_64")]
    Vnni,
    /// The same with BF16, and with AMX, whose registers are tiles of bytes or bfloat16, and of their
    /// sums.
    #[cfg(target_arch = "x86_64")]
    Amx,
    /// aarch64 Advanced SIMD.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// The same with SDOT, which multiplies bytes and sums in one instruction.
    #[cfg(target_arch = "aarch64")]
    NeonDot,
    /// The same with arithmetic on float16, too.
    #[cfg(target_arch = "aarch64")]
    NeonHalf,
    /// 32-bit ARM with Advanced SIMD, which Rust has in assembly only.
    #[cfg(target_arch = "arm")]
    Neon32,
}

impl Isa {
    /// Portable Rust: the twin of every kernel.
    pub const PLAIN: Isa = Isa(Kind::Plain);

    /// The fastest instruction set of this machine.
    pub fn detect() -> Isa {
        Isa::all()[0]
    }

    /// Every instruction set of this machine, fastest first, plain last.
    pub fn all() -> Vec<Isa> {
        let mut kinds = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            if avx2 && avx512 && is_x86_feature_detected!("avx512vnni") {
                if is_x86_feature_detected!("avx512bf16") && has_tiles() {
                    kinds.push(Kind::Amx);
                }
                kinds.push(Kind::Vnni);
            }
            if avx2 && avx512 {
                kinds.push(Kind::Avx512);
            }
            if avx2 {
                kinds.push(Kind::Avx2);
            }
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("neon") {
            let dot = std::arch::is_aarch64_feature_detected!("dotprod");
            if dot && std::arch::is_aarch64_feature_detected!("fp16") {
                kinds.push(Kind::NeonHalf);
            }
            if dot {
                kinds.push(Kind::NeonDot);
            }
            kinds.push(Kind::Neon);
        }
        #[cfg(target_arch = "arm")]
        if has_neon() {
            kinds.push(Kind::Neon32);
        }
        kinds.push(Kind::Plain);
        kinds.into_iter().map(Isa).collect()
    }

    /// The instruction set called `name` (`plain`, `avx2`, `avx512`, `avx512vnni`, `amx`, `neon`,
    /// `neondot`, `neonhalf`, `neon32`), if this machine has it.
    pub fn by_name(name: &str) -> Option<Isa> {
        Isa::all().into_iter().find(|isa| isa.name() == name)
    }

    /// `plain`, `avx2`, `avx512`, `avx512vnni`, `amx`, `neon`, `neondot`, `neonhalf` or `neon32`: the first
    /// word of its kernels' names, or of those that make do with less.
    pub fn name(self) -> &'static str {
        match self.0 {
            Kind::Plain => "plain",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Kind::Vnni => "avx512vnni",
            #[cfg(target_arch = "x86_64")]
            Kind::Amx => "amx",
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => "neon",
            #[cfg(target_arch = "aarch64")]
            Kind::NeonDot => "neondot",
            #[cfg(target_arch = "aarch64")]
            Kind::NeonHalf => "neonhalf",
            #[cfg(target_arch = "arm")]
            Kind::Neon32 => "neon32",
        }
    }

    /// Whether it multiplies numbers of 16 bits faster than float32: what
    /// [`Precision::Half`](crate::Precision::Half) needs to be worth while.
    pub fn has_half(self) -> bool {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => true,
            #[cfg(target_arch = "x86_64")]
            Kind::Vnni | Kind::Amx => true,
            #[cfg(target_arch = "aarch64")]
            Kind::NeonHalf => true,
            _ => false,
        }
    }

    pub(crate) fn kind(self) -> Kind {
        self.0
    }
}

/// Whether the processor has AMX's tiles of bytes and of bfloat16, and Linux lets this process use them,
/// which it must be asked for because they make what is kept of a thread 8 KiB larger.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn has_tiles() -> bool {
    use std::arch::x86_64::__cpuid_count;
    use std::ffi::c_long;
    unsafe extern "C" {
        fn syscall(number: c_long, ...) -> c_long;
    }
    const BF16_TILE_AND_INT8: u32 = 1 << 22 | 1 << 24 | 1 << 25;
    const ARCH_PRCTL: c_long = 158;
    const ARCH_REQ_XCOMP_PERM: c_long = 0x1023;
    const XFEATURE_XTILEDATA: c_long = 18;
    if __cpuid_count(7, 0).edx & BF16_TILE_AND_INT8 != BF16_TILE_AND_INT8 {
        return false;
    }
    // SAFETY: a call that takes numbers only, and says no where it is not known.
    unsafe { syscall(ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn has_tiles() -> bool {
    false
}

/// What the kernel says of the processor; stable Rust does not ask on 32-bit ARM.
#[cfg(target_arch = "arm")]
fn has_neon() -> bool {
    use std::ffi::c_ulong;
    unsafe extern "C" {
        fn getauxval(kind: c_ulong) -> c_ulong;
    }
    const AT_HWCAP: c_ulong = 16;
    const HWCAP_NEON: c_ulong = 1 << 12;
    // SAFETY: a function of the C library that takes any number and only looks it up.
    unsafe { getauxval(AT_HWCAP) & HWCAP_NEON != 0 }
}

impl fmt::Debug for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_is_always_there_and_last() {
        assert_eq!(Isa::all().last(), Some(&Isa::PLAIN));
        assert_eq!(Isa::by_name("plain"), Some(Isa::PLAIN));
    }

    /// Who runs the tests on a certain processor says in `VGGD_ISA` what it must be fast with: one
    /// that is not found is not tested either.
    #[test]
    fn the_processor_has_what_it_should() {
        if let Ok(name) = std::env::var("VGGD_ISA") {
            assert_eq!(Isa::detect().name(), name);
        }
    }

    #[test]
    fn every_name_finds_its_instruction_set() {
        for isa in Isa::all() {
            assert_eq!(Isa::by_name(isa.name()), Some(isa));
        }
        assert_eq!(Isa::by_name("vax"), None);
    }
}
