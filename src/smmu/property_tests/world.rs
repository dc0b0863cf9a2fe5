//! A machine with domains, the state that the test expects it to have, and the steps.

use super::{DOMAINS, Length, Op, Streams};
use crate::ids::{Ipa, Pa, StreamId, VmId};
use crate::mm::stage2::{Attr, Fwb, Stage2, Stage2Error, Tlb};
use crate::mmio::Coherence;
use crate::smmu::model::{ModelHw, described};
use crate::smmu::{Event, Smmu, SmmuError, View};
use crate::util::PAGE;
use smmu_model::{Aborted, Config, Fault, Machine, Why};
use std::boxed::Box;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::vec::Vec;

/// TLB maintenance of the SMMU alone: there are no CPUs. What fails is repeated until it succeeds, as memory must not be
/// freed before.
struct SmmuTlb {
    machine: Machine,
    smmu: &'static Smmu<ModelHw>,
    /// What is being unmapped: the first address and the size. It is invalidated as a whole.
    range: Cell<(u64, u64)>,
}

impl SmmuTlb {
    fn insist(&self, once: impl Fn() -> Result<(), SmmuError>) {
        for _ in 0..5 {
            if once().is_ok() {
                return;
            }
            self.machine.heal();
        }
        panic!("an invalidation fails on an SMMU without faults");
    }
}

impl Tlb for SmmuTlb {
    fn coherence(&self) -> Coherence {
        self.smmu.facts().coherence
    }

    fn invalidate_ipa(&self, vmid: VmId, ipa: Ipa) {
        let (first, size) = self.range.get();
        let inside = ipa.0 >= first && ipa.0 - first < size;
        let (first, size) = if inside { (first, size) } else { (ipa.0, PAGE) };
        self.insist(|| self.smmu.invalidate(vmid, Ipa(first), size));
    }
    fn invalidate_all(&self, vmid: VmId) {
        self.insist(|| self.smmu.invalidate_all(vmid));
    }
}

/// Guest addresses begin here.
const IPA: u64 = 0x8000_0000;
/// The RAM of a domain: 4 MiB, of which no page has its guest address as its physical address.
const RAM_PAGES: u64 = 1024;

struct Domain {
    stage2: Stage2<'static, ModelHw, SmmuTlb>,
    ram: u64,
    /// The physical page of each guest page.
    map: BTreeMap<u64, u64>,
}

pub struct World {
    machine: Machine,
    smmu: &'static Smmu<ModelHw>,
    hw: &'static ModelHw,
    tlb: &'static SmmuTlb,
    domains: Vec<Option<Domain>>,
    /// The domain of each stream.
    owners: Vec<Option<u8>>,
    /// Writes that are under way: stream, page, and where they land.
    under_way: Vec<(u32, u64, u64)>,
    /// Faults were injected that abort a transaction by themselves.
    faulty: bool,
    baseline: usize,
}

fn page_of(page: u64) -> u64 {
    IPA + page * PAGE
}

impl World {
    pub fn new(config: Config) -> World {
        let described = described(&config);
        let streams = 1usize << config.stream_bits;
        let machine = Machine::new(config);
        let smmu: &'static Smmu<ModelHw> =
            Box::leak(Box::new(Smmu::start(ModelHw(machine.clone()), &described).expect("start")));
        machine.assert_clean();
        let baseline = machine.allocations().len();
        let hw: &'static ModelHw = Box::leak(Box::new(ModelHw(machine.clone())));
        let tlb = SmmuTlb { machine: machine.clone(), smmu, range: Cell::new((0, 0)) };
        let tlb: &'static SmmuTlb = Box::leak(Box::new(tlb));
        let mut world = World {
            machine,
            smmu,
            hw,
            tlb,
            domains: (0..DOMAINS).map(|_| None).collect(),
            owners: vec![None; streams],
            under_way: Vec::new(),
            faulty: false,
            baseline,
        };
        (0..DOMAINS).for_each(|d| world.create(d));
        world
    }

    fn create(&mut self, d: usize) {
        let vmid = VmId(d as u16 + 1);
        let stage2 = Stage2::new(self.hw, self.tlb, vmid, 40, Fwb::Off).expect("stage 2");
        let ram = self.machine.alloc((RAM_PAGES * PAGE) as usize, 0x20_0000).expect("RAM");
        self.machine.publish(ram, (RAM_PAGES * PAGE) as usize, true);
        self.domains[d] = Some(Domain { stage2, ram, map: BTreeMap::new() });
    }

    fn view(&self, d: usize) -> View {
        let stage2 = &self.domains[d].as_ref().expect("a domain").stage2;
        View { vmid: stage2.vmid(), vttbr: stage2.vttbr(), vtcr: stage2.vtcr(), fwb: Fwb::Off }
    }

    fn stream(&self, number: u16) -> u32 {
        (usize::from(number) % self.owners.len()) as u32
    }

    fn range(&self, Streams(first, length): Streams) -> RangeInclusive<StreamId> {
        let (first, most) = (self.stream(first), self.owners.len() as u32 - 1);
        let (first, last) = match length {
            Length::One => (first, first),
            Length::Few(n) => (first, first + u32::from(n)),
            Length::Leaf => (first & !0x3f, first | 0x3f),
            Length::Many(n) => (first, first + u32::from(n)),
            Length::All => (0, most),
        };
        StreamId(first)..=StreamId(last.min(most))
    }

    /// Where a transaction of a stream of this domain lands.
    fn place(&self, owner: Option<u8>, page: u64) -> Option<u64> {
        self.domains[usize::from(owner?)].as_ref()?.map.get(&page).copied()
    }

    pub fn step(&mut self, op: Op) {
        match op {
            Op::Assign(streams, d) => self.change(self.range(streams), Some(d)),
            Op::Block(streams) => self.change(self.range(streams), None),
            Op::Map(d, page, count) => self.map(d.into(), page.into(), count.into()),
            Op::Unmap(d, page, count) => self.unmap(d.into(), page.into(), count.into()),
            Op::Destroy(d) => self.destroy(d.into()),
            Op::Write(stream, page) => self.transaction(self.stream(stream), page.into(), true),
            Op::Read(stream, page) => self.transaction(self.stream(stream), page.into(), false),
            Op::Later(stream, page) => self.later(stream, page.into()),
            Op::Events => self.events(),
            Op::Time(us) => self.machine.advance_us(us.into()),
            Op::Inject(fault) => self.inject(fault),
        }
        self.landed();
        self.machine.assert_clean();
    }

    fn inject(&mut self, fault: Fault) {
        self.faulty |= matches!(fault, Fault::SteFetchAborts | Fault::WalkAborts);
        self.machine.inject(fault);
    }

    /// Gives streams to a domain, or to none.
    fn change(&mut self, streams: RangeInclusive<StreamId>, owner: Option<u8>) {
        let once = |w: &World| match owner {
            Some(d) => w.smmu.assign(streams.clone(), &w.view(d.into())),
            None => w.smmu.block(streams.clone()),
        };
        let mut result = once(self);
        for _ in 0..5 {
            let Err(error) = result else { break };
            self.between(&streams, owner, error);
            self.machine.heal();
            result = once(self);
        }
        result.expect("an SMMU without faults");
        self.owners[streams.start().0 as usize..=streams.end().0 as usize].fill(owner);
        self.check_under_way();
        // The first and the last one, and their neighbours.
        let (first, last) = (streams.start().0, streams.end().0);
        for stream in [first.saturating_sub(1), first, last, last + 1] {
            let Some(owner) = self.owners.get(stream as usize).copied() else { continue };
            let mapped = owner.and_then(|d| self.domains[usize::from(d)].as_ref()?.map.keys().next().copied());
            self.transaction(stream, mapped.unwrap_or(0), true);
        }
    }

    /// After an operation that has failed: each stream reaches what it did before, what it will after, or nothing.
    fn between(&mut self, streams: &RangeInclusive<StreamId>, owner: Option<u8>, error: SmmuError) {
        let unchanged = matches!(error, SmmuError::OutOfMemory);
        self.landed();
        for stream in [*streams.start(), *streams.end()] {
            for page in [0, 1, 4, 512] {
                let (old, new) = (self.owners[stream.0 as usize], owner);
                let before = self.place(old, page);
                let result = self.machine.dma_write(stream.0, page_of(page), &[1; 8]);
                let landed = self.machine.take_landings().first().map(|l| l.physical);
                if unchanged && !self.excused(&result) {
                    assert_eq!(landed, before, "{stream} after {error}");
                } else if landed.is_some() {
                    assert!([before, self.place(new, page)].contains(&landed), "{stream} after {error}: {result:?}");
                }
            }
        }
        let _ = self.smmu.take_errors();
        self.machine.assert_clean();
    }

    fn map(&mut self, d: usize, page: u64, count: u64) {
        let domain = self.domains[d].as_mut().expect("a domain");
        // Blocks are mapped where there can be some.
        let first = if count >= 512 { (page % RAM_PAGES) & !(count - 1) } else { page % (RAM_PAGES - count) };
        let physical = domain.ram + first * PAGE;
        let mapped = domain.stage2.map(Ipa(page_of(first)), Pa(physical), count * PAGE, Attr::Ram);
        match mapped {
            Ok(()) => domain.map.extend((0..count).map(|n| (first + n, physical + n * PAGE))),
            Err(Stage2Error::Mapped(_)) => assert!((first..first + count).any(|n| domain.map.contains_key(&n))),
            Err(Stage2Error::OutOfMemory) => self.machine.heal(),
            Err(error) => panic!("{error}"),
        }
    }

    fn unmap(&mut self, d: usize, page: u64, count: u64) {
        let domain = self.domains[d].as_mut().expect("a domain");
        // Blocks are mapped where there can be some.
        let first = if count >= 512 { (page % RAM_PAGES) & !(count - 1) } else { page % (RAM_PAGES - count) };
        self.tlb.range.set((page_of(first), count * PAGE));
        match domain.stage2.unmap(Ipa(page_of(first)), count * PAGE) {
            Ok(()) => domain.map.retain(|at, _| !(first..first + count).contains(at)),
            Err(Stage2Error::OutOfMemory) => self.machine.heal(),
            Err(error) => panic!("{error}"),
        }
        self.check_under_way();
        if let Some(stream) = self.owners.iter().position(|owner| *owner == Some(d as u8)) {
            let ends = [first, first + count / 2, first + count - 1];
            ends.into_iter().for_each(|page| self.transaction(stream as u32, page, false));
        }
    }

    fn destroy(&mut self, d: usize) {
        let of = |owner: &Option<u8>| *owner == Some(d as u8);
        // By runs of streams, as a domain may have several devices.
        while let Some(first) = self.owners.iter().position(of) {
            let count = self.owners[first..].iter().take_while(|owner| of(owner)).count();
            self.change(StreamId(first as u32)..=StreamId((first + count - 1) as u32), None);
        }
        self.machine.heal();
        let domain = self.domains[d].take().expect("a domain");
        domain.stage2.destroy();
        self.machine.free(domain.ram, (RAM_PAGES * PAGE) as usize, 0x20_0000);
        self.create(d);
    }

    /// Whether a transaction was aborted for a fault that was injected.
    fn excused(&self, result: &Result<(), Aborted>) -> bool {
        self.faulty && matches!(result, Err(Aborted { why: Why::SteFetch | Why::WalkAbort, .. }))
    }

    fn transaction(&mut self, stream: u32, page: u64, write: bool) {
        self.landed();
        let expected = self.place(self.owners[stream as usize], page);
        let result = if write {
            self.machine.dma_write(stream, page_of(page), &[2; 8])
        } else {
            self.machine.dma_read(stream, page_of(page), 8).map(|_| ())
        };
        let landed = self.machine.take_landings().first().map(|l| l.physical);
        if self.excused(&result) {
            assert_eq!(landed, None);
        } else {
            assert_eq!(landed, expected, "stream {stream:#x}, page {page:#x}: {result:?}");
        }
    }

    fn later(&mut self, stream: u16, page: u64) {
        let stream = self.stream(stream);
        let expected = self.place(self.owners[stream as usize], page);
        let result = self.machine.dma_write_later(stream, page_of(page), &[3; 8]);
        if result.is_ok() {
            let place = expected.unwrap_or_else(|| panic!("stream {stream:#x} writes to page {page:#x}"));
            self.under_way.push((stream, page, place));
        } else {
            assert!(expected.is_none() || self.excused(&result), "{result:?}");
        }
    }

    /// Takes note of the writes that have landed meanwhile.
    fn landed(&mut self) {
        for landing in self.machine.take_landings() {
            let at = self.under_way.iter().position(|&(stream, page, place)| {
                (stream, page_of(page), place) == (landing.stream, landing.address, landing.physical)
            });
            let at = at.unwrap_or_else(|| panic!("{landing:x?} was not under way"));
            self.under_way.remove(at);
        }
    }

    /// No write is under way that may not land any more.
    fn check_under_way(&mut self) {
        self.landed();
        for &(stream, page, place) in &self.under_way {
            let now = self.place(self.owners[stream as usize], page);
            assert_eq!(now, Some(place), "a write of stream {stream:#x} to page {page:#x} is still under way");
        }
    }

    fn events(&mut self) {
        let mut left = 1000;
        while let Some(event) = self.smmu.next_event() {
            if let Event::Stream { stream, .. } = event {
                assert!((stream.0 as usize) < self.owners.len());
            }
            left -= 1;
            assert!(left > 0, "the event queue does not become empty");
        }
        let errors = self.smmu.take_errors();
        assert!(!errors.failure && errors.other == 0);
    }

    /// Takes everything down. All memory is given back.
    pub fn end(&mut self) {
        self.machine.heal();
        for d in 0..DOMAINS {
            self.destroy(d);
            let domain = self.domains[d].take().expect("created again");
            domain.stage2.destroy();
            self.machine.free(domain.ram, (RAM_PAGES * PAGE) as usize, 0x20_0000);
        }
        // A last operation that changes nothing, for what a failed one may have left.
        self.change(StreamId(0)..=StreamId(self.owners.len() as u32 - 1), None);
        self.events();
        self.machine.land();
        self.landed();
        assert!(self.under_way.is_empty());
        assert_eq!(self.machine.allocations().len(), self.baseline, "{:x?}", self.machine.allocations());
        assert!(self.machine.dma_write(0, page_of(0), &[4]).is_err());
        self.machine.assert_clean();
    }
}
