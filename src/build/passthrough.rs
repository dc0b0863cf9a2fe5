//! PCI functions for domUs: whether a function can be given away, and what is prepared before any domain is built.
//!
//! A function is given to a domU only if all of these hold: the SMMU in front of it translates, so that its DMA can be
//! limited; its MSIs reach an ITS under a DeviceID of its own; nothing that another domain has is in its isolation group;
//! its BARs have pages of their own, where dom0 places none; it can be reset, or the domain's description allows one that
//! cannot. dom0 is told by its device tree where it may place BARs. ACPI has that in AML, which EL2 does not change, and
//! Linux places BARs anew there: so a dom0 with ACPI tables excludes functions for domUs. If one of the conditions
//! does not hold for a function, its domain is not built, and the reason is logged. dom0 does not get the function then
//! either: whoever has listed it did not want that.
//!
//! This is done before dom0 is built, since dom0 numbers buses and places BARs.

use super::platform_devices::PlatformDevices;
use super::{BuildError, pci_hide};
use crate::ids::{DeviceId, DeviceIds, ItsId, Sbdf, Streams};
use crate::mm::stage1::MapError;
use crate::mmio::Hw;
use crate::pci::assign::{self, Places, Unplaced};
use crate::pci::function::Facts;
use crate::pci::groups::{Groups, isolate};
use crate::pci::reset::{Progress, Reset};
use crate::pci::topology::{Buses, surroundings};
use crate::pci::virt::VirtualFunction;
use crate::pci::{BAR_COUNT, ConfigSpace};
use crate::platform::{DomainConfig, Machine, PciHost};
use crate::smmu::iommu::Iommu;
use crate::util::range::Range;
use alloc::format;
use alloc::vec::Vec;
use core::fmt;
use core::hint::spin_loop;

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
    /// The devices of domUs that are no PCI functions.
    pub platform: PlatformDevices,
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

    /// The streams of the functions and devices that dom0 does not get.
    #[must_use]
    pub fn streams(&self, machine: &Machine) -> Vec<Streams> {
        let ids = self.hidden.iter().filter_map(|name| machine.pci_host(*name)?.stream_id(name.rid));
        let of_functions = ids.map(|(smmu, stream)| Streams { smmu, first: stream, last: stream });
        of_functions.chain(self.platform.streams.iter().copied()).collect()
    }

    /// The DeviceIDs on an ITS of the functions that dom0 does not get.
    #[must_use]
    pub fn device_ids(&self, machine: &Machine, its: ItsId) -> Vec<DeviceIds> {
        let ids = self.hidden.iter().filter_map(|name| machine.pci_host(*name)?.device_id(name.rid));
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
    /// Makes its configuration space accessible, keeps functions apart as far as they can be, and finds the groups of those
    /// that cannot.
    fn open(
        machine: &Machine,
        number: u16,
        config: &impl ConfigSpace,
        map: &impl Fn(Range) -> Result<(), MapError>,
    ) -> Segment {
        let hosts = || machine.pci.iter().filter(move |host| host.segment == number);
        for host in hosts() {
            if let Err(error) = map(host.ecam) {
                log::error!("PCI configuration space at {}: {error}", host.ecam);
            }
        }
        let ecams: Vec<Buses> = hosts().map(Buses::of).collect();
        for ecam in &ecams {
            ecam.visit(config, |rid, page, _| {
                if let Ok(mut facts) = Facts::read(rid, page, config) {
                    isolate(&mut facts, config);
                }
                true
            });
        }
        let host_of = |rid| machine.pci_host(Sbdf { segment: number, rid });
        let stream = |rid| host_of(rid)?.stream_id(rid).map(|(smmu, stream)| (smmu, stream.0));
        let device = |rid| host_of(rid)?.device_id(rid);
        let groups = Groups::find(&ecams, config, stream, device);
        Segment { number, ecams, groups }
    }
}

/// Prepares the functions of all domUs of the machine's description.
///
/// `dom0_acpi` is whether dom0 gets ACPI tables. `now_us` is the time in microseconds. `map` makes configuration space
/// accessible.
pub fn prepare<H: Hw + Clone>(
    machine: &Machine,
    iommu: &Iommu<H>,
    dom0_acpi: bool,
    config: &impl ConfigSpace,
    now_us: impl Fn() -> u64,
    map: impl Fn(Range) -> Result<(), MapError>,
) -> Passthrough {
    let mut numbers: Vec<u16> = machine.domains.iter().flat_map(|domu| &domu.pci).map(|name| name.segment).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let segments: Vec<Segment> =
        numbers.into_iter().map(|number| Segment::open(machine, number, config, &map)).collect();
    let mut prepared = Passthrough::default();
    let mut found = Vec::new();
    for (index, domu) in machine.domains.iter().enumerate() {
        let earlier: Vec<Sbdf> = machine.domains.iter().take(index).flat_map(|domu| domu.pci.clone()).collect();
        let candidates = domu.pci.iter().map(|&name| {
            let segment = segments.iter().find(|segment| segment.number == name.segment);
            let (pci, segment) =
                machine.pci_host(name).zip(segment).ok_or_else(|| bad(name, "no PCI host has its bus"))?;
            let facts = find(pci, segment, name, config)?;
            if !prepared.hidden.contains(&name) {
                prepared.hidden.push(name);
            }
            if earlier.contains(&name) {
                return Err(bad(name, "an earlier domain has it"));
            }
            if dom0_acpi {
                let why =
                    "dom0 has ACPI tables and may place a BAR where its BARs are: dom0_acpi=off keeps it from that";
                return Err(bad(name, why));
            }
            check(iommu, domu, segment, name, facts, pci)
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
            reset_all(domu, candidates, config, &now_us)
        });
        prepared.domus.push(given);
    }
    prepared
}

/// Why a function is not given away.
fn bad(name: Sbdf, why: impl fmt::Display) -> BuildError {
    BuildError(format!("{name}: {why}"))
}

/// Finds a function.
fn find(pci: &PciHost, segment: &Segment, name: Sbdf, config: &impl ConfigSpace) -> Result<Facts, BuildError> {
    let page = Buses::of(pci).page(name.rid).ok_or_else(|| bad(name, "no PCI host has its bus"))?;
    surroundings(&segment.ecams, name.rid, config).map_err(|_| bad(name, "no bridge leads to its bus"))?;
    Facts::read(name.rid, page, config).map_err(|broken| bad(name, broken))
}

/// Checks whether a function can be given to a domU, apart from its BARs and its reset.
fn check<H: Hw + Clone>(
    iommu: &Iommu<H>,
    domu: &DomainConfig,
    segment: &Segment,
    name: Sbdf,
    facts: Facts,
    pci: &PciHost,
) -> Result<Candidate, BuildError> {
    let bad = |why: &str| bad(name, why);
    let is_missing = |&rid: &u16| !domu.pci.contains(&Sbdf { rid, ..name });
    if let Some(rid) = segment.groups.of(name.rid).find(is_missing) {
        let other = Sbdf { rid, ..name };
        return Err(bad(&format!("it cannot be kept apart from {other}, which has to go to the same domain")));
    }
    if !iommu.translates() {
        return Err(bad("no SMMU limits its DMA"));
    }
    let (smmu, stream) = pci.stream_id(name.rid).ok_or_else(|| bad("it has no StreamID: no SMMU limits its DMA"))?;
    if iommu.facts(smmu).is_none() {
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
    if !found.iter().flatten().flatten().any(|candidate| pci.has(candidate.name)) {
        return;
    }
    let console = machine.uart.and_then(|uart| pci_hide::function_at(pci, uart.regs.base, config));
    let except: Vec<u16> =
        hidden.iter().copied().chain(console).filter(|&name| pci.has(name)).map(|name| name.rid).collect();
    if pci.windows.is_empty() {
        for domu in found.iter_mut() {
            let Some(candidate) = domu.iter().flatten().find(|candidate| pci.has(candidate.name)) else { continue };
            *domu = Err(bad(candidate.name, "the windows of its PCI host are not known: pci_windows= names them"));
        }
        return;
    }
    let mut occupied = assign::occupied(pci, &except, config);
    occupied.extend(machine.uart.map(|uart| uart.regs));
    for domu in found.iter_mut() {
        let Ok(candidates) = domu else { continue };
        let mut mine: Vec<&mut Candidate> = candidates.iter_mut().filter(|candidate| pci.has(candidate.name)).collect();
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
        candidate.facts.size_bars(config).map_err(|broken| bad(name, broken))?;
        all.push(candidate.facts.clone());
    }
    let places = assign::place(pci, &mut all, occupied, config)
        .map_err(|unplaced: Unplaced| bad(Sbdf { segment: pci.segment, rid: unplaced.rid }, unplaced))?;
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
    now_us: &impl Fn() -> u64,
) -> Result<Vec<Given>, BuildError> {
    let mut resets = Vec::new();
    for candidate in &candidates {
        let reset = match Reset::new(&candidate.facts) {
            None if !domu.pci_allow_no_reset => {
                return Err(bad(candidate.name, "it cannot be reset"));
            }
            _ => Reset::or_silence(&candidate.facts),
        };
        resets.push(reset);
    }
    loop {
        let now_us = now_us();
        let mut is_waiting = false;
        for (reset, candidate) in resets.iter_mut().zip(&candidates) {
            match reset.step(config, now_us) {
                Progress::Wait(_) => is_waiting = true,
                Progress::Done => {}
                Progress::Quarantined(why) => {
                    return Err(bad(candidate.name, format_args!("not back from its reset: {why}")));
                }
            }
        }
        if !is_waiting {
            break;
        }
        spin_loop();
    }
    let give = |(candidate, reset): (Candidate, Reset)| {
        let Candidate { name, its, device, stream, facts, bars } = candidate;
        let function =
            VirtualFunction::new(facts, &bars, reset.method().is_some()).map_err(|unfit| bad(name, unfit))?;
        Ok(Given { name, its, device, stream, function })
    };
    candidates.into_iter().zip(resets).map(give).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::fake::{Fake, Resets};
    use crate::platform::fdt;
    use crate::platform::testing::{GICV4, cells, edited, set};
    use crate::smmu::model::{ModelHw, described};
    use crate::util::PAGE;
    use smmu_model::Config;
    use std::boxed::Box;

    const EDU: Sbdf = Sbdf { segment: 0, rid: 0x08 };
    const NVME: Sbdf = Sbdf { segment: 0, rid: 0x18 };

    /// QEMU's board with these functions for each domU, and its devices: `edu`, which cannot be reset, and `nvme`.
    struct World {
        machine: std::boxed::Box<Machine>,
        fake: Fake,
        hw: smmu_model::Machine,
        iommu: bool,
        dom0_acpi: bool,
    }

    impl World {
        fn new(blob: &[u8], domus: &[&[Sbdf]]) -> World {
            let mut machine = fdt::read(blob).unwrap();
            for functions in domus {
                machine
                    .domains
                    .push(DomainConfig { pci: functions.iter().copied().collect(), ..DomainConfig::default() });
            }
            let fake = Fake::default();
            let page = |name: Sbdf| Buses::of(&machine.pci[0]).page(name.rid).unwrap();
            fake.function(page(Sbdf { segment: 0, rid: 0 }), &[]);
            fake.qemu(page(EDU), "edu");
            fake.qemu(page(NVME), "nvme");
            let resets = Resets { express: Some(0x80), power: None, takes_us: 50_000, quiet_us: 0, answer: u32::MAX };
            fake.can_reset(page(NVME), resets);
            let hw = smmu_model::Machine::new(Config { base: machine.smmus[0].regs.base.0, ..Config::qemu() });
            World { machine, fake, hw, iommu: true, dom0_acpi: false }
        }

        fn prepare(&self) -> Passthrough {
            let hw = ModelHw(self.hw.clone());
            let smmus = [described(&self.hw.config())];
            let smmus = &smmus[..self.machine.smmus.len().min(1)];
            let iommu = Box::leak(Box::new(Iommu::start(hw, smmus, self.iommu)));
            let now_us = || {
                self.fake.now.set(self.fake.now.get() + 100);
                self.fake.now.get()
            };
            prepare(&self.machine, iommu, self.dom0_acpi, &self.fake, now_us, |_| Ok(()))
        }

        /// Why each domU gets nothing.
        fn reasons(&self) -> Vec<std::string::String> {
            let all = self.prepare().domus;
            all.into_iter().map(|domu| domu.err().map_or(Default::default(), |error| error.to_string())).collect()
        }
    }

    #[test]
    fn functions_that_can_be_given_away_are_ready_for_their_domain_and_hidden_from_dom0() {
        let world = World::new(GICV4, &[&[NVME]]);
        let mut prepared = world.prepare();
        let [nvme] = &prepared.take(0).unwrap()[..] else { panic!("one function") };
        assert_eq!((nvme.name, nvme.its, nvme.device), (NVME, ItsId(0), DeviceId(0x18)));
        assert_eq!((nvme.stream.first.0, nvme.stream.last.0), (0x18, 0x18));
        assert_eq!(prepared.hidden, [NVME]);
        assert_eq!(prepared.bars.iter().map(|bar| bar.size).collect::<Vec<_>>(), [4 * PAGE]);
        assert_eq!(world.fake.resets.get(), 1);
        assert_eq!(
            prepared.device_ids(&world.machine, ItsId(0)),
            [DeviceIds { first: DeviceId(0x18), last: DeviceId(0x18) }]
        );
        assert_eq!(prepared.streams(&world.machine), [nvme.stream]);
        // Without functions, nothing is touched.
        let nobody = World::new(GICV4, &[&[], &[]]);
        let prepared = nobody.prepare();
        assert!(prepared.hidden.is_empty() && prepared.bars.is_empty() && nobody.fake.take_writes().is_empty());
    }

    #[test]
    fn a_function_without_a_reset_needs_the_operators_permission() {
        let mut world = World::new(GICV4, &[&[EDU]]);
        assert_eq!(world.reasons(), ["0000:00:01.0: it cannot be reset"]);
        world.machine.domains[0].pci_allow_no_reset = true;
        assert_eq!(world.reasons(), [""]);
    }

    #[test]
    fn the_log_says_why_a_function_is_not_given_away_and_dom0_does_not_get_it_either() {
        let mut world =
            World::new(GICV4, &[&[NVME], &[NVME], &[Sbdf { segment: 0, rid: 0x20 }], &[Sbdf { segment: 7, rid: 0 }]]);
        let absent = "0000:00:04.0: nothing answers";
        let expected = ["", "0000:00:03.0: an earlier domain has it", absent, "0007:00:00.0: no PCI host has its bus"];
        assert_eq!(world.reasons(), expected);
        world.iommu = false;
        let reasons = world.reasons();
        assert_eq!(reasons[0], "0000:00:03.0: no SMMU limits its DMA");
        assert_eq!(world.prepare().hidden, [NVME]);

        let cut = |map: &str| {
            edited(GICV4, |tree| {
                let target = cells(tree, "/pcie@10000000", map)[1];
                set(tree, "/pcie@10000000", map, [0, target, 0, 0x18]);
            })
        };
        let world = World::new(&cut("iommu-map"), &[&[NVME]]);
        assert_eq!(world.reasons(), ["0000:00:03.0: it has no StreamID: no SMMU limits its DMA"]);
        let world = World::new(&cut("msi-map"), &[&[NVME]]);
        assert_eq!(world.reasons(), ["0000:00:03.0: it has no DeviceID: no ITS takes its MSIs"]);
    }

    #[test]
    fn a_dom0_that_may_place_bars_anywhere_excludes_functions_for_domus() {
        let mut world = World::new(GICV4, &[&[NVME]]);
        world.dom0_acpi = true;
        assert!(world.reasons()[0].starts_with("0000:00:03.0: dom0 has ACPI tables"), "{:?}", world.reasons());
        assert_eq!(world.prepare().hidden, [NVME]);
        world.dom0_acpi = false;
        world.machine.pci[0].windows.clear();
        assert_eq!(
            world.reasons(),
            ["0000:00:03.0: the windows of its PCI host are not known: pci_windows= names them"]
        );
    }

    #[test]
    fn functions_with_one_stream_go_to_one_domain() {
        let blob = edited(GICV4, |tree| set(tree, "/pcie@10000000", "iommu-map-mask", 0xff00u32));
        let mut world = World::new(&blob, &[&[NVME]]);
        let reason = &world.reasons()[0];
        assert!(reason.starts_with("0000:00:03.0: it cannot be kept apart from 0000:00:0"), "{reason}");
        world.machine.domains[0].pci = [EDU, NVME, Sbdf { segment: 0, rid: 0 }].into_iter().collect();
        world.machine.domains[0].pci_allow_no_reset = true;
        assert_eq!(world.reasons(), [""]);
    }

    #[test]
    fn a_function_that_does_not_come_back_is_not_given_away() {
        let world = World::new(GICV4, &[&[NVME]]);
        let page = Buses::of(&world.machine.pci[0]).page(NVME.rid).unwrap();
        let never = Resets { express: Some(0x80), power: None, takes_us: u64::MAX, quiet_us: 0, answer: u32::MAX };
        world.fake.can_reset(page, never);
        assert_eq!(world.reasons(), ["0000:00:03.0: not back from its reset: it does not answer"]);
    }
}
