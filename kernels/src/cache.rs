//! The size of the second-level cache, which blocks of tiles are made for.

use std::sync::OnceLock;

/// Bytes of the second-level cache of a core, `None` where the processor does not tell.
pub(crate) fn second_level() -> Option<usize> {
    static BYTES: OnceLock<Option<usize>> = OnceLock::new();
    *BYTES.get_or_init(detect)
}

/// From the leaves of `cpuid` that describe caches: 4 of Intel, 0x8000001D of AMD, alike in form.
#[cfg(target_arch = "x86_64")]
#[allow(unused_unsafe, reason = "safe from Rust 1.94 on")]
fn detect() -> Option<usize> {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    let caches = [(0, 4), (0x8000_0000, 0x8000_001d)].into_iter().flat_map(|(group, leaf)| {
        // SAFETY: every x86-64 processor has the instruction.
        let highest = unsafe { __cpuid(group) }.eax;
        // SAFETY: the same; a list of caches ends with an entry of kind 0, and no processor has many.
        let entries = (0..16).map(move |index| unsafe { __cpuid_count(leaf, index) });
        entries.take_while(move |cache| highest >= leaf && cache.eax & 0x1f != 0)
    });
    let second = |level: u32| level >> 5 & 7 == 2;
    let size = |ebx: u32, sets: u32| {
        let [ways, partitions, line] =
            [ebx >> 22, ebx >> 12 & 0x3ff, ebx & 0xfff].map(|less_one| less_one as usize + 1);
        ways * partitions * line * (sets as usize + 1)
    };
    caches.into_iter().find(|cache| second(cache.eax)).map(|cache| size(cache.ebx, cache.ecx))
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Option<usize> {
    None
}

#[cfg(test)]
mod tests {
    /// No processor of these architectures has another size.
    #[test]
    fn the_size_is_plausible() {
        if let Some(bytes) = super::second_level() {
            assert!((64 << 10..=64 << 20).contains(&bytes), "{bytes}");
        }
    }
}
