//! RAM that belongs to a domain, as EL2 reaches it.
//!
//! EL2 runs on an identity map, so a domain's RAM is addressable by EL2; no Rust object lives there, because
//! the ranges were carved out of memory that EL2's own image, stacks and pools do not touch. The guest may change any
//! byte at any moment: everything here copies by volatile access and interprets nothing.
#![allow(unsafe_code, reason = "copies to and from memory that is no Rust object")]

use crate::ids::{Ipa, Pa};
use crate::util::range::Range;
use arrayvec::ArrayVec;

/// A stretch of a domain's RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bank {
    /// Where the domain sees it.
    pub ipa: Ipa,
    /// Where it is.
    pub pa: Pa,
    /// Its length in bytes.
    pub size: u64,
}

impl Bank {
    /// A bank that the domain sees where it is.
    #[must_use]
    pub const fn direct(range: Range) -> Bank {
        Bank { ipa: Ipa(range.base.0), pa: range.base, size: range.size }
    }
}

/// Banks at most.
pub const BANKS: usize = 8;

/// A domain's RAM banks.
pub struct GuestRam {
    banks: ArrayVec<Bank, BANKS>,
}

/// The address is not, or not wholly, the domain's RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotGuestRam(pub Ipa);

impl GuestRam {
    /// The RAM in `banks`.
    ///
    /// # Safety
    ///
    /// The banks are RAM that EL2 has mapped as Normal memory, and no Rust object of EL2 is in them for as long as this
    /// lives.
    #[must_use]
    pub unsafe fn new(banks: ArrayVec<Bank, BANKS>) -> GuestRam {
        GuestRam { banks }
    }

    /// The banks.
    #[must_use]
    pub fn banks(&self) -> &[Bank] {
        &self.banks
    }

    /// All of it, in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.banks.iter().map(|bank| bank.size).sum()
    }

    /// The physical address of `bytes` bytes of the domain's RAM at `at`, which lie in one bank.
    pub fn translate(&self, at: Ipa, bytes: usize) -> Result<Pa, NotGuestRam> {
        let (pa, left) = self.find(at).ok_or(NotGuestRam(at))?;
        if bytes as u64 <= left { Ok(pa) } else { Err(NotGuestRam(at)) }
    }

    /// Where a guest address is, and how many bytes its bank has from there on.
    fn find(&self, at: Ipa) -> Option<(Pa, u64)> {
        self.banks.iter().find_map(|bank| {
            let offset = at.0.checked_sub(bank.ipa.0).filter(|&offset| offset < bank.size)?;
            Some((Pa(bank.pa.0 + offset), bank.size - offset))
        })
    }

    /// Calls `each` with the physical stretches that `bytes` bytes at `at` are made of, and with how far into them each
    /// starts: none if not all of them are the domain's.
    pub fn for_each_piece(&self, at: Ipa, bytes: u64, mut each: impl FnMut(Range, u64)) -> Result<(), NotGuestRam> {
        for look_only in [true, false] {
            let mut done = 0;
            while done < bytes {
                let here = Ipa(at.0.checked_add(done).ok_or(NotGuestRam(at))?);
                let (pa, left) = self.find(here).ok_or(NotGuestRam(at))?;
                let size = left.min(bytes - done);
                if !look_only {
                    each(Range::new(pa, size), done);
                }
                done += size;
            }
        }
        Ok(())
    }

    /// Copies from the domain.
    pub fn read(&self, at: Ipa, into: &mut [u8]) -> Result<(), NotGuestRam> {
        self.for_each_piece(at, into.len() as u64, |piece, start| {
            let bytes = into.iter_mut().skip(start as usize).take(piece.size as usize);
            for (offset, byte) in bytes.enumerate() {
                // SAFETY: the piece lies in a bank; `new`'s caller says that banks are mapped RAM.
                *byte =
                    unsafe { core::ptr::with_exposed_provenance::<u8>(piece.base.0 as usize + offset).read_volatile() };
            }
        })
    }

    /// Copies to the domain.
    pub fn write(&self, at: Ipa, from: &[u8]) -> Result<(), NotGuestRam> {
        self.for_each_piece(at, from.len() as u64, |piece, start| {
            for (offset, byte) in from.iter().skip(start as usize).take(piece.size as usize).enumerate() {
                // SAFETY: as for `read`; no Rust object is overwritten, since none is in a bank.
                unsafe {
                    core::ptr::with_exposed_provenance_mut::<u8>(piece.base.0 as usize + offset).write_volatile(*byte);
                };
            }
        })
    }

    /// Copies `bytes` bytes of any mapped memory, such as a boot module, into the domain's RAM.
    ///
    /// # Safety
    ///
    /// `from` is mapped Normal memory that nobody writes meanwhile.
    pub unsafe fn load(&self, from: Pa, to: Ipa, bytes: usize) -> Result<(), NotGuestRam> {
        self.for_each_piece(to, bytes as u64, |piece, start| {
            // SAFETY: the source by the caller's word, the target as for `write`; `copy` minds the overlap.
            unsafe {
                core::ptr::copy(
                    core::ptr::with_exposed_provenance::<u8>(from.0 as usize + start as usize),
                    core::ptr::with_exposed_provenance_mut::<u8>(piece.base.0 as usize),
                    piece.size as usize,
                );
            }
        })
    }
}

/// Fills memory with zeroes, whatever was in it.
///
/// # Safety
///
/// `range` is mapped Normal memory that nobody else uses, and no Rust object is in it.
pub unsafe fn zero(range: Range) {
    // SAFETY: by the caller's word.
    unsafe {
        core::ptr::with_exposed_provenance_mut::<u8>(range.base.0 as usize).write_bytes(0, range.size as usize);
    }
}

/// The first bytes of `file`, as many as fit `into`.
///
/// # Safety
///
/// `file` is mapped Normal memory that nobody writes meanwhile.
pub unsafe fn peek(file: Range, into: &mut [u8]) -> &[u8] {
    let bytes = into.len().min(usize::try_from(file.size).unwrap_or(usize::MAX));
    let (head, _) = into.split_at_mut(bytes);
    // SAFETY: by the caller's word, and `bytes` is within both.
    unsafe {
        let source = core::ptr::with_exposed_provenance::<u8>(file.base.0 as usize);
        core::ptr::copy_nonoverlapping(source, head.as_mut_ptr(), bytes);
    }
    head
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bank that is a Vec of the test.
    fn ram(backing: &mut std::vec::Vec<u8>) -> (GuestRam, u64) {
        let base = backing.as_mut_ptr().expose_provenance() as u64;
        let mut banks = ArrayVec::new();
        banks.push(Bank::direct(Range::new(Pa(base), backing.len() as u64)));
        // SAFETY: the backing outlives the test and is only reached through the exposed pointer.
        (unsafe { GuestRam::new(banks) }, base)
    }

    #[test]
    fn what_is_written_is_read_back_and_nothing_beside_it() {
        let mut backing = std::vec![0u8; 64];
        let (ram, base) = ram(&mut backing);
        ram.write(Ipa(base + 8), &[1, 2, 3]).unwrap();
        let mut got = [0; 5];
        ram.read(Ipa(base + 7), &mut got).unwrap();
        assert_eq!(got, [0, 1, 2, 3, 0]);
    }

    #[test]
    fn a_stretch_that_leaves_the_ram_is_refused_whole() {
        let mut backing = std::vec![0u8; 64];
        let (ram, base) = ram(&mut backing);
        assert_eq!(ram.write(Ipa(base + 60), &[0; 5]), Err(NotGuestRam(Ipa(base + 60))));
        assert_eq!(ram.read(Ipa(base - 1), &mut [0; 2]), Err(NotGuestRam(Ipa(base - 1))));
        assert_eq!(ram.translate(Ipa(u64::MAX), 2), Err(NotGuestRam(Ipa(u64::MAX))));
    }

    /// Two halves of a Vec, swapped, and adjacent where the domain sees them.
    #[test]
    fn a_stretch_over_two_banks_is_copied_piece_by_piece() {
        let mut backing: std::vec::Vec<u8> = (0..64).collect();
        let base = backing.as_mut_ptr().expose_provenance() as u64;
        let mut banks = ArrayVec::new();
        banks.push(Bank { ipa: Ipa(0x1000), pa: Pa(base + 32), size: 32 });
        banks.push(Bank { ipa: Ipa(0x1020), pa: Pa(base), size: 32 });
        // SAFETY: as above.
        let ram = unsafe { GuestRam::new(banks) };
        let mut got = [0; 4];
        ram.read(Ipa(0x101e), &mut got).unwrap();
        assert_eq!(got, [62, 63, 0, 1]);
        ram.write(Ipa(0x101f), &[100, 101]).unwrap();
        let source = [7u8; 6];
        // SAFETY: a slice of the test.
        unsafe { ram.load(Pa(source.as_ptr().expose_provenance() as u64), Ipa(0x103a), 6).unwrap() };
        assert_eq!((backing[63], backing[0], backing[1]), (100, 101, 1));
        assert_eq!(backing[25..33], [25, 7, 7, 7, 7, 7, 7, 32]);
        assert_eq!(ram.write(Ipa(0x103f), &[0, 0]), Err(NotGuestRam(Ipa(0x103f))));
        assert_eq!(backing[31], 7, "nothing is written when not all of it is RAM");
        assert_eq!(ram.translate(Ipa(0x101f), 1), Ok(Pa(base + 63)));
        assert_eq!(ram.translate(Ipa(0x101f), 2), Err(NotGuestRam(Ipa(0x101f))));
        assert_eq!(ram.translate(Ipa(0xfff), 1), Err(NotGuestRam(Ipa(0xfff))));
        assert_eq!(ram.size(), 64);
    }
}
