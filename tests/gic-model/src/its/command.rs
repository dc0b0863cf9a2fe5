//! Decoding of ITS commands from the four words of a queue entry (IHI 0069, 5.3).
//!
//! The result depends on whether the ITS has the commands of GICv4.1 (GITS_TYPER.VMAPP), since GICv4.1 adds fields to
//! VMAPP and VMOVP that are RES0 before. RES0 bits that are set are returned together with the command.

/// A decoded command. RDbase fields hold the 36 bits of the command, whose meaning depends on GITS_TYPER.PTA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are the manual's")]
pub enum Command {
    Movi {
        device: u32,
        event: u32,
        collection: u16,
    },
    Int {
        device: u32,
        event: u32,
    },
    Clear {
        device: u32,
        event: u32,
    },
    Sync {
        target: u64,
    },
    /// `size` is the field of the command: the number of EventID bits minus one.
    Mapd {
        device: u32,
        size: u8,
        itt: u64,
        valid: bool,
    },
    Mapc {
        collection: u16,
        target: u64,
        valid: bool,
    },
    Mapti {
        device: u32,
        event: u32,
        intid: u32,
        collection: u16,
    },
    Mapi {
        device: u32,
        event: u32,
        collection: u16,
    },
    Inv {
        device: u32,
        event: u32,
    },
    Invall {
        collection: u16,
    },
    Movall {
        from: u64,
        to: u64,
    },
    Discard {
        device: u32,
        event: u32,
    },
    /// `doorbell` is `Some` if D is 1.
    Vmovi {
        device: u32,
        event: u32,
        vpe: u16,
        doorbell: Option<u32>,
    },
    /// `doorbell` is `Some` if DB is 1 (GICv4.1).
    Vmovp {
        sequence: u16,
        list: u16,
        vpe: u16,
        target: u64,
        doorbell: Option<u32>,
    },
    Vsgi {
        vpe: u16,
        sgi: u8,
        enable: bool,
        clear: bool,
        group: bool,
        priority: u8,
    },
    Vsync {
        vpe: u16,
    },
    /// `size` is the field of the command: the number of vINTID bits minus one.
    Vmapp {
        vpe: u16,
        target: u64,
        valid: bool,
        vpt: u64,
        size: u8,
        v4_1: Option<Vmapp41>,
    },
    Vmapti {
        device: u32,
        event: u32,
        vpe: u16,
        vintid: u32,
        doorbell: u32,
    },
    Vmapi {
        device: u32,
        event: u32,
        vpe: u16,
        doorbell: u32,
    },
    Vinvall {
        vpe: u16,
    },
    Invdb {
        vpe: u16,
    },
    /// The ITS has no command with this number.
    Unknown {
        opcode: u8,
    },
}

/// Fields that GICv4.1 adds to VMAPP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are the manual's")]
pub struct Vmapp41 {
    pub alloc: bool,
    pub ptz: bool,
    pub vconf: u64,
    pub doorbell: u32,
}

/// The set of commands that an ITS has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Physical commands only.
    V3,
    /// Commands of GICv4.0 (GITS_TYPER.Virtual).
    V4_0,
    /// Commands of GICv4.1 (GITS_TYPER.Virtual and GITS_TYPER.VMAPP).
    V4_1,
}

const fn bits(word: u64, high: u32, low: u32) -> u64 {
    (word >> low) & (u64::MAX >> (63 - (high - low)))
}

/// Returns a mask of the bits from `high` down to `low`.
const fn field(high: u32, low: u32) -> u64 {
    (u64::MAX >> (63 - (high - low))) << low
}

impl Command {
    /// Decodes a queue entry. The second result has the RES0 bits of each word that were set.
    #[must_use]
    pub fn decode(w: [u64; 4], dialect: Dialect) -> (Command, [u64; 4]) {
        let opcode = w[0] as u8;
        let device = bits(w[0], 63, 32) as u32;
        let event = bits(w[1], 31, 0) as u32;
        let high1 = bits(w[1], 63, 32) as u32;
        let collection = bits(w[2], 15, 0) as u16;
        let target = bits(w[2], 51, 16);
        let valid = bits(w[2], 63, 63) == 1;
        let vpe = bits(w[1], 47, 32) as u16;
        let high2 = bits(w[2], 63, 32) as u32;
        let v41 = dialect == Dialect::V4_1;

        const OP: u64 = field(7, 0);
        const DEV: u64 = OP | field(63, 32);
        const EVENT: u64 = field(31, 0);
        const VPE: u64 = field(47, 32);
        const ICID: u64 = field(15, 0);
        const RD: u64 = field(51, 16);
        const V: u64 = field(63, 63);

        let (command, used) = match (opcode, dialect) {
            (0x01, _) => (Command::Movi { device, event, collection }, [DEV, EVENT, ICID, 0]),
            (0x03, _) => (Command::Int { device, event }, [DEV, EVENT, 0, 0]),
            (0x04, _) => (Command::Clear { device, event }, [DEV, EVENT, 0, 0]),
            (0x05, _) => (Command::Sync { target }, [OP, 0, RD, 0]),
            (0x08, _) => (
                Command::Mapd { device, size: bits(w[1], 4, 0) as u8, itt: w[2] & field(51, 8), valid },
                [DEV, field(4, 0), field(51, 8) | V, 0],
            ),
            (0x09, _) => (Command::Mapc { collection, target, valid }, [OP, 0, ICID | RD | V, 0]),
            (0x0a, _) => {
                (Command::Mapti { device, event, intid: high1, collection }, [DEV, EVENT | field(63, 32), ICID, 0])
            }
            (0x0b, _) => (Command::Mapi { device, event, collection }, [DEV, EVENT, ICID, 0]),
            (0x0c, _) => (Command::Inv { device, event }, [DEV, EVENT, 0, 0]),
            (0x0d, _) => (Command::Invall { collection }, [OP, 0, ICID, 0]),
            (0x0e, _) => (Command::Movall { from: target, to: bits(w[3], 51, 16) }, [OP, 0, RD, RD]),
            (0x0f, _) => (Command::Discard { device, event }, [DEV, EVENT, 0, 0]),
            (0x21, Dialect::V4_0 | Dialect::V4_1) => (
                Command::Vmovi { device, event, vpe, doorbell: (w[2] & 1 == 1).then_some(high2) },
                [DEV, EVENT | VPE, if w[2] & 1 == 1 { 1 | field(63, 32) } else { 0 }, 0],
            ),
            (0x22, Dialect::V4_0 | Dialect::V4_1) => (
                Command::Vmovp {
                    sequence: bits(w[0], 47, 32) as u16,
                    list: bits(w[1], 15, 0) as u16,
                    vpe,
                    target,
                    doorbell: (v41 && valid).then_some(bits(w[3], 31, 0) as u32),
                },
                if v41 {
                    [OP | field(47, 32), ICID | VPE, RD | V, field(31, 0)]
                } else {
                    [OP | field(47, 32), ICID | VPE, RD, 0]
                },
            ),
            (0x23, Dialect::V4_1) => (
                Command::Vsgi {
                    vpe,
                    sgi: bits(w[0], 35, 32) as u8,
                    enable: bits(w[0], 8, 8) == 1,
                    clear: bits(w[0], 9, 9) == 1,
                    group: bits(w[0], 10, 10) == 1,
                    priority: (bits(w[0], 23, 20) << 4) as u8,
                },
                [OP | field(10, 8) | field(23, 20) | field(35, 32), VPE, 0, 0],
            ),
            (0x25, Dialect::V4_0 | Dialect::V4_1) => (Command::Vsync { vpe }, [OP, VPE, 0, 0]),
            (0x29, Dialect::V4_0 | Dialect::V4_1) => {
                let vpt = w[3] & field(51, 16);
                let v4_1 = v41.then_some(Vmapp41 {
                    alloc: bits(w[0], 8, 8) == 1,
                    ptz: bits(w[0], 9, 9) == 1,
                    vconf: w[0] & field(51, 16),
                    doorbell: event,
                });
                let used = if v41 {
                    [OP | field(9, 8) | field(51, 16), VPE | EVENT, RD | V, field(51, 16) | field(4, 0)]
                } else {
                    [OP, VPE, RD | V, field(51, 16) | field(4, 0)]
                };
                (Command::Vmapp { vpe, target, valid, vpt, size: bits(w[3], 4, 0) as u8, v4_1 }, used)
            }
            (0x2a, Dialect::V4_0 | Dialect::V4_1) => (
                Command::Vmapti { device, event, vpe, vintid: bits(w[2], 31, 0) as u32, doorbell: high2 },
                [DEV, EVENT | VPE, u64::MAX, 0],
            ),
            (0x2b, Dialect::V4_0 | Dialect::V4_1) => {
                (Command::Vmapi { device, event, vpe, doorbell: high2 }, [DEV, EVENT | VPE, field(63, 32), 0])
            }
            (0x2d, Dialect::V4_0 | Dialect::V4_1) => (Command::Vinvall { vpe }, [OP, VPE, 0, 0]),
            (0x2e, Dialect::V4_1) => (Command::Invdb { vpe }, [OP, VPE, 0, 0]),
            _ => (Command::Unknown { opcode }, [u64::MAX; 4]),
        };
        let mut reserved = [0; 4];
        for (r, (word, used)) in reserved.iter_mut().zip(w.iter().zip(used)) {
            *r = word & !used;
        }
        (command, reserved)
    }

    /// Returns the manual's name of the command.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Command::Movi { .. } => "MOVI",
            Command::Int { .. } => "INT",
            Command::Clear { .. } => "CLEAR",
            Command::Sync { .. } => "SYNC",
            Command::Mapd { .. } => "MAPD",
            Command::Mapc { .. } => "MAPC",
            Command::Mapti { .. } => "MAPTI",
            Command::Mapi { .. } => "MAPI",
            Command::Inv { .. } => "INV",
            Command::Invall { .. } => "INVALL",
            Command::Movall { .. } => "MOVALL",
            Command::Discard { .. } => "DISCARD",
            Command::Vmovi { .. } => "VMOVI",
            Command::Vmovp { .. } => "VMOVP",
            Command::Vsgi { .. } => "VSGI",
            Command::Vsync { .. } => "VSYNC",
            Command::Vmapp { .. } => "VMAPP",
            Command::Vmapti { .. } => "VMAPTI",
            Command::Vmapi { .. } => "VMAPI",
            Command::Vinvall { .. } => "VINVALL",
            Command::Invdb { .. } => "INVDB",
            Command::Unknown { .. } => "unknown",
        }
    }

    /// Returns the section of IHI 0069 that describes the command, with the command's name.
    #[must_use]
    pub fn section(&self) -> &'static str {
        match self {
            Command::Movi { .. } => "5.3 MOVI",
            Command::Int { .. } => "5.3 INT",
            Command::Clear { .. } => "5.3 CLEAR",
            Command::Sync { .. } => "5.3 SYNC",
            Command::Mapd { .. } => "5.3 MAPD",
            Command::Mapc { .. } => "5.3 MAPC",
            Command::Mapti { .. } => "5.3 MAPTI",
            Command::Mapi { .. } => "5.3 MAPI",
            Command::Inv { .. } => "5.3 INV",
            Command::Invall { .. } => "5.3 INVALL",
            Command::Movall { .. } => "5.3 MOVALL",
            Command::Discard { .. } => "5.3 DISCARD",
            Command::Vmovi { .. } => "5.3 VMOVI",
            Command::Vmovp { .. } => "5.3 VMOVP",
            Command::Vsgi { .. } => "5.3 VSGI",
            Command::Vsync { .. } => "5.3 VSYNC",
            Command::Vmapp { .. } => "5.3 VMAPP",
            Command::Vmapti { .. } => "5.3 VMAPTI",
            Command::Vmapi { .. } => "5.3 VMAPI",
            Command::Vinvall { .. } => "5.3 VINVALL",
            Command::Invdb { .. } => "5.3 INVDB",
            Command::Unknown { .. } => "5.3 ITS commands",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The words were encoded by hand from the manual.
    #[test]
    fn each_command_is_decoded_as_the_manual_encodes_it() {
        let v3 = |w| Command::decode(w, Dialect::V3);
        let v40 = |w| Command::decode(w, Dialect::V4_0);
        let v41 = |w| Command::decode(w, Dialect::V4_1);
        let clean = |c: Command| (c, [0; 4]);
        assert_eq!(
            v3([0x0000_1234_0000_0001, 0x56, 0x789a, 0]),
            clean(Command::Movi { device: 0x1234, event: 0x56, collection: 0x789a })
        );
        assert_eq!(v3([0x0001_0002_0000_0003, 0x7, 0, 0]), clean(Command::Int { device: 0x1_0002, event: 7 }));
        assert_eq!(v3([0x0000_0002_0000_0004, 0x7, 0, 0]), clean(Command::Clear { device: 2, event: 7 }));
        assert_eq!(v3([0x05, 0, 0x0000_0000_2f12_0000, 0]), clean(Command::Sync { target: 0x2f12 }));
        assert_eq!(
            v3([0x0000_0042_0000_0008, 0x04, 0x8000_0000_4567_8900, 0]),
            clean(Command::Mapd { device: 0x42, size: 4, itt: 0x4567_8900, valid: true })
        );
        assert_eq!(
            v3([0x09, 0, 0x8000_0000_0003_0005, 0]),
            clean(Command::Mapc { collection: 5, target: 3, valid: true })
        );
        assert_eq!(
            v3([0x0000_0042_0000_000a, 0x0000_2001_0000_0009, 0x5, 0]),
            clean(Command::Mapti { device: 0x42, event: 9, intid: 8193, collection: 5 })
        );
        assert_eq!(
            v3([0x0000_0042_0000_000b, 0x2001, 0x5, 0]),
            clean(Command::Mapi { device: 0x42, event: 8193, collection: 5 })
        );
        assert_eq!(v3([0x0000_0042_0000_000c, 0x9, 0, 0]), clean(Command::Inv { device: 0x42, event: 9 }));
        assert_eq!(v3([0x0d, 0, 0x5, 0]), clean(Command::Invall { collection: 5 }));
        assert_eq!(v3([0x0e, 0, 0x1_0000, 0x2_0000]), clean(Command::Movall { from: 1, to: 2 }));
        assert_eq!(v3([0x0000_0042_0000_000f, 0x9, 0, 0]), clean(Command::Discard { device: 0x42, event: 9 }));
        assert_eq!(
            v40([0x0000_0042_0000_0021, 0x0007_0000_0009 & 0xffff_ffff_ffff, 0x0000_2345_0000_0001, 0]),
            clean(Command::Vmovi { device: 0x42, event: 9, vpe: 7, doorbell: Some(0x2345) })
        );
        assert_eq!(
            v40([0x0000_0003_0000_0022, 0x0000_0007_0000_0005, 0x0000_0000_2f12_0000, 0]),
            clean(Command::Vmovp { sequence: 3, list: 5, vpe: 7, target: 0x2f12, doorbell: None })
        );
        assert_eq!(
            v41([0x22, 0x0000_0007_0000_0000, 0x8000_0000_2f12_0000, 0x2100]),
            clean(Command::Vmovp { sequence: 0, list: 0, vpe: 7, target: 0x2f12, doorbell: Some(0x2100) })
        );
        assert_eq!(
            v41([0x0000_000e_00a0_0523, 0x0000_0007_0000_0000, 0, 0]),
            clean(Command::Vsgi { vpe: 7, sgi: 14, enable: true, clear: false, group: true, priority: 0xa0 })
        );
        assert_eq!(v40([0x25, 0x0000_ffff_0000_0000, 0, 0]), clean(Command::Vsync { vpe: 0xffff }));
        assert_eq!(
            v40([0x29, 0x0000_0007_0000_0000, 0x8000_0000_0001_0000, 0x4440_000d]),
            clean(Command::Vmapp { vpe: 7, target: 1, valid: true, vpt: 0x4440_0000, size: 13, v4_1: None })
        );
        assert_eq!(
            v41([0x0000_0000_5550_0129, 0x0000_0007_0000_2100, 0x8000_0000_0001_0000, 0x4440_000d]),
            clean(Command::Vmapp {
                vpe: 7,
                target: 1,
                valid: true,
                vpt: 0x4440_0000,
                size: 13,
                v4_1: Some(Vmapp41 { alloc: true, ptz: false, vconf: 0x5550_0000, doorbell: 0x2100 }),
            })
        );
        assert_eq!(
            v40([0x0000_0042_0000_002a, 0x0000_0007_0000_0009, 0x0000_03ff_0000_2005, 0]),
            clean(Command::Vmapti { device: 0x42, event: 9, vpe: 7, vintid: 8197, doorbell: 1023 })
        );
        assert_eq!(
            v40([0x0000_0042_0000_002b, 0x0000_0007_0000_2009, 0x0000_2010_0000_0000, 0]),
            clean(Command::Vmapi { device: 0x42, event: 0x2009, vpe: 7, doorbell: 0x2010 })
        );
        assert_eq!(v40([0x2d, 0x0000_0007_0000_0000, 0, 0]), clean(Command::Vinvall { vpe: 7 }));
        assert_eq!(v41([0x2e, 0x0000_0007_0000_0000, 0, 0]), clean(Command::Invdb { vpe: 7 }));
    }

    #[test]
    fn newer_commands_are_unknown_and_newer_fields_res0_on_an_older_its() {
        assert_eq!(Command::decode([0x25, 0, 0, 0], Dialect::V3).0, Command::Unknown { opcode: 0x25 });
        assert_eq!(Command::decode([0x2e, 0, 0, 0], Dialect::V4_0).0, Command::Unknown { opcode: 0x2e });
        let (_, reserved) = Command::decode([0x0129, 0x2100, 1 << 63, 0x4440_000d], Dialect::V4_0);
        assert_eq!(reserved, [0x100, 0x2100, 0, 0]);
        let (_, reserved) = Command::decode([0x05, 1, 0, 1 << 63], Dialect::V3);
        assert_eq!(reserved, [0, 1, 0, 1 << 63]);
    }
}
