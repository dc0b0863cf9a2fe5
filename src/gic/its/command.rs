//! ITS commands, one named constructor each (IHI 0069, 5.3).
//!
//! A command is four 64-bit little-endian words. The virtual form of a command has the physical form's number
//! with bit 5 set. Golden encodings stand at the end, written out by hand.
#![allow(dead_code, reason = "the set is kept whole")]

use crate::ids::{CollectionId, DeviceId, EventId, Lpi, Pa, VIntid, VpeId};

/// The INTID that stands for "no doorbell" (IHI 0069, 5.3.10).
const NO_DOORBELL: u64 = 1023;

/// What a command does, for counters and reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs, reason = "the names are the manual's")]
pub enum Kind {
    Movi = 0x01,
    Int = 0x03,
    Clear = 0x04,
    Sync = 0x05,
    Mapd = 0x08,
    Mapc = 0x09,
    Mapti = 0x0a,
    Mapi = 0x0b,
    Inv = 0x0c,
    Invall = 0x0d,
    Movall = 0x0e,
    Discard = 0x0f,
    Vmovi = 0x21,
    Vmovp = 0x22,
    Vsgi = 0x23,
    Vsync = 0x25,
    Vmapp = 0x29,
    Vmapti = 0x2a,
    Vmapi = 0x2b,
    Vinvall = 0x2d,
    Invdb = 0x2e,
}

impl Kind {
    /// Every command of GICv3, GICv4.0 and GICv4.1.
    pub const ALL: [Kind; 21] = [
        Kind::Movi,
        Kind::Int,
        Kind::Clear,
        Kind::Sync,
        Kind::Mapd,
        Kind::Mapc,
        Kind::Mapti,
        Kind::Mapi,
        Kind::Inv,
        Kind::Invall,
        Kind::Movall,
        Kind::Discard,
        Kind::Vmovi,
        Kind::Vmovp,
        Kind::Vsgi,
        Kind::Vsync,
        Kind::Vmapp,
        Kind::Vmapti,
        Kind::Vmapi,
        Kind::Vinvall,
        Kind::Invdb,
    ];

    /// The manual's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Movi => "MOVI",
            Kind::Int => "INT",
            Kind::Clear => "CLEAR",
            Kind::Sync => "SYNC",
            Kind::Mapd => "MAPD",
            Kind::Mapc => "MAPC",
            Kind::Mapti => "MAPTI",
            Kind::Mapi => "MAPI",
            Kind::Inv => "INV",
            Kind::Invall => "INVALL",
            Kind::Movall => "MOVALL",
            Kind::Discard => "DISCARD",
            Kind::Vmovi => "VMOVI",
            Kind::Vmovp => "VMOVP",
            Kind::Vsgi => "VSGI",
            Kind::Vsync => "VSYNC",
            Kind::Vmapp => "VMAPP",
            Kind::Vmapti => "VMAPTI",
            Kind::Vmapi => "VMAPI",
            Kind::Vinvall => "VINVALL",
            Kind::Invdb => "INVDB",
        }
    }

    const fn from_opcode(opcode: u8) -> Option<Kind> {
        let mut i = 0;
        while i < Kind::ALL.len() {
            if Kind::ALL[i] as u8 == opcode {
                return Some(Kind::ALL[i]);
            }
            i += 1;
        }
        None
    }
}

/// A redistributor as this ITS's commands name it: its address, or its processor number, by GITS_TYPER.PTA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target(u64);

impl Target {
    /// GITS_TYPER.PTA = 1: the address of RD_base.
    #[must_use]
    pub const fn address(rd_base: Pa) -> Target {
        Target(rd_base.0 & RDBASE_MASK)
    }

    /// GITS_TYPER.PTA = 0: GICR_TYPER.Processor_Number.
    #[must_use]
    pub const fn number(processor: u16) -> Target {
        Target((processor as u64) << 16)
    }
}

const RDBASE_MASK: u64 = 0x000f_ffff_ffff_0000;
const PA_64K_MASK: u64 = 0x000f_ffff_ffff_0000;
const ITT_MASK: u64 = 0x000f_ffff_ffff_ff00;
const VALID: u64 = 1 << 63;

/// VMAPP (V=1) as GICv4.0 has it.
#[derive(Clone, Copy, Debug)]
pub struct VmappV40 {
    /// Whom.
    pub vpe: VpeId,
    /// On which redistributor.
    pub target: Target,
    /// Its pending table, 64 KiB-aligned.
    pub vpt: Pa,
    /// vINTID bits that the table has room for.
    pub id_bits: u8,
}

/// VMAPP as GICv4.1 has it.
#[derive(Clone, Copy, Debug)]
pub struct VmappV41 {
    /// The fields that 4.0 has too.
    pub base: VmappV40,
    /// The VM's configuration table, 64 KiB-aligned.
    pub config: Pa,
    /// The default doorbell.
    pub doorbell: Lpi,
    /// First map of this vPE over all ITSs.
    pub alloc: bool,
    /// The pending table is all zero.
    pub pending_zero: bool,
}

/// What VSGI configures (GICv4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SgiConfig {
    /// Delivered at all.
    pub enabled: bool,
    /// Group 1, not group 0.
    pub group1: bool,
    /// Of which the upper four bits exist.
    pub priority: u8,
}

/// One command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command([u64; 4]);

const fn opcode(kind: Kind) -> u64 {
    kind as u64
}

const fn device_of(dev: DeviceId) -> u64 {
    (dev.0 as u64) << 32
}

const fn vpe_of(vpe: VpeId) -> u64 {
    (vpe.0 as u64) << 32
}

const fn doorbell_of(doorbell: Option<Lpi>) -> u64 {
    let intid = match doorbell {
        Some(lpi) => lpi.0 as u64,
        None => NO_DOORBELL,
    };
    intid << 32
}

impl Command {
    /// How many bytes one takes in the ring.
    pub const SIZE: u64 = 32;

    /// The words, to be stored little-endian in this order.
    #[must_use]
    pub const fn words(self) -> [u64; 4] {
        self.0
    }

    /// From the words found in a ring.
    #[must_use]
    pub const fn from_words(words: [u64; 4]) -> Command {
        Command(words)
    }

    /// What it does; `None` if it was never one of ours.
    #[must_use]
    pub const fn kind(self) -> Option<Kind> {
        Kind::from_opcode(self.0[0] as u8)
    }

    /// Maps a device to its interrupt translation table of 2^`event_bits` entries.
    #[must_use]
    pub const fn mapd(dev: DeviceId, itt: Pa, event_bits: u8) -> Command {
        Command([opcode(Kind::Mapd) | device_of(dev), event_bits as u64 - 1, VALID | (itt.0 & ITT_MASK), 0])
    }

    /// Unmaps a device.
    #[must_use]
    pub const fn mapd_unmap(dev: DeviceId) -> Command {
        Command([opcode(Kind::Mapd) | device_of(dev), 0, 0, 0])
    }

    /// Maps a collection to a redistributor.
    #[must_use]
    pub const fn mapc(collection: CollectionId, target: Target) -> Command {
        Command([opcode(Kind::Mapc), 0, VALID | target.0 | collection.0 as u64, 0])
    }

    /// Maps an event to a physical LPI of a collection.
    #[must_use]
    pub const fn mapti(dev: DeviceId, ev: EventId, lpi: Lpi, collection: CollectionId) -> Command {
        Command([opcode(Kind::Mapti) | device_of(dev), ev.0 as u64 | (lpi.0 as u64) << 32, collection.0 as u64, 0])
    }

    /// Maps an event to the physical LPI of its own number.
    #[must_use]
    pub const fn mapi(dev: DeviceId, ev: EventId, collection: CollectionId) -> Command {
        Command([opcode(Kind::Mapi) | device_of(dev), ev.0 as u64, collection.0 as u64, 0])
    }

    /// Moves an event to another collection, its pending state too.
    #[must_use]
    pub const fn movi(dev: DeviceId, ev: EventId, collection: CollectionId) -> Command {
        Command([opcode(Kind::Movi) | device_of(dev), ev.0 as u64, collection.0 as u64, 0])
    }

    const fn on_event(kind: Kind, dev: DeviceId, ev: EventId) -> Command {
        Command([opcode(kind) | device_of(dev), ev.0 as u64, 0, 0])
    }

    /// Makes an event pending.
    #[must_use]
    pub const fn int(dev: DeviceId, ev: EventId) -> Command {
        Self::on_event(Kind::Int, dev, ev)
    }

    /// Takes an event's pending state away.
    #[must_use]
    pub const fn clear(dev: DeviceId, ev: EventId) -> Command {
        Self::on_event(Kind::Clear, dev, ev)
    }

    /// Has an event's configuration byte read anew.
    #[must_use]
    pub const fn inv(dev: DeviceId, ev: EventId) -> Command {
        Self::on_event(Kind::Inv, dev, ev)
    }

    /// Unmaps an event, physical or virtual, its pending state too.
    #[must_use]
    pub const fn discard(dev: DeviceId, ev: EventId) -> Command {
        Self::on_event(Kind::Discard, dev, ev)
    }

    /// Has the configuration of all LPIs of a collection read anew.
    #[must_use]
    pub const fn invall(collection: CollectionId) -> Command {
        Command([opcode(Kind::Invall), 0, collection.0 as u64, 0])
    }

    /// Waits for the effects of earlier physical commands on a redistributor.
    #[must_use]
    pub const fn sync(target: Target) -> Command {
        Command([opcode(Kind::Sync), 0, target.0, 0])
    }

    /// Moves all pending LPIs from one redistributor to another.
    #[must_use]
    pub const fn movall(from: Target, to: Target) -> Command {
        Command([opcode(Kind::Movall), 0, from.0, to.0])
    }

    /// Maps a vPE (GICv4.0).
    #[must_use]
    pub const fn vmapp(map: VmappV40) -> Command {
        Command([
            opcode(Kind::Vmapp),
            vpe_of(map.vpe),
            VALID | map.target.0,
            (map.vpt.0 & PA_64K_MASK) | (map.id_bits as u64 - 1),
        ])
    }

    /// Maps a vPE (GICv4.1).
    #[must_use]
    pub const fn vmapp_v41(map: VmappV41) -> Command {
        let [dw0, dw1, dw2, dw3] = Self::vmapp(map.base).0;
        let flags = (map.alloc as u64) << 8 | (map.pending_zero as u64) << 9;
        Command([dw0 | flags | (map.config.0 & PA_64K_MASK), dw1 | map.doorbell.0 as u64, dw2, dw3])
    }

    /// Unmaps a vPE (GICv4.0).
    #[must_use]
    pub const fn vmapp_unmap(vpe: VpeId) -> Command {
        Command([opcode(Kind::Vmapp), vpe_of(vpe), 0, 0])
    }

    /// Unmaps a vPE (GICv4.1); `last` over all ITSs. Complete when consumed: no VSYNC may follow.
    #[must_use]
    pub const fn vmapp_unmap_v41(vpe: VpeId, last: bool) -> Command {
        Command([opcode(Kind::Vmapp) | (last as u64) << 8, vpe_of(vpe), 0, 0])
    }

    /// Maps an event to a vLPI of a vPE. The doorbell is `None` on GICv4.1.
    #[must_use]
    pub const fn vmapti(dev: DeviceId, ev: EventId, vpe: VpeId, vintid: VIntid, doorbell: Option<Lpi>) -> Command {
        Command([
            opcode(Kind::Vmapti) | device_of(dev),
            ev.0 as u64 | vpe_of(vpe),
            vintid.0 as u64 | doorbell_of(doorbell),
            0,
        ])
    }

    /// Maps an event to the vLPI of its own number of a vPE. The doorbell is `None` on GICv4.1.
    #[must_use]
    pub const fn vmapi(dev: DeviceId, ev: EventId, vpe: VpeId, doorbell: Option<Lpi>) -> Command {
        Command([opcode(Kind::Vmapi) | device_of(dev), ev.0 as u64 | vpe_of(vpe), doorbell_of(doorbell), 0])
    }

    /// Moves a virtual event to another vPE of its VM, its pending state too. `Some` sets a new doorbell (GICv4.0).
    #[must_use]
    pub const fn vmovi(dev: DeviceId, ev: EventId, vpe: VpeId, doorbell: Option<Lpi>) -> Command {
        let dw2 = match doorbell {
            Some(lpi) => (lpi.0 as u64) << 32 | 1,
            None => 0,
        };
        Command([opcode(Kind::Vmovi) | device_of(dev), ev.0 as u64 | vpe_of(vpe), dw2, 0])
    }

    /// Moves a vPE to another redistributor, where one ITS tells the others (GITS_TYPER.VMOVP = 1).
    #[must_use]
    pub const fn vmovp(vpe: VpeId, target: Target) -> Command {
        Command([opcode(Kind::Vmovp), vpe_of(vpe), target.0, 0])
    }

    /// Moves a vPE in ITSList mode: the same command goes to each ITS in `its_list`.
    #[must_use]
    pub const fn vmovp_listed(vpe: VpeId, target: Target, sequence: u16, its_list: u16) -> Command {
        let [dw0, dw1, dw2, dw3] = Self::vmovp(vpe, target).0;
        Command([dw0 | (sequence as u64) << 32, dw1 | its_list as u64, dw2, dw3])
    }

    /// The ITSs that have to come to this VMOVP together, if it is one for several.
    #[must_use]
    pub const fn meets(self) -> Option<u16> {
        let list = self.0[1] as u16;
        match self.kind() {
            Some(Kind::Vmovp) if list.count_ones() > 1 => Some(list),
            _ => None,
        }
    }

    /// This VMOVP for one ITS alone.
    #[must_use]
    pub const fn met_by_one(self, its_number: u8) -> Command {
        let [dw0, dw1, dw2, dw3] = self.0;
        Command([dw0, dw1 & !0xffff | 1 << its_number, dw2, dw3])
    }

    /// This VMOVP with the default doorbell of GICv4.1.
    #[must_use]
    pub const fn with_default_doorbell(self, doorbell: Lpi) -> Command {
        let [dw0, dw1, dw2, dw3] = self.0;
        Command([dw0, dw1, dw2 | 1 << 63, dw3 | doorbell.0 as u64])
    }

    /// Waits for the effects of earlier commands on a vPE.
    #[must_use]
    pub const fn vsync(vpe: VpeId) -> Command {
        Command([opcode(Kind::Vsync), vpe_of(vpe), 0, 0])
    }

    /// Has the configuration of all vLPIs of a vPE read anew.
    #[must_use]
    pub const fn vinvall(vpe: VpeId) -> Command {
        Command([opcode(Kind::Vinvall), vpe_of(vpe), 0, 0])
    }

    /// Has the configuration of a vPE's default doorbell read anew, everywhere (GICv4.1).
    #[must_use]
    pub const fn invdb(vpe: VpeId) -> Command {
        Command([opcode(Kind::Invdb), vpe_of(vpe), 0, 0])
    }

    /// Configures a virtual SGI (GICv4.1).
    #[must_use]
    pub const fn vsgi(vpe: VpeId, sgi: u8, config: SgiConfig) -> Command {
        let flags = (config.enabled as u64) << 8 | (config.group1 as u64) << 10;
        let priority = (config.priority as u64 >> 4) << 20;
        Command([opcode(Kind::Vsgi) | flags | priority | (sgi as u64 & 0xf) << 32, vpe_of(vpe), 0, 0])
    }

    /// Takes a virtual SGI's pending state away (GICv4.1).
    #[must_use]
    pub const fn vsgi_clear(vpe: VpeId, sgi: u8) -> Command {
        Command([opcode(Kind::Vsgi) | 1 << 9 | (sgi as u64 & 0xf) << 32, vpe_of(vpe), 0, 0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEV: DeviceId = DeviceId(0x1234_5678);
    const EV: EventId = EventId(0x9abc_def0);
    const VPE: VpeId = VpeId(0xbeef);

    /// A command, what it is, and its words as the manual's tables have them, written by hand.
    type Golden = (Command, Kind, [u64; 4]);

    #[track_caller]
    fn golden(command: Command, kind: Kind, words: [u64; 4]) {
        assert_eq!(command.words().map(|w| format!("{w:#018x}")), words.map(|w| format!("{w:#018x}")));
        assert_eq!(command.kind(), Some(kind));
        assert_eq!(Command::from_words(words), command);
    }

    /// Of GICv3.
    fn physical() -> Vec<Golden> {
        vec![
            (
                Command::mapd(DEV, Pa(0x000f_ffff_ffff_ff00), 5),
                Kind::Mapd,
                [0x1234_5678_0000_0008, 4, 0x800f_ffff_ffff_ff00, 0],
            ),
            (Command::mapd_unmap(DEV), Kind::Mapd, [0x1234_5678_0000_0008, 0, 0, 0]),
            (
                Command::mapc(CollectionId(0x0203), Target::number(0x0405)),
                Kind::Mapc,
                [0x09, 0, 0x8000_0000_0405_0203, 0],
            ),
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

    /// Of GICv4.0.
    fn v4_0() -> Vec<Golden> {
        let map = VmappV40 { vpe: VPE, target: Target::number(2), vpt: Pa(0x000f_edcb_a987_0000), id_bits: 14 };
        vec![
            (
                Command::vmapp(map),
                Kind::Vmapp,
                [0x29, 0x0000_beef_0000_0000, 0x8000_0000_0002_0000, 0x000f_edcb_a987_000d],
            ),
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
            (
                Command::vmovi(DEV, EventId(2), VPE, None),
                Kind::Vmovi,
                [0x1234_5678_0000_0021, 0x0000_beef_0000_0002, 0, 0],
            ),
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

    /// Of GICv4.1.
    fn v4_1() -> Vec<Golden> {
        let base = VmappV40 { vpe: VPE, target: Target::number(2), vpt: Pa(0x4321_0000), id_bits: 16 };
        let map = VmappV41 {
            base,
            config: Pa(0x000a_bcde_f123_0000),
            doorbell: Lpi(0x2345),
            alloc: true,
            pending_zero: true,
        };
        vec![
            (
                Command::vmapp_v41(map),
                Kind::Vmapp,
                [0x000a_bcde_f123_0329, 0x0000_beef_0000_2345, 0x8000_0000_0002_0000, 0x0000_0000_4321_000f],
            ),
            (
                Command::vmapp_v41(VmappV41 { alloc: false, pending_zero: false, ..map }),
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
    fn kinds_are_called_what_the_manual_calls_them() {
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
    fn no_command_of_the_manual_is_without_a_golden_encoding() {
        let golden = [physical(), v4_0(), v4_1()].concat();
        for kind in Kind::ALL {
            assert!(golden.iter().any(|(_, k, _)| *k == kind), "{}", kind.name());
        }
        let of_v3 = [0x01, 0x03, 0x04, 0x05, 0x08, 0x09, 0x0a, 0x0b, 0x0c, 0x0d, 0x0e, 0x0f];
        let of_v4 = [0x21, 0x22, 0x23, 0x25, 0x29, 0x2a, 0x2b, 0x2d, 0x2e];
        assert_eq!(Kind::ALL.map(|kind| kind as u8).to_vec(), [&of_v3[..], &of_v4].concat());
    }

    #[test]
    fn a_listed_vmovp_can_be_made_one_for_a_single_its() {
        let listed = Command::vmovp_listed(VPE, Target::number(1), 7, 0x8003);
        assert_eq!(listed.meets(), Some(0x8003));
        let single = listed.met_by_one(15);
        golden(single, Kind::Vmovp, [0x0000_0007_0000_0022, 0x0000_beef_0000_8000, 0x0001_0000, 0]);
        assert_eq!((single.meets(), Command::vmovp(VPE, Target::number(1)).meets()), (None, None));
        assert_eq!(Command::vmapti(DEV, EventId(3), VPE, VIntid(8192), None).meets(), None);
    }

    #[test]
    fn the_virtual_form_of_a_command_is_its_physical_form_with_bit_5() {
        for (physical, virtual_) in [
            (Kind::Mapti, Kind::Vmapti),
            (Kind::Mapi, Kind::Vmapi),
            (Kind::Movi, Kind::Vmovi),
            (Kind::Sync, Kind::Vsync),
        ] {
            assert_eq!(physical as u8 | 0x20, virtual_ as u8);
        }
        assert_eq!(Command::from_words([0xff, 0, 0, 0]).kind(), None);
    }
}
