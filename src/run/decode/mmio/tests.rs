//! Tests of the decoder. The instruction words were made by an assembler from the text beside them.

use super::*;
use crate::arch::esr::Fault;

struct Regs {
    x: [u64; 31],
    sp: u64,
    big: bool,
}

impl Registers for Regs {
    fn x(&self, n: u8) -> u64 {
        self.x.get(usize::from(n)).copied().unwrap_or(0)
    }
    fn sp(&self) -> u64 {
        self.sp
    }
    fn big_endian(&self) -> bool {
        self.big
    }
}

const VA: u64 = 0xffff_8000_0900_0100;
const IPA: u64 = 0x0900_0100;

fn regs() -> Regs {
    let mut x = [0; 31];
    x[1] = 0x1111_2222_8333_8485;
    x[2] = VA;
    x[3] = 0x3333_3333_3333_3333;
    x[4] = 0x4444;
    Regs { x, sp: VA, big: false }
}

fn abort(wnr: bool) -> DataAbort {
    DataAbort {
        isv: false,
        sas: 0,
        sse: false,
        srt: 0,
        sf: false,
        ar: false,
        fnv: false,
        ea: false,
        cm: false,
        s1ptw: false,
        wnr,
        fault: Fault::Translation(3),
    }
}

/// Decodes `word` for a fault `offset` bytes from the address in X2 and SP.
fn run(word: u32, wnr: bool, offset: i64, regs: &Regs) -> Result<Plan, Refused> {
    let far = VA.wrapping_add_signed(offset);
    decode(&abort(wnr), far, Ipa(IPA.wrapping_add_signed(offset)), Some(word), regs)
}

/// Returns the register, the size in bytes and the register's value after a load of bytes whose top bits are set.
fn load(word: u32, offset: i64) -> (u8, u8, u64) {
    let plan = run(word, false, offset, &regs()).unwrap();
    assert_eq!(plan.first.at, Ipa(IPA.wrapping_add_signed(offset)), "{word:#x}");
    assert_eq!(plan.second, None);
    let Op::Read(load) = plan.first.op else { panic!("{word:#x} is a load") };
    (load.rt(), plan.first.bytes, load.value(0xffff_ffff_ffff_ff80))
}

fn store(word: u32, offset: i64) -> (u8, u64) {
    let plan = run(word, true, offset, &regs()).unwrap();
    assert_eq!(plan.first.at, Ipa(IPA.wrapping_add_signed(offset)), "{word:#x}");
    assert_eq!(plan.second, None);
    let Op::Write(value) = plan.first.op else { panic!("{word:#x} is a store") };
    (plan.first.bytes, value)
}

fn writeback(word: u32, wnr: bool, offset: i64) -> Option<(Base, i64)> {
    let (base, value) = run(word, wnr, offset, &regs()).unwrap().writeback?;
    Some((base, value.wrapping_sub(VA) as i64))
}

#[test]
fn plain_loads_zero_extend_or_sign_extend() {
    assert_eq!(load(0xb940_0041, 0), (1, 4, 0xffff_ff80), "ldr w1, [x2]");
    assert_eq!(load(0xf940_0441, 8), (1, 8, 0xffff_ffff_ffff_ff80), "ldr x1, [x2, #8]");
    assert_eq!(load(0x3940_1443, 5), (3, 1, 0x80), "ldrb w3, [x2, #5]");
    assert_eq!(load(0x39c0_0443, 1), (3, 1, 0xffff_ff80), "ldrsb w3, [x2, #1]");
    assert_eq!(load(0x3980_0443, 1), (3, 1, 0xffff_ffff_ffff_ff80), "ldrsb x3, [x2, #1]");
    assert_eq!(load(0x79c0_0443, 2), (3, 2, 0xffff_ff80), "ldrsh w3, [x2, #2]");
    assert_eq!(load(0xb980_0443, 4), (3, 4, 0xffff_ffff_ffff_ff80), "ldrsw x3, [x2, #4]");
    assert_eq!(load(0xb85f_d041, -3), (1, 4, 0xffff_ff80), "ldur w1, [x2, #-3]");
    assert_eq!(load(0xb840_4841, 4), (1, 4, 0xffff_ff80), "ldtr w1, [x2, #4]");
    assert_eq!(load(0x88df_fc41, 0), (1, 4, 0xffff_ff80), "ldar w1, [x2]");
    assert_eq!(load(0xb8bf_c041, 0), (1, 4, 0xffff_ff80), "ldapr w1, [x2]");
    assert_eq!(load(0x995f_c041, -4), (1, 4, 0xffff_ff80), "ldapur w1, [x2, #-4]");
    assert_eq!(load(0x9980_4041, 4), (1, 4, 0xffff_ffff_ffff_ff80), "ldapursw x1, [x2, #4]");
}

#[test]
fn plain_stores_write_the_low_bytes() {
    assert_eq!(store(0xf900_005f, 0), (8, 0), "str xzr, [x2]");
    assert_eq!(store(0x7900_0c44, 6), (2, 0x4444), "strh w4, [x2, #6]");
    assert_eq!(store(0xf80f_f041, 255), (8, 0x1111_2222_8333_8485), "stur x1, [x2, #255]");
    assert_eq!(store(0x3800_4841, 4), (1, 0x85), "sttrb w1, [x2, #4]");
    assert_eq!(store(0x089f_fc41, 0), (1, 0x85), "stlrb w1, [x2]");
    assert_eq!(store(0xc89f_ffe1, 0), (8, 0x1111_2222_8333_8485), "stlr x1, [sp]");
    assert_eq!(store(0xd900_8041, 8), (8, 0x1111_2222_8333_8485), "stlur x1, [x2, #8]");
}

#[test]
fn an_index_register_is_extended_and_scaled() {
    let mut r = regs();
    r.x[5] = 0xdead_beef_0000_0003;
    let at = |word, wnr, r: &Regs, offset| run(word, wnr, offset, r).map(|p| p.first.at.0 - IPA);
    assert_eq!(at(0xb865_5841, false, &r, 12), Ok(12), "ldr w1, [x2, w5, uxtw #2]");
    r.x[5] = 3;
    assert_eq!(at(0xf865_7841, false, &r, 24), Ok(24), "ldr x1, [x2, x5, lsl #3]");
    assert_eq!(at(0x7865_f841, false, &r, 6), Ok(6), "ldrh w1, [x2, x5, sxtx #1]");
    r.x[5] = 0x0000_0001_ffff_fffc;
    r.x[2] = VA + 4;
    assert_eq!(at(0xb825_c841, true, &r, 0), Ok(0), "str w1, [x2, w5, sxtw]");
}

#[test]
fn writeback_forms_change_the_base_once() {
    assert_eq!(load(0xb840_4c41, 4).1, 4);
    assert_eq!(writeback(0xb840_4c41, false, 4), Some((Base::X(2), 4)), "ldr w1, [x2, #4]!");
    assert_eq!(writeback(0xf85f_8441, false, 0), Some((Base::X(2), -8)), "ldr x1, [x2], #-8");
    assert_eq!(writeback(0xb81f_cc41, true, -4), Some((Base::X(2), -4)), "str w1, [x2, #-4]!");
    assert_eq!(writeback(0x3800_1441, true, 0), Some((Base::X(2), 1)), "strb w1, [x2], #1");
    assert_eq!(writeback(0xf801_0fe1, true, 16), Some((Base::Sp, 16)), "str x1, [sp, #16]!");
    assert_eq!(writeback(0xb880_4441, false, 0), Some((Base::X(2), 4)), "ldrsw x1, [x2], #4");
    assert_eq!(writeback(0xb940_0041, false, 0), None, "ldr w1, [x2]");
}

#[test]
fn a_pair_is_two_accesses_in_order() {
    let plan = run(0x2940_0c41, false, 0, &regs()).unwrap(); // ldp w1, w3, [x2]
    let loads: Vec<_> = plan
        .accesses()
        .map(|a| match a.op {
            Op::Read(load) => (a.at.0 - IPA, a.bytes, load.rt(), load.value(u64::MAX)),
            Op::Write(_) => panic!("a load"),
        })
        .collect();
    assert_eq!(loads, [(0, 4, 1, 0xffff_ffff), (4, 4, 3, 0xffff_ffff)]);

    let plan = run(0xa881_0fe1, true, 0, &regs()).unwrap(); // stp x1, x3, [sp], #16
    let stores: Vec<_> = plan.accesses().map(|a| (a.at.0 - IPA, a.bytes, a.op)).collect();
    let expected = [(0, 8, Op::Write(0x1111_2222_8333_8485)), (8, 8, Op::Write(0x3333_3333_3333_3333))];
    assert_eq!(stores, expected);
    assert_eq!(plan.writeback, Some((Base::Sp, VA + 16)));

    assert_eq!(writeback(0x2981_0c41, true, 8), Some((Base::X(2), 8)), "stp w1, w3, [x2, #8]!");
    assert_eq!(run(0xa97f_0c41, false, -16, &regs()).unwrap().first.at.0, IPA - 16, "ldp x1, x3, [x2, #-16]");
    assert_eq!(run(0xa841_0c41, false, 16, &regs()).unwrap().first.at.0, IPA + 16, "ldnp x1, x3, [x2, #16]");
    assert_eq!(run(0x2800_0c41, true, 0, &regs()).unwrap().first.bytes, 4, "stnp w1, w3, [x2]");
    let words = run(0x68c1_0c41, false, 0, &regs()).unwrap(); // ldpsw x1, x3, [x2], #8
    let Op::Read(first) = words.first.op else { panic!("a load") };
    assert_eq!(first.value(0x8000_0000), 0xffff_ffff_8000_0000);
    assert_eq!(words.writeback, Some((Base::X(2), VA + 8)));
}

#[test]
fn a_pair_may_fault_at_its_second_register() {
    let plan = run(0xa941_0c41, false, 24, &regs()).unwrap(); // ldp x1, x3, [x2, #16]
    assert_eq!(plan.first.at, Ipa(IPA + 16));
    assert_eq!(plan.second.unwrap().at, Ipa(IPA + 24));
}

#[test]
fn instructions_that_devices_are_not_used_with_are_refused() {
    let refused = [
        (0x885f_7c41, "ldxr"),
        (0x8803_7c41, "stxr"),
        (0xb821_0043, "ldadd"),
        (0x88a1_7c43, "cas"),
        (0xf821_8043, "swp"),
        (0x3dc0_0040, "ldr q0"),
        (0x6d40_0440, "ldp d0, d1"),
        (0xf820_0441, "ldraa"),
        (0xd50b_7422, "dc zva"),
        (0x887f_0c41, "ldxp"),
        (0x0822_7cc4, "casp"),
        (0x6900_0c41, "stgp"),
        (0x4c00_7840, "st1"),
        (0x1901_0440, "cpyfp"),
        (0xa940_0441, "ldp x1, x1: one register twice"),
        (0xa8c1_0c42, "ldp x2, x3, [x2], #16: base loaded"),
        (0xf840_8442, "ldr x2, [x2], #8: base loaded"),
        (0xf800_8442, "str x2, [x2], #8: base stored"),
        (0x0000_0000, "udf"),
        (0xffff_ffff, "unallocated"),
    ];
    for (word, name) in refused {
        for wnr in [false, true] {
            assert_eq!(run(word, wnr, 0, &regs()), Err(Refused::Unsupported), "{name}");
        }
    }
    assert_eq!(run(0xf980_0040, false, 0, &regs()), Err(Refused::NotAnAccess), "prfm");
}

#[test]
fn an_instruction_that_does_not_match_the_fault_is_executed_again() {
    let ldr = 0xb840_4c41; // ldr w1, [x2, #4]!
    assert_eq!(run(ldr, true, 4, &regs()), Err(Refused::Changed), "the fault was of a store");
    assert_eq!(run(ldr, false, 0, &regs()), Err(Refused::Changed), "the fault was in front of the access");
    assert_eq!(run(ldr, false, 8, &regs()), Err(Refused::Changed), "the fault was behind the access");
}

#[test]
fn the_tag_of_an_address_is_ignored() {
    let mut r = regs();
    r.x[2] = 0x5a00_0000_0000_0100;
    let plan = decode(&abort(false), 0x0000_0000_0000_0104, Ipa(IPA + 4), Some(0xb840_4c41), &r).unwrap();
    assert_eq!(plan.first.at, Ipa(IPA + 4));
    assert_eq!(plan.writeback, Some((Base::X(2), 0x5a00_0000_0000_0104)), "the tag stays in the register");
}

#[test]
fn accesses_that_cross_a_page_are_refused() {
    let mut r = regs();
    r.x[2] = 0x0900_0ff8;
    let ldp = 0xa940_0c41;
    assert_eq!(decode(&abort(false), 0x0900_0ff8, Ipa(0x0900_0ff8), Some(ldp), &r), Err(Refused::Unsupported));
    r.x[2] = 0x0900_0ff0;
    assert!(decode(&abort(false), 0x0900_0ff0, Ipa(0x0900_0ff0), Some(ldp), &r).is_ok());
    let word = DataAbort { isv: true, sas: 2, ..abort(false) };
    assert_eq!(decode(&word, 0xffd, Ipa(0xffd), None, &r), Err(Refused::Unsupported));
}

#[test]
fn an_access_with_valid_syndrome_needs_no_instruction() {
    let half = DataAbort { isv: true, sas: 1, sse: true, srt: 7, sf: true, ..abort(false) };
    assert!(!needs_instruction(&half) && needs_instruction(&abort(false)));
    let plan = decode(&half, VA, Ipa(IPA), None, &regs()).unwrap();
    let Op::Read(load) = plan.first.op else { panic!("a load") };
    assert_eq!((load.rt(), plan.first.bytes, load.value(0x8000)), (7, 2, 0xffff_ffff_ffff_8000));
    let zero = DataAbort { isv: true, sas: 2, srt: 31, wnr: true, ..abort(true) };
    assert_eq!(decode(&zero, VA, Ipa(IPA), None, &regs()).unwrap().first.op, Op::Write(0));
}

#[test]
fn cache_operations_and_stage_1_walks_are_not_accesses() {
    let cache = DataAbort { cm: true, ..abort(true) };
    assert_eq!(decode(&cache, VA, Ipa(IPA), None, &regs()), Err(Refused::NotAnAccess));
    let walk = DataAbort { s1ptw: true, ..abort(false) };
    assert_eq!(decode(&walk, VA, Ipa(IPA), Some(0xb940_0041), &regs()), Err(Refused::Unsupported));
    assert_eq!(decode(&abort(false), VA, Ipa(IPA), None, &regs()), Err(Refused::Unsupported), "no instruction");
}

#[test]
fn the_bytes_of_a_big_endian_guest_are_swapped() {
    let mut r = regs();
    r.big = true;
    let store = run(0x7900_0c44, true, 6, &r).unwrap(); // strh w4: 0x4444 is the same in both orders
    assert_eq!(store.first.op, Op::Write(0x4444));
    r.x[4] = 0x1234;
    assert_eq!(run(0x7900_0c44, true, 6, &r).unwrap().first.op, Op::Write(0x3412));
    let Op::Read(load) = run(0xb980_0443, false, 4, &r).unwrap().first.op else { panic!("a load") };
    assert_eq!(load.value(0x0000_0080), 0xffff_ffff_8000_0000, "ldrsw");
}

#[test]
fn every_instruction_is_refused_or_planned_within_its_page() {
    // The words are from a linear congruential generator, with bits set so that most are loads and stores.
    let mut seed = 0x2545_f491_4f6c_dd1du64;
    let mut plans = 0;
    for _ in 0..400_000 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let word = (seed >> 32) as u32 & !(1 << 26 | 1 << 25) | 1 << 27;
        for wnr in [false, true] {
            if let Ok(plan) = run(word, wnr, 0, &regs()) {
                plans += 1;
                for access in plan.accesses() {
                    assert_eq!(access.at.0 & !0xfff, IPA & !0xfff);
                    assert!((access.at.0 & 0xfff) + u64::from(access.bytes) <= 0x1000);
                }
            }
        }
    }
    assert!(plans > 1000, "{plans}");
}
