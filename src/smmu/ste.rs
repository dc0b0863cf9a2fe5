//! The entry of a stream (IHI 0070, 5.2): it aborts all transactions, or translates them by stage 2.

use super::View;
use super::error::{BadView, SmmuError};
use super::facts::{Facts, address_bits};
use crate::ids::Pa;
use crate::mm::stage2::Fwb;
use crate::mmio::Coherence;

/// Bytes of an entry.
pub const SIZE: u64 = 64;

/// Word 0 of an entry that aborts: V, and Config = 0b000. The SMMU ignores all other words (5.2.1), and records no
/// event, so a device that is not assigned cannot flood the event queue.
pub const ABORT: u64 = VALID;
/// Word 0 of an entry that translates by stage 2 only: V, and Config = 0b110.
pub const TRANSLATE: u64 = VALID | 0b110 << 1;

const VALID: u64 = 1;

/// MEV, bit 83: similar events may be merged.
const MEV: u64 = 1 << (83 - 64);
/// S2FWB, bit 89.
const S2FWB: u64 = 1 << (89 - 64);
/// SHCFG = 1, bits 109:108: the shareability of the transaction.
const SHCFG_INCOMING: u64 = 1 << (108 - 64);

/// S2T0SZ, bits 165:160, and the fields above it up to S2PS, bits 178:176: as `VTCR_EL2[18:0]`.
const VTCR_AT: u32 = 160 - 128;
const VTCR_FIELDS: u64 = 0x7_ffff;
/// S2AA64, bit 179: the tables are VMSAv8-64.
const S2AA64: u64 = 1 << (179 - 128);
/// S2AFFD, bit 181: no fault if the access flag is clear.
const S2AFFD: u64 = 1 << (181 - 128);
/// S2R, bit 186: faults are recorded as events.
const S2R: u64 = 1 << (186 - 128);
/// S2TTB, bits 247:196: `PA[51:4]`, of which the tables of a CPU have `PA[47:4]`.
const S2TTB: u64 = 0x0000_ffff_ffff_fff0;

/// IRGN0 and ORGN0 of VTCR_EL2, bits 11:8, and SH0, bits 13:12.
const WALK_ATTRIBUTES: u64 = 0x3f00;
/// Not cacheable, outer shareable.
const WALK_UNCACHED: u64 = 0b10 << 12;
/// DS and SL2 of VTCR_EL2: another format of descriptors.
const VTCR_LPA2: u64 = 1 << 32 | 1 << 33;

/// Words 1 to 3 of an entry that translates; the others, except word 0, are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation([u64; 3]);

impl Translation {
    /// The entry for a view.
    ///
    /// # Errors
    ///
    /// [`SmmuError::BadVmid`], [`SmmuError::BadView`]: the SMMU would find the entry invalid (5.2.2), or cannot reach
    /// what the stage 2 maps.
    pub fn new(view: &View, facts: &Facts) -> Result<Translation, SmmuError> {
        if facts.vmid_bits < 16 && view.vmid.0 > 0xff {
            return Err(SmmuError::BadVmid(view.vmid));
        }
        check(view, facts).map_err(SmmuError::BadView)?;
        let vtcr = match facts.coherence {
            Coherence::Coherent => view.vtcr,
            Coherence::NonCoherent => view.vtcr & !WALK_ATTRIBUTES | WALK_UNCACHED,
        };
        let incoming = if facts.overrides_types { SHCFG_INCOMING } else { 0 };
        let fwb = if view.fwb == Fwb::On { S2FWB } else { 0 };
        let stage2 = u64::from(view.vmid.0) | (vtcr & VTCR_FIELDS) << VTCR_AT | S2AA64 | S2AFFD | S2R;
        Ok(Translation([MEV | incoming | fwb, stage2, view.vttbr & S2TTB]))
    }

    /// Words 1 to 7.
    pub const fn words(self) -> [u64; 7] {
        let [attributes, stage2, root] = self.0;
        [attributes, stage2, root, 0, 0, 0, 0]
    }
}

fn check(view: &View, facts: &Facts) -> Result<(), BadView> {
    let field = |low: u32, bits: u32| (view.vtcr >> low) as u8 & !(u8::MAX << bits);
    let (t0sz, sl0, tg0, ps) = (field(0, 6), field(6, 2), field(14, 2), field(16, 3));
    // The input sizes that go with the first level of a walk, if tables are concatenated (DDI 0487, D8.2.2).
    let fits = match sl0 {
        0 => (30..=39).contains(&t0sz),
        1 => (21..=33).contains(&t0sz),
        2 => (16..=24).contains(&t0sz),
        _ => false,
    };
    // A walk from level 0 is reserved where addresses have fewer than 44 bits.
    let reserved = sl0 == 2 && facts.address_bits < 44;
    if !fits || reserved || tg0 != 0 || view.vtcr & VTCR_LPA2 != 0 {
        return Err(BadView::Vtcr(view.vtcr));
    }
    let output = address_bits(ps);
    let bits = output.max(64u8.saturating_sub(t0sz));
    if bits > facts.address_bits {
        return Err(BadView::AddressBits { view: bits, smmu: facts.address_bits });
    }
    // Tables that are concatenated are aligned to their total size. The SMMU would ignore the bits below.
    let resolved = 39u8.saturating_sub(9u8.saturating_mul(2u8.saturating_sub(sl0)));
    let first = 12u8.max(3u8.saturating_add(64u8.saturating_sub(t0sz)).saturating_sub(resolved));
    let root = view.vttbr & S2TTB;
    if root >> output != 0 || root & !(u64::MAX << first) != 0 {
        return Err(BadView::Root(Pa(root)));
    }
    if view.fwb == Fwb::On && !facts.fwb {
        return Err(BadView::Fwb);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::VmId;
    use crate::smmu::testing::facts;

    /// VTCR_EL2 with 4 KiB pages, a walk from level 1, 40 bits of input and output, write-back, inner shareable.
    const VTCR: u64 = 0x8002_3558;

    fn view() -> View {
        View { vmid: VmId(0x12), vttbr: 0x0012_0000_4567_8000, vtcr: VTCR, fwb: Fwb::Off }
    }

    fn words(view: &View, facts: &Facts) -> Result<[u64; 7], SmmuError> {
        Translation::new(view, facts).map(Translation::words)
    }

    #[test]
    fn an_entry_has_the_encoding_of_the_manual() {
        // T0SZ = 24 in bits 165:160, SL0 = 1 in 167:166, IR = OR = 1, SH = 3, TG = 0, PS = 2 in 178:176; AA64, AFFD, R.
        let expected = [1 << 19 | 1 << 44, 0x042a_3558_0000_0012, 0x4567_8000, 0, 0, 0, 0];
        assert_eq!(words(&view(), &facts()), Ok(expected));
        assert_eq!((ABORT, TRANSLATE), (0x1, 0xd));
        let plain = Facts { overrides_types: false, ..facts() };
        assert_eq!(words(&view(), &plain).unwrap()[0], 1 << 19, "SHCFG is reserved without ATTR_TYPES_OVR");
        let fwb = Facts { fwb: true, ..facts() };
        assert_eq!(words(&View { fwb: Fwb::On, ..view() }, &fwb).unwrap()[0], 1 << 19 | 1 << 44 | 1 << 25);
    }

    #[test]
    fn an_smmu_that_does_not_snoop_walks_tables_without_caches() {
        let facts = Facts { coherence: Coherence::NonCoherent, ..facts() };
        // IR = OR = 0, SH = 2.
        assert_eq!(words(&view(), &facts).unwrap()[1], 0x042a_2058_0000_0012);
    }

    #[test]
    fn a_view_that_the_smmu_cannot_translate_is_refused() {
        let bad = |change: &dyn Fn(&mut View), facts: Facts| {
            let mut view = view();
            change(&mut view);
            Translation::new(&view, &facts).unwrap_err()
        };
        let narrow = Facts { vmid_bits: 8, ..facts() };
        assert_eq!(bad(&|v| v.vmid = VmId(0x100), narrow), SmmuError::BadVmid(VmId(0x100)));
        assert!(Translation::new(&View { vmid: VmId(0xff), ..view() }, &narrow).is_ok());
        let small = Facts { address_bits: 36, ..facts() };
        let bits = SmmuError::BadView(BadView::AddressBits { view: 40, smmu: 36 });
        assert_eq!(bad(&|_| (), small), bits);
        // Output of 36 bits, but still input of 40.
        assert_eq!(bad(&|v| v.vtcr = VTCR & !(7 << 16) | 1 << 16, small), bits);
        assert_eq!(bad(&|v| v.vttbr = 1 << 40, facts()), SmmuError::BadView(BadView::Root(Pa(1 << 40))));
        // Two concatenated tables, of which the second one is the root.
        assert_eq!(bad(&|v| v.vttbr = 0x4567_9000, facts()), SmmuError::BadView(BadView::Root(Pa(0x4567_9000))));
        assert_eq!(bad(&|v| v.fwb = Fwb::On, facts()), SmmuError::BadView(BadView::Fwb));
        // A granule of 64 KiB, LPA2, a walk from a reserved level, and input sizes that do not go with the level.
        for vtcr in [VTCR | 1 << 14, VTCR | 1 << 32, VTCR | 3 << 6, VTCR & !0x3f | 34, VTCR & !0x3f | 20, VTCR & !0xff]
        {
            assert_eq!(bad(&|v| v.vtcr = vtcr, facts()), SmmuError::BadView(BadView::Vtcr(vtcr)), "{vtcr:#x}");
        }
        // 40 bits from level 0, which is for SMMUs of 44 bits or more.
        let vtcr = VTCR & !0xc0 | 2 << 6;
        assert!(Translation::new(&View { vtcr, ..view() }, &facts()).is_ok());
        let medium = Facts { address_bits: 42, ..facts() };
        assert_eq!(bad(&|v| v.vtcr = vtcr, medium), SmmuError::BadView(BadView::Vtcr(vtcr)));
    }
}
