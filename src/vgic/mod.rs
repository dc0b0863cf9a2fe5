//! The GIC that a guest sees: a GICv3 without security (DS = 1), and nothing of GICv4.
//!
//! | file | what it is |
//! |---|---|
//! | `regs` | from an offset and a size to a register |
//! | `dist`, `redist` | what those registers do |
//! | `irq` | the state machine of one SGI, PPI or SPI |
//! | `sgi` | ICC_SGI1R_EL1: who is meant |
//! | `lr` | list registers as images |
//! | `deliver`, `fold` | filling the list registers before an entry, emptying them after an exit |
//! | `inject` | interrupts of emulated devices and of hardware that the domain owns |
//! | `lpi`, `lpi_set`, `lpi_tables` | who delivers an LPI, its pending state, and its tables in the guest's memory |
//! | `soak`, `race` | for the tests: a domain that does anything in any order; CPUs that do it at once |
//!
//! **Where state lives.** SPIs and GICD_CTLR under one lock of [`Rank::VgicDist`]; a vCPU's SGIs, PPIs and redistributor under
//! one of [`Rank::VgicCpu`]; LPIs in bitmaps of atomics, so that the path of a device interrupt takes no lock. An SPI that has
//! to be looked at stands in the queue of exactly one vCPU. Each vCPU has a word, [`Work`], that says whether there is anything
//! to look at: with an empty word and empty list registers, a flush is one load and a sync one compare.
//!
//! **List registers hold nothing while a vCPU is out of its guest.** Sync takes everything back into software, flush lists it
//! again. A guest therefore reads the exact state of its own interrupts. Those that stand in the list registers of a vCPU
//! that runs elsewhere are *recalled* first: that vCPU is kicked and the access waits, with a deadline and with no lock held,
//! until its sync has been. It cannot deadlock: whoever waits has itself been synced. When the deadline is missed the
//! access is answered from what is known and counted; a write still takes effect at the next sync.
//!
//! **The port.** What this room needs from the domain is the trait [`Port`]. None of its functions is called with a lock of this
//! room held, so changes are collected under the lock and carried out after it. Where a physical SPI follows the virtual
//! one, the last writer looks again after it has acted, so that two vCPUs that race cannot leave the two apart.
//!
//! **Known differences from hardware.** A hardware-linked SPI that is pending at the physical GIC but was not taken (it is disabled)
//! does not read as pending. One that signals by level and falls silent after it was taken is delivered all the same; for PPIs
//! the caller is asked ([`Synced`]). A write to GICD_ISPENDR makes a hardware-linked SPI pending in software only.
//!
//! What is not here: GICv2 compatibility, 1-of-N routing, extended INTID ranges, message-based SPIs, NMIs; all are
//! advertised as absent. GICR_WAKER is storage: a sleeping redistributor still delivers, as it does for vLPIs in hardware.
#![deny(
    clippy::panic,
    clippy::todo,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
#![cfg_attr(
    test,
    allow(
        clippy::panic,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

mod dist;
mod flush_lrs;
mod inject;
mod irq;
pub mod lpi;
mod lpi_set;
mod lpi_tables;
pub mod lr;
#[cfg(test)]
mod race;
#[cfg(test)]
mod random_tests;
mod redist;
pub mod regs;
mod sgi;
mod sync_lrs;
#[cfg(test)]
pub(crate) mod testing;
mod vcpu_set;

pub use inject::{IrqView, Signal};
pub use irq::Trigger;
pub use lpi::Owner;
pub use lr::LrImage;
pub use sgi::SgiGroup;
pub use sync_lrs::Synced;

#[cfg(test)]
use crate::ids;
use crate::ids::{Intid, Ipa, Mpidr, VcpuId};
use crate::sync::{Lock, Rank};
use alloc::boxed::Box;
use alloc::vec::Vec;
use bitflags::bitflags;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use dist::Dist;
use lpi::Lpis;
use lpi_set::LpiSet;
use redist::Private;
use vcpu_set::VcpuSet;

/// What the virtual GIC asks of the domain. Called with no lock of this room held.
pub trait Port {
    /// The vCPU has something new: out of the guest if it is in it, awake if it sleeps, and flush before it enters.
    /// Must not get lost between a flush and the entry that follows it.
    fn kick(&self, vcpu: VcpuId);
    /// Copies from the domain's memory; false when not all of it is the domain's RAM.
    fn read_guest(&self, ipa: Ipa, buf: &mut [u8]) -> bool;
    /// Whether this SPI is a physical one of the same number that the domain owns.
    fn owns_spi(&self, intid: Intid) -> bool;
    /// The guest has enabled or disabled an SPI it owns.
    fn spi_set_enabled(&self, intid: Intid, on: bool);
    /// The guest has said how an SPI it owns signals.
    fn spi_set_trigger(&self, intid: Intid, trigger: Trigger);
    /// The guest has routed an SPI it owns to this vCPU.
    fn spi_route(&self, intid: Intid, vcpu: VcpuId);
    /// The guest has changed the pending state of an SPI it owns.
    fn spi_set_pending(&self, intid: Intid, on: bool);
    /// A physical SPI that is active on the guest's behalf has to be deactivated.
    fn spi_deactivate(&self, intid: Intid);
    /// A physical PPI that is active on behalf of `vcpu` has to be deactivated, on the CPU where that runs or will run next.
    fn ppi_deactivate(&self, vcpu: VcpuId, intid: Intid);
    /// GICD_CTLR.EnableGrp1 is `on` now. On GICv4.0 residency depends on it.
    fn group1_enabled(&self, on: bool);
    /// GICR_CTLR.EnableLPIs of this vCPU is `on` now. The guest's configuration and pending tables have been read.
    fn lpis_enabled(&self, vcpu: VcpuId, on: bool, pendbaser: u64, propbaser: u64);
    /// Polls `done` until it says so, with a deadline in the order of a context switch; false when that was missed.
    ///
    /// Called after a kick, to see another vCPU leave its guest. The default knows no clock and counts turns.
    fn wait(&self, done: &dyn Fn() -> bool) -> bool {
        const TURNS: u32 = 1 << 20;
        (0..TURNS).any(|_| {
            core::hint::spin_loop();
            done()
        })
    }
}

/// The most vCPUs one virtual GIC serves.
pub const MAX_VCPUS: usize = 512;

/// What a virtual GIC is built for.
#[derive(Clone, Debug)]
pub struct VgicConfig {
    /// The affinity of each vCPU, in order.
    pub vcpus: Vec<Mpidr>,
    /// How many SPIs: at most 988.
    pub spis: u32,
    /// Bits of an INTID when there are LPIs: 14 to 16.
    pub id_bits: u8,
    /// Whether the guest sees LPIs.
    pub has_lpis: bool,
    /// How many list registers the machine has: ICH_VTR_EL2.ListRegs + 1.
    pub list_registers: usize,
    /// Bits of a priority that the guest sees: 4 to 8. Five is what every CPU interface has.
    pub priority_bits: u8,
}

/// Why a virtual GIC cannot be built as asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadConfig {
    /// No vCPU, or more than [`MAX_VCPUS`].
    Vcpus(usize),
    /// Two vCPUs have this affinity.
    SameAffinity(Mpidr),
    /// More than 988 SPIs.
    Spis(u32),
    /// Not 14 to 16 bits.
    IdBits(u8),
    /// Not 1 to 16 list registers.
    ListRegisters(usize),
    /// Not 4 to 8 bits.
    PriorityBits(u8),
}

impl fmt::Display for BadConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BadConfig::Vcpus(n) => write!(f, "a virtual GIC serves 1 to {MAX_VCPUS} vCPUs, not {n}"),
            BadConfig::SameAffinity(a) => write!(f, "two vCPUs have affinity {a}"),
            BadConfig::Spis(n) => write!(f, "a GIC has at most 988 SPIs, not {n}"),
            BadConfig::IdBits(n) => write!(f, "INTIDs of a guest have 14 to 16 bits, not {n}"),
            BadConfig::ListRegisters(n) => write!(f, "a CPU has 1 to 16 list registers, not {n}"),
            BadConfig::PriorityBits(n) => write!(f, "priorities have 4 to 8 bits, not {n}"),
        }
    }
}

bitflags! {
    /// What a flush has to look at.
    #[derive(Clone, Copy, PartialEq, Eq)]
    struct Work: u32 {
        /// SGIs and PPIs.
        const PRIVATE = 1 << 0;
        /// SPIs in this vCPU's queue.
        const SPI = 1 << 1;
        /// LPIs in this vCPU's pending set.
        const LPI = 1 << 2;
    }
}

/// One vCPU's part. On its own cache lines: other CPUs write `work` and the pending set, and nothing else.
#[repr(align(128))]
struct Vcpu {
    affinity: Mpidr,
    /// [`Work`].
    work: AtomicU32,
    /// Odd while the list registers are loaded: between a flush that used some and the sync that follows.
    epoch: AtomicU32,
    /// GICR_CTLR.EnableLPIs, for those who do not hold the lock.
    lpis_on: AtomicBool,
    /// LPIs that wait for a list register, or to be enabled.
    lpis: LpiSet,
    state: Lock<Private>,
}

impl Vcpu {
    fn loaded(&self) -> bool {
        self.epoch.load(Ordering::Acquire) & 1 != 0
    }

    fn add_work(&self, work: Work) {
        self.work.fetch_or(work.bits(), Ordering::SeqCst);
    }
}

/// One domain's virtual GIC, shared by the CPUs that run its vCPUs.
pub struct Vgic {
    vcpus: Box<[Vcpu]>,
    /// Affinities in rising order of their packed form, with whose they are.
    by_affinity: Box<[(u32, VcpuId)]>,
    dist: Lock<Dist>,
    /// GICD_CTLR's enables; written under the distributor's lock.
    ctlr: AtomicU32,
    lpis: Lpis,
    /// GICR_PROPBASER of the redistributor that enabled LPIs last: they share one table (CommonLPIAff = 0).
    propbaser: AtomicU64,
    list_registers: usize,
    priority_mask: u8,
    missed_recalls: AtomicU32,
}

impl Vgic {
    /// Builds the distributor and all redistributors at their reset values. Allocates; nothing else here does.
    pub fn new(config: VgicConfig) -> Result<Vgic, BadConfig> {
        let VgicConfig { vcpus, spis, id_bits, has_lpis, list_registers, priority_bits } = config;
        if vcpus.is_empty() || vcpus.len() > MAX_VCPUS {
            return Err(BadConfig::Vcpus(vcpus.len()));
        }
        if spis > regs::SPI_END.saturating_sub(regs::SPI_FIRST) {
            return Err(BadConfig::Spis(spis));
        }
        if !(14..=16).contains(&id_bits) {
            return Err(BadConfig::IdBits(id_bits));
        }
        if !(1..=lr::MAX_LIST_REGISTERS).contains(&list_registers) {
            return Err(BadConfig::ListRegisters(list_registers));
        }
        if !(4..=8).contains(&priority_bits) {
            return Err(BadConfig::PriorityBits(priority_bits));
        }
        let mut by_affinity: Vec<(u32, VcpuId)> =
            vcpus.iter().enumerate().map(|(i, a)| (a.packed(), VcpuId(i as u16))).collect();
        by_affinity.sort_unstable();
        for pair in by_affinity.windows(2) {
            if let [(a, _), (b, _)] = pair
                && a == b
            {
                return Err(BadConfig::SameAffinity(Mpidr::from_packed(*a)));
            }
        }
        let default = by_affinity.first().filter(|(packed, _)| *packed == 0).map(|(_, vcpu)| *vcpu);
        let lpis = Lpis::new(id_bits, has_lpis);
        let cpus = vcpus
            .iter()
            .map(|affinity| Vcpu {
                affinity: *affinity,
                work: AtomicU32::new(0),
                epoch: AtomicU32::new(0),
                lpis_on: AtomicBool::new(false),
                lpis: LpiSet::new(lpis.count()),
                state: Lock::new(Rank::VgicCpu, Private::new()),
            })
            .collect();
        Ok(Vgic {
            dist: Lock::new(Rank::VgicDist, Dist::new(spis, vcpus.len(), default)),
            vcpus: cpus,
            by_affinity: by_affinity.into_boxed_slice(),
            ctlr: AtomicU32::new(0),
            lpis,
            propbaser: AtomicU64::new(0),
            list_registers,
            priority_mask: 0xffu8.wrapping_shl(8u32.wrapping_sub(u32::from(priority_bits))),
            missed_recalls: AtomicU32::new(0),
        })
    }

    /// How many vCPUs there are.
    #[must_use]
    pub fn vcpus(&self) -> usize {
        self.vcpus.len()
    }

    /// The vCPU of this affinity.
    #[must_use]
    pub fn vcpu_by_affinity(&self, affinity: Mpidr) -> Option<VcpuId> {
        let wanted = affinity.packed();
        let at = self.by_affinity.binary_search_by_key(&wanted, |(packed, _)| *packed).ok()?;
        self.by_affinity.get(at).map(|(_, vcpu)| *vcpu)
    }

    /// How often a vCPU did not leave its guest in time for a register access that needed it to.
    #[must_use]
    pub fn missed_recalls(&self) -> u32 {
        self.missed_recalls.load(Ordering::Relaxed)
    }

    /// GICD_CTLR.EnableGrp1.
    #[must_use]
    pub fn group1_on(&self) -> bool {
        self.ctlr.load(Ordering::SeqCst) & dist::ENABLE_GROUP1 != 0
    }

    fn vcpu(&self, vcpu: VcpuId) -> Option<&Vcpu> {
        self.vcpus.get(vcpu.index())
    }

    /// Has these vCPUs look for new interrupts. `from` is at EL2 and flushes anyway before it enters.
    fn notify(&self, port: &dyn Port, from: Option<VcpuId>, who: &VcpuSet, work: Work) {
        for vcpu in who.iter() {
            self.notify_one(port, from, vcpu, work);
        }
    }

    fn notify_one(&self, port: &dyn Port, from: Option<VcpuId>, vcpu: VcpuId, work: Work) {
        let Some(cpu) = self.vcpu(vcpu) else { return };
        cpu.add_work(work);
        if from != Some(vcpu) {
            port.kick(vcpu);
        }
    }

    /// Has these vCPUs give back what is in their list registers, and waits until they have.
    fn recall(&self, port: &dyn Port, who: &VcpuSet) {
        for vcpu in who.iter() {
            let Some(cpu) = self.vcpu(vcpu) else { continue };
            let epoch = cpu.epoch.load(Ordering::Acquire);
            if epoch & 1 == 0 {
                continue;
            }
            port.kick(vcpu);
            if !port.wait(&|| cpu.epoch.load(Ordering::Acquire) != epoch) {
                self.missed_recalls.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// The numbers of the bits that are set.
fn bits(mut word: u64) -> impl Iterator<Item = u32> {
    core::iter::from_fn(move || {
        if word == 0 {
            return None;
        }
        let bit = word.trailing_zeros();
        word &= word.wrapping_sub(1);
        Some(bit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> VgicConfig {
        VgicConfig {
            vcpus: (0..4).map(Mpidr).collect(),
            spis: 64,
            id_bits: 14,
            has_lpis: true,
            list_registers: 4,
            priority_bits: 5,
        }
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        let refused = |change: fn(&mut VgicConfig)| {
            let mut c = config();
            change(&mut c);
            Vgic::new(c).err()
        };
        assert_eq!(refused(|c| c.vcpus.clear()), Some(BadConfig::Vcpus(0)));
        assert_eq!(refused(|c| c.vcpus[3] = Mpidr(1)), Some(BadConfig::SameAffinity(Mpidr(1))));
        assert_eq!(refused(|c| c.spis = 989), Some(BadConfig::Spis(989)));
        assert_eq!(refused(|c| c.id_bits = 13), Some(BadConfig::IdBits(13)));
        assert_eq!(refused(|c| c.list_registers = 0), Some(BadConfig::ListRegisters(0)));
        assert_eq!(refused(|c| c.priority_bits = 3), Some(BadConfig::PriorityBits(3)));
        assert!(refused(|_| ()).is_none());
    }

    #[test]
    fn a_vcpu_is_found_by_all_four_levels_of_its_affinity() {
        let mut c = config();
        c.vcpus[2] = Mpidr(0x1_0002_0304);
        let vgic = Vgic::new(c).unwrap();
        assert_eq!(vgic.vcpu_by_affinity(Mpidr(0x1_0002_0304)), Some(VcpuId(2)));
        assert_eq!(vgic.vcpu_by_affinity(Mpidr(0x0_0002_0304)), None);
    }

    #[test]
    fn a_word_yields_its_bits_in_rising_order() {
        assert_eq!(bits(0x8000_0000_0000_0012).collect::<Vec<_>>(), [1, 4, 63]);
    }
}
