use super::super::fake::Fake;
use super::super::regs::*;
use super::*;
use crate::ids::Pa;
use std::vec::Vec;

const ECAM: Buses = Buses { base: Pa(0x4000_0000), first: 0, last: 0xff };

fn at(rid: u16) -> Pa {
    ECAM.page(rid).unwrap()
}

/// Device/Port Types.
const ENDPOINT: u32 = 0;
const ROOT: u32 = 4;
const UPSTREAM: u32 = 5;
const DOWNSTREAM: u32 = 6;
const TO_PCI: u32 = 7;

/// A function with a PCI Express capability, and with ACS if `acs` has its registers. `header` is the word with the Header
/// Type, `buses` that with the bus numbers.
fn function(fake: &Fake, rid: u16, port: u32, header: u32, buses: u32, acs: Option<u32>) {
    let fields = [
        (COMMAND, HAS_CAPABILITIES),
        (HEADER, header),
        (BUSES, buses),
        (CAPABILITIES, 0x40),
        (0x40, 0x0002_0010 | port << 20),
    ];
    fake.function(at(rid), &fields);
    if let Some(registers) = acs {
        fake.words(at(rid), &[(EXTENDED, 0x0001_000d), (0x104, registers)]);
    }
}

fn bridge(fake: &Fake, rid: u16, port: u32, secondary: u32, subordinate: u32, acs: Option<u32>) {
    function(fake, rid, port, BRIDGE, subordinate << 16 | secondary << 8, acs);
}

const ON: Option<u32> = Some(0x001d_005f);
const OFF: Option<u32> = Some(0x0000_005f);

/// The groups of a machine with one SMMU and one ITS, to which all functions are known by their requester IDs.
fn groups(fake: &Fake) -> Vec<Vec<u16>> {
    let id = |rid: u16| u32::from(rid);
    sorted(&Groups::find(&[ECAM], fake, |rid| Some((SmmuId(0), id(rid))), |rid| Some((ItsId(0), DeviceId(id(rid))))))
}

fn sorted(groups: &Groups) -> Vec<Vec<u16>> {
    let mut all: Vec<Vec<u16>> = groups.members.iter().map(|&(rid, _)| groups.of(rid).collect()).collect();
    all.iter_mut().for_each(|group| group.sort_unstable());
    all.sort();
    all.dedup();
    all
}

/// Two endpoints on the root bus; two root ports, each with an endpoint; a switch with two endpoints at the second.
fn machine(root: Option<u32>, downstream: [Option<u32>; 2]) -> Fake {
    let fake = Fake::default();
    function(&fake, 0x08, ENDPOINT, 0, 0, None);
    function(&fake, 0x10, ENDPOINT, 0, 0, None);
    bridge(&fake, 0x18, ROOT, 1, 1, root);
    function(&fake, 0x100, ENDPOINT, 0, 0, None);
    bridge(&fake, 0x20, ROOT, 2, 5, root);
    bridge(&fake, 0x200, UPSTREAM, 3, 5, None);
    bridge(&fake, 0x300, DOWNSTREAM, 4, 4, downstream[0]);
    bridge(&fake, 0x308, DOWNSTREAM, 5, 5, downstream[1]);
    function(&fake, 0x400, ENDPOINT, 0, 0, None);
    function(&fake, 0x500, ENDPOINT, 0, 0, None);
    fake
}

#[test]
fn functions_below_ports_with_acs_are_apart() {
    assert_eq!(groups(&machine(ON, [ON, ON])), [[0x08], [0x10], [0x100], [0x400], [0x500]]);
}

#[test]
fn functions_of_a_switch_are_together_if_one_port_has_no_acs_or_has_it_off() {
    for off in [None, OFF] {
        for ports in [[ON, off], [off, ON], [off, off]] {
            assert_eq!(groups(&machine(ON, ports)), [&[0x08][..], &[0x10], &[0x100], &[0x400, 0x500]]);
        }
    }
}

#[test]
fn functions_below_a_root_port_without_acs_are_together() {
    assert_eq!(groups(&machine(None, [ON, ON])), [&[0x08][..], &[0x10], &[0x100], &[0x400, 0x500]]);
}

#[test]
fn functions_of_a_device_are_together_unless_each_has_acs() {
    let device = |acs: [Option<u32>; 3]| {
        let fake = Fake::default();
        for (rid, acs) in [0x08, 0x09, 0x0b].into_iter().zip(acs) {
            function(&fake, rid, ENDPOINT, MULTI_FUNCTION, 0, acs);
        }
        groups(&fake)
    };
    assert_eq!(device([ON, ON, ON]), [[0x08], [0x09], [0x0b]]);
    // What a function cannot control it does by itself.
    assert_eq!(device([Some(0), ON, Some(0x0004_0004)]), [[0x08], [0x09], [0x0b]]);
    assert_eq!(device([ON, None, ON]), [[0x08, 0x09, 0x0b]]);
    assert_eq!(device([ON, ON, Some(0x0004_001c)]), [[0x08, 0x09, 0x0b]]);
}

#[test]
fn with_ari_all_functions_of_a_bus_are_one_device() {
    let fake = Fake::default();
    bridge(&fake, 0x18, ROOT, 1, 1, ON);
    function(&fake, 0x100, ENDPOINT, MULTI_FUNCTION, 0, None);
    function(&fake, 0x108, ENDPOINT, 0, 0, ON);
    assert_eq!(groups(&fake), [[0x100], [0x108]]);
    fake.words(at(0x100), &[(EXTENDED, 0x0001_000e)]);
    assert_eq!(groups(&fake), [[0x100, 0x108]]);
}

#[test]
fn functions_behind_a_bridge_to_conventional_pci_or_an_unknown_one_are_together() {
    let below = |port: Option<u32>| {
        let fake = Fake::default();
        bridge(&fake, 0x18, port.unwrap_or(0), 1, 2, ON);
        if port.is_none() {
            fake.words(at(0x18), &[(COMMAND, 0)]);
        }
        fake.function(at(0x100), &[]);
        fake.function(at(0x108), &[]);
        groups(&fake)
    };
    assert_eq!(below(Some(TO_PCI)), [[0x100, 0x108]]);
    assert_eq!(below(None), [[0x100, 0x108]]);
    assert_eq!(below(Some(ROOT)), [[0x100], [0x108]]);
}

#[test]
fn functions_with_one_stream_or_device_number_are_together_across_others() {
    let fake = machine(ON, [ON, ON]);
    // The SMMU cannot tell 0:1.0 from 1:0.0, nor the ITS 1:0.0 from 4:0.0. Two SMMUs have numbers of their own.
    let stream =
        |rid: u16| Some((SmmuId((rid == 0x500).into()), if rid == 0x100 { 8 } else { u32::from(rid & 0xfff) }));
    let device = |rid: u16| match rid {
        0x100 | 0x400 => Some((ItsId(0), DeviceId(7))),
        _ => None,
    };
    let groups = Groups::find(&[ECAM], &fake, stream, device);
    assert_eq!(sorted(&groups), [&[0x08, 0x100, 0x400][..], &[0x10], &[0x500]]);
    assert_eq!(groups.of(0x600).count(), 0, "a function that does not exist");
}

#[test]
fn a_bridge_that_cannot_be_understood_keeps_what_is_below_together() {
    let fake = Fake::default();
    bridge(&fake, 0x18, ROOT, 1, 1, ON);
    // Its capabilities overlap.
    fake.words(at(0x18), &[(0x40, 0x0042_4410), (0x44, 0x0001)]);
    assert!(Facts::read(0x18, at(0x18), &fake).is_err());
    function(&fake, 0x100, ENDPOINT, 0, 0, None);
    function(&fake, 0x108, ENDPOINT, 0, 0, None);
    assert_eq!(groups(&fake), [[0x100, 0x108]]);
}

#[test]
fn acs_that_is_turned_on_keeps_functions_apart() {
    let fake = machine(OFF, [OFF, OFF]);
    for rid in [0x18, 0x20, 0x300, 0x308] {
        let mut facts = Facts::read(rid, at(rid), &fake).unwrap();
        isolate(&mut facts, &fake);
        assert!(facts.acs.unwrap().isolates());
    }
    assert_eq!(groups(&fake), [[0x08], [0x10], [0x100], [0x400], [0x500]]);
}

#[test]
fn qemus_root_port_keeps_functions_apart_when_its_acs_is_on() {
    let fake = Fake::default();
    fake.qemu(at(0x18), "pcie-root-port");
    fake.words(at(0x18), &[(BUSES, 0x0001_0100)]);
    fake.function(at(0x100), &[]);
    fake.function(at(0x108), &[]);
    assert_eq!(groups(&fake), [[0x100, 0x108]]);
    isolate(&mut Facts::read(0x18, at(0x18), &fake).unwrap(), &fake);
    assert_eq!(groups(&fake), [[0x100], [0x108]]);
}
