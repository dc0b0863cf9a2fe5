//! Where each physical LPI that EL2 takes is to be injected.
//!
//! The table is read, without a lock, each time such an LPI arrives. The virtual ITS's backend writes it when a guest maps, moves
//! or unmaps an event that is injected by software.

use crate::gic::Gic;
use crate::ids::{CpuId, DeviceId, DomId, EventId, ItsId, Lpi, VIntid, VcpuId};
use crate::mmio::Hw;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// The priority at which EL2 takes device LPIs; doorbells and SPIs have the same, so that nothing nests.
pub const PRIORITY: u8 = 0xa0;

/// Where a physical LPI that EL2 takes is to be injected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The domain.
    pub domain: DomId,
    /// Its vCPU.
    pub vcpu: VcpuId,
    /// The LPI as the guest knows it.
    pub vintid: VIntid,
    /// The event that it stands for.
    pub its: ItsId,
    /// See `its`.
    pub device: DeviceId,
    /// See `its`.
    pub event: EventId,
}

/// Routes of all physical LPIs; read on each of their arrivals, without a lock: two words for each.
pub struct Routes {
    words: Vec<[AtomicU64; 2]>,
    /// How often in a row each arrived where its vCPU does not run.
    strayed: Vec<AtomicU8>,
}

/// An LPI that arrives so often in a row where its vCPU does not run is moved to where it does: each time costs an exit
/// there and another one here, and the move as much as a few.
pub const STRAYS: u8 = 8;

const VALID: u64 = 1 << 63;

/// EventIDs that a route can tell apart: more than fit any translation table of ours.
const EVENT: u32 = 0xff_ffff;

impl Routes {
    /// Room for `lpis` LPIs from 8192 on.
    #[must_use]
    pub fn new(lpis: u32) -> Routes {
        Routes {
            words: (0..lpis).map(|_| [const { AtomicU64::new(0) }; 2]).collect(),
            strayed: (0..lpis).map(|_| AtomicU8::new(0)).collect(),
        }
    }

    fn slot(&self, lpi: Lpi) -> Option<&[AtomicU64; 2]> {
        self.words.get(lpi.0.checked_sub(Lpi::FIRST)? as usize)
    }

    /// Where `lpi` goes.
    #[must_use]
    pub fn get(&self, lpi: Lpi) -> Option<Route> {
        let [to, from] = self.slot(lpi)?;
        let raw = to.load(Ordering::Acquire);
        let source = from.load(Ordering::Relaxed);
        (raw & VALID != 0).then_some(Route {
            domain: DomId((raw >> 48) as u16 & 0x7fff),
            vcpu: VcpuId((raw >> 32) as u16),
            vintid: VIntid(raw as u32),
            its: ItsId((source >> 56) as u8),
            device: DeviceId(source as u32),
            event: EventId((source >> 32) as u32 & EVENT),
        })
    }

    /// `lpi` arrived on a CPU, where its vCPU runs or not. Whether it is to be moved now.
    fn arrived(&self, lpi: Lpi, strays: bool) -> bool {
        let Some(count) = lpi.0.checked_sub(Lpi::FIRST).and_then(|n| self.strayed.get(n as usize)) else {
            return false;
        };
        // One CPU at a time takes an LPI: nothing is lost that matters.
        let so_far = if strays { count.load(Ordering::Relaxed).saturating_add(1) } else { 0 };
        let moves = so_far >= STRAYS;
        count.store(if moves { 0 } else { so_far }, Ordering::Relaxed);
        moves
    }

    /// Sends `lpi` to where `route` says.
    pub fn set(&self, lpi: Lpi, route: Route) {
        if let Some([to, from]) = self.slot(lpi) {
            let event = u64::from(route.event.0 & EVENT);
            let source = u64::from(route.its.0) << 56 | event << 32 | u64::from(route.device.0);
            from.store(source, Ordering::Relaxed);
            let raw = VALID | u64::from(route.domain.0) << 48 | u64::from(route.vcpu.0) << 32;
            to.store(raw | u64::from(route.vintid.0), Ordering::Release);
        }
    }

    /// `lpi` goes nowhere from now on.
    pub fn clear(&self, lpi: Lpi) {
        if let Some([to, _]) = self.slot(lpi) {
            to.store(0, Ordering::Release);
        }
    }
}

/// `lpi` was taken on `cpu` for a vCPU that runs, or ran last, on `runs_on`. The CPU that takes it follows the vCPU, though
/// not at once; a vCPU that is moved all the time is not followed. `true` if it was moved.
///
/// The event may have become another meanwhile. What is moved then is that one, to a CPU that is as good as any.
pub fn follow<H: Hw + Clone>(gic: &Gic<H>, routes: &Routes, lpi: Lpi, cpu: CpuId, runs_on: CpuId) -> bool {
    if !routes.arrived(lpi, cpu != runs_on) {
        return false;
    }
    let Some(Route { its, device, event, .. }) = routes.get(lpi) else { return false };
    // If it cannot be moved, it comes here as before.
    gic.move_physical(its, device, event, runs_on).is_ok()
}
