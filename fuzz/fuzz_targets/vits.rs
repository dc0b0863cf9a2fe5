//! No sequence of a guest's ITS commands and register accesses makes EL2 panic, loop, or make an invalid request to the host
//! side, and EL2's tables always match those of the host side.
//!
//! The host side is the fake of the unit tests, which panics at an invalid request. The input is a list of steps, each a tag
//! byte and operands. Numbers are kept small, so that commands refer to the same objects; a raw form covers values that are out
//! of range.
//!
//! `cargo +nightly fuzz run vits -- -max_total_time=60 -max_len=4096`
#![cfg_attr(fuzzing, no_main)]

use doorward::ids::{DeviceId, DomId, EventKey, Ipa, ItsId, VIntid, VcpuId};
use doorward::util::progress::Progress;
use doorward::vits::{Backend, BackendError, OnError, Quota, Vits, VitsConfig};
use std::collections::BTreeMap;

#[path = "../../src/vits/fake.rs"]
mod fake;
use fake::encode;

#[path = "../input.rs"]
mod input;
use input::Input;

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| run(bytes));

fn command(input: &mut Input<'_>) -> encode::Words {
    let opcode = input.byte() % 16;
    let device = u32::from(input.byte() % 8);
    let event = u32::from(input.byte() % 32);
    let collection = u16::from(input.byte() % 8);
    let vcpu = u64::from(input.byte() % 5);
    match opcode {
        0 | 1 => encode::mapd(device, 1 + input.byte() % 8),
        2 => encode::unmapd(device),
        3 => encode::mapc(collection, vcpu),
        4 => encode::unmapc(collection),
        5..8 => encode::mapti(device, event, 8192 + u32::from(input.byte()), collection),
        8 => encode::mapi(device, event, collection),
        9 => encode::movi(device, event, collection),
        10 => encode::movall(vcpu, u64::from(input.byte() % 5)),
        11 => encode::inv(device, event),
        12 => encode::invall(collection),
        13 => encode::int(device, event),
        14 => encode::clear(device, event),
        _ => encode::discard(device, event),
    }
}

fn consistent(guest: &fake::Guest) {
    let mut recorded = BTreeMap::new();
    guest.vits.for_each_event(&mut |device, event, vintid, _, at| {
        if let Some(vcpu) = at {
            recorded.insert((device.0, event.0), (vintid.0, vcpu.0));
        }
    });
    assert_eq!(recorded, *guest.host.events.borrow());
    let usage = guest.vits.usage();
    assert!(usage.devices <= 4 && usage.events <= 20);
    assert!(guest.host.devices.borrow().values().map(|&bits| 1u32 << bits).sum::<u32>() <= 48);
}

/// Performs a list of steps.
pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let quota = Quota { devices: 4, events: 20, itt_entries: 48, min_event_bits: 1, device_event_bits: 4 };
    let on_error = if input.byte() & 1 == 0 { OnError::Skip } else { OnError::Stall };
    let config = VitsConfig { quota, on_error, ..fake::config() };
    let mut guest = fake::Guest::new(config, fake::Host { movall_calls: 3, ..fake::Host::new() });
    while !input.0.is_empty() {
        match input.byte() % 16 {
            0..8 => {
                let words = command(&mut input);
                guest.enqueue(&[words]);
            }
            8 => {
                let words = std::array::from_fn(|_| input.word());
                guest.enqueue(&[words]);
            }
            9 | 10 => _ = guest.ring(),
            11 => {
                let offset = [fake::CTLR, fake::CBASER, fake::CWRITER, 0x100][usize::from(input.byte() % 4)];
                let (size, value) = (4 + 4 * (input.byte() & 1), input.word());
                let _ = guest.vits.write(&guest.host, offset, size, value);
            }
            12 => {
                let (offset, size, value) = (input.word(), input.byte(), input.word());
                let _ = guest.vits.read(offset, size);
                let _ = guest.vits.write(&guest.host, offset & 0x1_ffff, size, value);
            }
            13 => _ = guest.vits.run(&guest.host, usize::from(input.byte() % 4)),
            14 => guest.host.failures.set(u32::from(input.byte() % 4)),
            _ => match input.byte() {
                0 => _ = guest.vits.reset(),
                1 => guest.enable(false),
                2 => guest.bring_up(),
                n => _ = guest.vits.lpis_enabled(VcpuId(u16::from(n % 4))),
            },
        }
        consistent(&guest);
    }
    guest.finish(1);
    consistent(&guest);
    let _ = guest.vits.reset();
    guest.finish(1);
    assert!(guest.host.devices.borrow().is_empty());
}
