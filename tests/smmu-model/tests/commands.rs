//! The command queue.

mod common;

use common::*;
use smmu_model::{Command, CommandFault, Config, Fault, Interrupt, Signal};

#[test]
fn commands_are_consumed_one_by_one_and_a_sync_last() {
    let mut b = Bench::queues(Config::server());
    b.commands(&[CFGI_ALL, NSNH_ALL, SYNC]);
    assert_eq!(b.r32(CMDQ_CONS) & 0xff, 0);
    b.m.relax();
    assert_eq!(b.r32(CMDQ_CONS) & 0xff, 2, "two commands take 300 ns");
    b.m.advance_us(1);
    assert_eq!(b.r32(CMDQ_CONS) & 0xff, 2);
    b.m.advance_us(1);
    assert_eq!(b.r32(CMDQ_CONS) & 0xff, 3);
    let all = Command::CfgiSteRange { stream: 0, range: 31 };
    assert_eq!(b.m.commands(), [all, Command::TlbiNsnhAll, Command::Sync { signal: Signal::None }]);
    b.m.assert_clean();
}

#[test]
fn indexes_wrap() {
    let mut b = Bench::queues(Config { command_bits: 2, ..Config::server() });
    assert_eq!(b.bits.0, 2);
    for _ in 0..9 {
        b.run(&[NSNH_ALL]);
    }
    assert_eq!((b.prod, b.r32(CMDQ_CONS) & 0xff, b.m.commands().len()), (2, 2, 18));
    b.commands(&[NSNH_ALL, NSNH_ALL, NSNH_ALL, SYNC]);
    assert_eq!(b.r32(CMDQ_PROD), 6);
    b.m.advance_us(10);
    assert_eq!(b.m.commands().len(), 22);
    b.m.assert_clean();
}

#[test]
fn a_queue_must_not_be_overfilled_nor_the_index_moved_back() {
    let mut b = Bench::queues(Config { command_bits: 2, ..Config::server() });
    b.commands(&[NSNH_ALL, NSNH_ALL]);
    b.w32(CMDQ_PROD, 1);
    b.expect("6.3 SMMU_CMDQ_PROD");
    b.m.advance_us(100);
    assert_eq!(b.r32(CMDQ_CONS) & 0xff, 0, "it is not consumed any more");
    let b = Bench::queues(Config { command_bits: 2, ..Config::server() });
    b.w32(CMDQ_PROD, 5);
    b.expect("6.3 SMMU_CMDQ_PROD");
    let b = Bench::queues(Config { command_bits: 2, ..Config::server() });
    b.w32(CMDQ_PROD, 8);
    b.expect("6.3 SMMU_CMDQ_PROD");
}

#[test]
fn a_command_must_be_published_and_left_alone() {
    let b = Bench::queues(Config::server());
    b.m.store64(b.queue, NSNH_ALL[0]);
    b.m.store64(b.queue + 8, 0);
    b.w32(CMDQ_PROD, 1);
    b.expect("3.21.2");
    let mut b = Bench::queues(Config::server());
    b.commands(&[NSNH_ALL]);
    b.m.store64(b.queue, 0);
    b.expect("3.21.2");
    // On a machine that does not snoop, a barrier is not enough.
    let b = Bench::queues(Config::server().noncoherent());
    b.m.store64(b.queue, NSNH_ALL[0]);
    b.m.store64(b.queue + 8, 0);
    b.m.publish(b.queue, 16, false);
    b.w32(CMDQ_PROD, 1);
    b.expect("3.21.2");
    // Nor is it if the driver chose attributes that do not snoop.
    let b = Bench::queues(Config::server());
    b.cr0(0);
    b.w32(CR1, 0xd45);
    b.publish(b.events, 0x200);
    b.cr0(CMDQEN);
    b.m.store64(b.queue, NSNH_ALL[0]);
    b.m.store64(b.queue + 8, 0);
    b.m.publish(b.queue, 16, false);
    b.w32(CMDQ_PROD, 1);
    b.expect("3.21.2");
}

#[test]
fn an_illegal_command_stops_the_queue_until_it_is_replaced_and_acknowledged() {
    let mut b = Bench::queues(Config::server());
    b.w32(IRQ_CTRL, 1);
    b.m.advance_us(2);
    b.commands(&[NSNH_ALL, [0x31, 0], SYNC]);
    b.m.advance_us(10);
    assert_eq!(b.r32(CMDQ_CONS), 1 << 24 | 1, "CERROR_ILL at the second command");
    assert_eq!((b.r32(GERROR), b.r32(GERRORN)), (1, 0));
    assert_eq!(b.m.take_interrupts(), [Interrupt::Error]);
    b.expect("4.1.3");
    b.m.advance_us(100);
    assert_eq!(b.r32(CMDQ_CONS) & 0xff, 1);
    // Its place may be stored to now.
    b.put(b.queue + 16, SYNC[0]);
    b.w32(GERRORN, 1);
    b.m.advance_us(10);
    assert_eq!(b.r32(CMDQ_CONS) & 0xff, 3);
    b.m.assert_clean();
    // While an error is active, commands may also be taken back.
    b.commands(&[[0x31, 0], SYNC]);
    b.m.advance_us(10);
    b.expect("4.1.3");
    assert_eq!(b.r32(GERROR), 0, "toggled again");
    b.w32(CMDQ_PROD, 3);
    b.w32(GERRORN, 0);
    b.m.advance_us(10);
    assert_eq!(b.r32(CMDQ_CONS) & 0xff, 3);
    b.m.assert_clean();
}

#[test]
fn an_error_that_is_acknowledged_without_a_repair_comes_again() {
    let mut b = Bench::queues(Config::server());
    b.commands(&[[0x31, 0]]);
    b.m.advance_us(1);
    b.w32(GERRORN, 1);
    b.m.advance_us(1);
    assert_eq!(b.r32(GERROR), 0);
    b.expect("4.1.3");
}

#[test]
fn commands_of_missing_features_are_illegal() {
    for command in [[0x10, 0], [0x20, 0], [0x6, 0], s2_range(7, 0, 1, 1, 0)] {
        let mut b = Bench::queues(Config::small());
        b.commands(&[command]);
        b.m.advance_us(1);
        assert_eq!(b.r32(CMDQ_CONS) >> 24, 1, "{command:#x?}");
        b.expect("4.1.3");
    }
}

#[test]
fn parameters_out_of_range_are_violations() {
    let mut b = Bench::queues(Config { stream_bits: 8, vmid16: false, ..Config::server() });
    b.run(&[cfgi_ste(0x100, 1)]);
    b.expect("4.1.7");
    b.run(&[[4 | 0x100 << 32, 3]]);
    b.expect("4.1.7");
    b.run(&[s12_vmall(0x100)]);
    b.expect("4.4");
    b.run(&[s2_ipa(0x100, 0, 1)]);
    b.expect("4.4");
    // Ranges: other granules, and addresses that are not aligned for TTL.
    b.run(&[[0x2a | 1 << 12, 3 << 10]]);
    b.expect("4.4.1.1");
    b.run(&[s2_range(7, 0x1000, 0, 0, 2)]);
    b.expect("4.4.1.1");
    b.run(&[s2_range(7, 0x20_0000, 0, 0, 1)]);
    b.expect("4.4.1.1");
    b.run(&[s2_range(7, 0x20_0000, 0, 0, 2), s2_range(7, 0x20_1000, 5, 0, 0), [1, 0], [2, 0x1000]]);
    b.m.assert_clean();
}

#[test]
fn a_sync_signals_by_line_or_message() {
    let mut b = Bench::queues(Config::server());
    b.run(&[[0x1046, 0]]);
    assert_eq!(b.m.take_interrupts(), [Interrupt::Sync]);
    b.run(&[[0x77_0000_1046, b.table]]);
    assert_eq!(b.m.take_interrupts(), [Interrupt::Sync], "there are no messages without SMMU_IDR0.MSI");
    b.run(&[[0x2046, 0]]);
    assert!(b.m.take_interrupts().is_empty());
    let mut b = Bench::queues(Config { msi: true, ..Config::server() });
    let word = b.table();
    b.run(&[[0x77_0000_1046, word]]);
    assert_eq!(b.m.take_interrupts(), [Interrupt::Message { address: word, data: 0x77 }]);
    b.m.acquire(word, 8, false);
    assert_eq!(b.m.load64(word), 0x77);
    b.m.assert_clean();
}

#[test]
fn single_commands_can_fail() {
    let mut b = Bench::queues(Config::server());
    b.m.inject(Fault::Command { nth: 2, fault: CommandFault::Illegal });
    b.commands(&[NSNH_ALL, CFGI_ALL, SYNC]);
    b.m.advance_us(10);
    assert_eq!((b.r32(CMDQ_CONS), b.r32(GERROR)), (1 << 24 | 1, 1));
    b.w32(GERRORN, 1);
    b.m.advance_us(10);
    assert_eq!(b.r32(CMDQ_CONS) & 0xff, 3);
    b.m.inject(Fault::Command { nth: 1, fault: CommandFault::Abort });
    b.commands(&[NSNH_ALL]);
    b.m.advance_us(10);
    assert_eq!((b.r32(CMDQ_CONS), b.r32(GERROR)), (2 << 24 | 3, 0));
    b.w32(GERRORN, 0);
    b.m.advance_us(10);
    assert_eq!(b.r32(CMDQ_CONS) & 0xff, 4);
    b.m.inject(Fault::Command { nth: 1, fault: CommandFault::Late { us: 500 } });
    b.commands(&[NSNH_ALL]);
    b.m.advance_us(499);
    assert_eq!(b.r32(CMDQ_CONS) & 0xff, 4);
    b.m.advance_us(2);
    assert_eq!(b.r32(CMDQ_CONS) & 0xff, 5);
    b.m.inject(Fault::Command { nth: 1, fault: CommandFault::Hang });
    b.commands(&[NSNH_ALL]);
    b.m.advance_us(1_000_000);
    assert_eq!(b.r32(CMDQ_CONS) & 0xff, 5);
    b.m.heal();
    assert_eq!(b.r32(CMDQ_CONS) & 0xff, 6);
    b.m.assert_clean();
}

#[test]
fn the_queue_can_stop() {
    let mut b = Bench::queues(Config::server());
    b.m.inject(Fault::QueueStopsFor { us: 300 });
    b.commands(&[SYNC]);
    b.m.advance_us(299);
    assert_eq!(b.r32(CMDQ_CONS) & 0xff, 0);
    b.m.advance_us(2);
    assert_eq!(b.r32(CMDQ_CONS) & 0xff, 1);
    b.m.inject(Fault::QueueStops);
    b.commands(&[SYNC]);
    b.m.advance_us(10_000_000);
    assert_eq!(b.r32(CMDQ_CONS) & 0xff, 1);
    b.m.heal();
    assert_eq!(b.r32(CMDQ_CONS) & 0xff, 2);
}

#[test]
fn a_queue_that_is_disabled_keeps_its_commands() {
    let mut b = Bench::queues(Config::server());
    b.cr0(EVENTQEN);
    b.commands(&[SYNC]);
    b.m.advance_us(100);
    assert_eq!(b.r32(CMDQ_CONS) & 0xff, 0);
    b.cr0(EVENTQEN | CMDQEN);
    b.m.advance_us(2);
    assert_eq!(b.r32(CMDQ_CONS) & 0xff, 1);
    b.m.assert_clean();
}
