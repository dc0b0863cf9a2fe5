use super::controls::{CPTR_TTA, HCR_BASE};
use super::ids::{Field, Show, reg};
use super::table::Exposure;
use super::*;
use crate::arch::sysreg::{CPTR_EL2, HCRX_EL2, MDCR_EL2};

/// Cortex-A57 with the GIC's system registers, no PMU interrupt: an Armv8.0 CPU.
fn cortex_a57() -> IdRegs {
    let mut host = IdRegs::zero()
        .with(reg::PFR0, 0x0000_0000_0100_2222)
        .with(reg::DFR0, 0x0000_0000_1030_5106)
        .with(reg::ISAR0, 0x0000_0000_0001_1120)
        .with(reg::MMFR0, 0x0000_0000_0000_1124)
        .with(reg::ID_PFR0, 0x0000_0131)
        .with(reg::ID_PFR1, 0x1001_1011)
        .with(reg::ID_ISAR0, 0x0210_1110);
    host.midr = 0x411f_d070;
    host.event_counters = 6;
    host
}

/// A CPU with nearly all features.
fn rich() -> IdRegs {
    IdRegs::zero()
        .with(reg::PFR0, 0x1301_1111_2111_1112)
        .with(reg::PFR1, 0x0000_0010_0101_0321)
        .with(reg::ZFR0, 0x0110_1101_0012_0021)
        .with(reg::SMFR0, 0x80f1_00fd_0000_0000)
        .with(reg::DFR0, 0x0000_1110_1030_5719 | 1 << 32 | 1 << 52)
        .with(reg::ISAR0, 0x1221_1111_1021_2120)
        .with(reg::ISAR1, 0x1011_1112_1101_1052)
        .with(reg::ISAR2, 0x0000_0000_0011_0052)
        .with(reg::MMFR0, 0x2100_0322_1110_1126)
        .with(reg::MMFR1, 0x1101_1110_1131_2122)
        .with(reg::MMFR2, 0x1221_0111_0210_1011)
        .with(reg::MMFR3, 0x1000_0000_1100_1111)
}

fn guest(host: &IdRegs, r: Reg) -> u64 {
    Features::decide(host).guest_id(0, 0, r.crm, r.op2).unwrap()
}

fn field(value: u64, lsb: u8) -> u64 {
    value >> lsb & 0xf
}

#[test]
fn no_field_is_in_two_rows() {
    let all: Vec<&Field> = TABLE.iter().flat_map(|row| row.fields).collect();
    for (i, a) in all.iter().enumerate() {
        for b in &all[i + 1..] {
            assert!(a.reg != b.reg || a.mask() & b.mask() == 0, "{a:?} and {b:?}");
        }
    }
}

#[test]
fn a_hidden_row_shows_nothing_but_what_it_limits() {
    for row in TABLE.iter().filter(|row| row.exposure == Exposure::Hidden) {
        assert!(row.fields.iter().all(|f| matches!(f.show, Show::Absent | Show::AtMost(_))), "{}", row.name);
    }
    assert!(TABLE.iter().all(|row| !row.why.is_empty() && !row.fields.is_empty()));
}

#[test]
fn a_field_that_no_row_names_is_hidden() {
    let all = IdRegs::zero();
    let all = (1..=7u8)
        .flat_map(|crm| (0..=7u8).map(move |op2| Reg::new(crm, op2).unwrap()))
        .fold(all, |host, r| host.with(r, 0x7777_7777_7777_7777));
    let features = Features::decide(&all);
    let named =
        |r: Reg| -> u64 { TABLE.iter().flat_map(|row| row.fields).filter(|f| f.reg == r).fold(0, |m, f| m | f.mask()) };
    for crm in 1..=7u8 {
        for op2 in 0..=7u8 {
            let r = Reg::new(crm, op2).unwrap();
            assert_eq!(features.guest_id(0, 0, crm, op2).unwrap() & !named(r), 0, "C{crm}_{op2}");
        }
    }
    // A register of the feature space that is not allocated.
    assert_eq!(features.guest_id(0, 0, 7, 7), Some(0));
}

#[test]
fn features_that_are_not_switched_are_absent_from_the_id_registers_of_a_guest() {
    let host = rich();
    let pfr0 = guest(&host, reg::PFR0);
    assert_eq!(pfr0 & 0xff, 0x12, "AArch32 at EL0 only");
    for (lsb, name) in [(8, "EL2"), (12, "EL3"), (28, "RAS"), (32, "SVE"), (40, "MPAM"), (44, "AMU")] {
        assert_eq!(field(pfr0, lsb), 0, "{name}");
    }
    assert_eq!(field(pfr0, 24), 1, "GICv3 system registers");
    assert_eq!(field(pfr0, 56), 1, "CSV2 without SCXTNUM");
    assert_eq!(field(pfr0, 60), 1, "CSV3");
    let pfr1 = guest(&host, reg::PFR1);
    for (lsb, name) in [(8, "MTE"), (16, "MPAM"), (24, "SME"), (36, "NMI"), (44, "GCS")] {
        assert_eq!(field(pfr1, lsb), 0, "{name}");
    }
    assert_eq!((guest(&host, reg::ZFR0), guest(&host, reg::SMFR0)), (0, 0));
    let dfr0 = guest(&host, reg::DFR0);
    for (lsb, name) in [(4, "trace"), (8, "PMU"), (32, "SPE"), (40, "filter"), (44, "TRBE"), (52, "BRBE")] {
        assert_eq!(field(dfr0, lsb), 0, "{name}");
    }
    assert_eq!((field(dfr0, 12), field(dfr0, 20), field(dfr0, 36)), (1, 1, 0xf), "debug at its minimum");
    assert_eq!(field(guest(&host, reg::ISAR1), 60), 0, "LS64");
    assert_eq!(field(guest(&host, reg::ISAR2), 0), 0, "WFxT");
    assert_eq!(guest(&host, reg::MMFR3), 0x1000_0000_0000_0000);
    assert_eq!(field(guest(&host, reg::MMFR0), 0), 5, "48 bits");
    assert_eq!(field(guest(&host, reg::MMFR0), 60), 1, "ECV without CNTPOFF");
    assert_eq!(field(guest(&host, reg::MMFR2), 24), 0, "NV");
}

#[test]
fn hidden_features_trap() {
    let c = controls_for(&rich());
    assert_eq!(c.cptr, 0x33ff | CPTR_TTA | CPTR_EL2::TAM::SET.value);
    let traps = (MDCR_EL2::TDA::SET
        + MDCR_EL2::TDOSA::SET
        + MDCR_EL2::TDRA::SET
        + MDCR_EL2::TPM::SET
        + MDCR_EL2::TPMCR::SET
        + MDCR_EL2::TPMS::SET
        + MDCR_EL2::TTRF::SET)
        .value;
    assert_eq!(c.mdcr & traps, traps);
    assert_eq!(c.mdcr & (3 << 12 | 3 << 24), 0, "the buffers belong to EL2");
    let expected = (HCR_EL2::TERR::SET
        + HCR_EL2::TLOR::SET
        + HCR_EL2::TID5::SET
        + HCR_EL2::API::SET
        + HCR_EL2::APK::SET
        + HCR_EL2::FWB::SET)
        .value;
    assert_eq!(c.hcr, HCR_BASE | expected);
    assert_eq!(c.hcrx, Some((HCRX_EL2::MSCEn::SET + HCRX_EL2::TALLINT::SET).value));
    assert!(c.fine_grained && !c.fine_grained2 && c.ras && c.trace_filter && c.counter_offset);
    assert_eq!(c.mpam2, Some(3 << 48));
}

#[test]
fn controls_of_features_that_an_armv8_0_cpu_lacks_are_not_set() {
    let features = Features::decide(&cortex_a57());
    let c = features.controls;
    assert_eq!(c.hcr, HCR_BASE);
    assert_eq!(c.hcr & HCR_EL2::TWI::SET.value, 0, "TWI is set by the scheduler");
    assert_eq!(c.hcrx, None);
    assert!(!c.fine_grained && !c.ras && !c.trace_filter && !c.counter_offset);
    assert_eq!(c.mpam2, None);
    assert_eq!(
        c.mdcr,
        (MDCR_EL2::TDA::SET + MDCR_EL2::TDOSA::SET + MDCR_EL2::TDRA::SET + MDCR_EL2::TPM::SET + MDCR_EL2::TPMCR::SET)
            .value
            | 6
    );
    assert_eq!(c.vpidr, 0x411f_d070);
    assert!(!features.pauth());
    let expected = Stage2Params { pa_bits: 44, pa_range: 4, fwb: false, vmid16: false, xnx: false };
    assert_eq!(features.stage2(), expected);
    assert_eq!(guest(&cortex_a57(), reg::PFR0), 0x0100_0012);
    assert_eq!(guest(&cortex_a57(), reg::DFR0), 0xf0_0010_1006);
    assert_eq!(guest(&cortex_a57(), reg::ID_ISAR0), 0x0210_1110);
    assert_eq!(guest(&cortex_a57(), reg::ID_PFR1), 0x0001_0000, "no AArch32 above EL0");
}

#[test]
fn the_aarch32_id_registers_of_a_cpu_without_aarch32_read_as_zero() {
    let host = cortex_a57();
    let host = host.with(reg::PFR0, host.get(reg::PFR0) & !0xff | 0x11);
    assert_eq!(guest(&host, reg::ID_ISAR0), 0);
    assert_eq!(guest(&host, reg::ID_PFR0), 0);
    assert_eq!(guest(&host, reg::MMFR0), host.get(reg::MMFR0));
}

#[test]
fn an_id_register_that_a_guest_does_not_have_is_undefined() {
    let mut host = rich();
    (host.revidr, host.aidr) = (7, 9);
    let features = Features::decide(&host);
    assert_eq!(features.guest_id(0, 0, 0, 6), Some(7), "REVIDR");
    assert_eq!(features.guest_id(1, 0, 0, 7), Some(9), "AIDR");
    assert_eq!(features.guest_id(1, 0, 0, 4), None, "GMID");
    assert_eq!(features.guest_id(1, 0, 0, 6), None, "SMIDR");
    assert_eq!(features.guest_id(0, 0, 8, 0), None);
    assert_eq!(features.guest_id(0, 1, 4, 0), None);
    assert_eq!(features.guest_id(255, 255, 255, 255), None);
}

#[test]
fn a_feature_that_a_second_cpu_lacks_is_hidden() {
    let mut features = Features::decide(&rich());
    assert!(features.pauth());
    features.restrict(&cortex_a57());
    assert!(!features.pauth());
    assert_eq!(features.guest_id(0, 0, 6, 1), Some(0));
    assert_eq!(features.stage2().pa_bits, 44);
}

#[test]
fn each_cpu_sets_all_its_traps_but_only_the_enables_that_all_cpus_have() {
    let (big, little) = (qemu_max(), cortex_a57());
    let mut features = Features::decide(&big);
    assert_eq!(features.controls_on(&big), features.controls);
    features.restrict(&little);
    let on_big = features.controls_on(&big);
    assert_eq!(on_big.hcr & ((HCR_EL2::APK::SET + HCR_EL2::API::SET + HCR_EL2::FWB::SET).value), 0);
    assert_eq!(
        on_big.hcr & ((HCR_EL2::TERR::SET + HCR_EL2::TLOR::SET).value),
        (HCR_EL2::TERR::SET + HCR_EL2::TLOR::SET).value
    );
    assert_eq!(on_big.hcrx, Some(HCRX_EL2::TALLINT::SET.value), "no MOPS on the little ones");
    assert!(on_big.fine_grained && on_big.ras);
    assert_eq!(features.controls_on(&little), controls_for(&little));
}

#[test]
fn a_cpu_with_more_features_than_the_others_changes_nothing_for_guests() {
    let little = Features::decide(&cortex_a57());
    let mut both = little;
    both.restrict(&cortex_a57());
    assert!(both.offers_same_as(&little));
    let mut more = Features::decide(&qemu_max());
    more.restrict(&qemu_neoverse_v1());
    assert!(!more.offers_same_as(&Features::decide(&qemu_max())));
    assert!(!more.offers_same_as(&little));
    // A smaller physical address range alone is a difference, since stage 2 depends on it.
    let small = qemu_neoverse_v1().with(reg::MMFR0, 0x0000_0000_0010_1122);
    let mut restricted = Features::decide(&qemu_neoverse_v1());
    restricted.restrict(&small);
    assert!(!restricted.offers_same_as(&Features::decide(&qemu_neoverse_v1())));
}

#[test]
fn a_cpu_that_cannot_run_doorward_is_refused_with_a_reason() {
    assert_eq!(Features::refusal(&cortex_a57()), None);
    assert!(Features::refusal(&cortex_a57().with(reg::MMFR4, 0xe << 24)).is_some());
    assert!(Features::refusal(&cortex_a57().with(reg::MMFR0, 0xf000_1124)).is_some());
    assert!(Features::refusal(&cortex_a57().with(reg::PFR0, 0x2222)).is_some());
}

#[test]
fn vmpidr_has_its_res1_bit_set() {
    assert_eq!(vmpidr(Mpidr(0x1_0002_0003)), 0x1_8002_0003);
}

/// `-cpu max` of QEMU 10.0.2, as read at EL2.
fn qemu_max() -> IdRegs {
    IdRegs::zero()
        .with(reg::PFR0, 0x1301_0011_2111_0222)
        .with(reg::PFR1, 0x0000_0010_0100_0121)
        .with(reg::ZFR0, 0x0110_1101_0021_0021)
        .with(reg::SMFR0, 0x80f1_00fd_0000_0000)
        .with(reg::DFR0, 0x1000_0000_1030_560a)
        .with(reg::ISAR0, 0x1221_1111_1021_2120)
        .with(reg::ISAR1, 0x0111_2111_1021_1502)
        .with(reg::ISAR2, 0x0000_0000_0011_0012)
        .with(reg::MMFR0, 0x2100_0323_1020_1126)
        .with(reg::MMFR1, 0x0110_1120_1031_2122)
        .with(reg::MMFR2, 0x1221_0111_1201_1011)
        .with(reg::MMFR3, 0x1000_0000_0000_0000)
}

/// `-cpu neoverse-v1` of QEMU 10.0.2, as read at EL2.
fn qemu_neoverse_v1() -> IdRegs {
    IdRegs::zero()
        .with(reg::PFR0, 0x1101_0001_2111_0112)
        .with(reg::PFR1, 0x0000_0000_0000_0020)
        .with(reg::ZFR0, 0x0000_1000_0010_0000)
        .with(reg::DFR0, 0x0000_00f0_1030_5509)
        .with(reg::ISAR0, 0x1011_1111_1021_2120)
        .with(reg::ISAR1, 0x0011_1000_1021_1302)
        .with(reg::MMFR0, 0x0000_0000_0010_1125)
        .with(reg::MMFR1, 0x0000_0000_1021_2122)
        .with(reg::MMFR2, 0x0220_0111_0210_1011)
}

#[test]
fn the_id_registers_on_qemu_max_are_those_worked_out_by_hand() {
    let host = qemu_max();
    let expected = [
        (reg::PFR0, 0x1101_0000_0111_0012),
        (reg::PFR1, 0x0000_0000_0000_0021),
        (reg::ZFR0, 0),
        (reg::SMFR0, 0),
        (reg::DFR0, 0x0000_00f0_0010_1009),
        (reg::ISAR0, 0x1221_1111_1021_2120),
        (reg::ISAR1, 0x0111_2111_1021_1502),
        (reg::ISAR2, 0x0000_0000_0011_0010),
        (reg::MMFR0, 0x1000_0000_1020_1125),
        (reg::MMFR1, 0x0110_1020_0030_2002),
        (reg::MMFR2, 0x1021_0011_1001_0011),
        (reg::MMFR3, 0x1000_0000_0000_0000),
    ];
    for (r, value) in expected {
        assert_eq!(guest(&host, r), value, "{r:?}: {:#x}", guest(&host, r));
    }
    let c = controls_for(&host);
    let more =
        (HCR_EL2::TERR::SET + HCR_EL2::TLOR::SET + HCR_EL2::API::SET + HCR_EL2::APK::SET + HCR_EL2::FWB::SET).value;
    assert_eq!(c.hcr, HCR_BASE | more);
    assert_eq!(c.hcrx, Some((HCRX_EL2::MSCEn::SET + HCRX_EL2::TALLINT::SET).value));
    assert!(c.fine_grained && c.counter_offset && !c.fine_grained2);
    assert_eq!(Features::refusal(&host), None);
}

#[test]
fn the_id_registers_on_qemu_neoverse_v1_are_those_worked_out_by_hand() {
    let host = qemu_neoverse_v1();
    let expected = [
        (reg::PFR0, 0x1101_0000_0111_0012),
        (reg::PFR1, 0x0000_0000_0000_0020),
        (reg::ZFR0, 0),
        (reg::DFR0, 0x0000_00f0_0010_1009),
        (reg::ISAR0, 0x1011_1111_1021_2120),
        (reg::ISAR1, 0x0011_1000_1021_1302),
        (reg::MMFR0, 0x0000_0000_0010_1125),
        (reg::MMFR1, 0x0000_0000_0020_2002),
        (reg::MMFR2, 0x0020_0011_0010_0011),
    ];
    for (r, value) in expected {
        assert_eq!(guest(&host, r), value, "{r:?}: {:#x}", guest(&host, r));
    }
    let c = controls_for(&host);
    assert_eq!(
        c.hcr,
        HCR_BASE
            | (HCR_EL2::TERR::SET + HCR_EL2::TLOR::SET + HCR_EL2::API::SET + HCR_EL2::APK::SET + HCR_EL2::FWB::SET)
                .value
    );
    assert_eq!((c.hcrx, c.fine_grained), (None, false));
    let expected = Stage2Params { pa_bits: 48, pa_range: 5, fwb: true, vmid16: true, xnx: true };
    assert_eq!(Features::decide(&host).stage2(), expected);
}
