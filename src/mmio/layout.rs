//! Compile-time checks of register layouts.

/// Checks that fields are at the positions in the manual's tables, `NAME [high:low]`, and do not overlap.
///
/// `register_bitfields!` takes the lowest bit and the width of a field, so this is a second, independent copy of each
/// table.
macro_rules! layout {
    ($bits:literal: $($register:ident { $($field:ident [$high:literal:$low:literal])* })*) => {
        $(const _: () = {
            let mut taken: u64 = 0;
            $(
                let (mask, shift) = ($register::$field.mask as u64, $register::$field.shift);
                assert!($low <= $high && $high < $bits, "a field exceeds its register");
                assert!(shift == $low && mask == u64::MAX >> (63 - $high + $low), "a field is not where the manual has it");
                assert!(taken & mask << shift == 0, "two fields overlap");
                taken |= mask << shift;
            )*
            let _ = taken;
        };)*
    };
}
pub(crate) use layout;

/// Whether registers, each an offset and a size in bytes, are in ascending order, do not overlap, are aligned to their
/// size (at most to eight bytes), and lie within a frame of `frame` bytes.
#[must_use]
pub const fn fits(registers: &[(u64, u64)], frame: u64) -> bool {
    let (mut n, mut end) = (0, 0);
    while n < registers.len() {
        let (at, bytes) = registers[n];
        let align = if bytes < 8 { bytes } else { 8 };
        if at < end || !at.is_multiple_of(align) {
            return false;
        }
        (n, end) = (n + 1, at + bytes);
    }
    end <= frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_unordered_misaligned_or_too_high_registers_do_not_fit() {
        assert!(fits(&[(0, 4), (4, 4), (8, 8), (0x100, 0x80)], 0x180));
        assert!(!fits(&[(0, 4), (2, 4)], 0x100), "overlap");
        assert!(!fits(&[(4, 4), (0, 4)], 0x100), "order");
        assert!(!fits(&[(4, 8)], 0x100), "alignment");
        assert!(!fits(&[(0xfc, 8)], 0x100) && !fits(&[(0xf8, 16)], 0x100), "the frame ends");
    }
}
