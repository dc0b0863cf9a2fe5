//! Golden encodings of all commands, written out by hand.

use super::command::{Command, SgiConfig, Target, VmappV40, VmappV41};
use crate::gic::its::Kind;
use crate::ids::{CollectionId, DeviceId, EventId, Lpi, Pa, VIntid, VpeId};
use std::{format, vec, vec::Vec};

const DEV: DeviceId = DeviceId(0x1234_5678);
const EV: EventId = EventId(0x9abc_def0);
const VPE: VpeId = VpeId(0xbeef);

/// A command, its kind, and its words as the tables of the manual give them, written by hand.
type Golden = (Command, Kind, [u64; 4]);

#[track_caller]
fn golden(command: Command, kind: Kind, words: [u64; 4]) {
    assert_eq!(command.words().map(|w| format!("{w:#018x}")), words.map(|w| format!("{w:#018x}")));
    assert_eq!(command.kind(), Some(kind));
    assert_eq!(Command::from_words(words), command);
}

/// The commands of GICv3.
fn physical() -> Vec<Golden> {
    vec![
        (
            Command::mapd(DEV, Pa(0x000f_ffff_ffff_ff00), 5),
            Kind::Mapd,
            [0x1234_5678_0000_0008, 4, 0x800f_ffff_ffff_ff00, 0],
        ),
        (Command::mapd_unmap(DEV), Kind::Mapd, [0x1234_5678_0000_0008, 0, 0, 0]),
        (Command::mapc(CollectionId(0x0203), Target::number(0x0405)), Kind::Mapc, [0x09, 0, 0x8000_0000_0405_0203, 0]),
        (
            Command::mapti(DEV, EV, Lpi(0x2003), CollectionId(7)),
            Kind::Mapti,
            [0x1234_5678_0000_000a, 0x0000_2003_9abc_def0, 7, 0],
        ),
        (
            Command::mapi(DEV, EV, CollectionId(0x0809)),
            Kind::Mapi,
            [0x1234_5678_0000_000b, 0x0000_0000_9abc_def0, 0x0809, 0],
        ),
        (
            Command::movi(DEV, EV, CollectionId(0x8001)),
            Kind::Movi,
            [0x1234_5678_0000_0001, 0x0000_0000_9abc_def0, 0x8001, 0],
        ),
        (Command::int(DEV, EV), Kind::Int, [0x1234_5678_0000_0003, 0x9abc_def0, 0, 0]),
        (Command::clear(DEV, EV), Kind::Clear, [0x1234_5678_0000_0004, 0x9abc_def0, 0, 0]),
        (Command::inv(DEV, EV), Kind::Inv, [0x1234_5678_0000_000c, 0x9abc_def0, 0, 0]),
        (Command::discard(DEV, EV), Kind::Discard, [0x1234_5678_0000_000f, 0x9abc_def0, 0, 0]),
        (Command::invall(CollectionId(0x0102)), Kind::Invall, [0x0d, 0, 0x0102, 0]),
        (Command::sync(Target::number(3)), Kind::Sync, [0x05, 0, 0x0003_0000, 0]),
        (Command::sync(Target::address(Pa(0x00b8_0014_0000))), Kind::Sync, [0x05, 0, 0x0000_00b8_0014_0000, 0]),
        (Command::movall(Target::number(1), Target::number(2)), Kind::Movall, [0x0e, 0, 0x0001_0000, 0x0002_0000]),
    ]
}

/// The commands of GICv4.0.
fn v4_0() -> Vec<Golden> {
    let map = VmappV40 { vpe: VPE, target: Target::number(2), vpt: Pa(0x000f_edcb_a987_0000), id_bits: 14 };
    vec![
        (Command::vmapp(map), Kind::Vmapp, [0x29, 0x0000_beef_0000_0000, 0x8000_0000_0002_0000, 0x000f_edcb_a987_000d]),
        (Command::vmapp_unmap(VPE), Kind::Vmapp, [0x29, 0x0000_beef_0000_0000, 0, 0]),
        (
            Command::vmapti(DEV, EV, VPE, VIntid(0x2011), Some(Lpi(0x2222))),
            Kind::Vmapti,
            [0x1234_5678_0000_002a, 0x0000_beef_9abc_def0, 0x0000_2222_0000_2011, 0],
        ),
        (
            Command::vmapti(DEV, EventId(1), VPE, VIntid(0x2011), None),
            Kind::Vmapti,
            [0x1234_5678_0000_002a, 0x0000_beef_0000_0001, 0x0000_03ff_0000_2011, 0],
        ),
        (
            Command::vmapi(DEV, EV, VPE, Some(Lpi(0x2222))),
            Kind::Vmapi,
            [0x1234_5678_0000_002b, 0x0000_beef_9abc_def0, 0x0000_2222_0000_0000, 0],
        ),
        (
            Command::vmapi(DEV, EventId(1), VPE, None),
            Kind::Vmapi,
            [0x1234_5678_0000_002b, 0x0000_beef_0000_0001, 0x0000_03ff_0000_0000, 0],
        ),
        (
            Command::vmovi(DEV, EventId(2), VPE, Some(Lpi(0x2222))),
            Kind::Vmovi,
            [0x1234_5678_0000_0021, 0x0000_beef_0000_0002, 0x0000_2222_0000_0001, 0],
        ),
        (Command::vmovi(DEV, EventId(2), VPE, None), Kind::Vmovi, [0x1234_5678_0000_0021, 0x0000_beef_0000_0002, 0, 0]),
        (
            Command::vmovp(VPE, Target::address(Pa(0x00bc_0018_0000))),
            Kind::Vmovp,
            [0x22, 0x0000_beef_0000_0000, 0x0000_00bc_0018_0000, 0],
        ),
        (
            Command::vmovp_listed(VPE, Target::number(1), 0xfffe, 0x8003),
            Kind::Vmovp,
            [0x0000_fffe_0000_0022, 0x0000_beef_0000_8003, 0x0001_0000, 0],
        ),
        (Command::vsync(VPE), Kind::Vsync, [0x25, 0x0000_beef_0000_0000, 0, 0]),
        (Command::vinvall(VPE), Kind::Vinvall, [0x2d, 0x0000_beef_0000_0000, 0, 0]),
    ]
}

/// The commands of GICv4.1.
fn v4_1() -> Vec<Golden> {
    let base = VmappV40 { vpe: VPE, target: Target::number(2), vpt: Pa(0x4321_0000), id_bits: 16 };
    let map = VmappV41 { base, config: Pa(0x000a_bcde_f123_0000), doorbell: Lpi(0x2345), alloc: true };
    vec![
        (
            Command::vmapp_v41(map),
            Kind::Vmapp,
            [0x000a_bcde_f123_0129, 0x0000_beef_0000_2345, 0x8000_0000_0002_0000, 0x0000_0000_4321_000f],
        ),
        (
            Command::vmapp_v41(VmappV41 { alloc: false, ..map }),
            Kind::Vmapp,
            [0x000a_bcde_f123_0029, 0x0000_beef_0000_2345, 0x8000_0000_0002_0000, 0x0000_0000_4321_000f],
        ),
        (Command::vmapp_unmap_v41(VPE, true), Kind::Vmapp, [0x0129, 0x0000_beef_0000_0000, 0, 0]),
        (Command::vmapp_unmap_v41(VPE, false), Kind::Vmapp, [0x0029, 0x0000_beef_0000_0000, 0, 0]),
        (
            Command::vmovp(VPE, Target::number(9)).with_default_doorbell(Lpi(0x2345)),
            Kind::Vmovp,
            [0x22, 0x0000_beef_0000_0000, 0x8000_0000_0009_0000, 0x2345],
        ),
        (
            Command::vsgi(VPE, 0xf, SgiConfig { enabled: true, group1: true, priority: 0xa7 }),
            Kind::Vsgi,
            [0x0000_000f_00a0_0523, 0x0000_beef_0000_0000, 0, 0],
        ),
        (
            Command::vsgi(VPE, 1, SgiConfig { enabled: false, group1: false, priority: 0xf0 }),
            Kind::Vsgi,
            [0x0000_0001_00f0_0023, 0x0000_beef_0000_0000, 0, 0],
        ),
        (Command::vsgi_clear(VPE, 3), Kind::Vsgi, [0x0000_0003_0000_0223, 0x0000_beef_0000_0000, 0, 0]),
        (Command::invdb(VPE), Kind::Invdb, [0x2e, 0x0000_beef_0000_0000, 0, 0]),
    ]
}

#[test]
fn kinds_have_the_names_of_the_manual() {
    for kind in Kind::ALL {
        assert_eq!(kind.name(), format!("{kind:?}").to_uppercase());
    }
}

#[test]
fn each_command_is_encoded_as_the_manual_says() {
    for (command, kind, words) in [physical(), v4_0(), v4_1()].concat() {
        golden(command, kind, words);
    }
}

#[test]
fn every_command_of_the_manual_has_a_golden_encoding() {
    let golden = [physical(), v4_0(), v4_1()].concat();
    for kind in Kind::ALL {
        assert!(golden.iter().any(|(_, k, _)| *k == kind), "{}", kind.name());
    }
    let of_v3 = [0x01, 0x03, 0x04, 0x05, 0x08, 0x09, 0x0a, 0x0b, 0x0c, 0x0d, 0x0e, 0x0f];
    let of_v4 = [0x21, 0x22, 0x23, 0x25, 0x29, 0x2a, 0x2b, 0x2d, 0x2e];
    assert_eq!(Kind::ALL.map(|kind| kind as u8).to_vec(), [&of_v3[..], &of_v4].concat());
}

#[test]
fn a_listed_vmovp_can_be_rewritten_for_one_its() {
    let listed = Command::vmovp_listed(VPE, Target::number(1), 7, 0x8003);
    assert_eq!(listed.vmovp_list(), Some(0x8003));
    let single = listed.for_one_its(15);
    golden(single, Kind::Vmovp, [0x0000_0007_0000_0022, 0x0000_beef_0000_8000, 0x0001_0000, 0]);
    assert_eq!((single.vmovp_list(), Command::vmovp(VPE, Target::number(1)).vmovp_list()), (None, None));
    assert_eq!(Command::vmapti(DEV, EventId(3), VPE, VIntid(8192), None).vmovp_list(), None);
}

#[test]
fn the_opcode_of_a_virtual_command_is_the_physical_one_with_bit_5_set() {
    for (physical, virtual_) in
        [(Kind::Mapti, Kind::Vmapti), (Kind::Mapi, Kind::Vmapi), (Kind::Movi, Kind::Vmovi), (Kind::Sync, Kind::Vsync)]
    {
        assert_eq!(physical as u8 | 0x20, virtual_ as u8);
    }
    assert_eq!(Command::from_words([0xff, 0, 0, 0]).kind(), None);
}
