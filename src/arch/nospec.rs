//! Numbers that guests choose, as an index of a table or an offset in memory.
//!
//! A CPU may predict that a bounds check succeeds, load with the number that failed it, and load again at an address
//! that depends on what it found: then the caches tell the guest what lies behind the table (Spectre v1, CVE-2017-5753).
//! [`below`], [`get`] and [`get_mut`] check the number, and make it 0 on such a path, by a conditional select and CSDB
//! (DDI 0487, C6.2, CSDB). That takes three instructions more than the check alone.
//!
//! They are for numbers that a guest chooses freely and whose look-up is followed by another access that depends on the
//! result, at the place where the guest's number is first looked up: guest addresses, INTIDs, vCPUs, DeviceIDs, EventIDs,
//! collections. A number that was found by a search, that is masked to the size of its table, or whose look-up ends in a
//! register of the guest, needs none of this.

use super::asm::asm;

/// Returns `value` if it is below `limit`, and 0 otherwise, also while the CPU executes speculatively.
#[inline(always)]
fn clamp(value: u64, limit: u64) -> u64 {
    if !cfg!(target_os = "none") {
        return if value < limit { value } else { 0 };
    }
    let clamped: u64;
    // SAFETY: it computes in registers.
    unsafe {
        asm!("cmp {v}, {n}", "csel {o}, {v}, xzr, lo\nhint #20",
            v = in(reg) value, n = in(reg) limit, o = out(reg) clamped, options(nomem, nostack))
    };
    clamped
}

/// Returns `value`, which a guest chose, if it is below `limit`.
#[inline(always)]
#[must_use]
pub fn below(value: u64, limit: u64) -> Option<u64> {
    if value < limit { Some(clamp(value, limit)) } else { None }
}

/// Returns the element at `index`, which a guest chose, or `None` if there is none.
#[inline(always)]
#[must_use]
pub fn get<T>(slice: &[T], index: usize) -> Option<&T> {
    let index = below(index as u64, slice.len() as u64)?;
    // SAFETY: `below` returns numbers below the length.
    Some(unsafe { slice.get_unchecked(index as usize) })
}

/// Returns the element at `index`, which a guest chose, for writing, or `None` if there is none.
#[inline(always)]
#[must_use]
pub fn get_mut<T>(slice: &mut [T], index: usize) -> Option<&mut T> {
    let index = below(index as u64, slice.len() as u64)?;
    // SAFETY: as in `get`.
    Some(unsafe { slice.get_unchecked_mut(index as usize) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_element_is_found_exactly_if_its_index_is_in_range() {
        let mut table = [10, 11, 12];
        assert_eq!(
            [0, 1, 2, 3, usize::MAX].map(|index| get(&table, index).copied()),
            [Some(10), Some(11), Some(12), None, None]
        );
        *get_mut(&mut table, 1).unwrap() = 7;
        assert_eq!(table, [10, 7, 12]);
        assert_eq!(get_mut(&mut table, 3), None);
        assert_eq!(get::<u8>(&[], 0), None);
    }

    #[test]
    fn a_number_out_of_range_is_clamped_to_0() {
        assert_eq!([0, 4, 5, u64::MAX].map(|value| clamp(value, 5)), [0, 4, 0, 0]);
        assert_eq!([0, 4, 5, u64::MAX].map(|value| below(value, 5)), [Some(0), Some(4), None, None]);
        assert_eq!(below(0, 0), None);
    }
}
