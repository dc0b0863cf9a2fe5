//! Stage 2 tables of the 4 KiB granule, and walks of them (Armv8-A, D8; IHI 0070, 3.4).

use crate::machine::State;
use crate::memory::{Snoop, Trouble};
use crate::ste::Stage2;

/// The bit of an address below which an entry of a level translates it.
pub(crate) fn shift(level: u8) -> u32 {
    12 + 9 * (3 - u32::from(level))
}

/// A descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Descriptor {
    Invalid,
    /// The next level's table.
    Table(u64),
    /// A block or page.
    Leaf(u64),
}

const OUTPUT: u64 = 0x0000_ffff_ffff_f000;
const ACCESSED: u64 = 1 << 10;
/// nT of a block.
pub(crate) const NT: u64 = 1 << 16;

/// Decodes the descriptor of a level.
pub(crate) fn decode(word: u64, level: u8) -> Descriptor {
    match (word & 3, level) {
        (3, 3) | (1, 1 | 2) => Descriptor::Leaf(word & OUTPUT & !((1 << shift(level)) - 1)),
        (3, 0..=2) => Descriptor::Table(word & OUTPUT),
        _ => Descriptor::Invalid,
    }
}

/// The translation of a block or page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Leaf {
    /// First input address.
    pub(crate) first: u64,
    pub(crate) level: u8,
    /// Output address of the first input address.
    pub(crate) output: u64,
    pub(crate) word: u64,
}

impl Leaf {
    pub(crate) fn size(&self) -> u64 {
        1 << shift(self.level)
    }

    pub(crate) fn covers(&self, address: u64) -> bool {
        address >= self.first && address - self.first < self.size()
    }

    pub(crate) fn overlaps(&self, first: u64, size: u64) -> bool {
        self.first < first.saturating_add(size) && first < self.first + self.size()
    }

    pub(crate) fn output_of(&self, address: u64) -> u64 {
        self.output + (address - self.first)
    }

    pub(crate) fn accessed(&self) -> bool {
        self.word & ACCESSED != 0
    }

    /// Whether S2AP allows an access.
    pub(crate) fn allows(&self, write: bool) -> bool {
        self.word >> 6 & if write { 2 } else { 1 } != 0
    }

    /// Memory attributes: MemAttr and SH.
    pub(crate) fn attributes(&self) -> u64 {
        self.word & (0xf << 2 | 3 << 8)
    }
}

/// A table, and what it translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) at: u64,
    pub(crate) level: u8,
    /// Input address of the first entry.
    pub(crate) first: u64,
    /// Number of entries.
    pub(crate) entries: u64,
}

impl Place {
    /// The table at which walks start.
    pub(crate) fn root(stage2: &Stage2) -> Place {
        Place { at: stage2.table, level: stage2.level, first: 0, entries: stage2.entries() }
    }

    /// The table that an entry points to.
    pub(crate) fn below(&self, entry: u64, at: u64) -> Place {
        Place { at, level: self.level + 1, first: self.first + (entry << shift(self.level)), entries: 512 }
    }

    /// The block or page of an entry.
    pub(crate) fn leaf(&self, entry: u64, word: u64, output: u64) -> Leaf {
        Leaf { first: self.first + (entry << shift(self.level)), level: self.level, output, word }
    }

    /// Number of input addresses that the table translates.
    pub(crate) fn span(&self) -> u64 {
        self.entries << shift(self.level)
    }

    pub(crate) fn overlaps(&self, first: u64, size: u64) -> bool {
        self.first < first.saturating_add(size) && first < self.first + self.span()
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.entries * 8
    }
}

/// Why a walk ends without a translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WalkFault {
    Translation,
    AddressSize,
    Access,
    /// The fetch of the descriptor at this address was aborted.
    Abort(u64),
}

impl State {
    /// How walks of these tables relate to caches.
    pub(crate) fn walk_snoop(&self, stage2: &Stage2) -> Snoop {
        let (inner, outer, shareable) = stage2.attributes;
        self.attributes(inner, outer, shareable)
    }

    /// Walks tables, from `place` on.
    pub(crate) fn walk(&mut self, stage2: &Stage2, mut place: Place, address: u64) -> Result<Leaf, WalkFault> {
        let snoop = self.walk_snoop(stage2);
        loop {
            let entry = (address - place.first) >> shift(place.level);
            let at = place.at + entry * 8;
            let (word, trouble) = self.mem.device_read64(at, snoop);
            if std::mem::take(&mut self.faults.walk_aborts) {
                return Err(WalkFault::Abort(at));
            }
            if trouble == Some(Trouble::NotAllocated) {
                self.flag("3.21.1", format!("walk of a stage 2 table at {:#x}, which is not allocated", place.at));
                return Err(WalkFault::Abort(at));
            }
            match decode(word, place.level) {
                Descriptor::Invalid => return Err(WalkFault::Translation),
                Descriptor::Table(next) if next >> stage2.output_bits.min(48) != 0 => {
                    return Err(WalkFault::AddressSize);
                }
                Descriptor::Table(next) => place = place.below(entry, next),
                Descriptor::Leaf(output) if output >> stage2.output_bits.min(48) != 0 => {
                    return Err(WalkFault::AddressSize);
                }
                Descriptor::Leaf(output) => {
                    let leaf = place.leaf(entry, word, output);
                    if !leaf.accessed() && !stage2.no_access_faults {
                        return Err(WalkFault::Access);
                    }
                    return Ok(leaf);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_have_the_encodings_of_the_manual() {
        assert_eq!(decode(0x4000_07ff, 3), Descriptor::Leaf(0x4000_0000));
        assert_eq!(decode(0x4020_07fd, 2), Descriptor::Leaf(0x4020_0000));
        assert_eq!(decode(0x4000_07fd, 1), Descriptor::Leaf(0x4000_0000));
        assert_eq!(decode(0x4000_1003, 2), Descriptor::Table(0x4000_1000));
        assert_eq!(decode(0x4000_1001, 3), Descriptor::Invalid);
        assert_eq!(decode(0x4000_1001, 0), Descriptor::Invalid);
        assert_eq!(decode(0x4000_1002, 2), Descriptor::Invalid);
    }

    #[test]
    fn s2ap_has_a_bit_for_reads_and_one_for_writes() {
        let leaf = |s2ap: u64| Leaf { first: 0, level: 3, output: 0, word: s2ap << 6 };
        let allows = |s2ap| (leaf(s2ap).allows(false), leaf(s2ap).allows(true));
        assert_eq!([0, 1, 2, 3].map(allows), [(false, false), (true, false), (false, true), (true, true)]);
    }
}
