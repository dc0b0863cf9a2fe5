//! The state of one domain's virtual GIC.

use super::config::{BadConfig, MAX_VCPUS, VgicConfig};
use super::lpi_state::Lpis;
use super::lr;
use super::port::Port;
use super::regs::{self, ENABLE_GROUP0, ENABLE_GROUP1};
use super::spi::Dist;
use super::vcpu::{Vcpu, Work};
use super::vcpu_set::VcpuSet;
use crate::ids::{Mpidr, VcpuId};
use crate::sync::{Lock, Rank};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// The virtual GIC of one domain, shared by the CPUs that run its vCPUs.
pub struct Vgic {
    pub(super) vcpus: Box<[Vcpu]>,
    /// The vCPUs by affinity, in rising order of its packed form.
    pub(super) by_affinity: Box<[(u32, VcpuId)]>,
    pub(super) dist: Lock<Dist>,
    /// The enable bits and nASSGIreq of GICD_CTLR; written under the distributor's lock.
    pub(super) ctlr: AtomicU32,
    pub(super) lpis: Lpis,
    /// GICR_PROPBASER of the redistributor that enabled LPIs last: all share one table (GICR_TYPER.CommonLPIAff = 0).
    pub(super) propbaser: AtomicU64,
    /// SGIs without active state have been offered to the guest (`direct_sgis`).
    pub(super) sgis_offered: AtomicBool,
    /// SGIs can be delivered by the hardware: offered, and the hardware has not failed (`direct_sgis`).
    pub(super) direct_sgis: AtomicBool,
    pub(super) list_registers: usize,
    pub(super) priority_mask: u8,
}

impl Vgic {
    /// Builds a distributor and the redistributors, at their reset values. No other function of the virtual GIC
    /// allocates.
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
        let default = default_target(&by_affinity);
        let lpis = Lpis::new(id_bits, has_lpis);
        let cpus = vcpus.iter().map(|affinity| Vcpu::new(*affinity, lpis.count())).collect();
        Ok(Vgic {
            dist: Lock::new(Rank::VgicDist, Dist::new(spis, vcpus.len(), default)),
            vcpus: cpus,
            by_affinity: by_affinity.into_boxed_slice(),
            ctlr: AtomicU32::new(0),
            lpis,
            propbaser: AtomicU64::new(0),
            sgis_offered: AtomicBool::new(false),
            direct_sgis: AtomicBool::new(false),
            list_registers,
            priority_mask: 0xffu8.wrapping_shl(8u32.wrapping_sub(u32::from(priority_bits))),
        })
    }

    /// The vCPU to which SPIs are routed at reset.
    pub(super) fn default_target(&self) -> Option<VcpuId> {
        default_target(&self.by_affinity)
    }

    /// Number of vCPUs.
    #[must_use]
    pub fn vcpus(&self) -> usize {
        self.vcpus.len()
    }

    /// The vCPU with this affinity.
    #[must_use]
    pub fn vcpu_by_affinity(&self, affinity: Mpidr) -> Option<VcpuId> {
        let wanted = affinity.packed();
        let at = self.by_affinity.binary_search_by_key(&wanted, |(packed, _)| *packed).ok()?;
        self.by_affinity.get(at).map(|(_, vcpu)| *vcpu)
    }

    /// GICD_CTLR.EnableGrp1.
    #[must_use]
    pub fn group1_on(&self) -> bool {
        self.ctlr.load(Ordering::SeqCst) & ENABLE_GROUP1 != 0
    }

    /// GICD_CTLR.EnableGrp0 and EnableGrp1.
    #[must_use]
    pub fn groups_on(&self) -> [bool; 2] {
        let ctlr = self.ctlr.load(Ordering::SeqCst);
        [ctlr & ENABLE_GROUP0 != 0, ctlr & ENABLE_GROUP1 != 0]
    }

    pub(super) fn vcpu(&self, vcpu: VcpuId) -> Option<&Vcpu> {
        self.vcpus.get(vcpu.index())
    }

    /// Makes these vCPUs consider new interrupts. `from` is not kicked: it is at EL2 and flushes before it enters its
    /// guest.
    pub(super) fn notify(&self, port: &dyn Port, from: Option<VcpuId>, who: &VcpuSet, work: Work) {
        for vcpu in who.iter() {
            self.notify_one(port, from, vcpu, work);
        }
    }

    pub(super) fn notify_one(&self, port: &dyn Port, from: Option<VcpuId>, vcpu: VcpuId, work: Work) {
        let Some(cpu) = self.vcpu(vcpu) else { return };
        cpu.add_work(work);
        if from != Some(vcpu) {
            port.kick(vcpu);
        }
    }

    /// Recalls those of these vCPUs whose list registers are in use: their interrupts return into software.
    pub(super) fn recall(&self, port: &dyn Port, who: &VcpuSet) {
        for vcpu in who.iter().filter(|&vcpu| self.vcpu(vcpu).is_some_and(Vcpu::loaded)) {
            port.recall(vcpu);
        }
    }
}

/// The vCPU with affinity 0.0.0.0, to which SPIs are routed at reset.
fn default_target(by_affinity: &[(u32, VcpuId)]) -> Option<VcpuId> {
    by_affinity.first().filter(|(packed, _)| *packed == 0).map(|(_, vcpu)| *vcpu)
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
    fn each_invalid_parameter_has_its_error() {
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
}
