//! The memory map of a domU, and the memory of the machine that is reserved for domUs.
//!
//! The map is that of QEMU's `virt` machine, which many kernels and test programs support. The guest sees its RAM as
//! one range, even if it consists of several ranges of the machine. Kernel, device tree and RAM disk are placed in it
//! by the same rules as dom0's.

use super::{PlaceError, Placement, place, plan_dom0_memory};
use crate::build::image::Image;
use crate::ids::{Intid, Mpidr, Pa};
use crate::mm::guest_pool::UNIT;
use crate::platform::Machine;
use crate::util::range::Range;
use crate::vgic::VGICR_SIZE;
use alloc::vec::Vec;

/// The distributor.
pub const DIST: Range = Range::new(Pa(0x0800_0000), 0x1_0000);
/// The first ITS. Others are below it.
const ITS: Range = Range::new(Pa(0x0808_0000), 0x2_0000);
/// The largest number of ITSs.
pub const MAX_ITSS: usize = 4;
/// The address of the first redistributor.
const REDISTS: Pa = Pa(0x080a_0000);
/// The console, a PL011.
pub const UART: Range = Range::new(Pa(0x0900_0000), 0x1000);
/// The console's interrupt.
pub const UART_IRQ: Intid = Intid(33);
/// The number of SPIs.
pub const SPIS: u32 = 32;
/// The window of PCI for BARs of 32 bits.
pub const PCI_MEM32: Range = Range::new(Pa(0x1000_0000), 0x2f00_0000);
/// The window of PCI for BARs of 64 bits, where the domain's addresses have 40 bits or more.
pub const PCI_MEM64: Range = Range::new(Pa(0x80_0000_0000), 0x80_0000_0000);
/// The configuration space of the PCI functions that are given to the domain: one bus.
pub const ECAM: Range = Range::new(Pa(0x3f00_0000), 0x10_0000);
/// The address of the RAM.
pub const RAM: Pa = Pa(0x4000_0000);
/// The largest size of the RAM in bytes.
pub const MAX_RAM: u64 = PCI_MEM64.base.0 - RAM.0;
/// The largest number of vCPUs: their redistributors end below the console.
pub const MAX_VCPUS: usize = ((UART.base.0 - REDISTS.0) / VGICR_SIZE) as usize;

/// The addresses at which a domU has something: its RAM and EL2's devices.
#[must_use]
pub fn occupied(vcpus: usize, ram: u64, uart: bool, pci: bool) -> Vec<Range> {
    let mut all = alloc::vec![DIST, redists(vcpus), Range::new(RAM, ram)];
    all.extend(uart.then_some(UART));
    if pci {
        all.extend([ECAM, PCI_MEM32, PCI_MEM64]);
        all.extend((0..MAX_ITSS).map(its));
    }
    all
}

/// The registers of ITS number `index`.
#[must_use]
pub const fn its(index: usize) -> Range {
    Range::new(Pa(ITS.base.0 - index as u64 * ITS.size), ITS.size)
}

/// The redistributors of `vcpus` vCPUs.
#[must_use]
pub const fn redists(vcpus: usize) -> Range {
    Range::new(REDISTS, vcpus as u64 * VGICR_SIZE)
}

/// The affinities of the vCPUs: clusters of 16, as many as the target list of one SGI covers (IHI 0069, ICC_SGI1R_EL1).
#[must_use]
pub fn affinities(vcpus: usize) -> Vec<Mpidr> {
    (0..vcpus as u64).map(|index| Mpidr(((index / 16) << 8) | (index % 16))).collect()
}

/// The RAM of a domU in bytes: the configured size, rounded up to whole units; 0 if that is no size.
#[must_use]
pub fn ram_size(memory: u64) -> u64 {
    memory.checked_next_multiple_of(UNIT).unwrap_or(0)
}

/// Places the boot modules in `ram` bytes of RAM. Addresses are the guest's.
///
/// # Errors
///
/// [`PlaceError`] for what does not fit.
pub fn place_modules(ram: u64, image: &Image, kernel: u64, ramdisk: Option<u64>) -> Result<Placement, PlaceError> {
    // The boot modules lie outside of this RAM, so they restrict no address in it. Ranges at 0 stand for them.
    let file = |bytes| Range::new(Pa(0), bytes);
    place(&[Range::new(RAM, ram)], image, file(kernel), ramdisk.map(file), &[])
}

/// Chooses free RAM for all domUs of the machine's description, and `more` bytes for those of later, or less if less is
/// free. It overlaps neither `keep_out` nor a boot module.
#[must_use]
pub fn plan_pool(machine: &Machine, keep_out: &[Range], more: u64) -> Vec<Range> {
    let sizes = machine.domains.iter().map(|config| ram_size(config.memory));
    let wanted = sizes.fold(ram_size(more), u64::saturating_add);
    let keep_out: Vec<Range> =
        keep_out.iter().copied().chain(machine.all_modules().map(|module| module.range)).collect();
    plan_dom0_memory(machine, &keep_out, wanted).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::{DomainConfig, Module, ModuleKind};
    use arrayvec::{ArrayString, ArrayVec};

    const M: u64 = 1 << 20;

    fn config(memory: u64, kernel: Range) -> DomainConfig {
        let mut modules = ArrayVec::new();
        modules.push(Module { kind: ModuleKind::Kernel, range: kernel, bootargs: ArrayString::new() });
        DomainConfig { cpus: 1, memory, modules, ..DomainConfig::default() }
    }

    #[test]
    fn no_ranges_of_the_map_overlap() {
        let mut all = std::vec![DIST, redists(MAX_VCPUS), UART, PCI_MEM32, ECAM, Range::new(RAM, MAX_RAM), PCI_MEM64];
        all.extend((0..MAX_ITSS).map(its));
        for (index, a) in all.iter().enumerate() {
            assert!(all[..index].iter().all(|b| !a.overlaps(*b)), "{a}");
        }
        assert_eq!(MAX_VCPUS, 123);
        assert!(redists(MAX_VCPUS + 1).overlaps(UART));
    }

    #[test]
    fn there_are_sixteen_affinities_in_a_cluster() {
        let all = affinities(18);
        assert_eq!([all[0], all[15], all[16], all[17]], [Mpidr(0), Mpidr(15), Mpidr(0x100), Mpidr(0x101)]);
    }

    #[test]
    fn the_pool_has_the_ram_of_all_domus_and_does_not_overlap_their_modules() {
        let mut machine = Machine::new();
        machine.memory.push(Range::new(Pa(1024 * M), 512 * M));
        let kernel = Range::new(Pa(1100 * M), 10 * M + 5);
        machine.domains.push(config(100 * M + 1, kernel));
        machine.domains.push(config(64 * M, kernel));
        let keep_out = [Range::new(Pa(1500 * M), 36 * M)];
        let pool = plan_pool(&machine, &keep_out, 0);
        assert_eq!(pool.iter().map(|range| range.size).sum::<u64>(), 166 * M);
        assert!(pool.iter().all(|range| !range.overlaps(kernel) && !range.overlaps(keep_out[0])));
        let more = plan_pool(&machine, &keep_out, 31 * M);
        assert_eq!(more.iter().map(|range| range.size).sum::<u64>(), 198 * M, "in whole units");
        let all = plan_pool(&machine, &keep_out, 1 << 60);
        assert!(all.iter().map(|range| range.size).sum::<u64>() > 400 * M, "what there is");
        assert!(plan_pool(&Machine::new(), &[], 0).is_empty());
    }

    #[test]
    fn modules_are_placed_at_guest_addresses() {
        let image = Image { text_offset: 0, image_size: 30 * M };
        let placed = place_modules(128 * M, &image, 20 * M, Some(8 * M)).unwrap();
        let r = |base, size| Range::new(Pa(base), size);
        assert_eq!(placed.kernel, r(1024 * M, 30 * M));
        assert_eq!(placed.dtb, r(1054 * M, 2 * M));
        assert_eq!(placed.initrd, Some(r(1056 * M, 8 * M)));
        assert_eq!(place_modules(16 * M, &image, 20 * M, None), Err(PlaceError::Kernel { size: 30 * M }));
    }
}
