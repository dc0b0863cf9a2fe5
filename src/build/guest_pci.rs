//! The PCI functions of a domU: its PCI host, the ITSs that take the functions' MSIs, and what the functions reach.
//!
//! The domU has a virtual ITS for each of the host's that takes MSIs of its functions. Its device tree says which DeviceID
//! each function has there, and these are the host's, so that nothing translates an event.

use super::fdt::make::{GuestFunction, GuestPci};
use super::itss::virtual_itss;
use super::layout::domu::{ECAM, MAX_ITSS, PCI_MEM32, PCI_MEM64, its};
use super::passthrough::Given;
use super::{BuildError, Dma};
use crate::domain::mmio::TRANSLATION_FRAME;
use crate::domain::pci_host::PciHost;
use crate::gic::MIN_EVENT_BITS;
use crate::host::Host;
use crate::ids::{DeviceIds, DomId, Ipa, ItsId};
use crate::mm::stage2::ipa_bits;
use crate::pci::host_bridge::HostBridge;
use crate::platform::{PciWindow, PciWindowKind};
use crate::util::range::Range;
use crate::vits::{Quota, Vits};
use alloc::vec::Vec;

/// EventID bits of one function: MSI-X has at most 2048 vectors (PCI Express 6.0, 7.7.2).
const EVENT_BITS: u8 = 11;

/// What is known of a domU's functions before the domain is built.
pub(super) struct Plan {
    functions: Vec<Given>,
    /// The host's ITSs that take MSIs of the functions, in the order of the domain's.
    itss: Vec<ItsId>,
    /// The functions as the device tree describes them.
    described: Vec<GuestFunction>,
    windows: Vec<PciWindow>,
    coherent: bool,
}

/// The parts of the domain that are for its functions.
pub(super) struct Parts {
    pub itss: Vec<(Range, Vits)>,
    pub device_ids: Vec<Vec<DeviceIds>>,
    /// The largest number of events that it may have mapped.
    pub events: u32,
    pub host: PciHost,
    pub dma: Dma,
}

impl Plan {
    /// Plans for these functions.
    pub(super) fn new(host: &Host, functions: Vec<Given>) -> Result<Plan, BuildError> {
        let mut itss: Vec<ItsId> = functions.iter().map(|function| function.its).collect();
        itss.sort_unstable();
        itss.dedup();
        if itss.len() > MAX_ITSS {
            return Err(BuildError(alloc::format!("its PCI functions need more than {MAX_ITSS} ITSs")));
        }
        if let Some(its) = itss.iter().find(|&&its| host.gic.facts().its(its).is_none()) {
            return Err(BuildError(alloc::format!("{its} takes the MSIs of its PCI functions, and is not in use")));
        }
        // Slot 0 of the bus is empty.
        let slots = (1u16..).map(|slot| slot << 3);
        let described = slots.zip(&functions).map(|(rid, function)| GuestFunction {
            rid,
            its: itss.iter().position(|&its| its == function.its).unwrap_or(0),
            device: function.device,
        });
        let described = described.collect();
        let window = |kind, cpu: Range| PciWindow { kind, prefetchable: false, cpu, pci_base: cpu.base.0 };
        let mut windows = alloc::vec![window(PciWindowKind::Mem32, PCI_MEM32)];
        if PCI_MEM64.end().0 <= 1 << ipa_bits(host.features().stage2().pa_range) {
            windows.push(window(PciWindowKind::Mem64, PCI_MEM64));
        }
        let coherent = |function: &Given| host.machine.pci_host(function.name).is_some_and(|host| host.coherent);
        let coherent = functions.iter().all(coherent);
        Ok(Plan { functions, itss, described, windows, coherent })
    }

    /// What the device tree says of them; `None` if there are none.
    pub(super) fn describe(&self) -> Option<GuestPci<'_>> {
        (!self.functions.is_empty()).then_some(GuestPci {
            itss: self.itss.len(),
            functions: &self.described,
            windows: &self.windows,
            coherent: self.coherent,
        })
    }

    /// Makes the parts of the domain; `None` if it has no functions.
    pub(super) fn make(self, host: &Host, domain: DomId) -> Result<Option<Parts>, BuildError> {
        if self.functions.is_empty() {
            return Ok(None);
        }
        let ids_on = |its: ItsId| {
            let there = self.functions.iter().filter(move |function| function.its == its);
            let mut ids: Vec<DeviceIds> =
                there.map(|function| DeviceIds { first: function.device, last: function.device }).collect();
            ids.sort_unstable();
            ids
        };
        let guest: Vec<_> = self.itss.iter().enumerate().map(|(index, &id)| (id, its(index), ids_on(id))).collect();
        let quota = quota(&self.functions);
        let itss = virtual_itss(host, domain, &guest, quota)?;
        let device_ids = (0..).map(ItsId).take(host.machine.gic.itss.len()).map(ids_on).collect();
        let page = |regs: Range| regs.base.add(TRANSLATION_FRAME);
        let doorbells = guest.iter().filter_map(|(id, regs, _)| {
            let its = host.machine.gic.itss.get(id.index())?;
            Some((Ipa(page(*regs).0), page(its.control)))
        });
        let dma = Dma {
            streams: self.functions.iter().map(|function| function.stream).collect(),
            doorbells: doorbells.collect(),
            reserved: Vec::new(),
        };
        let windows: Vec<Range> = self.windows.iter().map(|window| window.cpu).collect();
        let (names, functions): (Vec<_>, Vec<_>) =
            self.functions.into_iter().map(|given| ((given.name, given.stream), given.function)).unzip();
        let pci = PciHost::new(ECAM, HostBridge::new(&windows, functions), &names);
        Ok(Some(Parts { itss, device_ids, events: quota.events, host: pci, dma }))
    }
}

/// What the domain may use of each ITS: as much as its functions have vectors for.
fn quota(functions: &[Given]) -> Quota {
    let all: Vec<u32> = functions.iter().map(|given| given.function.facts().vectors()).collect();
    // Drivers map a device with a power of two of EventIDs.
    let entries = |vectors: &u32| vectors.next_power_of_two().max(1 << MIN_EVENT_BITS);
    Quota {
        devices: u16::try_from(all.len()).unwrap_or(u16::MAX),
        events: all.iter().sum(),
        itt_entries: all.iter().map(entries).sum(),
        min_event_bits: MIN_EVENT_BITS,
        device_event_bits: EVENT_BITS,
    }
}
