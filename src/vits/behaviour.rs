//! The behaviour that a guest can rely on: one test for each rule.

use super::fake::encode::*;
use super::fake::{CREADR, CTLR, CWRITER, Call, Guest, Host, config};
use super::*;
use std::vec;
use std::vec::Vec;

fn guest() -> Guest {
    Guest::new(config(), Host::new())
}

/// A guest with device 0x10, which has 8 events, and collections 0 to 3 on vCPUs 0 to 3.
fn mapped() -> Guest {
    let mut g = guest();
    g.commands(&[mapc(0, 0), mapc(1, 1), mapc(2, 2), mapc(3, 3), mapd(0x10, 3)]);
    g.host.take_calls();
    g
}

fn refused(g: &Guest) -> Vec<(Refusal, u64)> {
    g.vits.counters().refusals().collect()
}

/// Checks that each command is refused for this reason and causes no call of the host.
fn refuses(g: &mut Guest, why: Refusal, commands: &[Words]) {
    for command in commands {
        let before = g.vits.counters().of(why);
        assert_eq!(g.calls_of(&[*command]), [], "{command:#x?}");
        assert_eq!(g.vits.counters().of(why), before + 1, "{command:#x?}");
    }
}

#[test]
fn mapti_reads_the_configuration_byte_and_maps_for_the_collections_vcpu() {
    let mut g = mapped();
    assert_eq!(g.calls_of(&[mapti(0x10, 5, 8200, 2)]), [Call::Byte(8200, 2), Call::Map(0x10, 5, 2, 8200)]);
    assert_eq!(g.vits.lookup(DeviceId(0x10), EventId(5)), Some((VIntid(8200), Some(VcpuId(2)))));
    assert_eq!(refused(&g), []);
}

#[test]
fn mapi_maps_to_the_intid_of_the_event_number() {
    let mut g = guest();
    g.commands(&[mapc(0, 0), mapd(1, 14)]);
    refuses(&mut g, Refusal::VintidRange, &[mapi(1, 3, 0), mapi(1, 8191, 0)]);
    // A device gets 11 EventID bits, so no EventID that is the INTID of an LPI has a slot.
    refuses(&mut g, Refusal::EventQuota, &[mapi(1, 8192, 0)]);
    let quota = Quota { devices: 2, events: 16, itt_entries: 1 << 14, min_event_bits: 1, device_event_bits: 14 };
    let mut g = Guest::new(VitsConfig { quota, ..config() }, Host::new());
    assert_eq!(
        g.calls_of(&[mapc(0, 0), mapd(1, 14), mapi(1, 8193, 0)]),
        [Call::MapDevice(1, 14), Call::Byte(8193, 0), Call::Map(1, 8193, 0, 8193)]
    );
}

#[test]
fn an_event_in_an_unmapped_collection_is_mapped_on_the_host_at_mapc() {
    let mut g = mapped();
    assert_eq!(g.calls_of(&[mapti(0x10, 0, 8192, 9), mapti(0x10, 1, 8193, 9)]), []);
    assert_eq!(g.vits.lookup(DeviceId(0x10), EventId(0)), Some((VIntid(8192), None)));
    assert_eq!(
        g.calls_of(&[mapc(9, 3)]),
        [Call::Byte(8192, 3), Call::Map(0x10, 0, 3, 8192), Call::Byte(8193, 3), Call::Map(0x10, 1, 3, 8193)]
    );
    assert_eq!(refused(&g), []);
}

#[test]
fn mapti_of_a_mapped_event_unmaps_it_first() {
    let mut g = mapped();
    g.commands(&[mapti(0x10, 5, 8200, 2)]);
    assert_eq!(
        g.calls_of(&[mapti(0x10, 5, 8201, 1)]),
        [Call::Unmap(0x10, 5, 2), Call::Byte(8201, 1), Call::Map(0x10, 5, 1, 8201)]
    );
}

#[test]
fn several_events_may_share_an_intid() {
    let mut g = mapped();
    g.commands(&[mapti(0x10, 0, 8192, 0), mapti(0x10, 1, 8192, 1), discard(0x10, 0)]);
    assert_eq!(*g.host.events.borrow(), [((0x10, 1), (8192, 1))].into());
    assert_eq!(refused(&g), []);
}

#[test]
fn mapc_to_another_vcpu_moves_the_events_of_the_collection_only() {
    let mut g = mapped();
    g.commands(&[mapti(0x10, 0, 8192, 0), mapti(0x10, 1, 8193, 1), mapti(0x10, 2, 8194, 0), int(0x10, 2)]);
    assert_eq!(g.calls_of(&[mapc(0, 3)]), [Call::Move(0x10, 0, 0, 3), Call::Move(0x10, 2, 0, 3)]);
    assert_eq!(*g.host.pending.borrow(), [(3, 8194)].into());
    assert_eq!(g.calls_of(&[mapc(0, 3)]), []);
}

#[test]
fn mapc_v0_parks_the_events_and_mapc_maps_them_again() {
    let mut g = mapped();
    g.commands(&[mapti(0x10, 0, 8192, 0), mapti(0x10, 1, 8193, 1), int(0x10, 0)]);
    assert_eq!(g.calls_of(&[unmapc(0)]), [Call::Park(0x10, 0, 0)]);
    assert_eq!(*g.host.pending.borrow(), [(0, 8192)].into());
    refuses(&mut g, Refusal::CollectionUnmapped, &[int(0x10, 0), clear(0x10, 0), inv(0x10, 0), invall(0)]);
    assert_eq!(g.calls_of(&[mapc(0, 2)]), [Call::Byte(8192, 2), Call::Map(0x10, 0, 2, 8192)]);
}

#[test]
fn movi_moves_with_the_pending_state_and_only_between_mapped_collections() {
    let mut g = mapped();
    g.commands(&[mapti(0x10, 0, 8192, 0), int(0x10, 0), mapti(0x10, 1, 8193, 9)]);
    assert_eq!(g.calls_of(&[movi(0x10, 0, 1)]), [Call::Move(0x10, 0, 0, 1)]);
    assert_eq!(*g.host.pending.borrow(), [(1, 8192)].into());
    refuses(&mut g, Refusal::CollectionUnmapped, &[movi(0x10, 0, 9), movi(0x10, 1, 0)]);
    // Another collection of the same vCPU: the host has nothing to do, but the event follows that collection now.
    g.commands(&[mapc(4, 1)]);
    assert_eq!(g.calls_of(&[movi(0x10, 0, 4)]), []);
    assert_eq!(g.calls_of(&[mapc(1, 0), mapc(4, 2)]), [Call::Move(0x10, 0, 1, 2)]);
}

#[test]
fn movall_moves_pending_interrupts_and_no_mapping() {
    let mut g = mapped();
    g.commands(&[mapti(0x10, 0, 8192, 0), int(0x10, 0)]);
    assert_eq!(g.calls_of(&[movall(0, 2)]), [Call::MovePending(0, 2, 0)]);
    assert_eq!(*g.host.pending.borrow(), [(2, 8192)].into());
    assert_eq!(g.vits.lookup(DeviceId(0x10), EventId(0)), Some((VIntid(8192), Some(VcpuId(0)))));
    assert_eq!(g.calls_of(&[movall(1, 1)]), []);
    refuses(&mut g, Refusal::UnknownTarget, &[movall(0, 4), movall(4, 0), movall(u64::from(u16::MAX) + 1, 0)]);
}

#[test]
fn int_clear_and_inv_act_on_the_mapped_event() {
    let mut g = mapped();
    g.commands(&[mapti(0x10, 5, 8200, 2)]);
    assert_eq!(
        g.calls_of(&[int(0x10, 5), clear(0x10, 5), inv(0x10, 5)]),
        [Call::SetPending(0x10, 5, 8200, 2), Call::ClearPending(0x10, 5, 8200, 2), Call::Reload(0x10, 5, 8200, 2)]
    );
}

#[test]
fn discard_unmaps_an_event_and_clears_its_pending_state() {
    let mut g = mapped();
    g.commands(&[mapti(0x10, 5, 8200, 2), mapti(0x10, 6, 8201, 9), int(0x10, 5)]);
    assert_eq!(g.calls_of(&[discard(0x10, 5), discard(0x10, 6)]), [Call::Unmap(0x10, 5, 2)]);
    assert!(g.host.pending.borrow().is_empty());
    refuses(&mut g, Refusal::EventUnmapped, &[discard(0x10, 5), discard(0x10, 6), int(0x10, 5), movi(0x10, 5, 0)]);
}

#[test]
fn invall_reads_each_byte_of_the_vcpu_and_then_invalidates_once() {
    let mut g = mapped();
    g.commands(&[mapti(0x10, 0, 8192, 0), mapti(0x10, 1, 8193, 1), mapti(0x10, 2, 8194, 0), mapti(0x10, 3, 8195, 9)]);
    assert_eq!(g.calls_of(&[invall(0)]), [Call::Byte(8192, 0), Call::Byte(8194, 0), Call::InvalidateAll(0)]);
    refuses(&mut g, Refusal::CollectionUnmapped, &[invall(9)]);
}

#[test]
fn enabling_lpis_reads_each_byte_of_the_vcpu() {
    let mut g = mapped();
    g.commands(&[mapti(0x10, 0, 8192, 0), mapti(0x10, 1, 8193, 1)]);
    g.host.take_calls();
    assert_eq!(g.vits.lpis_enabled(VcpuId(1)), Progress::More);
    g.finish(10);
    assert_eq!(g.host.take_calls(), [Call::Byte(8193, 1), Call::InvalidateAll(1)]);
    // Two vCPUs at the same time: the bytes of all vCPUs are read.
    let _ = g.vits.lpis_enabled(VcpuId(0));
    let _ = g.vits.lpis_enabled(VcpuId(1));
    g.finish(1);
    assert_eq!(
        g.host.take_calls(),
        [
            Call::Byte(8192, 0),
            Call::Byte(8193, 1),
            Call::InvalidateAll(0),
            Call::InvalidateAll(1),
            Call::InvalidateAll(2),
            Call::InvalidateAll(3)
        ]
    );
}

#[test]
fn disabling_the_its_stops_delivery_and_enabling_resumes_it() {
    let mut g = mapped();
    g.commands(&[mapti(0x10, 0, 8192, 0), mapti(0x10, 1, 8193, 1), int(0x10, 1)]);
    g.host.take_calls();
    g.enable(false);
    assert_eq!(g.host.take_calls(), [Call::Park(0x10, 0, 0), Call::Park(0x10, 1, 1)]);
    assert_eq!(*g.host.pending.borrow(), [(1, 8193)].into());
    assert_eq!(g.vits.read(CTLR, 4), 0x8000_0000);
    // Meanwhile, commands wait.
    g.enqueue(&[discard(0x10, 0)]);
    assert_eq!(g.ring(), Progress::Done);
    assert_eq!(g.host.take_calls(), []);
    g.enable(true);
    assert_eq!(
        g.host.take_calls(),
        [
            Call::Byte(8192, 0),
            Call::Map(0x10, 0, 0, 8192),
            Call::Byte(8193, 1),
            Call::Map(0x10, 1, 1, 8193),
            Call::Unmap(0x10, 0, 0)
        ]
    );
}

#[test]
fn mapd_of_a_mapped_device_unmaps_its_events_first() {
    let mut g = mapped();
    for (command, after) in [
        (mapd(0x10, 3), Some(Call::MapDevice(0x10, 3))),
        (mapd(0x10, 5), Some(Call::MapDevice(0x10, 5))),
        (unmapd(0x10), None),
    ] {
        g.commands(&[mapti(0x10, 0, 8192, 0), mapti(0x10, 7, 8199, 1)]);
        let down = [Call::Unmap(0x10, 0, 0), Call::Unmap(0x10, 7, 1), Call::UnmapDevice(0x10)];
        assert_eq!(g.calls_of(&[command]), down.into_iter().chain(after).collect::<Vec<_>>());
        assert_eq!(g.vits.lookup(DeviceId(0x10), EventId(0)), None);
    }
    assert!(g.host.devices.borrow().is_empty());
    assert_eq!(refused(&g), []);
    refuses(&mut g, Refusal::DeviceUnmapped, &[mapti(0x10, 0, 8192, 0)]);
}

#[test]
fn mapd_v0_of_an_unmapped_device_is_no_error() {
    let mut g = mapped();
    assert_eq!(g.calls_of(&[unmapd(0x20)]), []);
    assert_eq!(refused(&g), []);
}

#[test]
fn a_mapd_that_is_refused_does_not_change_the_old_mapping() {
    let mut g = mapped();
    g.commands(&[mapti(0x10, 0, 8192, 0)]);
    refuses(&mut g, Refusal::SizeRange, &[mapd(0x10, 17)]);
    assert_eq!(g.calls_of(&[int(0x10, 0)]), [Call::SetPending(0x10, 0, 8192, 0)]);
}

#[test]
fn numbers_out_of_range_never_reach_the_host() {
    let mut g = mapped();
    g.commands(&[mapti(0x10, 0, 8192, 0)]);
    let far = 0x1_0000;
    refuses(&mut g, Refusal::DeviceRange, &[mapd(far, 1), unmapd(far), mapti(far, 0, 8192, 0), int(far, 0)]);
    refuses(&mut g, Refusal::DeviceNotOwned, &[mapd(0x66, 1)]);
    refuses(&mut g, Refusal::DeviceUnmapped, &[mapti(0x11, 0, 8192, 0), movi(0x11, 0, 0), inv(0x11, 0)]);
    refuses(&mut g, Refusal::SizeRange, &[mapd(0x11, 17), mapd(0x11, 32)]);
    refuses(&mut g, Refusal::EventRange, &[mapti(0x10, 8, 8192, 0), int(0x10, u32::MAX), discard(0x10, 8)]);
    refuses(&mut g, Refusal::EventUnmapped, &[int(0x10, 1), clear(0x10, 1), inv(0x10, 1)]);
    refuses(&mut g, Refusal::CollectionRange, &[mapti(0x10, 1, 8192, 16), movi(0x10, 0, 16), mapc(16, 0), invall(16)]);
    refuses(&mut g, Refusal::VintidRange, &[mapti(0x10, 1, 8191, 0), mapti(0x10, 1, 1 << 14, 0), mapti(0x10, 1, 0, 0)]);
    refuses(&mut g, Refusal::UnknownTarget, &[mapc(0, 4), mapc(0, 0xf_ffff_ffff)]);
    refuses(&mut g, Refusal::UnknownCommand, &[[0; 4], [0x29, 0, 0, 0], [0xff, 0, 0, 0]]);
    assert_eq!(g.vits.lookup(DeviceId(0x10), EventId(0)), Some((VIntid(8192), Some(VcpuId(0)))));
}

#[test]
fn quotas_of_devices_itt_entries_and_events_hold() {
    let quota = Quota { devices: 3, events: 4, itt_entries: 24, min_event_bits: 1, device_event_bits: 4 };
    let mut g = Guest::new(VitsConfig { quota, ..config() }, Host::new());
    g.commands(&[mapc(0, 0)]);
    // The guest asks for 16 bits, and the host gets 4.
    assert_eq!(g.calls_of(&[mapd(1, 16)]), [Call::MapDevice(1, 4)]);
    refuses(&mut g, Refusal::EventQuota, &[mapti(1, 16, 8192, 0)]);
    refuses(&mut g, Refusal::IttQuota, &[mapd(2, 4)]);
    g.commands(&[mapd(2, 1), mapd(3, 1)]);
    refuses(&mut g, Refusal::DeviceQuota, &[mapd(4, 1)]);
    g.commands(&[mapti(1, 0, 8192, 0), mapti(1, 1, 8193, 0), mapti(2, 0, 8194, 0), mapti(3, 0, 8195, 0)]);
    refuses(&mut g, Refusal::EventQuota, &[mapti(3, 1, 8196, 0)]);
    // Replacing a mapping needs no more of the quota.
    assert_eq!(g.calls_of(&[mapti(3, 0, 8196, 0)]).len(), 3);
    g.commands(&[unmapd(1), mapd(4, 3), mapti(4, 7, 8192, 0)]);
    assert_eq!(g.vits.usage(), Usage { devices: 3, events: 3 });
    assert_eq!(g.host.events.borrow().len(), 3);
}

#[test]
fn a_failure_of_the_host_is_counted_and_the_operation_is_tried_again_later() {
    let mut g = mapped();
    g.host.failures.set(1);
    assert_eq!(g.calls_of(&[mapti(0x10, 0, 8192, 0)]).len(), 2);
    assert_eq!(g.vits.lookup(DeviceId(0x10), EventId(0)), Some((VIntid(8192), None)));
    assert_eq!(refused(&g), [(Refusal::HostMap, 1)]);
    refuses(&mut g, Refusal::NotAtHost, &[int(0x10, 0), clear(0x10, 0), inv(0x10, 0)]);
    assert_eq!(g.calls_of(&[mapc(1, 1)]), []);
    assert_eq!(g.calls_of(&[mapc(0, 0)]), [Call::Byte(8192, 0), Call::Map(0x10, 0, 0, 8192)]);
    g.host.failures.set(1);
    assert_eq!(g.calls_of(&[movi(0x10, 0, 1)]), [Call::Move(0x10, 0, 0, 1)]);
    assert_eq!(g.vits.lookup(DeviceId(0x10), EventId(0)), Some((VIntid(8192), None)));
    assert_eq!(g.calls_of(&[movi(0x10, 0, 1)]), [Call::Byte(8192, 1), Call::Map(0x10, 0, 1, 8192)]);
    g.host.failures.set(1);
    assert_eq!(g.calls_of(&[discard(0x10, 0)]), [Call::Unmap(0x10, 0, 1)]);
    assert_eq!(g.vits.lookup(DeviceId(0x10), EventId(0)), None);
    assert_eq!(g.vits.counters().of(Refusal::HostUnmap), 1);
}

#[test]
fn the_events_of_a_device_that_the_host_cannot_map_are_not_mapped_on_the_host() {
    let mut g = guest();
    g.host.failures.set(1);
    g.commands(&[mapc(0, 0), mapd(1, 3), mapti(1, 0, 8192, 0)]);
    assert_eq!(g.host.take_calls(), [Call::MapDevice(1, 3)]);
    assert_eq!(g.vits.lookup(DeviceId(1), EventId(0)), Some((VIntid(8192), None)));
    assert_eq!(g.calls_of(&[unmapd(1), mapd(1, 3)]), [Call::MapDevice(1, 3)]);
    g.host.failures.set(1);
    assert_eq!(g.calls_of(&[unmapd(1), mapd(1, 3)]), [Call::UnmapDevice(1), Call::MapDevice(1, 3)]);
}

/// A guest with a device that has 2048 mapped events, all in collection 0.
fn large() -> Guest {
    let mut g = guest();
    g.commands(&[mapc(0, 0), mapc(1, 1), mapd(1, 11)]);
    let all: Vec<_> = (0..2048).map(|n| mapti(1, n, 8192 + n, 0)).collect();
    g.commands(&all);
    g.host.take_calls();
    g
}

#[test]
fn long_commands_pause_at_the_budget_and_creadr_advances_at_their_end() {
    for command in [mapc(0, 1), unmapc(0), invall(0), unmapd(1), mapd(1, 4)] {
        let mut g = large();
        let reader = g.read(CREADR);
        g.enqueue(&[command, sync(0)]);
        assert_eq!(g.ring(), Progress::More);
        let mut calls = 0;
        loop {
            let now = g.host.take_calls().len();
            assert!(now <= 33, "{now} calls in one step");
            calls += now;
            let done = g.vits.run(&g.host, 20) == Progress::Done;
            if done {
                break;
            }
            if calls < 2000 {
                assert_eq!(g.read(CREADR), reader);
            }
        }
        calls += g.host.take_calls().len();
        assert!(calls >= 2048);
        assert_eq!(g.read(CREADR), g.writer());
    }
}

#[test]
fn an_its_with_many_events_is_quiescent_only_when_all_are_parked() {
    let g = large();
    assert_eq!(g.vits.write(&g.host, CTLR, 4, 0), Progress::More);
    assert_eq!(g.vits.read(CTLR, 4), 0);
    // Enabled again before the end: parked events are mapped again, and the others stay mapped.
    assert_eq!(g.vits.write(&g.host, CTLR, 4, 1), Progress::More);
    g.finish(7);
    assert_eq!(g.host.events.borrow().len(), 2048);
    assert_eq!(g.vits.write(&g.host, CTLR, 4, 0), Progress::More);
    g.finish(7);
    assert!(g.host.events.borrow().is_empty());
    assert_eq!(g.vits.read(CTLR, 4), 0x8000_0000);
}

#[test]
fn movall_continues_where_the_host_stopped() {
    let mut g = Guest::new(config(), Host { movall_calls: 3, ..Host::new() });
    let calls = [Call::MovePending(0, 1, 0), Call::MovePending(0, 1, 1), Call::MovePending(0, 1, 2)];
    assert_eq!(g.calls_of(&[movall(0, 1)]), calls);
}

#[test]
fn a_command_is_complete_when_it_is_in_effect_on_all_vcpus() {
    let mut g = guest();
    g.commands(&[mapc(0, 0), mapd(1, 3), mapti(1, 0, 8192, 0)]);
    let reader = g.read(CREADR);
    // The LPI is in a list register of another vCPU, which is still in its guest.
    g.host.settled.set(false);
    g.enqueue(&[discard(1, 0), sync(0)]);
    assert_eq!(g.ring(), Progress::More);
    g.host.take_calls();
    for _ in 0..3 {
        assert_eq!(g.vits.run(&g.host, 1000), Progress::More);
        assert_eq!(g.read(CREADR), reader);
    }
    assert_eq!(g.host.take_calls(), []);
    g.host.settled.set(true);
    assert_eq!(g.vits.run(&g.host, 1000), Progress::Done);
    assert_eq!(g.read(CREADR), g.writer());
}

#[test]
fn a_run_ends_when_its_time_is_over() {
    for command in [mapc(0, 1), unmapc(0), invall(0), unmapd(1), mapd(1, 4)] {
        let mut g = large();
        g.enqueue(&[command]);
        g.host.in_time.set(Some(3));
        assert_eq!(g.ring(), Progress::More);
        g.host.take_calls();
        for _ in 0..10 {
            g.host.in_time.set(Some(3));
            assert_eq!(g.vits.run(&g.host, 1000), Progress::More);
            assert!(g.host.take_calls().len() <= 2 * 3);
        }
        g.host.in_time.set(None);
        g.finish(1000);
        assert_eq!(g.read(CREADR), g.writer());
    }
}

#[test]
fn a_store_executes_one_command_itself() {
    let mut g = guest();
    g.enqueue(&[mapd(1, 3), mapd(2, 3), mapd(3, 3)]);
    assert_eq!(g.ring(), Progress::More);
    assert_eq!(g.host.take_calls(), [Call::MapDevice(1, 3)]);
}

#[test]
fn a_budget_of_zero_still_makes_progress() {
    let mut g = large();
    g.enqueue(&[unmapd(1)]);
    assert_eq!(g.ring(), Progress::More);
    assert!(g.finish(0) > 1000);
    assert!(g.host.devices.borrow().is_empty());
}

#[test]
fn with_on_error_stall_a_command_error_stops_the_queue_until_retry() {
    let mut g = Guest::new(VitsConfig { on_error: OnError::Stall, ..config() }, Host::new());
    g.enqueue(&[mapc(0, 0), int(1, 0), mapd(1, 3)]);
    g.write(CWRITER, g.writer());
    assert_eq!(g.read(CREADR), 32 | 1);
    assert_eq!(g.host.take_calls(), []);
    // The guest corrects the command and writes Retry.
    g.host.memory.borrow_mut()[32] = 0x05;
    g.write(CWRITER, g.writer() | 1);
    assert_eq!(g.read(CREADR), g.writer());
    assert_eq!(g.host.take_calls(), [Call::MapDevice(1, 3)]);
}

#[test]
fn a_queue_outside_the_guests_memory_stalls() {
    let mut g = guest();
    g.enable(false);
    g.write(fake::CBASER, 1 << 63 | 0xf000_0000);
    g.enable(true);
    g.write(CWRITER, 64);
    assert_eq!(g.read(CREADR), 1);
    assert_eq!(refused(&g), [(Refusal::QueueUnreadable, 1)]);
    g.write(CWRITER, 65);
    assert_eq!(refused(&g), [(Refusal::QueueUnreadable, 2)]);
    g.enable(false);
    g.bring_up();
    assert_eq!(g.calls_of(&[mapd(1, 3)]), [Call::MapDevice(1, 3)]);
}

#[test]
fn a_queue_at_the_end_of_the_address_space_stalls() {
    let g = guest();
    g.enable(false);
    g.write(fake::CBASER, u64::MAX);
    g.enable(true);
    g.write(CWRITER, 0xf_ffe0);
    assert_eq!(g.read(CREADR), 1);
}

#[test]
fn accesses_of_a_cpu_to_the_translation_frame_are_ignored() {
    let g = guest();
    for (offset, size) in [(0x1_0040, 4), (0x1_0040, 2), (0x1_0000, 8), (u64::MAX, 1)] {
        assert_eq!(g.vits.write(&g.host, offset, size, 5), Progress::Done);
        assert_eq!(g.vits.read(offset, size), 0);
    }
    assert_eq!(refused(&g), [(Refusal::TranslaterWrite, 4)]);
    assert_eq!(g.host.take_calls(), []);
}

#[test]
fn reset_unmaps_everything_and_a_driver_can_initialize_the_its_again() {
    let mut g = large();
    g.commands(&[mapd(2, 3), mapti(2, 0, 8192, 1)]);
    g.enqueue(&[mapd(1, 5)]);
    assert_eq!(g.ring(), Progress::More);
    assert_eq!(g.vits.reset(), Progress::More);
    assert_eq!(g.read(CREADR), 0);
    g.host.take_calls();
    g.finish(10);
    assert!(g.host.events.borrow().is_empty() && g.host.devices.borrow().is_empty());
    // The MAPD that was in progress only unmaps the device and does not advance the new CREADR.
    assert!(!g.host.take_calls().iter().any(|call| matches!(call, Call::MapDevice(..))));
    assert_eq!(g.read(CREADR), 0);
    assert_eq!(g.vits.read(CTLR, 4), 0x8000_0000);
    let mut visited = 0;
    g.vits.for_each_event(&mut |_, _, _, _, _| visited += 1);
    assert_eq!(visited, 0);
    g.bring_up();
    assert_eq!(g.calls_of(&[mapd(1, 3), mapti(1, 0, 8192, 0)]), [Call::MapDevice(1, 3)]);
    assert_eq!(g.calls_of(&[mapc(0, 0)]), [Call::Byte(8192, 0), Call::Map(1, 0, 0, 8192)]);
}

#[test]
fn events_are_visited_in_order_of_device_and_event() {
    let mut g = mapped();
    g.commands(&[mapd(1, 2), mapti(0x10, 3, 8195, 9), mapti(1, 1, 8192, 1)]);
    let mut seen = vec![];
    g.vits.for_each_event(&mut |d, e, v, c, at| seen.push((d.0, e.0, v.0, c.0, at)));
    assert_eq!(seen, [(1, 1, 8192, 1, Some(VcpuId(1))), (0x10, 3, 8195, 9, None)]);
}

#[test]
fn a_visit_in_steps_continues_where_it_stopped_while_devices_come_and_go() {
    let mut g = mapped();
    g.commands(&[mapd(1, 2), mapti(0x10, 3, 8195, 1), mapti(1, 1, 8192, 1), mapti(1, 2, 8193, 1)]);
    let visit = |g: &Guest, from: (u32, u32), looks, all: bool| {
        let mut seen = vec![];
        let next = g.vits.visit_events((DeviceId(from.0), EventId(from.1)), looks, &mut |d, e, v, at| {
            seen.push((d.0, e.0, v.0, at));
            all
        });
        (seen, next.map(|(device, event)| (device.0, event.0)))
    };
    let at = Some(VcpuId(1));
    assert_eq!(visit(&g, (0, 0), 2, true), (vec![(1, 1, 8192, at)], Some((1, 2))));
    assert_eq!(visit(&g, (0, 0), 99, false), (vec![(1, 1, 8192, at)], Some((1, 2))));
    assert_eq!(visit(&g, (1, 2), 2, true), (vec![(1, 2, 8193, at)], Some((1, 4))));
    let rest = (vec![(0x10, 3, 8195, at)], None);
    assert_eq!(visit(&g, (1, 4), 99, true), rest);
    g.commands(&[unmapd(1)]);
    assert_eq!(visit(&g, (1, 2), 99, true), rest);
}

#[test]
fn each_parameter_out_of_range_is_refused() {
    let good = config();
    let quota = Quota { device_event_bits: 0, ..good.quota };
    for (bad, name) in [
        (VitsConfig { device_bits: 0, ..good }, "device_bits"),
        (VitsConfig { event_bits: 33, ..good }, "event_bits"),
        (VitsConfig { collection_bits: 17, ..good }, "collection_bits"),
        (VitsConfig { id_bits: 13, ..good }, "id_bits"),
        (VitsConfig { quota, ..good }, "device_event_bits"),
    ] {
        assert_eq!(Vits::new(bad).err(), Some(ConfigError::OutOfRange(name)));
    }
}

#[test]
fn commands_are_counted_refused_ones_included() {
    let mut g = guest();
    g.commands(&[sync(0), int(9, 9), mapc(0, 0)]);
    assert_eq!(g.vits.counters().commands, 3);
}
