//! ITS commands, one named constructor each (IHI 0069, 5.3).
//!
//! A command is four 64-bit little-endian words. The virtual form of a command has the physical form's number
//! with bit 5 set. Golden encodings, written out by hand, stand in `command_tests`.

use crate::gic::command_kind::Kind;
use crate::ids::{CollectionId, DeviceId, EventId, Lpi, Pa, VIntid, VpeId};

/// The INTID that stands for "no doorbell" (IHI 0069, 5.3.10).
const NO_DOORBELL: u64 = 1023;

/// A redistributor as commands name it: its address or its processor number, as GITS_TYPER.PTA says.
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

/// The fields of VMAPP with V = 1 (GICv4.0).
#[derive(Clone, Copy, Debug)]
pub struct VmappV40 {
    /// The vPE to map.
    pub vpe: VpeId,
    /// The redistributor that it lives at.
    pub target: Target,
    /// Its pending table, 64 KiB-aligned.
    pub vpt: Pa,
    /// Number of vINTID bits that the table has room for.
    pub id_bits: u8,
}

/// The fields of VMAPP with V = 1 (GICv4.1).
#[derive(Clone, Copy, Debug)]
pub struct VmappV41 {
    /// The fields that GICv4.0 has as well.
    pub base: VmappV40,
    /// The VM's configuration table, 64 KiB-aligned.
    pub config: Pa,
    /// The default doorbell.
    pub doorbell: Lpi,
    /// No other ITS maps this vPE yet.
    pub alloc: bool,
}

/// The configuration of a virtual SGI (GICv4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SgiConfig {
    /// It is delivered.
    pub enabled: bool,
    /// It belongs to group 1 instead of group 0.
    pub group1: bool,
    /// Its priority, of which the upper four bits are implemented.
    pub priority: u8,
}

/// An ITS command.
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
    /// Bytes of a command.
    pub const SIZE: u64 = 32;

    /// The words, which are stored little-endian in this order.
    #[must_use]
    pub const fn words(self) -> [u64; 4] {
        self.0
    }

    /// The command with these words.
    #[must_use]
    pub const fn from_words(words: [u64; 4]) -> Command {
        Command(words)
    }

    /// What the command does; `None` for an unknown opcode.
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

    /// Maps an event to the physical LPI with the same number.
    #[cfg(test)]
    pub const fn mapi(dev: DeviceId, ev: EventId, collection: CollectionId) -> Command {
        Command([opcode(Kind::Mapi) | device_of(dev), ev.0 as u64, collection.0 as u64, 0])
    }

    /// Moves an event to another collection with its pending state.
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

    /// Clears an event's pending state.
    #[must_use]
    pub const fn clear(dev: DeviceId, ev: EventId) -> Command {
        Self::on_event(Kind::Clear, dev, ev)
    }

    /// Makes the redistributor reload an event's configuration byte.
    #[must_use]
    pub const fn inv(dev: DeviceId, ev: EventId) -> Command {
        Self::on_event(Kind::Inv, dev, ev)
    }

    /// Unmaps an event, physical or virtual, and clears its pending state.
    #[must_use]
    pub const fn discard(dev: DeviceId, ev: EventId) -> Command {
        Self::on_event(Kind::Discard, dev, ev)
    }

    /// Makes the redistributor reload the configuration of all LPIs of a collection.
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

    /// Maps a vPE (GICv4.1). PTZ is 0, so the pending table is read: Linux never sets PTZ, so no implementation is known
    /// to handle it.
    #[must_use]
    pub const fn vmapp_v41(map: VmappV41) -> Command {
        let [dw0, dw1, dw2, dw3] = Self::vmapp(map.base).0;
        Command([dw0 | (map.alloc as u64) << 8 | (map.config.0 & PA_64K_MASK), dw1 | map.doorbell.0 as u64, dw2, dw3])
    }

    /// Unmaps a vPE (GICv4.0).
    #[must_use]
    pub const fn vmapp_unmap(vpe: VpeId) -> Command {
        Command([opcode(Kind::Vmapp), vpe_of(vpe), 0, 0])
    }

    /// Unmaps a vPE (GICv4.1); `last`: no other ITS maps it. It is complete when it is consumed: no VSYNC may follow.
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

    /// Maps an event to the vLPI of a vPE with the same number. The doorbell is `None` on GICv4.1.
    #[cfg(test)]
    pub const fn vmapi(dev: DeviceId, ev: EventId, vpe: VpeId, doorbell: Option<Lpi>) -> Command {
        Command([opcode(Kind::Vmapi) | device_of(dev), ev.0 as u64 | vpe_of(vpe), doorbell_of(doorbell), 0])
    }

    /// Moves a virtual event with its pending state to another vPE of the same VM. `Some` names a new doorbell
    /// (GICv4.0).
    #[must_use]
    pub const fn vmovi(dev: DeviceId, ev: EventId, vpe: VpeId, doorbell: Option<Lpi>) -> Command {
        let dw2 = match doorbell {
            Some(lpi) => (lpi.0 as u64) << 32 | 1,
            None => 0,
        };
        Command([opcode(Kind::Vmovi) | device_of(dev), ev.0 as u64 | vpe_of(vpe), dw2, 0])
    }

    /// Moves a vPE to another redistributor, where one ITS informs the others (GITS_TYPER.VMOVP = 1).
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

    /// The ITSList of a VMOVP that several ITSs execute together; `None` for any other command.
    #[must_use]
    pub const fn vmovp_list(self) -> Option<u16> {
        let list = self.0[1] as u16;
        match self.kind() {
            Some(Kind::Vmovp) if list.count_ones() > 1 => Some(list),
            _ => None,
        }
    }

    /// This VMOVP with an ITSList of one ITS.
    #[must_use]
    pub const fn for_one_its(self, its_number: u8) -> Command {
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

    /// Makes the redistributor reload the configuration of all vLPIs of a vPE.
    #[must_use]
    pub const fn vinvall(vpe: VpeId) -> Command {
        Command([opcode(Kind::Vinvall), vpe_of(vpe), 0, 0])
    }

    /// Makes all redistributors reload the configuration of a vPE's default doorbell (GICv4.1).
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

    /// Clears a virtual SGI's pending state (GICv4.1).
    #[must_use]
    pub const fn vsgi_clear(vpe: VpeId, sgi: u8) -> Command {
        Command([opcode(Kind::Vsgi) | 1 << 9 | (sgi as u64 & 0xf) << 32, vpe_of(vpe), 0, 0])
    }
}
