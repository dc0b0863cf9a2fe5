//! Tests of the whole device: one rule each, as a driver sees it.

use super::Guest;
use super::console::NoPort;
use super::device::Device;
use super::fake::{Driver, Memory};
use super::port::{Capacity, Port};
use super::queue::Broken;
use super::set::PORTS;
use crate::ids::{Ipa, PortId};
use crate::util::progress::Progress;
use alloc::sync::Arc;
use std::vec::Vec;

const INTERRUPT_STATUS: u64 = 0x60;
const INTERRUPT_ACK: u64 = 0x64;
const QUEUE_NOTIFY: u64 = 0x50;
const STATUS: u64 = 0x70;

const ADD: u16 = 1;
const REMOVE: u16 = 2;
const OPEN: u16 = 6;
const NAME: u16 = 7;

fn port(name: &str) -> Arc<Port> {
    Arc::new(Port::new(name, 0, Capacity { to_guest: 256, from_guest: 64 }))
}

/// A driver that has opened one port.
fn opened() -> (Driver, PortId, Arc<Port>) {
    let mut driver = Driver::new();
    let port = port("p");
    let id = driver.device.add(&driver.memory, port.clone()).unwrap();
    driver.start();
    driver.settle();
    driver.control(id.0.into(), OPEN, 1);
    assert!(port.is_open());
    while driver.interrupt() {}
    (driver, id, port)
}

/// What has arrived at a port, and the device's answer to that.
fn take(driver: &Driver, id: PortId, port: &Port, most: usize) -> Vec<u8> {
    let mut bytes = std::vec![0; most];
    let count = port.receive(&mut bytes);
    driver.device.announce(&driver.memory, id);
    bytes.truncate(count);
    bytes
}

#[test]
fn a_driver_learns_of_each_port_its_name_and_that_the_other_side_is_there() {
    let mut driver = Driver::new();
    let first = driver.device.add(&driver.memory, port("org.example.one")).unwrap();
    driver.start();
    assert_eq!(
        (first, driver.settle()),
        (
            PortId(1),
            [(1, ADD, 0, Vec::new()), (1, NAME, 0, b"org.example.one".to_vec()), (1, OPEN, 1, Vec::new())].to_vec()
        )
    );
    let second = driver.device.add(&driver.memory, port("two")).unwrap();
    assert_eq!(driver.settle().len(), 3, "while the driver runs");
    driver.device.remove(&driver.memory, first);
    assert_eq!(driver.settle(), [(1, REMOVE, 0, Vec::new())]);
    assert_eq!((second, driver.device.add(&driver.memory, port("three"))), (PortId(2), Ok(PortId(1))));
    assert_eq!(driver.settle()[1], (1, NAME, 0, b"three".to_vec()));
    // A new driver learns of what there is now.
    driver.start();
    let names: Vec<_> =
        driver.settle().into_iter().filter(|message| message.1 == NAME).map(|message| message.3).collect();
    assert_eq!(names, [b"three".to_vec(), b"two".to_vec()]);
}

#[test]
fn a_port_that_the_driver_refuses_is_not_named() {
    let mut driver = Driver::new();
    driver.device.add(&driver.memory, port("p")).unwrap();
    driver.start();
    driver.interrupt();
    driver.control(1, 3, 0);
    driver.messages.clear();
    assert!(driver.settle().is_empty());
    driver.control(1, OPEN, 1);
    driver.device.remove(&driver.memory, PortId(1));
    assert_eq!(driver.settle(), [(1, REMOVE, 0, Vec::new())]);
}

#[test]
fn bytes_pass_in_both_directions_in_order_and_wait_where_there_is_no_room() {
    let (mut driver, id, port) = opened();
    let sent: Vec<u8> = (0..200).collect();
    for part in sent.chunks(50) {
        assert!(driver.send(id, part, 3));
    }
    // 64 bytes are in the port, and the rest in the driver's memory.
    assert_eq!(driver.rings[Driver::rx(id) + 1].out(), 3, "the first was given back");
    let mut got = Vec::new();
    while got.len() < 200 {
        let part = take(&driver, id, &port, 33);
        assert!(!part.is_empty(), "after {}", got.len());
        got.extend(part);
        driver.interrupt();
    }
    assert_eq!(got, sent);
    driver.interrupt();
    driver.rings[Driver::rx(id) + 1].used(&driver.memory);
    assert_eq!(driver.rings[Driver::rx(id) + 1].out(), 0);

    assert_eq!(port.send(&sent), 200);
    driver.device.announce(&driver.memory, id);
    while driver.interrupt() {}
    assert_eq!(driver.received[Driver::rx(id) / 2], sent);
}

#[test]
fn a_driver_that_does_not_read_makes_nobody_wait() {
    let (mut driver, id, port) = opened();
    let mut sent = Vec::new();
    for n in 0..2000u32 {
        let byte = n as u8;
        if port.send(&[byte]) == 1 {
            sent.push(byte);
        }
        driver.device.announce(&driver.memory, id);
    }
    // The first byte has a buffer of its own, and the port is full.
    assert_eq!(sent.len(), 257);
    while driver.interrupt() {}
    assert_eq!(driver.received[Driver::rx(id) / 2], sent);
    assert_eq!(port.room_to_send(), 256);
}

#[test]
fn a_sender_that_waits_for_room_is_told_when_the_driver_has_read() {
    let (mut driver, id, port) = opened();
    while driver.device.take_arrived().is_some() {}
    assert_eq!(port.send(&[1; 300]), 256);
    assert!(driver.device.take_arrived().is_none());
    driver.device.announce(&driver.memory, id);
    assert_eq!(driver.device.take_arrived().map(|(id, _)| id), Some(id));
    while driver.interrupt() {}
    assert_eq!(port.send(&[2; 10]), 10);
    driver.device.announce(&driver.memory, id);
    while driver.interrupt() {}
    assert!(driver.device.take_arrived().is_none(), "everything had room");
    assert_eq!(driver.received[Driver::rx(id) / 2].len(), 266);
}

#[test]
fn while_an_interrupt_is_pending_bytes_are_collected_for_the_next_one() {
    let (mut driver, id, port) = opened();
    for _ in 0..60 {
        port.send(b"x");
        driver.device.announce(&driver.memory, id);
    }
    let mut interrupts = 0;
    while driver.interrupt() {
        interrupts += 1;
    }
    assert_eq!((driver.received[Driver::rx(id) / 2].len(), interrupts), (60, 2));
}

#[test]
fn bytes_are_collected_while_the_driver_has_not_read_what_it_got() {
    let mut driver = Driver::new();
    let big = Arc::new(Port::new("p", 0, Capacity { to_guest: 4096, from_guest: 64 }));
    let id = driver.device.add(&driver.memory, big.clone()).unwrap();
    driver.start();
    driver.settle();
    driver.control(1, OPEN, 1);
    let rx = Driver::rx(id);
    let send = |driver: &Driver, count: usize| {
        for _ in 0..count {
            assert_eq!(big.send(b"x"), 1);
            driver.device.announce(&driver.memory, id);
            // The interrupt handler runs, and no program reads.
            if driver.memory.line.get() {
                driver.act(INTERRUPT_ACK, 3);
            }
        }
    };
    send(&driver, 1000);
    assert_eq!(driver.rings[rx].clone().used(&driver.memory).len(), 1);
    send(&driver, 1100);
    let got = driver.rings[rx].clone().used(&driver.memory);
    assert_eq!((got[0].1, got[1].1), (1, 64), "many bytes are worth a buffer");
    while {
        driver.poll();
        driver.memory.line.get() || big.room_to_send() < 4096
    } {
        driver.interrupt();
    }
    assert_eq!(driver.received[rx / 2].len(), 2100);
    // A single buffer is enough.
    driver.start();
    driver.settle();
    driver.control(1, OPEN, 1);
    driver.rings[rx].used(&driver.memory);
    driver.interrupt();
    send(&driver, 1);
    driver.poll();
    send(&driver, 1);
    driver.poll();
    assert_eq!(driver.received[rx / 2].len(), 2102);
}

/// A guest in whose accesses to memory something else happens once, as another CPU may do it.
struct Meanwhile<'a> {
    memory: &'a Memory,
    act: core::cell::RefCell<Option<std::boxed::Box<dyn FnOnce() + 'a>>>,
}

impl Guest for Meanwhile<'_> {
    fn read(&self, at: Ipa, into: &mut [u8]) -> bool {
        self.memory.read(at, into)
    }

    fn write(&self, at: Ipa, from: &[u8]) -> bool {
        self.memory.write(at, from)
    }

    fn load16(&self, at: Ipa) -> Option<u16> {
        if let Some(act) = self.act.take() {
            act();
        }
        self.memory.load16(at)
    }

    fn store16(&self, at: Ipa, value: u16) -> bool {
        self.memory.store16(at, value)
    }

    fn set_line(&self, high: bool) {
        self.memory.set_line(high);
    }
}

#[test]
fn what_is_announced_while_the_interrupt_is_acknowledged_is_served() {
    let (mut driver, id, port) = opened();
    let other = driver.device.add(&driver.memory, self::port("q")).unwrap();
    driver.settle();
    port.send(b"1");
    driver.device.announce(&driver.memory, id);
    driver.poll();
    assert!(driver.memory.line.get());
    // The acknowledgement looks at the other port. The line is still high meanwhile, so another CPU leaves it to the driver.
    driver.device.mark(other);
    let announce = || {
        port.send(b"2");
        driver.device.announce(&driver.memory, id);
    };
    let guest =
        Meanwhile { memory: &driver.memory, act: core::cell::RefCell::new(Some(std::boxed::Box::new(announce))) };
    let _ = driver.device.write(&guest, INTERRUPT_ACK, 4, 3);
    assert!(guest.act.take().is_none());
    drop(guest);
    assert!(driver.memory.line.get(), "for what was announced");
    driver.interrupt();
    assert_eq!(driver.received[Driver::rx(id) / 2], b"12");
}

#[test]
fn a_driver_without_interrupts_gets_bytes_at_once_and_by_notifying() {
    let (mut driver, id, port) = opened();
    let rx = Driver::rx(id);
    driver.rings[rx].set_flags(&driver.memory, 1);
    for round in 0..20u8 {
        port.send(&[round]);
        driver.device.announce(&driver.memory, id);
        assert!(!driver.memory.line.get());
        driver.poll();
        assert_eq!(driver.received[rx / 2].len(), usize::from(round) + 1);
    }
}

#[test]
fn what_a_driver_has_sent_before_it_closes_is_received_and_nothing_later_session_gets() {
    let (mut driver, id, port) = opened();
    let session = port.session();
    assert!(driver.send(id, b"last words", 1));
    driver.control(id.0.into(), OPEN, 0);
    assert!(!port.is_open() && port.session() != session);
    assert_eq!(take(&driver, id, &port, 99), b"last words");
    for _ in 0..3 {
        assert!(driver.send(id, &[7; 60], 1));
    }
    driver.control(id.0.into(), OPEN, 1);
    assert!(driver.send(id, b"new", 1));
    assert_eq!(take(&driver, id, &port, 99), b"new");
}

#[test]
fn a_port_that_ends_gives_its_last_bytes_then_the_end_then_goes() {
    let (mut driver, id, port) = opened();
    port.send(b"x");
    driver.device.announce(&driver.memory, id);
    port.send(b" and goodbye");
    driver.device.remove(&driver.memory, id);
    let messages = driver.settle();
    assert_eq!(
        (messages, driver.received[Driver::rx(id) / 2].as_slice()),
        (std::vec![(1, OPEN, 0, Vec::new())], &b"x and goodbye"[..])
    );
    // Nobody can open it again, or send.
    driver.control(1, OPEN, 1);
    assert!(driver.send(id, b"?", 1));
    assert!(!port.has_arrived());
    // One of the same name does not wait until the driver has closed the old one.
    assert_eq!(driver.device.add(&driver.memory, self::port("p")), Ok(PortId(2)));
    let events: Vec<_> = driver.settle().iter().map(|message| (message.0, message.1)).collect();
    assert_eq!(events, [(1, REMOVE), (2, ADD), (2, NAME), (2, OPEN)]);
    driver.control(2, OPEN, 1);
    driver.device.remove(&driver.memory, PortId(2));
    driver.settle();
    driver.control(2, OPEN, 0);
    assert_eq!(driver.settle(), [(2, REMOVE, 0, Vec::new())], "when the driver has closed it");
}

#[test]
fn ports_run_out_and_one_that_has_ended_makes_place() {
    let mut driver = Driver::new();
    let memory = Memory::new(0);
    let all: Vec<_> = (1..PORTS).map(|_| driver.device.add(&memory, port("p"))).collect();
    assert!(all.iter().zip(1..).all(|(id, n)| *id == Ok(PortId(n))));
    assert_eq!(driver.device.add(&memory, port("p")), Err(NoPort));
    driver.start();
    driver.settle();
    driver.control(1, OPEN, 1);
    driver.device.remove(&driver.memory, PortId(1));
    assert!(driver.settle().contains(&(1, OPEN, 0, Vec::new())));
    assert_eq!(driver.device.add(&driver.memory, port("q")), Err(NoPort), "the driver has to be told first");
    assert_eq!(driver.device.add(&driver.memory, port("q")), Ok(PortId(1)));
}

#[test]
fn messages_wait_for_buffers_without_memory_for_them() {
    let mut driver = Driver::new();
    for n in 0..60 {
        driver.device.add(&driver.memory, port(&std::format!("port{n}"))).unwrap();
    }
    driver.start();
    let messages = driver.settle();
    assert_eq!(messages.len(), 180);
    for id in 1..=60 {
        let of: Vec<u16> = messages.iter().filter(|message| message.0 == id).map(|message| message.1).collect();
        assert_eq!(of, [ADD, NAME, OPEN], "port {id}");
    }
}

#[test]
fn a_driver_that_breaks_its_queue_has_to_reset_the_device() {
    let (mut driver, id, port) = opened();
    let tx = Driver::rx(id) + 1;
    driver.rings[tx].offer(&driver.memory, &[(Ipa(8), 1, false)]);
    driver.act(QUEUE_NOTIFY, tx as u32);
    assert_eq!(driver.device.take_broken(), Some(Broken::Memory(Ipa(8))));
    assert_eq!(driver.device.take_broken(), None, "said once");
    assert_eq!((driver.get(STATUS), driver.get(INTERRUPT_STATUS), driver.memory.line.get()), (15 | 64, 2, true));
    driver.act(INTERRUPT_ACK, 2);
    // Nothing passes any more.
    port.send(b"x");
    driver.device.announce(&driver.memory, id);
    driver.rings[3].offer(&driver.memory, &[(driver.memory.base(), 8, false)]);
    driver.act(QUEUE_NOTIFY, 3);
    assert!(driver.rings[3].used(&driver.memory).is_empty() && !driver.memory.line.get());
    driver.act(STATUS, 15);
    assert_eq!(driver.get(STATUS), 15 | 64);
    driver.start();
    assert!(!port.is_open());
    assert_eq!(driver.settle().len(), 3);
    driver.control(1, OPEN, 1);
    assert!(driver.send(id, b"again", 1));
    assert_eq!(take(&driver, id, &port, 9), b"again");
}

#[test]
fn features_that_are_not_offered_or_missing_are_not_accepted() {
    for (low, high, accepted) in [(2, 1, true), (0, 1, true), (2, 0, false), (3, 1, false), (2, 3, false)] {
        let driver = Driver::new();
        let _ = driver.set(STATUS, 3);
        for (half, features) in [(0, low), (1, high)] {
            let _ = driver.set(0x24, half);
            let _ = driver.set(0x20, features);
        }
        let _ = driver.set(STATUS, 11);
        assert_eq!(driver.get(STATUS) & 8 != 0, accepted, "{low:#x} {high:#x}");
        let _ = driver.set(STATUS, 15);
        // Without what was negotiated, nothing happens.
        assert_eq!(driver.set(QUEUE_NOTIFY, 3), Progress::Done);
    }
}

#[test]
fn registers_are_words_and_the_configuration_is_bytes() {
    let driver = Driver::new();
    assert_eq!([1, 2, 8].map(|bytes| driver.device.read(0, bytes)), [0; 3]);
    assert_eq!((driver.device.read(2, 4), driver.device.read(0xffc, 4)), (0, 0));
    let ports = u64::from(PORTS);
    assert_eq!(driver.device.read(0x104, 4), ports);
    assert_eq!((driver.device.read(0x105, 1), driver.device.read(0x104, 2)), (ports >> 8, ports));
    assert_eq!((driver.device.read(0x100, 8), driver.device.read(0x100, 4)), (ports << 32, 0));
    assert_eq!([0x10c, 0x110, 0xfff, u64::MAX].map(|at| driver.device.read(at, 4)), [0; 4]);
    assert_eq!([0xb0, 0xb4, 0xb8, 0xbc].map(|at| driver.get(at)), [u32::MAX; 4]);
    let queues = 2 * (u32::from(PORTS) + 1);
    for (queue, size) in [(0, 16), (queues - 1, 16), (queues, 0), (u32::MAX, 0)] {
        let _ = driver.set(0x30, queue);
        assert_eq!(driver.get(0x34), size, "{queue}");
        let _ = driver.set(0x44, 1);
        assert_eq!(driver.get(0x44), u32::from(size != 0));
        let _ = driver.set(QUEUE_NOTIFY, queue);
    }
    let _ = driver.set(STATUS, 0);
    assert_eq!(driver.get(0x44), 0);
}

#[test]
fn one_port_that_always_has_something_does_not_keep_the_others_from_their_turn() {
    let mut driver = Driver::new();
    let big = Capacity { to_guest: 256, from_guest: 1 << 20 };
    let busy = Arc::new(Port::new("busy", 0, big));
    let busy_id = driver.device.add(&driver.memory, busy.clone()).unwrap();
    let other = port("other");
    let other_id = driver.device.add(&driver.memory, other.clone()).unwrap();
    driver.start();
    driver.settle();
    for id in [busy_id, other_id] {
        driver.control(id.0.into(), OPEN, 1);
    }
    // Sixteen times 64 KiB, from the same memory.
    let tx = Driver::rx(busy_id) + 1;
    let at = driver.memory.base();
    for _ in 0..16 {
        driver.rings[tx].offer(&driver.memory, &[(at, 1 << 16, false)]);
    }
    let other_tx = Driver::rx(other_id) + 1;
    driver.memory.put(Ipa(at.0 + 0x8_0000 + 0x8000 * other_tx as u64), b"hello");
    driver.rings[other_tx].offer(&driver.memory, &[(Ipa(at.0 + 0x8_0000 + 0x8000 * other_tx as u64), 5, false)]);
    let _ = driver.set(QUEUE_NOTIFY, tx as u32);
    assert_eq!(driver.set(QUEUE_NOTIFY, other_tx as u32), Progress::More);
    let mut steps = 0;
    while !other.has_arrived() {
        let _ = driver.device.step(&driver.memory);
        steps += 1;
        assert!(steps <= 2, "{steps}");
    }
    assert!(driver.finish() >= 50, "a step takes 16 KiB of a MiB at most");
    assert_eq!(busy.receive(&mut std::vec![0; 2 << 20]), 1 << 20);
}

#[test]
fn a_device_that_nobody_drives_does_nothing() {
    let device = Device::new();
    let memory = Memory::new(16);
    let port = port("p");
    let id = device.add(&memory, port).unwrap();
    device.announce(&memory, id);
    assert_eq!(device.step(&memory), Progress::Done);
    device.remove(&memory, id);
    assert!(memory.write(memory.base(), &[1]) && !memory.line.get());
}
