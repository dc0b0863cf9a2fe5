//! PCI functions for domUs: whether a function can be given away, and what is prepared before any domain is built.
//!
//! A function is given to a domU only if all of these hold: the SMMU in front of it translates, so that its DMA can be
//! limited; its MSIs reach an ITS under a DeviceID of its own; nothing that another domain has is in its isolation group;
//! its BARs have pages of their own; it can be reset, or the domain's description allows one that cannot. If one of them
//! does not hold for a function, its domain is not built, and the reason is logged. dom0 does not get the function then
//! either: whoever has listed it did not want that.
//!
//! This is done before dom0 is built, since dom0 numbers buses and places BARs.

use super::{BuildError, pci_hide};
use crate::host::Host;
use crate::ids::{DeviceId, DeviceIds, ItsId, Sbdf, Streams};
use crate::mm::el2_map;
use crate::mmio::Hw;
use crate::pci::assign::{self, Places, Unplaced};
use crate::pci::function::Facts;
use crate::pci::groups::Groups;
use crate::pci::reset::{Progress, Reset};
use crate::pci::topology::{Buses, surroundings};
use crate::pci::virt::VirtualFunction;
use crate::pci::{BAR_COUNT, ConfigSpace};
use crate::platform::{DomainConfig, Machine, PciHost};
use crate::util::range::Range;
use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;

/// A function that is ready for its domain. It has been reset.
pub struct Given {
    /// Its name on the host.
    pub name: Sbdf,
    /// The ITS that takes its MSIs.
    pub its: ItsId,
    /// The DeviceID of these MSIs.
    pub device: DeviceId,
    /// The stream of its DMA.
    pub stream: Streams,
    /// What the domain sees of it.
    pub function: VirtualFunction,
}

/// The functions of all domUs.
#[derive(Default)]
pub struct Passthrough {
    /// What each domU gets, in the order of the machine's description, or why it gets nothing.
    domus: Vec<Result<Vec<Given>, BuildError>>,
    /// The functions that dom0 does not get.
    pub hidden: Vec<Sbdf>,
    /// The CPU addresses of their BARs.
    pub bars: Vec<Range>,
}

impl Passthrough {
    /// Takes what domU number `index` of the machine's description gets.
    ///
    /// # Errors
    ///
    /// Why its functions cannot be given to it.
    pub fn take(&mut self, index: usize) -> Result<Vec<Given>, BuildError> {
        self.domus.get_mut(index).map_or(Ok(Vec::new()), |slot| core::mem::replace(slot, Ok(Vec::new())))
    }

    /// The largest number of MSIs that the functions of all domUs can tell apart.
    #[must_use]
    pub fn lpis(&self) -> u32 {
        self.domus.iter().flatten().flatten().map(|given| given.function.facts().vectors()).sum()
    }

    /// The streams of the functions that dom0 does not get.
    #[must_use]
    pub fn streams(&self, machine: &Machine) -> Vec<Streams> {
        let ids = self.hidden.iter().filter_map(|name| host_of(machine, *name)?.stream_id(name.rid));
        ids.map(|(smmu, stream)| Streams { smmu, first: stream, last: stream }).collect()
    }

    /// The DeviceIDs on an ITS of the functions that dom0 does not get.
    #[must_use]
    pub fn device_ids(&self, machine: &Machine, its: ItsId) -> Vec<DeviceIds> {
        let ids = self.hidden.iter().filter_map(|name| host_of(machine, *name)?.device_id(name.rid));
        let ids = ids.filter(|&(target, _)| target == its);
        ids.map(|(_, device)| DeviceIds { first: device, last: device }).collect()
    }
}

/// A function that passed the checks, and whose BARs are to be placed.
struct Candidate {
    name: Sbdf,
    its: ItsId,
    device: DeviceId,
    stream: Streams,
    facts: Facts,
    bars: [Option<Range>; BAR_COUNT],
}

/// A PCI segment in which domUs have functions.
struct Segment {
    number: u16,
    ecams: Vec<Buses>,
    groups: Groups,
}

impl Segment {
    /// Makes its configuration space accessible, and finds its isolation groups.
    fn open(machine: &Machine, number: u16, config: &impl ConfigSpace) -> Segment {
        let hosts = || machine.pci.iter().filter(move |host| host.segment == number);
        for host in hosts() {
            if let Err(error) = el2_map::map_device(host.ecam) {
                log::error!("PCI configuration space at {}: {error}", host.ecam);
            }
        }
        let ecams: Vec<Buses> = hosts().map(assign::buses).collect();
        let host_of = |rid: u16| hosts().find(|host| has(host, rid));
        let stream = |rid| host_of(rid)?.stream_id(rid).map(|(smmu, stream)| (smmu, stream.0));
        let device = |rid| host_of(rid)?.device_id(rid);
        let groups = Groups::find(&ecams, config, stream, device);
        Segment { number, ecams, groups }
    }
}

/// The PCI host that has the bus of a function.
fn host_of(machine: &Machine, name: Sbdf) -> Option<&PciHost> {
    machine.pci.iter().find(|host| host.segment == name.segment && has(host, name.rid))
}

/// Whether a PCI host has the bus of a function.
fn has(host: &PciHost, rid: u16) -> bool {
    (u16::from(host.buses.0)..=u16::from(host.buses.1)).contains(&(rid >> 8))
}

/// Prepares the functions of all domUs of the machine's description.
pub fn prepare(host: &Host, config: &impl ConfigSpace, hw: &impl Hw) -> Passthrough {
    let machine = host.machine;
    let mut numbers: Vec<u16> = machine.domains.iter().flat_map(|domu| &domu.pci).map(|name| name.segment).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let segments: Vec<Segment> = numbers.into_iter().map(|number| Segment::open(machine, number, config)).collect();
    let mut prepared = Passthrough::default();
    let mut found = Vec::new();
    for (index, domu) in machine.domains.iter().enumerate() {
        let earlier: Vec<Sbdf> = machine.domains.iter().take(index).flat_map(|domu| domu.pci.clone()).collect();
        let candidates = domu.pci.iter().map(|&name| {
            let (facts, pci) = find(machine, &segments, name, config)?;
            prepared.hidden.push(name);
            if earlier.contains(&name) {
                return Err(BuildError(format!("{name}: an earlier domain has it")));
            }
            check(host, domu, &segments, name, facts, pci)
        });
        // All functions are looked for, so that dom0 gets none of them.
        let candidates: Vec<Result<Candidate, BuildError>> = candidates.collect();
        found.push(candidates.into_iter().collect::<Result<Vec<Candidate>, BuildError>>());
    }
    for pci in &machine.pci {
        place_all(machine, pci, &prepared.hidden, &mut found, config);
    }
    for (domu, candidates) in machine.domains.iter().zip(found) {
        let given = candidates.and_then(|candidates| {
            prepared.bars.extend(candidates.iter().flat_map(|candidate| candidate.bars).flatten());
            reset_all(domu, candidates, config, hw)
        });
        prepared.domus.push(given);
    }
    prepared
}

/// Finds a function, and the PCI host that has it.
fn find<'a>(
    machine: &'a Machine,
    segments: &[Segment],
    name: Sbdf,
    config: &impl ConfigSpace,
) -> Result<(Facts, &'a PciHost), BuildError> {
    let bad = |why: &str| BuildError(format!("{name}: {why}"));
    let pci = host_of(machine, name).ok_or_else(|| bad("no PCI host has its bus"))?;
    let segment = segments.iter().find(|segment| segment.number == name.segment);
    let ecams = segment.map_or(&[][..], |segment| &segment.ecams);
    let page = assign::buses(pci).page(name.rid).ok_or_else(|| bad("no PCI host has its bus"))?;
    surroundings(ecams, name.rid, config).map_err(|_| bad("no bridge leads to its bus"))?;
    let facts = Facts::read(name.rid, page, config).map_err(|broken| bad(&broken.to_string()))?;
    Ok((facts, pci))
}

/// Checks whether a function can be given to a domU, apart from its BARs and its reset.
fn check(
    host: &Host,
    domu: &DomainConfig,
    segments: &[Segment],
    name: Sbdf,
    facts: Facts,
    pci: &PciHost,
) -> Result<Candidate, BuildError> {
    let bad = |why: &str| BuildError(format!("{name}: {why}"));
    let segment = segments.iter().find(|segment| segment.number == name.segment);
    let mut group = segment.into_iter().flat_map(|segment| segment.groups.of(name.rid));
    let is_missing = |&rid: &u16| !domu.pci.contains(&Sbdf { rid, ..name });
    if let Some(rid) = group.find(is_missing) {
        let other = Sbdf { rid, ..name };
        return Err(bad(&format!("it cannot be kept apart from {other}, which has to go to the same domain")));
    }
    if !host.iommu.translates() {
        return Err(bad("no SMMU limits its DMA"));
    }
    let (smmu, stream) = pci.stream_id(name.rid).ok_or_else(|| bad("it has no StreamID: no SMMU limits its DMA"))?;
    if host.iommu.facts(smmu).is_none() {
        return Err(bad(&format!("{smmu} is in bypass and does not limit its DMA")));
    }
    let (its, device) = pci.device_id(name.rid).ok_or_else(|| bad("it has no DeviceID: no ITS takes its MSIs"))?;
    let stream = Streams { smmu, first: stream, last: stream };
    Ok(Candidate { name, its, device, stream, facts, bars: [None; BAR_COUNT] })
}

/// Finds places for the BARs of all functions of one PCI host.
fn place_all(
    machine: &Machine,
    pci: &PciHost,
    hidden: &[Sbdf],
    found: &mut [Result<Vec<Candidate>, BuildError>],
    config: &impl ConfigSpace,
) {
    let is_here = |name: Sbdf| name.segment == pci.segment && has(pci, name.rid);
    if !found.iter().flatten().flatten().any(|candidate| is_here(candidate.name)) {
        return;
    }
    let console = machine.uart.and_then(|uart| pci_hide::function_at(pci, uart.regs.base, config));
    let except: Vec<u16> =
        hidden.iter().copied().chain(console).filter(|&name| is_here(name)).map(|name| name.rid).collect();
    let mut occupied = assign::occupied(pci, &except, config);
    occupied.extend(machine.uart.map(|uart| uart.regs));
    for domu in found.iter_mut() {
        let Ok(candidates) = domu else { continue };
        let mut mine: Vec<&mut Candidate> = candidates.iter_mut().filter(|candidate| is_here(candidate.name)).collect();
        match place(pci, &mut mine, &occupied, config) {
            Ok(()) => occupied.extend(mine.iter().flat_map(|candidate| candidate.bars).flatten()),
            Err(error) => *domu = Err(error),
        }
    }
}

/// Finds places for the BARs of the functions of one domU on one PCI host.
fn place(
    pci: &PciHost,
    candidates: &mut [&mut Candidate],
    occupied: &[Range],
    config: &impl ConfigSpace,
) -> Result<(), BuildError> {
    let mut all = Vec::new();
    for candidate in candidates.iter_mut() {
        let name = candidate.name;
        candidate.facts.size_bars(config).map_err(|broken| BuildError(format!("{name}: {broken}")))?;
        all.push(candidate.facts.clone());
    }
    let places = assign::place(pci, &mut all, occupied, config).map_err(|unplaced: Unplaced| {
        let name = Sbdf { segment: pci.segment, rid: unplaced.rid };
        BuildError(format!("{name}: {unplaced}"))
    })?;
    for ((candidate, facts), Places { bars, .. }) in candidates.iter_mut().zip(all).zip(places) {
        (candidate.facts, candidate.bars) = (facts, bars);
    }
    Ok(())
}

/// Resets all functions of a domU, and makes what the domain sees of them. No guest runs yet, so this waits: 100 ms for
/// functions that work, and a minute at most for one that does not.
fn reset_all(
    domu: &DomainConfig,
    candidates: Vec<Candidate>,
    config: &impl ConfigSpace,
    hw: &impl Hw,
) -> Result<Vec<Given>, BuildError> {
    let mut resets = Vec::new();
    for candidate in &candidates {
        let reset = match Reset::new(&candidate.facts) {
            None if !domu.pci_allow_no_reset => {
                return Err(BuildError(format!("{}: it cannot be reset", candidate.name)));
            }
            _ => Reset::or_silence(&candidate.facts),
        };
        resets.push(reset);
    }
    loop {
        let now_us = hw.now_us();
        let mut is_waiting = false;
        for (reset, candidate) in resets.iter_mut().zip(&candidates) {
            match reset.step(config, now_us) {
                Progress::Wait(_) => is_waiting = true,
                Progress::Done => {}
                Progress::Quarantined(why) => {
                    return Err(BuildError(format!("{}: not back from its reset: {why}", candidate.name)));
                }
            }
        }
        if !is_waiting {
            break;
        }
        hw.relax();
    }
    let give = |(candidate, reset): (Candidate, Reset)| {
        let Candidate { name, its, device, stream, facts, bars } = candidate;
        let function = VirtualFunction::new(facts, &bars, reset.method().is_some())
            .map_err(|unfit| BuildError(format!("{name}: {unfit}")))?;
        Ok(Given { name, its, device, stream, function })
    };
    candidates.into_iter().zip(resets).map(give).collect()
}
