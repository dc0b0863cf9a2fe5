//! The virtual ITSs of a domain, and the memory of its devices on the host's ITSs.
//!
//! A virtual ITS stands for one ITS of the host. The identity of an event (ITS, DeviceID, EventID) is the same for the
//! guest and the host, so nothing here translates a DeviceID: the guest's description names the host's DeviceIDs.

use super::{BuildError, ID_BITS};
use crate::gic::DeviceQuota;
use crate::host::Host;
use crate::ids::{DeviceIds, DomId, ItsId};
use crate::util::range::Range;
use crate::vits::{OnError, Quota, Vits, VitsConfig};
use alloc::vec::Vec;

/// An ITS of the host that a domain uses: the guest addresses of the virtual ITS that stands for it, and the devices that
/// the domain may map there, sorted and disjoint.
pub(super) type ItsOf = (ItsId, Range, Vec<DeviceIds>);

/// The collections of a virtual ITS: 1024. Linux uses the numbers of its CPUs.
const COLLECTION_BITS: u8 = 10;

/// Makes a virtual ITS for each of `itss`, and reserves the memory of its devices on the host. `quota` holds for each ITS
/// by itself. Returns the virtual ITSs with their guest addresses, in the order of `itss`.
pub(super) fn virtual_itss(
    host: &Host,
    domain: DomId,
    itss: &[ItsOf],
    quota: Quota,
) -> Result<Vec<(Range, Vits)>, BuildError> {
    let mut made = Vec::new();
    for (id, regs, ids) in itss {
        let facts = host.gic.facts().its(*id).ok_or_else(|| BuildError(alloc::format!("{id} is not in use")))?;
        let reserved = host
            .gic
            .reserve_devices(*id, domain, ids, DeviceQuota { devices: quota.devices, events: quota.itt_entries })
            .map_err(|error| BuildError(alloc::format!("memory of the devices on {id}: {error}")))?;
        log::info!("{domain}: {id}: {} KiB reserved for {} devices", reserved >> 10, quota.devices);
        let vits = Vits::new(VitsConfig {
            domain,
            its: *id,
            device_bits: facts.device_bits.min(32),
            event_bits: facts.event_bits.min(16),
            collection_bits: COLLECTION_BITS,
            id_bits: ID_BITS,
            quota,
            on_error: OnError::Skip,
        })
        .map_err(|error| BuildError(alloc::format!("virtual {id}: {error:?}")))?;
        made.push((*regs, vits));
    }
    Ok(made)
}
