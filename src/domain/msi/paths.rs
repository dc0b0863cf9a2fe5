//! What a domain has of the physical GIC: its VM, the vPEs of its vCPUs, the devices that it may map, and its share of
//! the physical LPIs.

use crate::gic::v4::{V4Error, VmHandle};
use crate::gic::{Gic, ItsError};
use crate::ids::{CpuId, DeviceId, DeviceIds, DomId, ItsId, Lpi, VcpuId, VpeId};
use crate::log_limited;
use crate::mmio::Hw;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};

/// The physical LPIs that a domain may have at the same time, for the events that are injected by software. They are
/// reserved when it is built, so that a domain that maps all that it can leaves the LPIs of others as they are. One that
/// cannot be freed, because an ITS has not answered, is lost to this domain.
pub struct LpiQuota {
    left: AtomicU32,
}

impl LpiQuota {
    /// No LPIs.
    #[must_use]
    pub const fn none() -> LpiQuota {
        LpiQuota { left: AtomicU32::new(0) }
    }

    /// Reserves `count` LPIs. Returns `None` if fewer are free.
    pub fn reserve<H: Hw + Clone>(gic: &Gic<H>, count: u32) -> Option<LpiQuota> {
        gic.reserve_lpis(count).then(|| LpiQuota { left: AtomicU32::new(count) })
    }

    /// Allocates an LPI.
    pub(super) fn alloc<H: Hw + Clone>(&self, gic: &Gic<H>) -> Option<Lpi> {
        let one = |left: u32| left.checked_sub(1);
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one).ok()?;
        let lpi = gic.alloc_lpi();
        if lpi.is_none() {
            self.left.fetch_add(1, Ordering::Relaxed);
        }
        lpi
    }

    /// Frees an LPI.
    pub(super) fn free<H: Hw + Clone>(&self, gic: &Gic<H>, lpi: Lpi) {
        gic.free_lpi(lpi);
        self.left.fetch_add(1, Ordering::Relaxed);
    }

    /// Gives all LPIs back that are not lost. Afterwards none can be allocated.
    fn release<H: Hw + Clone>(&self, gic: &Gic<H>) {
        gic.release_lpis(self.left.swap(0, Ordering::Relaxed));
    }

    /// How many can be allocated.
    #[cfg(test)]
    pub fn left(&self) -> u32 {
        self.left.load(Ordering::Relaxed)
    }
}

/// Why what a domain has of the physical GIC cannot be made as new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotRenewed {
    /// An ITS does not answer, or has not when a device or an event was unmapped.
    Devices(ItsId, ItsError),
    /// The vLPIs cannot be disabled.
    Vm(V4Error),
    /// A vPE cannot be emptied.
    Vpe(VpeId, V4Error),
}

impl fmt::Display for NotRenewed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotRenewed::Devices(its, error) => write!(f, "devices on {its}: {error}"),
            NotRenewed::Vm(error) => write!(f, "vLPIs: {error}"),
            NotRenewed::Vpe(vpe, error) => write!(f, "{vpe}: {error}"),
        }
    }
}

/// What has become of a vPE that is to be as new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewed {
    /// It is as new, or the vCPU has none.
    Done,
    /// The redistributor is still writing it back.
    Busy,
    /// There is no such vCPU.
    NoVcpu,
}

/// How LPIs reach the vCPUs of a domain.
pub struct LpiPaths {
    /// The domain's VM in the physical GIC; `None` if no event is injected directly.
    pub vm: Option<VmHandle>,
    /// The CPU on which each vCPU starts, and the vCPU's vPE if it has one.
    pub vcpus: Vec<(CpuId, Option<VpeId>)>,
    /// The devices that the domain may map on each ITS, by the number of the ITS.
    pub devices: Vec<Vec<DeviceIds>>,
    /// The LPIs for events that are injected by software.
    pub lpis: LpiQuota,
}

impl LpiPaths {
    /// The vPE of a vCPU.
    #[must_use]
    pub fn vpe(&self, vcpu: VcpuId) -> Option<VpeId> {
        self.vcpus.get(vcpu.index())?.1
    }

    /// The vPEs.
    pub fn vpes(&self) -> impl Iterator<Item = VpeId> {
        self.vcpus.iter().filter_map(|&(_, vpe)| vpe)
    }

    /// Whether the domain may map a device on an ITS.
    pub(super) fn owns(&self, its: ItsId, device: DeviceId) -> bool {
        self.devices.get(its.index()).is_some_and(|all| all.iter().any(|ids| ids.contains(device)))
    }

    /// The CPU that the physical LPIs of a vCPU are sent to: the one on which the vCPU starts, or another one while
    /// that is out of service.
    pub(super) fn cpu<H: Hw + Clone>(&self, vcpu: VcpuId, gic: &Gic<H>) -> Option<CpuId> {
        gic.nearest_in_service(self.vcpus.get(vcpu.index())?.0)
    }

    /// Begins to make as new what domain `id` has of the physical GIC, in the memory that it has: disables its vLPIs. Its
    /// vCPUs are off, and its virtual ITSs have unmapped its events and devices. Each vPE follows
    /// ([`renew_vpe`](Self::renew_vpe)).
    ///
    /// # Errors
    ///
    /// [`NotRenewed`]: the domain can only be taken down.
    pub fn renew_vm<H: Hw + Clone>(&self, gic: &Gic<H>, id: DomId) -> Result<(), NotRenewed> {
        gic.check_devices(id).map_err(|(its, error)| NotRenewed::Devices(its, error))?;
        let Some((v4, vm)) = gic.v4().zip(self.vm) else { return Ok(()) };
        v4.renew_vm(vm).map_err(NotRenewed::Vm)
    }

    /// Makes the vPE of a vCPU as new.
    ///
    /// # Errors
    ///
    /// [`NotRenewed`]: the domain can only be taken down.
    pub fn renew_vpe<H: Hw + Clone>(&self, gic: &Gic<H>, vcpu: VcpuId) -> Result<Renewed, NotRenewed> {
        let Some(&(_, vpe)) = self.vcpus.get(vcpu.index()) else { return Ok(Renewed::NoVcpu) };
        let Some((v4, vpe)) = gic.v4().zip(vpe) else { return Ok(Renewed::Done) };
        match v4.renew_vpe(vpe) {
            Ok(()) => Ok(Renewed::Done),
            Err(V4Error::Resident(_)) => Ok(Renewed::Busy),
            Err(error) => Err(NotRenewed::Vpe(vpe, error)),
        }
    }

    /// Gives all back that domain `id` has of the physical GIC: vPEs and their tables, the memory of its devices, and
    /// its LPIs. Its vCPUs are off, and its virtual ITSs have unmapped its events. Returns `false` if something is still
    /// in use (a vPE that is resident or being written back, a device that is still mapped); the caller has to call it
    /// again.
    #[must_use]
    pub fn release<H: Hw + Clone>(&self, gic: &Gic<H>, id: DomId) -> bool {
        if !gic.release_devices(id) {
            return false;
        }
        if let (Some(v4), Some(vm)) = (gic.v4(), self.vm) {
            for vpe in self.vpes() {
                match v4.remove_vpe(vpe) {
                    Err(V4Error::Resident(_)) => return false,
                    Err(V4Error::NoSuchVpe(_)) | Ok(()) => {}
                    Err(error) => log_limited!(Error, id; "{id}: {vpe}: cannot be removed: {error}"),
                }
            }
            if let Err(error) = v4.destroy_vm(vm) {
                log_limited!(Error, id; "{id}: vLPI tables cannot be freed: {error}");
            }
        }
        self.lpis.release(gic);
        true
    }
}
