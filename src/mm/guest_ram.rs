//! RAM that belongs to a domain, as EL2 reaches it.
//!
//! EL2 runs on an identity map, so a domain's RAM is addressable by EL2; no Rust object lives there, because
//! the ranges were carved out of memory that EL2's own image, stacks and pools do not touch. The guest may change any
//! byte at any moment: everything here copies by volatile access and interprets nothing.
#![allow(unsafe_code, reason = "copies to and from memory that is no Rust object")]

use crate::ids::{Ipa, Pa};
use crate::platform::Range;
use arrayvec::ArrayVec;

/// A domain's RAM banks. The domain is direct-mapped: an IPA is the PA.
pub struct GuestRam {
    banks: ArrayVec<Range, 8>,
}

/// The address is not, or not wholly, the domain's RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotGuestRam(pub Ipa);

impl GuestRam {
    /// The RAM in `banks`.
    ///
    /// # Safety
    ///
    /// The banks are RAM that EL2 has mapped as Normal memory, and no Rust object of EL2 is in them, now or
    /// later.
    #[must_use]
    pub unsafe fn new(banks: ArrayVec<Range, 8>) -> GuestRam {
        GuestRam { banks }
    }

    /// The banks.
    #[must_use]
    pub fn banks(&self) -> &[Range] {
        &self.banks
    }

    /// The physical address of `bytes` bytes of the domain's RAM at `at`.
    pub fn translate(&self, at: Ipa, bytes: usize) -> Result<Pa, NotGuestRam> {
        let wanted = Range::new(Pa(at.0), bytes as u64);
        let inside = self.banks.iter().any(|bank| bank.covers(wanted));
        if inside && at.0.checked_add(bytes as u64).is_some() { Ok(Pa(at.0)) } else { Err(NotGuestRam(at)) }
    }

    /// Copies from the domain.
    pub fn read(&self, at: Ipa, into: &mut [u8]) -> Result<(), NotGuestRam> {
        if into.is_empty() {
            return Ok(());
        }
        let pa = self.translate(at, into.len())?;
        for (offset, byte) in into.iter_mut().enumerate() {
            // SAFETY: `translate` found the byte inside a bank; `new`'s caller says that banks are mapped RAM.
            *byte = unsafe { core::ptr::with_exposed_provenance::<u8>(pa.0 as usize + offset).read_volatile() };
        }
        Ok(())
    }

    /// Copies to the domain.
    pub fn write(&self, at: Ipa, from: &[u8]) -> Result<(), NotGuestRam> {
        if from.is_empty() {
            return Ok(());
        }
        let pa = self.translate(at, from.len())?;
        for (offset, byte) in from.iter().enumerate() {
            // SAFETY: as for `read`; no Rust object is overwritten, since none is in a bank.
            unsafe { core::ptr::with_exposed_provenance_mut::<u8>(pa.0 as usize + offset).write_volatile(*byte) };
        }
        Ok(())
    }

    /// Copies `bytes` bytes of any mapped memory, such as a boot module, into the domain's RAM.
    ///
    /// # Safety
    ///
    /// `from` is mapped Normal memory that nobody writes meanwhile.
    pub unsafe fn load(&self, from: Pa, to: Ipa, bytes: usize) -> Result<(), NotGuestRam> {
        let target = self.translate(to, bytes)?;
        // SAFETY: the source by the caller's word, the target as for `write`; `copy` minds the overlap.
        unsafe {
            core::ptr::copy(
                core::ptr::with_exposed_provenance::<u8>(from.0 as usize),
                core::ptr::with_exposed_provenance_mut::<u8>(target.0 as usize),
                bytes,
            );
        }
        Ok(())
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
        banks.push(Range::new(Pa(base), backing.len() as u64));
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
}
