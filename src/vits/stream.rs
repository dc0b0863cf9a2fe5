//! Long random command streams, compared with a model that is independent of the interpreter.
//!
//! The model keeps plain maps, executes each command at once and computes anew to which vCPU the host must have each
//! event mapped. It shares only the rules in `mod.rs` with the interpreter. The streams are the same in every run, and
//! a failure names its seed.

use super::fake::encode::{self, Words};
use super::fake::{CREADR, CTLR, CWRITER, Guest, Host, QUEUE, config};
use super::*;
use std::collections::{BTreeMap, BTreeSet};
use std::vec::Vec;

/// The random numbers of xorshift64*.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % limit
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Mapd(u32, u8),
    Unmapd(u32),
    Mapc(u16, u64),
    Unmapc(u16),
    Mapti(u32, u32, u32, u16),
    Mapi(u32, u32, u16),
    Movi(u32, u32, u16),
    Movall(u64, u64),
    Inv(u32, u32),
    Invall(u16),
    Int(u32, u32),
    Clear(u32, u32),
    Discard(u32, u32),
    Sync,
    Unknown(u64),
}

impl Op {
    /// A random command. Its numbers are small, so that commands refer to the same objects; sometimes one is out of
    /// range.
    fn random(r: &mut Random) -> Op {
        let device = if r.one_in(20) { [0x66, 0x1_0000, u32::MAX][r.below(3) as usize] } else { r.below(6) as u32 };
        let event = if r.one_in(20) { [64, 1 << 16, u32::MAX][r.below(3) as usize] } else { r.below(20) as u32 };
        let vintid =
            if r.one_in(15) { [0, 8191, 1 << 14, u32::MAX][r.below(4) as usize] } else { 8192 + r.below(24) as u32 };
        let collection = if r.one_in(20) { [16, 0xffff][r.below(2) as usize] } else { r.below(6) as u16 };
        let vcpu = r.below(5);
        match r.below(40) {
            0..3 => Op::Mapd(device, if r.one_in(8) { 17 } else { 1 + r.below(6) as u8 }),
            3 => Op::Unmapd(device),
            4..8 => Op::Mapc(collection, vcpu),
            8..10 => Op::Unmapc(collection),
            10..21 => Op::Mapti(device, event, vintid, collection),
            21 => Op::Mapi(device, event, collection),
            22..26 => Op::Movi(device, event, collection),
            26..28 => Op::Movall(vcpu, r.below(5)),
            28..30 => Op::Inv(device, event),
            30..32 => Op::Invall(collection),
            32..34 => Op::Int(device, event),
            34..36 => Op::Clear(device, event),
            36..38 => Op::Discard(device, event),
            38 => Op::Sync,
            _ => Op::Unknown([0x00, 0x02, 0x21, 0x29, 0x2a, 0xff][r.below(6) as usize]),
        }
    }

    fn words(self) -> Words {
        match self {
            Op::Mapd(d, bits) => encode::mapd(d, bits),
            Op::Unmapd(d) => encode::unmapd(d),
            Op::Mapc(c, vcpu) => encode::mapc(c, vcpu),
            Op::Unmapc(c) => encode::unmapc(c),
            Op::Mapti(d, e, v, c) => encode::mapti(d, e, v, c),
            Op::Mapi(d, e, c) => encode::mapi(d, e, c),
            Op::Movi(d, e, c) => encode::movi(d, e, c),
            Op::Movall(from, to) => encode::movall(from, to),
            Op::Inv(d, e) => encode::inv(d, e),
            Op::Invall(c) => encode::invall(c),
            Op::Int(d, e) => encode::int(d, e),
            Op::Clear(d, e) => encode::clear(d, e),
            Op::Discard(d, e) => encode::discard(d, e),
            Op::Sync => encode::sync(0),
            Op::Unknown(opcode) => [opcode, 0, 0, 0],
        }
    }
}

/// A quota of four devices with at most 16 events each and 20 events in all. The ITT quota is never the limit.
fn small() -> VitsConfig {
    let quota = Quota { devices: 4, events: 20, itt_entries: 64, min_event_bits: 1, device_event_bits: 4 };
    VitsConfig { quota, ..config() }
}

#[derive(Default)]
struct Model {
    enabled: bool,
    /// DeviceID to the EventID bits of its MAPD.
    devices: BTreeMap<u32, u8>,
    /// (device, event) to (vINTID, collection).
    events: BTreeMap<(u32, u32), (u32, u16)>,
    collections: BTreeMap<u16, u16>,
    pending: BTreeSet<(u16, u32)>,
    config: BTreeMap<u32, u8>,
    applied: BTreeMap<u32, u8>,
}

impl Model {
    /// The events that the host must have, with vINTID and vCPU.
    fn host(&self) -> BTreeMap<(u32, u32), (u32, u16)> {
        let at = |(&name, &(vintid, collection)): (&(u32, u32), &(u32, u16))| {
            self.collections.get(&collection).map(|&vcpu| (name, (vintid, vcpu)))
        };
        if self.enabled { self.events.iter().filter_map(at).collect() } else { BTreeMap::new() }
    }

    /// Changes the mappings, and updates pending bits and applied bytes by the difference.
    fn change(&mut self, change: impl FnOnce(&mut Model)) {
        let before = self.host();
        change(self);
        for (name, (vintid, vcpu)) in self.host() {
            match before.get(&name) {
                Some(&(_, from)) if from != vcpu => {
                    if self.pending.remove(&(from, vintid)) {
                        self.pending.insert((vcpu, vintid));
                    }
                }
                Some(_) => {}
                None => self.apply(vintid),
            }
        }
    }

    fn apply(&mut self, vintid: u32) {
        self.applied.insert(vintid, self.config.get(&vintid).copied().unwrap_or(0));
    }

    /// Removes an event and its pending state.
    fn drop_event(&mut self, name: (u32, u32)) {
        if let Some((vintid, vcpu)) = self.host().get(&name).copied() {
            self.pending.remove(&(vcpu, vintid));
        }
        self.events.remove(&name);
    }

    /// Whether the event is in a device's ITT.
    fn in_range(&self, device: u32, event: u32) -> bool {
        self.devices.get(&device).is_some_and(|&bits| u64::from(event) < 1 << bits)
    }

    fn execute(&mut self, op: Op) {
        let vcpu = |n: u64| (n < 4).then_some(n as u16);
        match op {
            Op::Mapd(device, bits) => {
                if device > 0xffff || device == 0x66 || bits > 16 {
                    return;
                }
                self.execute(Op::Unmapd(device));
                if self.devices.len() < 4 {
                    self.devices.insert(device, bits);
                }
            }
            Op::Unmapd(device) => {
                let events: Vec<_> = self.events.keys().filter(|n| n.0 == device).copied().collect();
                events.into_iter().for_each(|name| self.drop_event(name));
                self.devices.remove(&device);
            }
            Op::Mapc(collection, target) => {
                if let (true, Some(target)) = (collection < 16, vcpu(target)) {
                    self.change(|o| _ = o.collections.insert(collection, target));
                }
            }
            Op::Unmapc(collection) => self.change(|o| _ = o.collections.remove(&collection)),
            Op::Mapti(device, event, vintid, collection) => {
                let valid = self.in_range(device, event) && collection < 16 && (8192..1 << 14).contains(&vintid);
                if !valid || event >= 16 {
                    return;
                }
                let full = self.events.len() >= 20 && !self.events.contains_key(&(device, event));
                if !full {
                    self.drop_event((device, event));
                    self.change(|o| _ = o.events.insert((device, event), (vintid, collection)));
                }
            }
            Op::Mapi(device, event, collection) => self.execute(Op::Mapti(device, event, event, collection)),
            Op::Movi(device, event, collection) => {
                let Some(&(vintid, old)) = self.events.get(&(device, event)) else { return };
                if self.collections.contains_key(&old) && self.collections.contains_key(&collection) {
                    self.change(|o| _ = o.events.insert((device, event), (vintid, collection)));
                }
            }
            Op::Movall(from, to) => {
                if let (Some(from), Some(to)) = (vcpu(from), vcpu(to)) {
                    let moved = |(at, vintid)| (if at == from { to } else { at }, vintid);
                    self.pending = self.pending.iter().copied().map(moved).collect();
                }
            }
            Op::Inv(device, event) => {
                if let Some((vintid, _)) = self.host().get(&(device, event)).copied() {
                    self.apply(vintid);
                }
            }
            Op::Invall(collection) => {
                let Some(&vcpu) = self.collections.get(&collection) else { return };
                let at = self.host().into_values().filter(|v| v.1 == vcpu);
                at.for_each(|(vintid, _)| self.apply(vintid));
            }
            Op::Int(device, event) => {
                if let Some((vintid, vcpu)) = self.host().get(&(device, event)).copied() {
                    self.pending.insert((vcpu, vintid));
                }
            }
            Op::Clear(device, event) => {
                if let Some((vintid, vcpu)) = self.host().get(&(device, event)).copied() {
                    self.pending.remove(&(vcpu, vintid));
                }
            }
            Op::Discard(device, event) => self.drop_event((device, event)),
            Op::Sync | Op::Unknown(_) => {}
        }
    }
}

/// Checks that the host has exactly the events that the virtual ITS records as mapped there.
fn consistent(guest: &Guest) {
    let mut recorded = BTreeMap::new();
    guest.vits.for_each_event(&mut |device, event, vintid, _, at| {
        if let Some(vcpu) = at {
            recorded.insert((device.0, event.0), (vintid.0, vcpu.0));
        }
    });
    assert_eq!(recorded, *guest.host.events.borrow());
}

/// Executes batches of commands with random budgets, disables, enables and new configuration bytes, and compares the
/// host with the model after each.
fn compare(seed: u64) {
    let mut r = Random(seed);
    let mut guest = Guest::new(small(), Host::new());
    let mut model = Model { enabled: true, ..Model::default() };
    for _ in 0..400 {
        if r.one_in(10) {
            let on = r.one_in(2);
            guest.enable(on);
            model.change(|o| o.enabled = on);
        }
        for _ in 0..r.below(4) {
            let (vintid, byte) = (8192 + r.below(24) as u32, r.below(256) as u8);
            guest.host.config.borrow_mut().insert(vintid, byte);
            model.config.insert(vintid, byte);
        }
        if r.one_in(10) {
            let vcpu = r.below(4) as u16;
            let _ = guest.vits.lpis_enabled(VcpuId(vcpu));
            guest.finish(1);
            let at = model.host().into_values().filter(|v| v.1 == vcpu);
            at.for_each(|(vintid, _)| model.apply(vintid));
        }
        if !model.enabled {
            continue;
        }
        let ops: Vec<_> = (0..1 + r.below(8)).map(|_| Op::random(&mut r)).collect();
        let words: Vec<_> = ops.iter().map(|op| op.words()).collect();
        guest.enqueue(&words);
        if guest.ring() == Progress::More {
            guest.finish(r.below(5) as usize);
        }
        ops.iter().for_each(|&op| model.execute(op));
        assert_eq!(guest.read(CREADR), guest.writer(), "{ops:?}");
        assert_eq!(*guest.host.events.borrow(), model.host(), "{ops:?}");
        assert_eq!(*guest.host.pending.borrow(), model.pending, "{ops:?}");
        assert_eq!(*guest.host.applied.borrow(), model.applied, "{ops:?}");
        let devices: Vec<_> = guest.host.devices.borrow().iter().map(|(&d, &bits)| (d, bits)).collect();
        assert_eq!(devices, model.devices.iter().map(|(&d, &bits)| (d, bits.min(4))).collect::<Vec<_>>(), "{ops:?}");
        assert_eq!(guest.vits.usage().events as usize, model.events.len(), "{ops:?}");
        consistent(&guest);
    }
}

#[test]
fn the_host_has_what_the_rules_say_after_random_commands() {
    for seed in 1..=60u64 {
        let result = std::panic::catch_unwind(|| compare(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        assert!(result.is_ok(), "seed {seed}");
    }
}

/// Registers are written at any time, work is done in small steps, and the host fails. The host panics if a call is
/// invalid; once it works again, a disable and an enable re-establish the rule.
#[test]
fn register_writes_in_the_middle_of_work_cause_no_invalid_call() {
    for seed in 1..=60u64 {
        let mut r = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut guest = Guest::new(small(), Host { movall_calls: 3, ..Host::new() });
        for _ in 0..600 {
            let words: Vec<_> = (0..r.below(8)).map(|_| Op::random(&mut r).words()).collect();
            guest.enqueue(&words);
            let _ = guest.ring();
            for _ in 0..r.below(6) {
                let (offset, size, value) = match r.below(12) {
                    0 => (CTLR, 4, 0),
                    1..4 => (CTLR, 4, 1),
                    4 => (0x80, 8, 1 << 63 | QUEUE | r.below(2)),
                    5 => (CWRITER, 8, guest.writer() | 1),
                    6 => (CWRITER, 4, r.below(0x3000)),
                    7 => (0x100 + 8 * r.below(8), 8, r.below(u64::MAX)),
                    8 => (r.below(0x2_0000), 1 << r.below(4), r.below(u64::MAX)),
                    _ => (CWRITER, 8, guest.writer()),
                };
                let _ = guest.vits.write(&guest.host, offset, size as u8, value);
                let _ = guest.vits.run(&guest.host, r.below(3) as usize);
            }
            if r.one_in(8) {
                guest.host.failures.set(r.below(6) as u32);
            }
            if r.one_in(30) {
                let _ = guest.vits.lpis_enabled(VcpuId(r.below(4) as u16));
            }
            if r.one_in(60) {
                let _ = guest.vits.reset();
            }
            if r.one_in(4) {
                guest.finish(1);
                consistent(&guest);
            }
        }
        guest.finish(1);
        guest.host.failures.set(0);
        guest.enable(false);
        assert!(guest.host.events.borrow().is_empty(), "seed {seed}");
        guest.bring_up();
        let (mut commands, mut mapped) = (Vec::from([encode::sync(0)]), 0);
        (0..16).for_each(|collection| commands.push(encode::mapc(collection, 0)));
        guest.commands(&commands);
        guest.vits.for_each_event(&mut |device, _, _, _, at| {
            // A device that the host failed to map is not mapped there until its next MAPD.
            let device_at_host = guest.host.devices.borrow().contains_key(&device.0);
            assert_eq!(at, device_at_host.then_some(VcpuId(0)), "seed {seed}");
            mapped += 1;
        });
        assert_eq!(guest.vits.usage().events, mapped, "seed {seed}");
        consistent(&guest);
        let _ = guest.vits.reset();
        guest.finish(1);
        assert!(guest.host.devices.borrow().is_empty(), "seed {seed}");
    }
}
