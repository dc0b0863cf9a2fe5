//! Checks of register layouts that the compiler makes.

/// Checks that fields stand where the manual's tables have them, `NAME [high:low]`, and that none overlaps another.
///
/// `register_bitfields!` takes a lowest bit and a width, so this is a second, independent copy of each table.
macro_rules! layout {
    ($bits:literal: $($register:ident { $($field:ident [$high:literal:$low:literal])* })*) => {
        $(const _: () = {
            let mut taken: u64 = 0;
            $(
                let (mask, shift) = ($register::$field.mask as u64, $register::$field.shift);
                assert!($low <= $high && $high < $bits, "a field beyond its register");
                assert!(shift == $low && mask == u64::MAX >> (63 - $high + $low), "a field is not where the manual has it");
                assert!(taken & mask << shift == 0, "two fields overlap");
                taken |= mask << shift;
            )*
            let _ = taken;
        };)*
    };
}
pub(crate) use layout;

/// Whether registers, each an offset and bytes, rise without overlap, are aligned to their size (a block: to eight bytes),
/// and end within a frame.
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
    fn registers_that_overlap_or_are_crooked_do_not_fit() {
        assert!(fits(&[(0, 4), (4, 4), (8, 8), (0x100, 0x80)], 0x180));
        assert!(!fits(&[(0, 4), (2, 4)], 0x100), "overlap");
        assert!(!fits(&[(4, 4), (0, 4)], 0x100), "order");
        assert!(!fits(&[(4, 8)], 0x100), "alignment");
        assert!(!fits(&[(0xfc, 8)], 0x100) && !fits(&[(0xf8, 16)], 0x100), "the frame ends");
    }
}
