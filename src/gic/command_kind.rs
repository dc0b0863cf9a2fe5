//! The kinds of ITS commands (IHI 0069, 5.3), for the counters as well as for the encoder.

/// What an ITS command does. The discriminant is the opcode.
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

    /// The command with this opcode, if there is one.
    pub(super) const fn from_opcode(opcode: u8) -> Option<Kind> {
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
