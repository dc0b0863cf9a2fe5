//! The registers of a virtual ITS (IHI 0069, 12.19).
//!
//! The guest sees the ITS of a GICv3: GITS_TYPER.{Virtual, VMOVP} are 0 and GITS_PIDR2.ArchRev is 3, whatever the
//! physical ITS is, so that the guest never creates a vPE. GITS_BASER0 (devices) and GITS_BASER1 (collections) are
//! storage only: the tables that they point to are never accessed.
//!
//! Where the architecture leaves a choice:
//!
//! - Writes to GITS_CBASER and GITS_BASERn while the ITS is enabled, or disabled but not yet quiescent, are ignored.
//! - A GITS_CWRITER beyond the queue is stored, and no command is executed until it is written again.
//! - An access with a size or alignment that is not allowed reads as zero, and a write is ignored.
//! - GITS_CBASER[15:12] are storage: the queue need only be aligned to 4 KiB.

use super::config::VitsConfig;
use super::refusal::Refusal;
use crate::ids::Ipa;
use crate::mmio::layout::{fits, layout};
use tock_registers::{LocalRegisterCopy, register_bitfields};

register_bitfields![u32,
    CTLR [
        Enabled OFFSET(0) NUMBITS(1) [],
        Quiescent OFFSET(31) NUMBITS(1) []
    ]
];

register_bitfields![u64,
    TYPER [
        Physical OFFSET(0) NUMBITS(1) [],
        IttEntrySize OFFSET(4) NUMBITS(4) [],
        IdBits OFFSET(8) NUMBITS(5) [],
        DevBits OFFSET(13) NUMBITS(5) [],
        CidBits OFFSET(32) NUMBITS(4) [],
        Cil OFFSET(36) NUMBITS(1) []
    ],
    CBASER [
        Size OFFSET(0) NUMBITS(8) [],
        Shareability OFFSET(10) NUMBITS(2) [ Reserved = 3 ],
        Address OFFSET(12) NUMBITS(40) [],
        OuterCache OFFSET(53) NUMBITS(3) [],
        InnerCache OFFSET(59) NUMBITS(3) [],
        Valid OFFSET(63) NUMBITS(1) []
    ],
    QUEUE [
        // GITS_CWRITER.Retry and GITS_CREADR.Stalled.
        Flag OFFSET(0) NUMBITS(1) [],
        Offset OFFSET(5) NUMBITS(15) []
    ],
    BASER [
        Size OFFSET(0) NUMBITS(8) [],
        PageSize OFFSET(8) NUMBITS(2) [ K4 = 0, K16 = 1, K64 = 2, Reserved = 3 ],
        Shareability OFFSET(10) NUMBITS(2) [ Reserved = 3 ],
        Address OFFSET(12) NUMBITS(36) [],
        EntrySize OFFSET(48) NUMBITS(5) [],
        OuterCache OFFSET(53) NUMBITS(3) [],
        Type OFFSET(56) NUMBITS(3) [ Device = 1, Collection = 4 ],
        InnerCache OFFSET(59) NUMBITS(3) [],
        Indirect OFFSET(62) NUMBITS(1) [],
        Valid OFFSET(63) NUMBITS(1) []
    ]
];

layout! { 32:
    CTLR { Quiescent [31:31] Enabled [0:0] }
}

layout! { 64:
    TYPER { Cil [36:36] CidBits [35:32] DevBits [17:13] IdBits [12:8] IttEntrySize [7:4] Physical [0:0] }
    CBASER { Valid [63:63] InnerCache [61:59] OuterCache [55:53] Address [51:12] Shareability [11:10] Size [7:0] }
    QUEUE { Offset [19:5] Flag [0:0] }
    BASER {
        Valid [63:63] Indirect [62:62] InnerCache [61:59] Type [58:56] OuterCache [55:53] EntrySize [52:48] Address [47:12]
        Shareability [11:10] PageSize [9:8] Size [7:0]
    }
}

/// The bits of GITS_CBASER that a guest can write.
const CBASER_WRITABLE: u64 = CBASER::Size.val(0).mask()
    | CBASER::Shareability.val(0).mask()
    | CBASER::Address.val(0).mask()
    | CBASER::OuterCache.val(0).mask()
    | CBASER::InnerCache.val(0).mask()
    | CBASER::Valid.val(0).mask();

/// The bits of a GITS_BASERn that a guest can write: all but the type and the entry size.
const BASER_WRITABLE: u64 = !(BASER::Type.val(0).mask() | BASER::EntrySize.val(0).mask());

/// Size of an entry of the guest's tables in bytes, less one. The tables are never accessed.
const ENTRY_BYTES_LESS_ONE: u64 = 7;

/// GITS_IIDR: implementer Arm and product `D`, for which drivers have no errata.
const IIDR: u32 = 0x4400_043b;

/// Size of the control frame, in bytes. The translation frame follows it.
pub(super) const FRAME: u64 = 0x1_0000;

mod offset {
    pub const CTLR: u64 = 0x0000;
    pub const IIDR: u64 = 0x0004;
    pub const TYPER: u64 = 0x0008;
    pub const CBASER: u64 = 0x0080;
    pub const CWRITER: u64 = 0x0088;
    pub const CREADR: u64 = 0x0090;
    pub const BASER0: u64 = 0x0100;
    pub const BASER1: u64 = 0x0108;
}

const _: () = assert!(fits(
    &[
        (offset::CTLR, 4),
        (offset::IIDR, 4),
        (offset::TYPER, 8),
        (offset::CBASER, 8),
        (offset::CWRITER, 8),
        (offset::CREADR, 8),
        (offset::BASER0, 8),
        (offset::BASER1, 8),
        (ID_BLOCK, 4 * ID_REGISTERS.len() as u64),
    ],
    FRAME
));

/// GITS_PIDR4..7, PIDR0..3 and CIDR0..3 (0xffd0 to 0xfffc): a component of Arm, ArchRev 3.
const ID_BLOCK: u64 = 0xffd0;
const ID_REGISTERS: [u8; 12] = [0x44, 0, 0, 0, 0x94, 0xb4, 0x3b, 0, 0x0d, 0xf0, 0x05, 0xb1];

/// What a write requires the interpreter to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing.
    Stored,
    /// GITS_CTLR.Enabled has changed.
    EnableChanged,
    /// The write is refused for this reason.
    Refused(Refusal),
}

/// The address of the next command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct QueueHead(pub Ipa);

/// The registers of the control frame.
pub(super) struct Registers {
    typer: u64,
    enabled: bool,
    cbaser: LocalRegisterCopy<u64, CBASER::Register>,
    cwriter: LocalRegisterCopy<u64, QUEUE::Register>,
    creadr: LocalRegisterCopy<u64, QUEUE::Register>,
    baser: [LocalRegisterCopy<u64, BASER::Register>; 2],
}

impl Registers {
    /// The registers at reset.
    pub fn new(config: &VitsConfig) -> Registers {
        let mut typer = LocalRegisterCopy::<u64, TYPER::Register>::new(0);
        typer.modify(TYPER::Physical::SET);
        typer.modify(TYPER::IttEntrySize.val(ENTRY_BYTES_LESS_ONE));
        typer.modify(TYPER::IdBits.val(u64::from(config.event_bits.saturating_sub(1))));
        typer.modify(TYPER::DevBits.val(u64::from(config.device_bits.saturating_sub(1))));
        typer.modify(TYPER::CidBits.val(u64::from(config.collection_bits.saturating_sub(1))));
        typer.modify(TYPER::Cil::SET);
        let table = |kind| {
            let mut baser = LocalRegisterCopy::<u64, BASER::Register>::new(0);
            baser.modify(kind);
            baser.modify(BASER::EntrySize.val(ENTRY_BYTES_LESS_ONE));
            baser.modify(BASER::PageSize::K64);
            baser
        };
        Registers {
            typer: typer.get(),
            enabled: false,
            cbaser: LocalRegisterCopy::new(0),
            cwriter: LocalRegisterCopy::new(0),
            creadr: LocalRegisterCopy::new(0),
            baser: [table(BASER::Type::Device), table(BASER::Type::Collection)],
        }
    }

    /// GITS_CTLR.Enabled.
    pub fn enabled(&self) -> bool {
        self.enabled
    }

    /// Reads `size` bytes at `offset` of the control frame. `idle` is `false` while the interpreter has work.
    pub fn read(&self, offset: u64, size: u8, idle: bool) -> u64 {
        match (size, offset & 7) {
            (4, 0 | 4) => match self.word(offset, idle) {
                Some(word) => u64::from(word),
                None => {
                    let both = self.double(offset & !7).unwrap_or(0);
                    if offset & 4 == 0 { both & 0xffff_ffff } else { both >> 32 }
                }
            },
            (8, 0) => self.double(offset).unwrap_or(0),
            _ => 0,
        }
    }

    /// Writes `size` bytes at `offset` of the control frame.
    pub fn write(&mut self, offset: u64, size: u8, value: u64, idle: bool) -> Effect {
        match (size, offset & 7) {
            (4, _) if offset == offset::CTLR => self.write_ctlr(value),
            (4, 0) => {
                let high = self.double(offset).unwrap_or(0) & !0xffff_ffff;
                self.write_double(offset, high | (value & 0xffff_ffff), idle)
            }
            (4, 4) => {
                let at = offset & !7;
                let low = self.double(at).unwrap_or(0) & 0xffff_ffff;
                self.write_double(at, low | (value & 0xffff_ffff) << 32, idle)
            }
            (8, 0) => self.write_double(offset, value, idle),
            _ => Effect::Refused(Refusal::BadAccess),
        }
    }

    /// The value of a 32-bit register.
    fn word(&self, offset: u64, idle: bool) -> Option<u32> {
        match offset {
            offset::CTLR => {
                let mut ctlr = LocalRegisterCopy::<u32, CTLR::Register>::new(0);
                ctlr.modify(CTLR::Enabled.val(u32::from(self.enabled)));
                ctlr.modify(CTLR::Quiescent.val(u32::from(!self.enabled && idle)));
                Some(ctlr.get())
            }
            offset::IIDR => Some(IIDR),
            ID_BLOCK..FRAME => {
                let index = usize::try_from(offset.saturating_sub(ID_BLOCK) >> 2).ok()?;
                ID_REGISTERS.get(index).map(|&byte| u32::from(byte))
            }
            _ => None,
        }
    }

    /// The value of a 64-bit register; each half of it can be accessed, too.
    fn double(&self, offset: u64) -> Option<u64> {
        match offset {
            offset::TYPER => Some(self.typer),
            offset::CBASER => Some(self.cbaser.get()),
            offset::CWRITER => Some(self.cwriter.get()),
            offset::CREADR => Some(self.creadr.get()),
            offset::BASER0 => self.baser.first().map(LocalRegisterCopy::get),
            offset::BASER1 => self.baser.get(1).map(LocalRegisterCopy::get),
            _ => None,
        }
    }

    fn write_ctlr(&mut self, value: u64) -> Effect {
        let enable = value & 1 != 0;
        if enable == self.enabled {
            return Effect::Stored;
        }
        self.enabled = enable;
        Effect::EnableChanged
    }

    fn write_double(&mut self, offset: u64, value: u64, idle: bool) -> Effect {
        let frozen = self.enabled || !idle;
        match offset {
            offset::CWRITER => {
                let new = LocalRegisterCopy::<u64, QUEUE::Register>::new(value);
                if new.is_set(QUEUE::Flag) {
                    self.creadr.modify(QUEUE::Flag::CLEAR);
                }
                self.cwriter = LocalRegisterCopy::new(value & QUEUE::Offset.val(0).mask());
                if self.cwriter.get() >= self.queue_bytes() {
                    return Effect::Refused(Refusal::WriterBeyondQueue);
                }
                Effect::Stored
            }
            offset::CBASER | offset::BASER0 | offset::BASER1 if frozen => Effect::Refused(Refusal::WriteWhileEnabled),
            offset::CBASER => {
                self.cbaser.set(value & CBASER_WRITABLE);
                if self.cbaser.matches_all(CBASER::Shareability::Reserved) {
                    self.cbaser.modify(CBASER::Shareability.val(0));
                }
                self.creadr.set(0);
                Effect::Stored
            }
            offset::BASER0 => self.write_baser(0, value),
            offset::BASER1 => self.write_baser(1, value),
            _ => Effect::Stored,
        }
    }

    fn write_baser(&mut self, index: usize, value: u64) -> Effect {
        if let Some(baser) = self.baser.get_mut(index) {
            baser.set((baser.get() & !BASER_WRITABLE) | (value & BASER_WRITABLE));
            // A reserved page size becomes 64 KiB and a reserved shareability 0, and they read back so.
            if baser.matches_all(BASER::PageSize::Reserved) {
                baser.modify(BASER::PageSize::K64);
            }
            if baser.matches_all(BASER::Shareability::Reserved) {
                baser.modify(BASER::Shareability.val(0));
            }
        }
        Effect::Stored
    }

    fn queue_bytes(&self) -> u64 {
        self.cbaser.read(CBASER::Size).saturating_add(1).saturating_mul(4096)
    }

    /// The next command, if there is one and it may be executed.
    pub fn next_command(&self) -> Option<QueueHead> {
        let writer = self.cwriter.get();
        let reader = self.creadr.get();
        let runnable = self.enabled
            && self.cbaser.is_set(CBASER::Valid)
            && !self.creadr.is_set(QUEUE::Flag)
            && writer < self.queue_bytes()
            && reader != writer;
        let base = self.cbaser.get() & CBASER::Address.val(0).mask();
        runnable.then(|| QueueHead(Ipa(base.saturating_add(reader))))
    }

    /// Advances GITS_CREADR past the command at the head, which is complete.
    pub fn advance(&mut self) {
        let next = self.creadr.get().saturating_add(super::command::BYTES);
        self.creadr.set(if next >= self.queue_bytes() { 0 } else { next });
    }

    /// Stalls the queue until the guest writes GITS_CWRITER.Retry: the command at the head cannot be executed.
    pub fn stall(&mut self) {
        self.creadr.modify(QUEUE::Flag::SET);
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::config;
    use super::*;

    fn registers() -> Registers {
        Registers::new(&config())
    }

    #[test]
    fn the_guest_sees_a_gicv3_its_without_vlpis() {
        let r = registers();
        // Physical, 8-byte ITEs, 16 EventID bits, 16 DeviceID bits, CIL with 4 collection bits; by hand from 12.19.
        assert_eq!(r.read(0x08, 8, true), 0x13_0001_ef71);
        assert_eq!(r.read(0x08, 4, true), 0x0001_ef71);
        assert_eq!(r.read(0x0c, 4, true), 0x13);
        assert_eq!(r.read(0x04, 4, true), 0x4400_043b);
        assert_eq!(r.read(0xffe8, 4, true), 0x3b);
        assert_eq!(r.read(0xfffc, 4, true), 0xb1);
    }

    #[test]
    fn basers_at_reset_have_64k_pages_and_their_types() {
        let r = registers();
        assert_eq!(r.read(0x100, 8, true), 0x0107_0000_0000_0200);
        assert_eq!(r.read(0x108, 8, true), 0x0407_0000_0000_0200);
        for n in 2..8 {
            assert_eq!(r.read(0x100 + 8 * n, 8, true), 0);
        }
    }

    #[test]
    fn a_baser_keeps_all_but_type_and_entry_size() {
        let mut r = registers();
        assert_eq!(r.write(0x100, 8, u64::MAX, true), Effect::Stored);
        // Page size 3 is treated as 64K and shareability 3 as 0; Type 1 and Entry_Size 7 stay.
        assert_eq!(r.read(0x100, 8, true), 0xf9e7_ffff_ffff_f2ff);
        assert_eq!(r.write(0x100, 8, 0, true), Effect::Stored);
        assert_eq!(r.read(0x100, 8, true), 0x0107_0000_0000_0000);
    }

    #[test]
    fn the_indirect_bit_and_every_page_size_can_be_written() {
        let mut r = registers();
        for page_size in 0..3u64 {
            r.write(0x108, 8, 1 << 62 | page_size << 8, true);
            assert_eq!(r.read(0x108, 8, true), 0x4407_0000_0000_0000 | page_size << 8);
        }
    }

    /// A driver assumes that a table is unusable, or memory non-coherent, if a value that it wrote does not read back.
    #[test]
    fn a_base_register_reads_back_as_a_driver_writes_it() {
        let mut r = registers();
        // Valid, Indirect, inner and outer RaWaWb, inner shareable, 64K pages; PA[51:48] are in bits [15:12].
        for (offset, fixed, address) in [(0x100, 0x0107u64, 0x8123_0000), (0x108, 0x0407, 0xffff_8765_1000)] {
            let value = 0xf8e0 << 48 | fixed << 48 | address | 1 << 10 | 2 << 8 | 0x0f;
            r.write(offset, 8, value, true);
            assert_eq!(r.read(offset, 8, true), value);
        }
        let queue = 1 << 63 | 7 << 59 | 7 << 53 | 0x8_1234_5678_0000 | 1 << 10 | 0x0f;
        r.write(0x80, 8, queue, true);
        assert_eq!(r.read(0x80, 8, true), queue);
    }

    #[test]
    fn base_registers_are_read_only_while_the_its_is_enabled_or_has_work() {
        let mut r = registers();
        r.write(0x80, 8, 1 << 63 | 0x4000_0000, true);
        assert_eq!(r.write(0x00, 4, 1, true), Effect::EnableChanged);
        for offset in [0x80, 0x100, 0x108] {
            let before = r.read(offset, 8, true);
            assert_eq!(r.write(offset, 8, 0x1234_5000, true), Effect::Refused(Refusal::WriteWhileEnabled));
            assert_eq!(r.read(offset, 8, true), before);
        }
        r.write(0x00, 4, 0, true);
        assert_eq!(r.write(0x80, 8, 0, false), Effect::Refused(Refusal::WriteWhileEnabled));
        assert_eq!(r.write(0x80, 8, 0, true), Effect::Stored);
    }

    #[test]
    fn quiescent_means_disabled_and_idle() {
        let mut r = registers();
        assert_eq!(r.read(0, 4, true), 0x8000_0000);
        assert_eq!(r.read(0, 4, false), 0);
        r.write(0, 4, 0xffff_ffff, true);
        assert_eq!(r.read(0, 4, true), 1);
    }

    #[test]
    fn halves_of_a_64_bit_register_are_merged() {
        let mut r = registers();
        r.write(0x80, 4, 0x4000_0003, true);
        r.write(0x84, 4, 0x8000_0001, true);
        assert_eq!(r.read(0x80, 8, true), 0x8000_0001_4000_0003);
        assert_eq!(r.read(0x84, 4, true), 0x8000_0001);
        r.write(0x88, 4, 0x60, true);
        r.write(0x8c, 4, 0xffff_ffff, true);
        assert_eq!(r.read(0x88, 8, true), 0x60);
    }

    #[test]
    fn a_write_to_cbaser_resets_creadr_and_nothing_else() {
        let mut r = registers();
        r.write(0x80, 8, 1 << 63, true);
        r.write(0x88, 8, 0x40, true);
        r.advance();
        r.stall();
        assert_eq!(r.read(0x90, 8, true), 0x21);
        r.write(0x80, 8, 1 << 63, true);
        assert_eq!(r.read(0x90, 8, true), 0);
        assert_eq!(r.read(0x88, 8, true), 0x40);
    }

    #[test]
    fn creadr_and_the_identification_registers_are_read_only() {
        let mut r = registers();
        for offset in [0x04, 0x08, 0x0c, 0x90, 0x94, 0xffe8] {
            let before = r.read(offset, 4, true);
            r.write(offset, 4, !before & 0xffff_ffff, true);
            assert_eq!(r.read(offset, 4, true), before);
        }
    }

    #[test]
    fn creadr_wraps_at_the_end_of_the_queue() {
        let mut r = registers();
        r.write(0x80, 8, 1 << 63 | 0x8000, true);
        r.write(0x00, 4, 1, true);
        r.write(0x88, 8, 4096 - 32, true);
        for n in 0..127 {
            assert_eq!(r.next_command(), Some(QueueHead(Ipa(0x8000 + 32 * n))));
            r.advance();
        }
        assert_eq!(r.next_command(), None);
        r.write(0x88, 8, 0, true);
        assert_eq!(r.next_command(), Some(QueueHead(Ipa(0x8000 + 4096 - 32))));
        r.advance();
        assert_eq!(r.read(0x90, 8, true), 0);
        assert_eq!(r.next_command(), None);
    }

    #[test]
    fn a_cwriter_beyond_the_queue_stops_it_until_it_is_written_again() {
        let mut r = registers();
        r.write(0x80, 8, 1 << 63, true);
        r.write(0x00, 4, 1, true);
        assert_eq!(r.write(0x88, 8, 4096, true), Effect::Refused(Refusal::WriterBeyondQueue));
        assert_eq!(r.read(0x88, 8, true), 4096);
        assert_eq!(r.next_command(), None);
        assert_eq!(r.write(0x88, 8, 32, true), Effect::Stored);
        assert!(r.next_command().is_some());
    }

    #[test]
    fn retry_ends_a_stall_and_reads_as_zero() {
        let mut r = registers();
        r.write(0x80, 8, 1 << 63, true);
        r.write(0x00, 4, 1, true);
        r.write(0x88, 8, 0x40, true);
        r.stall();
        assert_eq!(r.read(0x90, 8, true), 1);
        r.write(0x88, 8, 0x40, true);
        assert_eq!(r.next_command(), None);
        r.write(0x88, 8, 0x41, true);
        assert!(r.next_command().is_some());
        assert_eq!([r.read(0x88, 8, true), r.read(0x90, 8, true)], [0x40, 0]);
    }

    #[test]
    fn accesses_of_wrong_size_or_alignment_read_zero_and_have_no_effect() {
        let mut r = registers();
        assert_eq!([r.read(0x08, 1, true), r.read(0x0a, 2, true), r.read(0x0c, 8, true), r.read(0, 8, true)], [0; 4]);
        for (offset, size) in [(0, 1), (2, 2), (0x81, 4), (0x84, 8)] {
            assert_eq!(r.write(offset, size, 1, true), Effect::Refused(Refusal::BadAccess));
        }
        assert!(!r.enabled());
    }
}
