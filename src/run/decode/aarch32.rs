//! What PSTATE says of a guest's program in AArch32, which is at EL0: EL1 is AArch64.
//!
//! Arm ARM (DDI 0487), C5.2.19 (SPSR_EL2 for an exception from AArch32) and F1.2 (ITSTATE).

/// M[4].
const AARCH32: u64 = 1 << 4;
/// E.
const BIG_ENDIAN: u64 = 1 << 9;
/// IT[7:2] and IT[1:0].
const IT_HIGH: u64 = 0x3f << 10;
const IT_LOW: u64 = 3 << 25;

/// Whether the exception came from AArch32.
#[must_use]
pub const fn is_aarch32(pstate: u64) -> bool {
    pstate & AARCH32 != 0
}

/// Whether data accesses in AArch32 are big-endian.
#[must_use]
pub const fn is_big_endian(pstate: u64) -> bool {
    pstate & BIG_ENDIAN != 0
}

/// Returns PSTATE in AArch32 after an instruction that EL2 has performed. In an IT block of T32 the next instruction has
/// the next condition.
#[must_use]
pub const fn after_instruction(pstate: u64) -> u64 {
    let it = (pstate & IT_HIGH) >> 8 | (pstate & IT_LOW) >> 25;
    // IT[4:0] is shifted; the block ends if nothing is left in IT[2:0].
    let next = if it & 0b111 == 0 { 0 } else { it & 0b1110_0000 | it << 1 & 0b1_1111 };
    pstate & !(IT_HIGH | IT_LOW) | (next & 0b1111_1100) << 8 | (next & 0b11) << 25
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn with_it(it: u64) -> u64 {
        0x4000_0030 | (it >> 2) << 10 | (it & 3) << 25
    }

    #[test]
    fn an_it_block_goes_on_and_ends() {
        // ITETT EQ: the conditions EQ, NE, EQ, EQ.
        let states = [0b0000_1001, 0b0001_0010, 0b0000_0100, 0b0000_1000, 0];
        for [before, after] in states.array_windows() {
            assert_eq!(after_instruction(with_it(*before)), with_it(*after), "{before:#b}");
        }
    }

    #[test]
    fn outside_of_an_it_block_pstate_stays() {
        for pstate in [0x30, 0x6000_0010, 0xf000_03f0] {
            assert_eq!(after_instruction(pstate), pstate, "{pstate:#x}");
        }
        assert!(is_aarch32(0x10) && !is_aarch32(0x3c5));
        assert!(is_big_endian(0x210) && !is_big_endian(0x10));
    }
}
