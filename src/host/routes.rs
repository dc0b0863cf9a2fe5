//! Routes of physical LPIs: into which vCPU EL2 injects each of them, and as which LPI.
//!
//! The table is read without a lock each time such an LPI arrives. `domain::msi` writes it when a guest maps, moves or
//! unmaps an event that is injected by software.

use crate::gic::Gic;
use crate::ids::{CpuId, DeviceId, DomId, EventId, EventKey, ItsId, Lpi, VIntid, VcpuId};
use crate::mmio::Hw;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// The priority of device LPIs. Doorbells and SPIs have the same, so that no interrupt preempts another.
pub const PRIORITY: u8 = 0xa0;

/// The vCPU that a physical LPI is injected into, and the event that the LPI was allocated for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The domain.
    pub domain: DomId,
    /// The vCPU in that domain.
    pub vcpu: VcpuId,
    /// The number of the LPI in the guest.
    pub vintid: VIntid,
    /// The event that the LPI was allocated for.
    pub event: EventKey,
}

/// The routes of all physical LPIs, two words for each.
pub struct Routes {
    /// The target and the source of each LPI. The target has [`VALID`] set if there is a route.
    words: Vec<[AtomicU64; 2]>,
    /// The number of consecutive arrivals of each LPI on a CPU on which its vCPU does not run.
    misplaced: Vec<AtomicU8>,
}

/// The number of consecutive misplaced arrivals after which an LPI is moved to the CPU of its vCPU. A misplaced arrival
/// costs an exit on that CPU and another one on the vCPU's; moving the LPI costs as much as a few of them.
pub const MOVE_AFTER: u8 = 8;

/// Bit of the first word: the LPI has a route.
const VALID: u64 = 1 << 63;

/// The EventID bits in the second word: 24, more than any translation table of the host has.
const EVENT: u32 = 0xff_ffff;

impl Routes {
    /// A table of `lpis` LPIs from 8192 on, without routes.
    #[must_use]
    pub fn new(lpis: u32) -> Routes {
        Routes {
            words: (0..lpis).map(|_| [const { AtomicU64::new(0) }; 2]).collect(),
            misplaced: (0..lpis).map(|_| AtomicU8::new(0)).collect(),
        }
    }

    fn slot(&self, lpi: Lpi) -> Option<&[AtomicU64; 2]> {
        self.words.get(lpi.0.checked_sub(Lpi::FIRST)? as usize)
    }

    /// The route of `lpi`.
    #[must_use]
    pub fn get(&self, lpi: Lpi) -> Option<Route> {
        let [to, from] = self.slot(lpi)?;
        let raw = to.load(Ordering::Acquire);
        let source = from.load(Ordering::Relaxed);
        (raw & VALID != 0).then_some(Route {
            domain: DomId((raw >> 48) as u16 & 0x7fff),
            vcpu: VcpuId((raw >> 32) as u16),
            vintid: VIntid(raw as u32),
            event: EventKey {
                its: ItsId((source >> 56) as u8),
                device: DeviceId(source as u32),
                event: EventId((source >> 32) as u32 & EVENT),
            },
        })
    }

    /// Counts an arrival of `lpi`; `misplaced` is true if its vCPU does not run on the CPU that took it. Returns `true`
    /// if the LPI is to be moved now.
    fn count_arrival(&self, lpi: Lpi, misplaced: bool) -> bool {
        let Some(count) = lpi.0.checked_sub(Lpi::FIRST).and_then(|n| self.misplaced.get(n as usize)) else {
            return false;
        };
        // Load and store are enough: while an LPI moves, two CPUs may take it, and then a count that is off by one does
        // no harm.
        let so_far = if misplaced { count.load(Ordering::Relaxed).saturating_add(1) } else { 0 };
        let moves = so_far >= MOVE_AFTER;
        count.store(if moves { 0 } else { so_far }, Ordering::Relaxed);
        moves
    }

    /// Sets the route of `lpi`.
    pub fn set(&self, lpi: Lpi, route: Route) {
        if let Some([to, from]) = self.slot(lpi) {
            let EventKey { its, device, event } = route.event;
            let source = u64::from(its.0) << 56 | u64::from(event.0 & EVENT) << 32 | u64::from(device.0);
            from.store(source, Ordering::Relaxed);
            let raw = VALID | u64::from(route.domain.0) << 48 | u64::from(route.vcpu.0) << 32;
            to.store(raw | u64::from(route.vintid.0), Ordering::Release);
        }
    }

    /// Removes the route of `lpi`. Later arrivals are dropped.
    pub fn clear(&self, lpi: Lpi) {
        if let Some([to, _]) = self.slot(lpi) {
            to.store(0, Ordering::Release);
        }
    }
}

/// Counts an arrival of `lpi` on `cpu`, for a vCPU that runs, or ran last, on `runs_on`. After [`MOVE_AFTER`] misplaced
/// arrivals in a row it moves the LPI to `runs_on` and returns `true`. An LPI does not move for a vCPU that is itself
/// moved all the time.
///
/// If `lpi` has been given to another event meanwhile, that event is moved. This is harmless: any CPU can take it.
pub fn move_if_misplaced<H: Hw + Clone>(gic: &Gic<H>, routes: &Routes, lpi: Lpi, cpu: CpuId, runs_on: CpuId) -> bool {
    if !routes.count_arrival(lpi, cpu != runs_on) {
        return false;
    }
    let Some(Route { event, .. }) = routes.get(lpi) else { return false };
    // If the move fails, the LPI still arrives on this CPU.
    gic.move_physical(event, runs_on).is_ok()
}
