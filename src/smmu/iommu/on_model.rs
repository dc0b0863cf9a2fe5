//! Tests on the executable SMMU: what devices reach.

use super::*;
use crate::ids::Pa;
use crate::mm::stage2::Attr;
use crate::smmu::model::{ModelHw, described};
use crate::smmu::owners::LIMIT;
use smmu_model::{Config, Fault, Machine};
use std::boxed::Box;

const DOM0: DomId = DomId(0);
const DOM1: DomId = DomId(1);
/// Where a domain sees its RAM, of one page.
const RAM: u64 = 0x4000_0000;
/// Where a domain sees the doorbell of its ITS.
const DOORBELL: u64 = 0x0809_0000;

struct World {
    machine: Machine,
    iommu: &'static Iommu<ModelHw>,
}

fn streams(first: u32, last: u32) -> Streams {
    Streams { smmu: SmmuId(0), first: StreamId(first), last: StreamId(last) }
}

impl World {
    fn new(config: Config) -> World {
        World::with(config, true)
    }

    fn with(config: Config, on: bool) -> World {
        let described = described(&config);
        let machine = Machine::new(config);
        let iommu = Box::leak(Box::new(Iommu::start(ModelHw(machine.clone()), &[described], on)));
        World { machine, iommu }
    }

    /// The view of a domain, with a page of RAM and a doorbell at these physical addresses.
    fn view(&self, domain: DomId, ram: u64, doorbell: u64) -> DeviceView<ModelHw> {
        let mut view = self.iommu.new_view(VmId(domain.0 + 1), 48).unwrap();
        view.map(Ipa(RAM), Pa(ram), PAGE, Attr::Ram).unwrap();
        view.map(Ipa(DOORBELL), Pa(doorbell), PAGE, Attr::Doorbell).unwrap();
        view
    }

    /// A page of memory.
    fn page(&self) -> u64 {
        let page = self.machine.alloc(PAGE as usize, PAGE as usize).unwrap();
        self.machine.publish(page, PAGE as usize, true);
        page
    }

    /// Where a device's write lands; `None` if it is aborted.
    fn write(&self, stream: u32, address: u64) -> Option<u64> {
        let _ = self.machine.take_landings();
        let done = self.machine.dma_write(stream, address, &[1, 2, 3, 4]);
        done.ok().and_then(|()| self.machine.take_landings().first().map(|landing| landing.physical))
    }

    fn events(&self) -> u64 {
        self.iommu.fronts[0].events.load(Ordering::Relaxed)
    }
}

#[test]
fn devices_reach_the_ram_and_the_doorbells_of_their_domain_and_nothing_else() {
    let world = World::new(Config::server());
    let (ours, theirs, doorbell) = (world.page(), world.page(), world.page());
    let view = world.view(DOM0, ours, doorbell);
    let other = world.view(DOM1, theirs, doorbell);
    assert_eq!(world.write(3, RAM), None, "nobody's");
    world.iommu.assign(DOM0, streams(0, 7), &view).unwrap();
    world.iommu.assign(DOM1, streams(8, 8), &other).unwrap();
    assert_eq!(
        [world.write(3, RAM), world.write(8, RAM + 8), world.write(9, RAM)],
        [Some(ours), Some(theirs + 8), None]
    );
    assert_eq!(world.write(3, DOORBELL + 0x40), Some(doorbell + 0x40));
    assert!(world.machine.dma_read(3, DOORBELL + 0x40, 4).is_err(), "a doorbell has nothing to read");
    assert_eq!(world.write(3, RAM + PAGE), None);
    world.machine.assert_clean();
}

#[test]
fn a_stream_that_a_domain_has_is_not_given_to_another_one_until_it_is_released() {
    let world = World::new(Config::small());
    let view = world.view(DOM0, world.page(), world.page());
    let (ram, doorbell) = (world.page(), world.page());
    let other = world.view(DOM1, ram, doorbell);
    world.iommu.assign(DOM0, streams(4, 5), &view).unwrap();
    assert_eq!(world.iommu.assign(DOM1, streams(5, 6), &other), Err(AssignError::Owned(DOM0)));
    assert_eq!(world.write(6, RAM), None);
    world.iommu.block(DOM0).unwrap();
    assert_eq!(world.write(5, RAM), None);
    world.iommu.remove(DOM0, view);
    world.iommu.assign(DOM1, streams(5, 6), &other).unwrap();
    assert_eq!(world.write(5, RAM), Some(ram));
    assert!(world.iommu.is_sound());
    world.machine.assert_clean();
}

#[test]
fn a_domain_that_is_removed_reaches_nothing_and_its_tables_are_freed() {
    let world = World::new(Config::server());
    let (ram, doorbell) = (world.page(), world.page());
    let before = world.machine.allocations().len();
    let view = world.view(DOM1, ram, doorbell);
    world.iommu.assign(DOM1, streams(4, 5), &view).unwrap();
    assert_eq!(world.write(4, RAM), Some(ram));
    world.iommu.remove(DOM1, view);
    assert_eq!((world.write(4, RAM), world.iommu.is_sound()), (None, true));
    assert_eq!(world.machine.allocations().len(), before);
    let other = world.view(DOM0, ram, doorbell);
    world.iommu.assign(DOM0, streams(5, 5), &other).unwrap();
    world.machine.assert_clean();
}

#[test]
fn a_stopped_domain_reaches_its_ram_again_when_it_resumes() {
    let world = World::new(Config::qemu());
    let ram = world.page();
    let view = world.view(DOM1, ram, world.page());
    world.iommu.assign(DOM1, streams(0x10, 0x10), &view).unwrap();
    world.iommu.assign(DOM1, streams(0x18, 0x18), &view).unwrap();
    world.iommu.block(DOM1).unwrap();
    assert_eq!([world.write(0x10, RAM), world.write(0x18, RAM)], [None; 2]);
    world.iommu.resume(DOM1, &view).unwrap();
    assert_eq!([world.write(0x10, RAM), world.write(0x18, RAM)], [Some(ram); 2]);
}

#[test]
fn a_stream_in_quarantine_reaches_nothing_and_is_given_to_nobody() {
    let world = World::new(Config::qemu());
    let ram = world.page();
    let view = world.view(DOM1, ram, world.page());
    let other = world.view(DOM0, ram, world.page());
    world.iommu.assign(DOM1, streams(0x10, 0x10), &view).unwrap();
    world.iommu.assign(DOM1, streams(0x18, 0x18), &view).unwrap();
    world.iommu.quarantine(DOM1, streams(0x10, 0x10));
    assert_eq!([world.write(0x10, RAM), world.write(0x18, RAM)], [None, Some(ram)]);
    world.iommu.block(DOM1).unwrap();
    world.iommu.resume(DOM1, &view).unwrap();
    assert_eq!([world.write(0x10, RAM), world.write(0x18, RAM)], [None, Some(ram)]);
    world.iommu.remove(DOM1, view);
    assert_eq!(world.iommu.assign(DOM0, streams(0x10, 0x18), &other), Err(AssignError::Owned(DOM1)));
    world.iommu.assign(DOM0, streams(0x18, 0x18), &other).unwrap();
    assert_eq!([world.write(0x10, RAM), world.write(0x18, RAM)], [None, Some(ram)]);
    assert!(world.iommu.is_sound());
    world.machine.assert_clean();
}

#[test]
fn a_stream_that_floods_events_is_cut_off_and_the_others_of_its_domain_are_not() {
    let world = World::new(Config::qemu());
    let ram = world.page();
    let view = world.view(DOM1, ram, world.page());
    world.iommu.assign(DOM1, streams(0x10, 0x10), &view).unwrap();
    world.iommu.assign(DOM1, streams(0x18, 0x18), &view).unwrap();
    for _ in 0..LIMIT {
        assert_eq!(world.write(0x10, 0), None);
        while world.iommu.handle_reports() {}
    }
    assert_eq!((world.events(), world.write(0x10, RAM)), (u64::from(LIMIT), Some(ram)));
    assert_eq!(world.write(0x10, 0), None);
    while world.iommu.handle_reports() {}
    assert_eq!([world.write(0x10, RAM), world.write(0x18, RAM)], [None, Some(ram)]);
    // From now on its transactions make no events.
    assert_eq!(
        (world.write(0x10, 0), world.iommu.handle_reports(), world.events()),
        (None, false, u64::from(LIMIT) + 1)
    );
    // The domain begins anew.
    world.iommu.block(DOM1).unwrap();
    world.iommu.resume(DOM1, &view).unwrap();
    assert_eq!(world.write(0x10, RAM), Some(ram));
}

/// A domain with streams 0x10 and 0x18, whose queue of events has 2^`event_bits` entries.
fn of_two_streams(event_bits: u32) -> (World, u64, DeviceView<ModelHw>) {
    let world = World::new(Config { event_bits, ..Config::qemu() });
    let ram = world.page();
    let view = world.view(DOM1, ram, world.page());
    world.iommu.assign(DOM1, streams(0x10, 0x10), &view).unwrap();
    world.iommu.assign(DOM1, streams(0x18, 0x18), &view).unwrap();
    (world, ram, view)
}

#[test]
fn a_flood_of_which_the_queue_holds_a_small_part_ends_in_a_cut_off_of_the_flooding_stream_alone() {
    let (world, ram, _view) = of_two_streams(4);
    let burst = || {
        assert_eq!(world.write(0x18, 0), None);
        (0..1000).for_each(|_| assert_eq!(world.write(0x10, 0), None));
        while world.iommu.handle_reports() {}
    };
    burst();
    assert_eq!(world.events(), 16 + 1, "a queue, and that some were lost");
    assert_eq!([world.write(0x10, RAM), world.write(0x18, RAM)], [Some(ram); 2]);
    burst();
    assert_eq!([world.write(0x10, RAM), world.write(0x18, RAM)], [None, Some(ram)]);
    world.machine.assert_clean();
}

#[test]
fn a_flood_that_ends_in_a_failed_write_to_the_queue_is_charged_to_the_stream_that_has_filled_it() {
    let (world, ram, _view) = of_two_streams(19);
    assert_eq!(world.write(0x18, 0), None);
    (0..=LIMIT).for_each(|_| assert_eq!(world.write(0x10, 0), None));
    world.machine.inject(Fault::EventWriteAborts);
    assert_eq!(world.write(0x10, 0), None);
    while world.iommu.handle_reports() {}
    assert_eq!([world.write(0x10, RAM), world.write(0x18, RAM)], [None, Some(ram)]);
    world.machine.assert_clean();
}

#[test]
fn memory_is_not_used_again_when_an_smmu_does_not_confirm_that_it_is_out_of_reach() {
    let world = World::new(Config::server());
    let view = world.view(DOM1, world.page(), world.page());
    world.iommu.assign(DOM1, streams(1, 1), &view).unwrap();
    world.machine.inject(Fault::QueueStops);
    assert!(world.iommu.block(DOM1).is_err());
    assert!(!world.iommu.is_sound());
    view.invalidate_tlbs();
    assert!(!world.iommu.is_sound());
    // The SMMU may still walk the tables.
    let tables = world.machine.allocations().len();
    world.iommu.remove(DOM1, view);
    assert_eq!(world.machine.allocations().len(), tables);
}

#[test]
fn an_smmu_that_cannot_be_used_is_put_into_bypass_and_gives_no_stream_away() {
    let world = World::new(Config { stage2: false, ..Config::server() });
    assert!(!world.iommu.translates() && !world.iommu.protects_all());
    let page = world.page();
    assert_eq!(world.write(1, page), Some(page));
    let off = World::with(Config::server(), false);
    assert!(!off.iommu.translates());
    let page = off.page();
    assert_eq!(off.write(1, page), Some(page));
    let view = off.view(DOM1, page, page);
    let refused = off.iommu.assign(DOM1, streams(1, 1), &view);
    assert_eq!(refused, Err(AssignError::NotTranslating(SmmuId(0))));
}

#[test]
fn more_streams_than_an_smmu_has_are_no_error() {
    let config = Config::small();
    let last = (1 << config.stream_bits) - 1;
    let world = World::new(config);
    let ram = world.page();
    let view = world.view(DOM0, ram, world.page());
    world.iommu.assign(DOM0, streams(0, 0xffff), &view).unwrap();
    assert_eq!([world.write(0, RAM), world.write(last, RAM)], [Some(ram); 2]);
    let beyond = streams(0x1_0000, 0x1_0000);
    assert!(matches!(world.iommu.assign(DOM0, beyond, &view), Err(AssignError::Smmu(SmmuError::BadStream(_)))));
    assert!(world.iommu.is_sound());
    // They are not the domain's, and need not be blocked.
    world.iommu.remove(DOM0, view);
    assert!(world.iommu.is_sound());
}
