//! Memory layout: the memory that dom0 gets, and the addresses of images in a domain's RAM. [`domu`] has the memory map
//! of domUs.
//!
//! dom0 is mapped one to one (IPA = PA), so its memory is the machine's free memory, without EL2's own and the
//! firmware's reserved memory: up to 8 banks in units of 2 MiB (one stage 2 block each), the largest ones first.
//! Kernel, device tree and RAM disk are placed in them by the rules of Linux, Documentation/arch/arm64/booting.rst.
//!
//! This file only computes ranges and does not access memory.

pub mod domu;

use crate::build::image::Image;
use crate::ids::Pa;
use crate::platform::Machine;
use crate::util::range::Range;
use arrayvec::ArrayVec;
use core::fmt;

/// The unit of dom0's memory in bytes. The boot protocol aligns kernels to the same unit.
pub const UNIT: u64 = 2 << 20;
/// The largest number of banks.
pub const BANKS: usize = 8;
/// The largest device tree that Linux accepts, in bytes.
pub const DTB_MAX: u64 = 2 << 20;
/// The size of the window, aligned to 1 GiB, that must hold both RAM disk and kernel, in bytes.
const WINDOW: u64 = 32 << 30;
const GIB: u64 = 1 << 30;

/// dom0's banks, sorted by address.
pub type Banks = ArrayVec<Range, BANKS>;

/// Chooses up to `want` bytes of memory for dom0, rounded up to a unit: whole units of free memory, the largest free
/// ranges first, in at most [`BANKS`] banks, which are returned sorted by address. The last bank that is chosen is
/// shortened if needed. If less memory is free, the sum of the banks is less than `want`.
///
/// `keep_out` lists the memory that dom0 must not get: EL2's image, heap and stacks. Boot modules of dom0 are not in
/// it, because dom0 may use their memory once they have been copied; see [`place`].
#[must_use]
pub fn plan_dom0_memory(machine: &Machine, keep_out: &[Range], want: u64) -> Banks {
    let mut banks = Banks::new();
    let mut left = want.checked_next_multiple_of(UNIT).unwrap_or(u64::MAX - (UNIT - 1));
    while left > 0 && !banks.is_full() {
        let Some(largest) = largest_free(machine, keep_out, &banks) else { break };
        let size = largest.size.min(left);
        banks.push(Range::new(largest.base, size));
        left -= size;
    }
    banks.sort_unstable();
    banks
}

/// Returns the largest free range of RAM in whole units; of several of that size, the one with the lowest address.
fn largest_free(machine: &Machine, keep_out: &[Range], taken: &[Range]) -> Option<Range> {
    let blocked = || machine.reserved.iter().chain(keep_out).chain(taken).filter(|range| !range.is_empty());
    let mut best: Option<Range> = None;
    // A free range starts at the start of a bank or at the end of a blocked range.
    for bank in &machine.memory {
        for start in blocked().map(|range| range.end()).chain([bank.base]) {
            if !bank.contains(start) || blocked().any(|range| range.contains(start)) {
                continue;
            }
            let end = blocked().map(|range| range.base).filter(|&base| base > start).fold(bank.end(), Pa::min);
            let whole = units(Range::between(start, end));
            if !whole.is_empty() && best.is_none_or(|best| (whole.size, best.base) > (best.size, whole.base)) {
                best = Some(whole);
            }
        }
    }
    best
}

/// Returns the whole units in a range.
fn units(range: Range) -> Range {
    match range.base.0.checked_next_multiple_of(UNIT) {
        Some(start) => Range::between(Pa(start), Pa(range.end().0 & !(UNIT - 1))),
        None => Range::default(),
    }
}

/// The addresses that the boot modules are copied to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The kernel. It is copied to `base` and entered there; the range includes its BSS.
    pub kernel: Range,
    /// The RAM disk. If this is the range of the boot module, nothing is copied.
    pub initrd: Option<Range>,
    /// The device tree: [`DTB_MAX`] bytes, aligned to 2 MiB.
    pub dtb: Range,
}

/// The image for which there is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlaceError {
    /// The kernel.
    Kernel {
        /// The bytes that it needs.
        size: u64,
    },
    /// The RAM disk, within 32 GiB of the kernel.
    Initrd {
        /// The bytes that it needs.
        size: u64,
    },
    /// The device tree.
    Dtb,
}

impl fmt::Display for PlaceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("there is no room for its ")?;
        match self {
            PlaceError::Kernel { size } => write!(f, "kernel of {} KiB", size.div_ceil(1024)),
            PlaceError::Initrd { size } => {
                write!(f, "RAM disk of {} KiB within 32 GiB of its kernel", size.div_ceil(1024))
            }
            PlaceError::Dtb => f.write_str("device tree"),
        }
    }
}

impl core::error::Error for PlaceError {}

/// Chooses the addresses of kernel, device tree and RAM disk in `banks`.
///
/// `kernel_file` and `ramdisk` are the ranges of the boot modules. The chosen ranges overlap neither them nor any of
/// `busy` (the host's device tree, other modules), so that the images can be copied in any order. A RAM disk that
/// already lies in `banks`, near enough to the kernel, stays where it is.
///
/// # Errors
///
/// [`PlaceError`] for the first image that does not fit.
pub fn place(
    banks: &[Range],
    image: &Image,
    kernel_file: Range,
    ramdisk: Option<Range>,
    busy: &[Range],
) -> Result<Placement, PlaceError> {
    let mut taken: ArrayVec<Range, 16> = ArrayVec::new();
    taken.push(kernel_file);
    taken.extend(ramdisk);
    let free = |taken: &[Range], range: Range| !taken.iter().chain(busy).any(|other| other.overlaps(range));

    let size = image.image_size.max(kernel_file.size);
    let kernel =
        first_fit(banks, image.text_offset, size, |range| free(&taken, range)).ok_or(PlaceError::Kernel { size })?;
    taken.push(kernel);

    let dtb = first_fit(banks, 0, DTB_MAX, |range| free(&taken, range)).ok_or(PlaceError::Dtb)?;
    taken.push(dtb);

    let initrd = match ramdisk {
        Some(file) if banks.iter().any(|bank| bank.covers(file)) && near(kernel, file) => Some(file),
        Some(file) => Some(
            first_fit(banks, 0, file.size, |range| free(&taken, range) && near(kernel, range))
                .ok_or(PlaceError::Initrd { size: file.size })?,
        ),
        None => None,
    };
    Ok(Placement { kernel, initrd, dtb })
}

/// Returns the lowest range of `size` bytes that starts `offset` bytes after a unit's boundary, lies in one bank and
/// satisfies `free`.
fn first_fit(banks: &[Range], offset: u64, size: u64, free: impl Fn(Range) -> bool) -> Option<Range> {
    banks.iter().find_map(|bank| {
        let whole = units(*bank);
        (0..whole.size / UNIT)
            .map(|unit| Range::new(Pa(whole.base.0 + unit * UNIT + offset), size))
            .take_while(|range| bank.covers(*range))
            .find(|range| free(*range))
    })
}

/// Whether a window of 32 GiB, aligned to 1 GiB, holds both ranges.
fn near(kernel: Range, initrd: Range) -> bool {
    let start = kernel.base.0.min(initrd.base.0) & !(GIB - 1);
    kernel.end().0.max(initrd.end().0) - start <= WINDOW
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    const M: u64 = 1 << 20;
    const G: u64 = 1 << 30;

    fn r(base: u64, size: u64) -> Range {
        Range::new(Pa(base), size)
    }

    fn machine(memory: &[Range], reserved: &[Range]) -> Machine {
        let mut machine = Machine::new();
        machine.memory.extend(memory.iter().copied());
        machine.reserved.extend(reserved.iter().copied());
        machine
    }

    #[test]
    fn banks_are_whole_units_outside_of_reserved_and_kept_memory() {
        let machine = machine(&[r(G, 512 * M)], &[r(G + 100 * M + 4096, 4096), r(8 * G, M)]);
        let banks = plan_dom0_memory(&machine, &[r(G, M), r(G + 512 * M - 4096, 4096)], u64::MAX);
        assert_eq!(banks[..], [r(G + 2 * M, 98 * M), r(G + 102 * M, 408 * M)]);
    }

    #[test]
    fn the_largest_free_ranges_are_chosen_first_and_the_last_one_is_shortened() {
        let machine = machine(&[r(4 * G, 300 * M), r(G, 100 * M), r(2 * G, 200 * M)], &[]);
        assert_eq!(plan_dom0_memory(&machine, &[], 299 * M)[..], [r(4 * G, 300 * M)]);
        assert_eq!(plan_dom0_memory(&machine, &[], 351 * M)[..], [r(2 * G, 52 * M), r(4 * G, 300 * M)]);
        assert_eq!(plan_dom0_memory(&machine, &[], 0)[..], []);
    }

    #[test]
    fn there_are_at_most_eight_banks() {
        let reserved: Vec<_> = (0..20).map(|hole| r(G + hole * 10 * M, 2 * M + hole * 4096)).collect();
        let banks = plan_dom0_memory(&machine(&[r(G, 200 * M)], &reserved), &[], u64::MAX);
        assert_eq!(banks.len(), BANKS);
        assert!(banks.is_sorted());
        for (index, bank) in banks.iter().enumerate() {
            assert!(bank.base.0 % UNIT == 0 && bank.size % UNIT == 0 && !bank.is_empty());
            assert!(!reserved.iter().chain(&banks[..index]).any(|other| other.overlaps(*bank)));
        }
    }

    #[test]
    fn overlapping_reservations_and_unaligned_banks_are_handled() {
        let machine = machine(
            &[r(G + 4096, 20 * M), r(u64::MAX - 4095, 4095)],
            &[r(G + 4 * M, 8 * M), r(G + 6 * M, 2 * M), r(G + 11 * M, 2 * M), r(0, 0)],
        );
        let banks = plan_dom0_memory(&machine, &[], u64::MAX);
        assert_eq!(banks[..], [r(G + 2 * M, 2 * M), r(G + 14 * M, 6 * M)]);
    }

    #[test]
    fn images_overlap_neither_each_other_nor_the_boot_modules() {
        let banks = [r(G, 64 * M), r(4 * G, 512 * M)];
        let image = Image { text_offset: 0x8_0000, image_size: 40 * M };
        let file = r(G + 8 * M, 30 * M);
        let ramdisk = r(512 * M, 3 * M + 5);
        let busy = [r(4 * G + M, 100)];
        let placed = place(&banks, &image, file, Some(ramdisk), &busy).unwrap();
        assert_eq!(placed.kernel, r(4 * G + 2 * M + 0x8_0000, 40 * M));
        assert_eq!(placed.dtb, r(G, DTB_MAX));
        assert_eq!(placed.initrd, Some(r(G + 2 * M, 3 * M + 5)));
    }

    #[test]
    fn a_ram_disk_in_dom0s_memory_stays_there_unless_it_is_too_far_from_the_kernel() {
        let banks = [r(G, 512 * M), r(40 * G, G)];
        let image = Image { text_offset: 0, image_size: 30 * M };
        let file = r(G, 20 * M);
        let near_by = r(G + 100 * M + 7, 5 * M);
        assert_eq!(place(&banks, &image, file, Some(near_by), &[]).unwrap().initrd, Some(near_by));
        let far = r(40 * G, 5 * M);
        let placed = place(&banks, &image, file, Some(far), &[]).unwrap();
        assert_eq!((placed.kernel.base, placed.dtb.base), (Pa(G + 20 * M), Pa(G + 50 * M)));
        assert_eq!(placed.initrd, Some(r(G + 52 * M, 5 * M)));
        // The window is aligned to 1 GiB, so 32 GiB from end to end is not always enough.
        assert!(near(r(G, M), r(33 * G - M, M)));
        assert!(!near(r(G + M, M), r(33 * G, M)));
    }

    #[test]
    fn the_error_names_the_image_that_does_not_fit() {
        let image = Image { text_offset: 0, image_size: 8 * M };
        let elsewhere = r(0, 6 * M);
        assert_eq!(place(&[r(G, 6 * M)], &image, elsewhere, None, &[]), Err(PlaceError::Kernel { size: 8 * M }));
        assert_eq!(place(&[r(G, 8 * M)], &image, elsewhere, None, &[]), Err(PlaceError::Dtb));
        let ramdisk = Some(r(8 * M, 3 * M));
        assert_eq!(place(&[r(G, 12 * M)], &image, elsewhere, ramdisk, &[]), Err(PlaceError::Initrd { size: 3 * M }));
        assert_eq!(
            alloc::format!("{}", PlaceError::Kernel { size: 8 * M }),
            "there is no room for its kernel of 8192 KiB"
        );
    }
}
