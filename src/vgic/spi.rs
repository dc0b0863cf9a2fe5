//! The SPIs, and the queue of each vCPU.
//!
//! An SPI that is pending and enabled, or active, is in the queue of one vCPU, its *home*: the vCPU that it is routed
//! to or, while it is active or listed, the one that took it. Queues are bitmaps, guarded by the same lock as the SPIs.

use super::irq::{Irq, Trigger};
use super::regs::SPI_FIRST;
use super::vcpu_set::VcpuSet;
use crate::arch::nospec;
use crate::ids::VcpuId;
use crate::util::bits::set_bits;
use alloc::boxed::Box;

/// No vCPU.
pub(super) const NO_VCPU: u16 = u16::MAX;

/// One SPI.
#[derive(Clone, Copy)]
pub(super) struct Spi {
    pub irq: Irq,
    /// GICD_IROUTER.
    pub route: u64,
    /// The vCPU that GICD_IROUTER names, or [`NO_VCPU`].
    pub target: u16,
    /// The vCPU in whose queue or list registers it is, or [`NO_VCPU`].
    pub home: u16,
}

impl Spi {
    /// The state at reset: routed to `default`.
    fn new(default: Option<VcpuId>) -> Spi {
        let target = default.map_or(NO_VCPU, |v| v.0);
        Spi { irq: Irq::new(Trigger::Level), route: 0, target, home: NO_VCPU }
    }
}

/// The SPIs in a queue: a bit for each INTID.
type Queue = [u64; 16];

/// The vCPU behind a number that may be [`NO_VCPU`].
pub(super) fn some_vcpu(vcpu: u16) -> Option<VcpuId> {
    (vcpu != NO_VCPU).then_some(VcpuId(vcpu))
}

/// The SPIs and the queues: what the distributor's lock guards.
pub(super) struct Dist {
    spis: Box<[Spi]>,
    queues: Box<[Queue]>,
}

impl Dist {
    /// All SPIs at reset. They are routed to affinity 0.0.0.0, which is `default`.
    pub fn new(spis: u32, vcpus: usize, default: Option<VcpuId>) -> Dist {
        Dist {
            spis: core::iter::repeat_n(Spi::new(default), spis as usize).collect(),
            queues: core::iter::repeat_n([0; 16], vcpus).collect(),
        }
    }

    /// Puts all SPIs into the state that [`new`](Self::new) gives them.
    pub fn reset(&mut self, default: Option<VcpuId>) {
        self.spis.fill(Spi::new(default));
        self.queues.fill([0; 16]);
    }

    pub fn spi(&self, intid: u32) -> Option<&Spi> {
        nospec::get(&self.spis, intid.checked_sub(SPI_FIRST)? as usize)
    }

    pub fn spi_mut(&mut self, intid: u32) -> Option<&mut Spi> {
        nospec::get_mut(&mut self.spis, intid.checked_sub(SPI_FIRST)? as usize)
    }

    /// The first INTID after those of the SPIs.
    pub fn end(&self) -> u32 {
        SPI_FIRST.saturating_add(self.count())
    }

    /// Number of SPIs.
    pub fn count(&self) -> u32 {
        self.spis.len() as u32
    }

    pub fn irq(&self, intid: u32) -> Option<&Irq> {
        self.spi(intid).map(|spi| &spi.irq)
    }

    pub fn irq_mut(&mut self, intid: u32) -> Option<&mut Irq> {
        self.spi_mut(intid).map(|spi| &mut spi.irq)
    }

    /// The vCPU in whose queue or list registers an SPI is.
    pub fn home(&self, intid: u32) -> Option<VcpuId> {
        some_vcpu(self.spi(intid)?.home)
    }

    /// The vCPU that an SPI is routed to.
    pub fn target(&self, intid: u32) -> Option<VcpuId> {
        some_vcpu(self.spi(intid)?.target)
    }

    /// Puts an SPI whose state has changed into the queue of the right vCPU, and returns that vCPU. An SPI that is
    /// listed stays where it is; the result is then `None`.
    pub fn place(&mut self, intid: u32) -> Option<VcpuId> {
        let spi = self.spi_mut(intid)?;
        if spi.irq.is_listed() {
            return None;
        }
        let old = spi.home;
        let new = if spi.irq.is_active() && old != NO_VCPU {
            old
        } else if spi.irq.is_queued() {
            spi.target
        } else {
            NO_VCPU
        };
        spi.home = new;
        if old != new {
            let (word, mask) = (intid as usize / 64, 1u64.wrapping_shl(intid));
            if let Some(queue) = self.queues.get_mut(usize::from(old)).and_then(|q| q.get_mut(word)) {
                *queue &= !mask;
            }
            if let Some(queue) = self.queues.get_mut(usize::from(new)).and_then(|q| q.get_mut(word)) {
                *queue |= mask;
            }
        }
        some_vcpu(new)
    }

    /// Visits the SPIs in a vCPU's queue.
    pub fn for_each_queued(&self, vcpu: VcpuId, mut visit: impl FnMut(u32, &Irq)) {
        let Some(queue) = self.queues.get(vcpu.index()) else { return };
        for (word, at) in queue.iter().zip(0u32..) {
            for bit in set_bits(*word) {
                let intid = at.wrapping_mul(64) | bit;
                if let Some(irq) = self.irq(intid) {
                    visit(intid, irq);
                }
            }
        }
    }

    /// The vCPUs whose list registers hold any of the 32 interrupts from `first` on.
    pub fn listed_at(&self, first: u32) -> VcpuSet {
        let mut set = VcpuSet::new();
        for intid in first..first.saturating_add(32) {
            if let Some(spi) = self.spi(intid)
                && spi.irq.is_listed()
                && let Some(home) = some_vcpu(spi.home)
            {
                set.insert(home);
            }
        }
        set
    }
}
