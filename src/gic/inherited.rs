//! LPI tables that an earlier owner of the machine has left in use.
//!
//! Once GICR_CTLR.EnableLPIs has been set it may be impossible to clear (IHI 0069, 12.11.2), and then the redistributor
//! keeps the tables that it has. They can be used further if whoever made them has reserved their memory, as Linux does
//! before it starts another kernel. Where that is not so, the memory may have been given away, and LPIs of that
//! redistributor cannot be used.

use crate::mmio::Hw;
use crate::sync::{Lock, Rank};
use crate::util::range::Range;
use alloc::vec::Vec;

/// The memory that the firmware has reserved, and the tables in it that are used further.
pub struct Inherited {
    reserved: Vec<Range>,
    taken: Lock<Vec<Range>>,
}

impl Inherited {
    pub fn new(reserved: &[Range]) -> Inherited {
        Inherited { reserved: reserved.to_vec(), taken: Lock::new(Rank::Redist, Vec::new()) }
    }

    /// Whether a table lies in reserved memory and is not in use yet.
    pub fn is_free(&self, table: Range) -> bool {
        self.reserved.iter().any(|range| range.covers(table)) && !self.taken.lock().iter().any(|t| t.overlaps(table))
    }

    /// Makes a table accessible and records that it is used. `false`: it cannot be used.
    pub fn take<H: Hw>(&self, hw: &H, table: Range) -> bool {
        let free = self.is_free(table) && hw.claim(table.base, table.size as usize);
        if free {
            self.taken.lock().push(table);
        }
        free
    }

    /// The tables that are used.
    pub fn tables(&self) -> Vec<Range> {
        self.taken.lock().clone()
    }
}
