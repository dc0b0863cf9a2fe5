//! Images of the list registers, which are loaded before an entry and stored after an exit.
//!
//! `ICH_LR<n>_EL2` and ICH_HCR_EL2 (IHI 0069, 12.4). A vCPU's image is owned by the CPU that runs it; no lock guards
//! it.
//!
//! Each flush fills the registers anew and each sync empties them, so while a vCPU is out of its guest they hold no
//! state of interrupts. A register that was used and is not used any more has to be written once more, as zero: one
//! with EOI = 1 and an invalid state would raise the maintenance interrupt continuously.

/// The most list registers of an implementation.
pub const MAX_LIST_REGISTERS: usize = 16;

/// State: pending.
pub const PENDING: u64 = 1 << 62;
/// State: active.
pub const ACTIVE: u64 = 1 << 63;
/// Both bits of the state.
pub const STATE: u64 = PENDING | ACTIVE;
/// Linked to the physical interrupt in pINTID.
pub const HW: u64 = 1 << 61;
/// The end of the interrupt raises the maintenance interrupt; only where HW is 0.
pub const EOI: u64 = 1 << 41;

const GROUP1: u64 = 1 << 60;
const PRIORITY_SHIFT: u32 = 48;
const PHYSICAL_SHIFT: u32 = 32;
const PHYSICAL_MASK: u64 = 0x1fff;

/// ICH_HCR_EL2.En: the virtual CPU interface is on. Set even if no list register is in use, because vLPIs need it.
pub const HCR_EN: u64 = 1 << 0;
/// ICH_HCR_EL2.LRENPIE: maintenance interrupt when the guest ends an interrupt that is in no list register.
pub const HCR_LRENPIE: u64 = 1 << 2;
/// ICH_HCR_EL2.NPIE: maintenance interrupt when no list register is pending.
pub const HCR_NPIE: u64 = 1 << 3;
/// ICH_HCR_EL2.TDIR: writes to ICC_DIR_EL1 trap.
pub const HCR_TDIR: u64 = 1 << 14;
/// ICH_HCR_EL2.vSGIEOICount: ends of SGIs, which then have no active state, are not counted (GICv4.1).
pub const HCR_VSGI_EOI_COUNT: u64 = 1 << 8;
const HCR_EOICOUNT_SHIFT: u32 = 27;
const HCR_EOICOUNT_MASK: u64 = 0x1f;

/// Encodes number, priority and group of an interrupt. The caller adds state and link.
pub const fn encode(intid: u32, priority: u8, group1: bool) -> u64 {
    let group = if group1 { GROUP1 } else { 0 };
    intid as u64 | (priority as u64) << PRIORITY_SHIFT | group
}

/// The link to a physical interrupt.
pub const fn linked_to(physical: u32) -> u64 {
    HW | (physical as u64 & PHYSICAL_MASK) << PHYSICAL_SHIFT
}

/// The number of the virtual interrupt in a list register.
pub const fn intid(value: u64) -> u32 {
    value as u32
}

// ICH_LR<n>_EL2: State [63:62], HW [61], Group [60], Priority [55:48], pINTID [44:32] with HW and EOI [41] without,
// vINTID [31:0]. ICH_HCR_EL2: EOIcount [31:27].
const _: () = {
    assert!(encode(u32::MAX, u8::MAX, true) == 0x10ff_0000_ffff_ffff && encode(0, 0, false) == 0);
    assert!(linked_to(u32::MAX) == 0x2000_1fff_0000_0000 && EOI == 0x0000_0200_0000_0000);
    assert!(STATE == 0xc000_0000_0000_0000 && PENDING & ACTIVE == 0 && STATE & (HW | encode(!0, !0, true)) == 0);
    assert!(intid(linked_to(7) | STATE | encode(0x1234, !0, true)) == 0x1234);
    assert!(HCR_EOICOUNT_MASK << HCR_EOICOUNT_SHIFT == 0xf800_0000);
    assert!(HCR_EN | HCR_LRENPIE | HCR_NPIE | HCR_TDIR == 0x400d);
};

/// The list registers and ICH_HCR_EL2 of one vCPU, as exchanged with the hardware.
///
/// * Entry: write `lr[i]` to ICH_LR`i`_EL2 for `i` in `0..write` (usually none), and `hcr` to ICH_HCR_EL2.
/// * Exit: read ICH_LR`i`_EL2 into `lr[i]` for `i` in `0..used`; if `hcr` has LRENPIE set, read ICH_HCR_EL2 into
///   `hcr`.
#[derive(Clone, Debug)]
#[repr(C)]
pub struct LrImage {
    /// One word for each list register.
    pub lr: [u64; MAX_LIST_REGISTERS],
    /// ICH_HCR_EL2.
    pub hcr: u64,
    /// Number of list registers, from the first, that hold an interrupt.
    pub used: u8,
    /// Number of list registers, from the first, to write at the next entry.
    pub write: u8,
    /// While `used` is 0: number of list registers, from the first, that may hold old values in the hardware.
    pub(super) stale: u8,
    /// The value of `hcr` for an empty image.
    base: u64,
}

impl LrImage {
    /// An empty image for a machine with `list_registers` list registers (ICH_VTR_EL2.ListRegs + 1). At first, all of
    /// them are assumed to hold old values.
    #[must_use]
    pub fn new(list_registers: usize) -> LrImage {
        let count = list_registers.min(MAX_LIST_REGISTERS) as u8;
        LrImage { lr: [0; MAX_LIST_REGISTERS], hcr: HCR_EN, used: 0, write: 0, stale: count, base: HCR_EN }
    }

    /// Returns the number of list registers, from the first, that the caller has to write as zero now because the vCPU
    /// leaves the CPU. Call it after the sync.
    #[must_use]
    pub fn give_up(&mut self) -> usize {
        debug_assert_eq!(self.used, 0, "list registers are given up before the sync");
        usize::from(core::mem::take(&mut self.stale))
    }

    /// Sets whether ends of SGIs are counted: not if SGIs have no active state.
    pub(super) fn count_sgi_ends(&mut self, counted: bool) {
        self.base = HCR_EN | if counted { 0 } else { HCR_VSGI_EOI_COUNT };
    }

    /// Empties the image for a flush. Registers that [`seal`](Self::seal) adds to the used ones are zero.
    pub(super) fn clear(&mut self) {
        self.lr.iter_mut().take(usize::from(self.stale)).for_each(|lr| *lr = 0);
        self.hcr = self.base;
        self.used = 0;
    }

    /// Adds a value of a list register.
    pub(super) fn push(&mut self, value: u64) {
        if let Some(slot) = self.lr.get_mut(usize::from(self.used)) {
            *slot = value;
            self.used = self.used.saturating_add(1);
        }
    }

    /// Computes how many list registers to write at the next entry.
    pub(super) fn seal(&mut self) {
        self.write = self.used.max(self.stale);
        self.stale = 0;
    }

    /// Returns the used registers as read from the hardware, and the number of ends that matched none of them
    /// (EOIcount).
    pub(super) fn take(&mut self) -> (&[u64], u32) {
        let ends =
            if self.hcr & HCR_LRENPIE != 0 { ((self.hcr >> HCR_EOICOUNT_SHIFT) & HCR_EOICOUNT_MASK) as u32 } else { 0 };
        let used = self.used;
        self.stale = self.stale.max(used);
        self.used = 0;
        self.hcr = self.base;
        (self.lr.get(..usize::from(used)).unwrap_or_default(), ends)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_register_is_encoded_as_in_the_manual() {
        // State 01, HW 1, Group 1, priority 0xa0, pINTID 27, vINTID 27.
        let value = encode(27, 0xa0, true) | PENDING | linked_to(27);
        assert_eq!(value, 0x70a0_001b_0000_001b);
        // State 10, HW 0, group 0, priority 0x08, EOI, vINTID 33.
        assert_eq!(encode(33, 0x08, false) | ACTIVE | EOI, 0x8008_0200_0000_0021);
        // An LPI.
        assert_eq!(encode(8192, 0xa0, true) | PENDING, 0x50a0_0000_0000_2000);
        assert_eq!(intid(0x50a0_0000_0000_2000), 8192);
    }

    #[test]
    fn a_register_that_was_used_is_written_once_more_as_zero() {
        let mut image = LrImage::new(4);
        image.clear();
        image.seal();
        assert_eq!(image.write, 4, "the state of the hardware is unknown at first");
        image.clear();
        image.push(encode(33, 0, true) | PENDING);
        image.seal();
        assert_eq!((image.used, image.write), (1, 1));
        let _ = image.take();
        image.clear();
        image.seal();
        assert_eq!((image.used, image.write, image.lr[0]), (0, 1, 0));
        image.clear();
        image.seal();
        assert_eq!(image.write, 0);
    }

    #[test]
    fn a_register_that_was_used_is_zeroed_once_when_the_vcpu_leaves() {
        let mut image = LrImage::new(4);
        image.clear();
        image.push(encode(33, 0, true) | PENDING);
        image.push(encode(34, 0, true) | PENDING);
        image.seal();
        let _ = image.take();
        assert_eq!((image.give_up(), image.give_up()), (2, 0));
        image.clear();
        image.push(encode(35, 0, true) | PENDING);
        image.seal();
        assert_eq!(image.write, 1, "the hardware holds no old values");
    }

    #[test]
    fn ends_are_counted_only_with_lrenpie() {
        let mut image = LrImage::new(4);
        image.hcr = HCR_EN | 3 << 27;
        assert_eq!(image.take().1, 0);
        image.hcr = HCR_EN | HCR_LRENPIE | 3 << 27;
        assert_eq!(image.take().1, 3);
    }
}
