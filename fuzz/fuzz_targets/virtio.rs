//! The console device with ports. A wild driver writes random registers, rings and descriptors: the device does not panic, each
//! access has bounded work, and nothing is touched that is not the guest's memory. With a driver that keeps the rules, what
//! arrives is what was sent, in both directions and in order, whatever comes and goes meanwhile.
//!
//! `cargo +nightly fuzz run virtio -- -max_total_time=60`
#![cfg_attr(fuzzing, no_main)]

use doorward::ids::{Ipa, PortId};
use doorward::util::progress::Progress;
use doorward::virtio::device::Device;
use doorward::virtio::fake::{Driver, Memory, USED_QUEUES};
use doorward::virtio::port::{Capacity, Port};
use std::collections::VecDeque;
use std::sync::Arc;

#[path = "../input.rs"]
mod input;
use input::Input;

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| run(bytes));

/// The most accesses to memory that one access of the driver may cause, and the most bytes: twice what a step may copy, for
/// the chain with which it exceeds its budget, and for descriptors.
const ACCESSES: u64 = 4096;
const BYTES: u64 = 32 << 10;

const CAPACITY: Capacity = Capacity { to_guest: 300, from_guest: 100 };

/// Performs a sequence of acts.
pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    if input.bool() { wild(&mut input) } else { honest(&mut input) }
}

fn bounded(memory: &Memory) {
    let (accesses, bytes) = memory.take_cost();
    assert!(accesses <= ACCESSES && bytes <= BYTES, "{accesses} accesses, {bytes} bytes");
}

/// A driver that writes whatever it likes.
fn wild(input: &mut Input<'_>) {
    let memory = Memory::new(0x3000);
    let device = Device::new();
    let mut ports: Vec<(PortId, Arc<Port>)> = Vec::new();
    let base = memory.base().0;
    // Often enough, the device is live, and a queue is in memory.
    let set = |register: u64, value: u64| {
        let _ = device.write(&memory, register, 4, value);
    };
    for (register, value) in [(0x70, 3), (0x24, 0), (0x20, 2), (0x24, 1), (0x20, 1), (0x70, 11)] {
        set(register, value);
    }
    for queue in 0..8 {
        set(0x30, queue);
        set(0x38, 1 << (input.byte() % 5));
        for part in [0x80, 0x90, 0xa0] {
            set(part, base + u64::from(input.half() & 0x2ff8));
            set(part + 4, 0);
        }
        set(0x44, u64::from(input.byte() & 7 != 0));
    }
    set(0x70, 15);
    while !input.0.is_empty() {
        match input.byte() % 12 {
            0 => {
                let (offset, size, value) = (u64::from(input.half() & 0x1ff), input.byte(), input.word());
                let _ = device.write(&memory, offset, size, value);
                let _ = device.read(offset, size);
            }
            1..4 => set(0x50, u64::from(input.byte() % 12)),
            4 => set(0x64, 3),
            5 | 6 => {
                let at = u64::from(input.half() % 0x2f00);
                let count = usize::from(input.byte());
                memory.put(Ipa(base + at), input.bytes(count));
            }
            7 => {
                // A message that the device obeys, in a chain that is right.
                let [port, event, value] = [input.byte() % 5, input.byte() % 8, input.byte() & 1].map(u16::from);
                memory.put(
                    Ipa(base + 0x2f00),
                    &[port.to_le_bytes(), [0; 2], event.to_le_bytes(), value.to_le_bytes()].concat(),
                );
                memory.put(Ipa(base + 0x2000), &(base + 0x2f00).to_le_bytes());
                memory.put(Ipa(base + 0x2008), &[8, 0, 0, 0, 0, 0, 0, 0]);
                set(0x50, 3);
            }
            8 => {
                let port = Arc::new(Port::new("p", 0, CAPACITY));
                if let Ok(id) = device.add(&memory, port.clone()) {
                    ports.push((id, port));
                }
            }
            9 if !ports.is_empty() => {
                let (id, _) = ports.swap_remove(usize::from(input.byte()) % ports.len());
                device.remove(&memory, id);
            }
            10 if !ports.is_empty() => {
                let (id, port) = &ports[usize::from(input.byte()) % ports.len()];
                port.send(input.bytes(40));
                device.announce(&memory, *id);
            }
            11 if !ports.is_empty() => {
                let (id, port) = &ports[usize::from(input.byte()) % ports.len()];
                port.receive(&mut [0; 50]);
                device.announce(&memory, *id);
            }
            _ => {
                let _ = device.step(&memory);
                let _ = device.take_arrived();
            }
        }
        bounded(&memory);
        assert_eq!(memory.line.get(), device.read(0x60, 4) != 0);
    }
}

/// One port, as its other side and the driver know it.
struct Both {
    id: PortId,
    port: Arc<Port>,
    name: String,
    /// Bytes that were sent and have not arrived.
    to_guest: VecDeque<u8>,
    from_guest: VecDeque<u8>,
}

/// A driver that keeps the rules.
fn honest(input: &mut Input<'_>) {
    let mut driver = Driver::new();
    let mut ports: Vec<Both> = Vec::new();
    // The byte that each direction sends next, so that none is taken for another.
    let mut next = 0u8;
    driver.start();
    while !input.0.is_empty() {
        let which = usize::from(input.byte());
        let count = ports.len();
        let chosen = ports.get_mut(which % count.max(1));
        match (input.byte() % 10, chosen) {
            (0, _) if count < USED_QUEUES / 2 - 2 => {
                let name = format!("port {next}");
                next = next.wrapping_add(1);
                let port = Arc::new(Port::new(&name, 0, CAPACITY));
                let id = driver.device.add(&driver.memory, port.clone()).unwrap();
                if usize::from(id.0) >= USED_QUEUES / 2 - 1 {
                    // The driver has set up no queues for it.
                    driver.device.remove(&driver.memory, id);
                } else {
                    ports.push(Both { id, port, name, to_guest: VecDeque::new(), from_guest: VecDeque::new() });
                }
            }
            (1, Some(both)) => {
                driver.device.remove(&driver.memory, both.id);
                let at = which % count;
                if ports[at].port.is_open() {
                    // It gets what it had not got, before it sees the end.
                    driver.settle();
                    check_received(&mut driver, &mut ports);
                    assert!(ports[at].to_guest.is_empty(), "{} bytes are missing", ports[at].to_guest.len());
                    driver.control(ports[at].id.0.into(), 6, 0);
                }
                driver.settle();
                ports.swap_remove(at);
            }
            (2, Some(both)) => {
                driver.settle();
                let open = !both.port.is_open();
                driver.control(both.id.0.into(), 6, open.into());
                assert_eq!(both.port.is_open(), open, "{}", both.name);
                both.to_guest.clear();
                if open {
                    both.from_guest.clear();
                }
                driver.received[Driver::rx(both.id) / 2].clear();
            }
            (3 | 4, Some(both)) => {
                let bytes: Vec<u8> = (0..input.byte()).map(|n| n.wrapping_add(next)).collect();
                next = next.wrapping_add(77);
                let sent = both.port.send(&bytes);
                driver.device.announce(&driver.memory, both.id);
                both.to_guest.extend(&bytes[..sent]);
            }
            (5 | 6, Some(both)) if both.port.is_open() => {
                let bytes: Vec<u8> = (0..=input.byte()).map(|n| n.wrapping_mul(3).wrapping_add(next)).collect();
                next = next.wrapping_add(55);
                if driver.send(both.id, &bytes, usize::from(input.byte() % 5)) {
                    both.from_guest.extend(&bytes);
                }
            }
            (7, Some(both)) => {
                let mut bytes = [0; 70];
                let count = both.port.receive(&mut bytes);
                driver.device.announce(&driver.memory, both.id);
                for byte in &bytes[..count] {
                    assert_eq!(both.from_guest.pop_front(), Some(*byte), "{}", both.name);
                }
            }
            (8, _) => _ = driver.interrupt(),
            _ => {
                driver.settle();
                check_received(&mut driver, &mut ports);
            }
        }
        check_received(&mut driver, &mut ports);
        assert_eq!(driver.device.take_broken(), None);
        bounded_all(&driver);
    }
    // In the end, everything has arrived.
    driver.settle();
    while driver.device.step(&driver.memory) == Progress::More {
        while driver.device.take_arrived().is_some() {}
    }
    for round in 0.. {
        assert!(round < 1000, "it never ends");
        driver.poll();
        driver.settle();
        check_received(&mut driver, &mut ports);
        let mut moved = false;
        for both in &mut ports {
            let mut bytes = [0; 70];
            let count = both.port.receive(&mut bytes);
            driver.device.announce(&driver.memory, both.id);
            for byte in &bytes[..count] {
                assert_eq!(both.from_guest.pop_front(), Some(*byte), "{}", both.name);
            }
            moved |= count > 0;
        }
        if !moved {
            break;
        }
    }
    for both in &ports {
        assert!(both.to_guest.is_empty(), "{} bytes for {} are missing", both.to_guest.len(), both.name);
        assert!(both.from_guest.is_empty(), "{} bytes from {} are missing", both.from_guest.len(), both.name);
    }
}

fn bounded_all(driver: &Driver) {
    let _ = driver.memory.take_cost();
}

/// What the driver has received is the next of what was sent.
fn check_received(driver: &mut Driver, ports: &mut [Both]) {
    for both in ports {
        for byte in driver.received[Driver::rx(both.id) / 2].drain(..) {
            assert_eq!(both.to_guest.pop_front(), Some(byte), "{}", both.name);
        }
    }
}
