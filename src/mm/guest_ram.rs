//! RAM that belongs to domains, as EL2 accesses it.
//!
//! EL2 runs on an identity map, so it can address a domain's RAM. No Rust object lies there: [`init`] records which memory is RAM and
//! what of it EL2 uses itself, and everything here checks its ranges against that. The guest may change any byte at any time, so
//! the contents are copied and never referenced.
#![allow(unsafe_code, reason = "copies to and from memory that holds no Rust object")]

use crate::arch::{cache, nospec};
use crate::ids::{Ipa, Pa};
use crate::platform::Machine;
use crate::sync::{Once, set_once};
use crate::util::range::Range;
use arrayvec::ArrayVec;

/// The memory that guests may be given.
struct Limits {
    machine: &'static Machine,
    own: ArrayVec<Range, 4>,
}

static LIMITS: Once<Limits> = Once::new();

/// Records the machine's RAM, and the ranges of it that EL2 uses itself: image, pool and device tree.
///
/// # Safety
///
/// All RAM of `machine` that is not reserved, and all its boot modules, are mapped as Normal memory. No Rust object lies in any of it
/// outside `own`.
///
/// # Panics
///
/// The second time.
pub unsafe fn init(machine: &'static Machine, own: [Range; 3]) {
    let own = own.into_iter().collect();
    assert!(set_once(&LIMITS, Limits { machine, own }).is_ok(), "guest RAM is initialised twice");
}

/// The range is not RAM, or EL2 or the firmware uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotFreeRam(pub Range);

impl core::fmt::Display for NotFreeRam {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{} is not RAM, or EL2 or the firmware uses it", self.0)
    }
}

/// Checks that a range lies in RAM that neither EL2 nor the firmware uses.
fn check(range: Range) -> Result<(), NotFreeRam> {
    let limits = LIMITS.get().ok_or(NotFreeRam(range))?;
    let machine = limits.machine;
    let is_ram = machine.memory.iter().any(|bank| bank.covers(range));
    let is_used = machine.reserved.iter().chain(&limits.own).any(|used| used.overlaps(range));
    if is_ram && !is_used { Ok(()) } else { Err(NotFreeRam(range)) }
}

/// Checks that a range lies in a boot module. EL2 maps modules even where the firmware has reserved them.
fn check_module(range: Range) -> Result<(), NotFreeRam> {
    let limits = LIMITS.get().ok_or(NotFreeRam(range))?;
    let is_module = limits.machine.all_modules().any(|module| module.range.covers(range));
    let is_own = limits.own.iter().any(|used| used.overlaps(range));
    if is_module && !is_own { Ok(()) } else { Err(NotFreeRam(range)) }
}

/// A range of a domain's RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bank {
    /// The guest-physical address.
    pub ipa: Ipa,
    /// The physical address.
    pub pa: Pa,
    /// The size in bytes.
    pub size: u64,
}

impl Bank {
    /// A bank whose guest-physical addresses equal its physical ones.
    #[must_use]
    pub const fn direct(range: Range) -> Bank {
        Bank { ipa: Ipa(range.base.0), pa: range.base, size: range.size }
    }
}

/// The largest number of banks of a domain.
pub const BANKS: usize = 8;

/// The number of bytes that may be zeroed or copied in one step of work that must not keep a CPU for long. Zeroing them
/// takes EL2 60,000 instructions, copying them 76,000.
pub const PIECE: u64 = 128 << 10;

/// The number of bytes that are copied in one access.
const WORD: usize = size_of::<u64>();

/// The RAM of a domain.
pub struct GuestRam {
    banks: ArrayVec<Bank, BANKS>,
}

/// The error of an access that is not wholly in the domain's RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotGuestRam(pub Ipa);

impl GuestRam {
    /// The RAM in `banks`.
    ///
    /// # Errors
    ///
    /// [`NotFreeRam`] for the first bank that is not RAM, or that EL2 or the firmware uses.
    pub fn new(banks: ArrayVec<Bank, BANKS>) -> Result<GuestRam, NotFreeRam> {
        banks.iter().try_for_each(|bank| check(Range::new(bank.pa, bank.size)))?;
        Ok(GuestRam { banks })
    }

    /// Returns the banks.
    #[must_use]
    pub fn banks(&self) -> &[Bank] {
        &self.banks
    }

    /// Returns the size of the RAM in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.banks.iter().map(|bank| bank.size).sum()
    }

    /// Returns the physical address of `bytes` bytes of the domain's RAM at `at`, which must lie in one bank.
    pub fn translate(&self, at: Ipa, bytes: usize) -> Result<Pa, NotGuestRam> {
        let (pa, left) = self.find(at).ok_or(NotGuestRam(at))?;
        if bytes as u64 <= left { Ok(pa) } else { Err(NotGuestRam(at)) }
    }

    /// Returns the physical address of a guest address, and the number of bytes from there to the end of its bank.
    fn find(&self, at: Ipa) -> Option<(Pa, u64)> {
        self.banks.iter().find_map(|bank| {
            // The guest chooses the address, and what is found there may be used for further look-ups.
            let offset = nospec::below(at.0.checked_sub(bank.ipa.0)?, bank.size)?;
            Some((Pa(bank.pa.0 + offset), bank.size - offset))
        })
    }

    /// Calls `each` with the physical ranges of `bytes` bytes at `at`, and with the offset of each range in them. If
    /// not all of the bytes are the domain's RAM, `each` is not called.
    pub fn for_each_piece(&self, at: Ipa, bytes: u64, mut each: impl FnMut(Range, u64)) -> Result<(), NotGuestRam> {
        for check_only in [true, false] {
            let mut done = 0;
            while done < bytes {
                let here = Ipa(at.0.checked_add(done).ok_or(NotGuestRam(at))?);
                let (pa, left) = self.find(here).ok_or(NotGuestRam(at))?;
                let size = left.min(bytes - done);
                if !check_only {
                    each(Range::new(pa, size), done);
                }
                done += size;
            }
        }
        Ok(())
    }

    /// Copies from the domain's RAM.
    pub fn read(&self, at: Ipa, into: &mut [u8]) -> Result<(), NotGuestRam> {
        self.for_each_piece(at, into.len() as u64, |piece, start| {
            let into = into.get_mut(start as usize..).unwrap_or_default();
            let into = into.get_mut(..piece.size as usize).unwrap_or_default();
            let mut at = piece.base.0 as usize;
            let (head, rest) = into.split_at_mut((at.wrapping_neg() % WORD).min(into.len()));
            let mut words = rest.chunks_exact_mut(WORD);
            let bytes = |into: &mut [u8], at: &mut usize| {
                for byte in into {
                    // SAFETY: the piece lies in a bank, and the caller of `new` guarantees that banks are mapped RAM.
                    *byte = unsafe { core::ptr::with_exposed_provenance::<u8>(*at).read_volatile() };
                    *at += 1;
                }
            };
            bytes(head, &mut at);
            for word in &mut words {
                // SAFETY: as above; `at` is aligned.
                let value = unsafe { core::ptr::with_exposed_provenance::<u64>(at).read_volatile() };
                word.copy_from_slice(&value.to_ne_bytes());
                at += WORD;
            }
            bytes(words.into_remainder(), &mut at);
        })
    }

    /// Copies to the domain's RAM.
    pub fn write(&self, at: Ipa, from: &[u8]) -> Result<(), NotGuestRam> {
        self.for_each_piece(at, from.len() as u64, |piece, start| {
            let from = from.get(start as usize..).unwrap_or_default();
            let from = from.get(..piece.size as usize).unwrap_or_default();
            let mut at = piece.base.0 as usize;
            let (head, rest) = from.split_at((at.wrapping_neg() % WORD).min(from.len()));
            let (words, tail) = rest.as_chunks::<WORD>();
            let bytes = |from: &[u8], at: &mut usize| {
                for byte in from {
                    // SAFETY: as for `read`; the caller of `new` guarantees that no Rust object is in a bank.
                    unsafe { core::ptr::with_exposed_provenance_mut::<u8>(*at).write_volatile(*byte) };
                    *at += 1;
                }
            };
            bytes(head, &mut at);
            for word in words {
                // SAFETY: as above; `at` is aligned.
                unsafe {
                    core::ptr::with_exposed_provenance_mut::<u64>(at).write_volatile(u64::from_ne_bytes(*word));
                };
                at += WORD;
            }
            bytes(tail, &mut at);
        })
    }

    /// Loads a little-endian number of 16 bits in one access, so that it is one that the guest has stored.
    ///
    /// # Errors
    ///
    /// [`NotGuestRam`], also if `at` is odd.
    pub fn load16(&self, at: Ipa) -> Result<u16, NotGuestRam> {
        let pa = self.translate_half(at)?;
        // SAFETY: as for `read`; the address is aligned.
        let value = unsafe { core::ptr::with_exposed_provenance::<u16>(pa.0 as usize).read_volatile() };
        Ok(u16::from_le(value))
    }

    /// Stores a little-endian number of 16 bits in one access, so that the guest never loads half of it.
    ///
    /// # Errors
    ///
    /// [`NotGuestRam`], also if `at` is odd.
    pub fn store16(&self, at: Ipa, value: u16) -> Result<(), NotGuestRam> {
        let pa = self.translate_half(at)?;
        // SAFETY: as for `write`; the address is aligned.
        unsafe { core::ptr::with_exposed_provenance_mut::<u16>(pa.0 as usize).write_volatile(value.to_le()) };
        Ok(())
    }

    /// The address of an aligned number of 16 bits.
    fn translate_half(&self, at: Ipa) -> Result<Pa, NotGuestRam> {
        let pa = self.translate(at, 2)?;
        if pa.0.is_multiple_of(2) { Ok(pa) } else { Err(NotGuestRam(at)) }
    }

    /// Copies a boot module into the domain's RAM.
    ///
    /// # Errors
    ///
    /// [`LoadError`]; nothing has been copied.
    pub fn load(&self, from: Range, to: Ipa) -> Result<(), LoadError> {
        check_module(from).map_err(LoadError::Source)?;
        self.copy(from, to).map_err(LoadError::Target)
    }

    /// Copies `bytes` bytes from the start of RAM that no guest uses, after the first `done`, into this RAM.
    ///
    /// # Errors
    ///
    /// [`LoadError`]; a part may have been copied.
    pub fn load_from(&self, from: &GuestRam, done: u64, bytes: u64, to: Ipa) -> Result<(), LoadError> {
        let start = from.banks.first().map_or(Ipa(0), |bank| bank.ipa);
        let at = Ipa(start.0.saturating_add(done));
        let mut copied = Ok(());
        let found = from.for_each_piece(at, bytes, |piece, offset| {
            copied = copied.and_then(|()| self.copy(piece, Ipa(to.0.saturating_add(offset))));
        });
        found.and(copied).map_err(LoadError::Target)
    }

    /// Copies to RAM that no guest uses yet. This is quicker than [`write`](GuestRam::write), which a guest may race.
    ///
    /// # Errors
    ///
    /// [`NotGuestRam`]; nothing has been copied.
    pub fn fill(&self, at: Ipa, from: &[u8]) -> Result<(), NotGuestRam> {
        self.for_each_piece(at, from.len() as u64, |piece, start| {
            let part = from.get(start as usize..).unwrap_or_default();
            let size = part.len().min(piece.size as usize);
            // SAFETY: the piece lies in a bank, which is mapped RAM without Rust objects, so it does not overlap `from`.
            unsafe {
                let target = core::ptr::with_exposed_provenance_mut::<u8>(piece.base.0 as usize);
                core::ptr::copy_nonoverlapping(part.as_ptr(), target, size);
            }
        })
    }

    /// Copies from a range that [`check_module`] has accepted, or that is a bank of RAM.
    fn copy(&self, from: Range, to: Ipa) -> Result<(), NotGuestRam> {
        self.for_each_piece(to, from.size, |piece, start| {
            // SAFETY: source and target are mapped RAM without Rust objects, by `check_module` and `new`; `copy` allows an overlap.
            unsafe {
                core::ptr::copy(
                    core::ptr::with_exposed_provenance::<u8>(from.base.0 as usize + start as usize),
                    core::ptr::with_exposed_provenance_mut::<u8>(piece.base.0 as usize),
                    piece.size as usize,
                );
            }
        })
    }

    /// Zeroes up to `bytes` bytes from `done` bytes on, in caches and in memory. Returns how many bytes are zeroed then, or `None`
    /// when all are.
    pub fn wipe(&self, done: u64, bytes: u64) -> Option<u64> {
        let mut start = 0;
        for bank in &self.banks {
            if done - start < bank.size {
                let offset = done - start;
                let size = bytes.min(bank.size - offset);
                zero(Range::new(Pa(bank.pa.0 + offset), size));
                return Some(done + size);
            }
            start += bank.size;
        }
        None
    }
}

/// Why a boot module was not copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadError {
    /// The range is no boot module.
    Source(NotFreeRam),
    /// The target is not in the domain's RAM.
    Target(NotGuestRam),
}

impl core::fmt::Display for LoadError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            LoadError::Source(error) => error.fmt(f),
            LoadError::Target(NotGuestRam(at)) => write!(f, "it does not fit the RAM at {at}"),
        }
    }
}

/// Zeroes RAM that no guest uses yet, in caches and in memory.
///
/// # Errors
///
/// [`NotFreeRam`].
pub fn wipe(range: Range) -> Result<(), NotFreeRam> {
    check(range)?;
    zero(range);
    Ok(())
}

/// Zeroes RAM that has passed [`check`]. A guest starts with its caches off, and no line of EL2's may be written back over what the
/// guest stores.
fn zero(range: Range) {
    // SAFETY: mapped RAM without Rust objects, by `check`.
    unsafe {
        core::ptr::with_exposed_provenance_mut::<u8>(range.base.0 as usize).write_bytes(0, range.size as usize);
    }
    cache::clean_invalidate(range.base, range.size);
}

/// Copies the first bytes of `file`, a boot module, as many as fit `into`, and returns them.
///
/// # Errors
///
/// [`NotFreeRam`].
pub fn peek(file: Range, into: &mut [u8]) -> Result<&[u8], NotFreeRam> {
    check_module(file)?;
    let bytes = into.len().min(usize::try_from(file.size).unwrap_or(usize::MAX));
    let (head, _) = into.split_at_mut(bytes);
    // SAFETY: mapped RAM, by `check_module`, and `bytes` is within both.
    unsafe {
        let source = core::ptr::with_exposed_provenance::<u8>(file.base.0 as usize);
        core::ptr::copy_nonoverlapping(source, head.as_mut_ptr(), bytes);
    }
    Ok(head)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a GuestRam with one bank, the memory of a Vec.
    fn ram(backing: &mut std::vec::Vec<u8>) -> (GuestRam, u64) {
        let base = backing.as_mut_ptr().expose_provenance() as u64;
        let mut banks = ArrayVec::new();
        banks.push(Bank::direct(Range::new(Pa(base), backing.len() as u64)));
        // The backing outlives the test and is accessed only through the exposed pointer.
        (GuestRam { banks }, base)
    }

    #[test]
    fn written_bytes_are_read_back_and_their_neighbours_are_unchanged() {
        let mut backing = std::vec![0u8; 64];
        let (ram, base) = ram(&mut backing);
        ram.write(Ipa(base + 8), &[1, 2, 3]).unwrap();
        let mut got = [0; 5];
        ram.read(Ipa(base + 7), &mut got).unwrap();
        assert_eq!(got, [0, 1, 2, 3, 0]);
    }

    #[test]
    fn any_place_and_length_is_copied_as_it_is() {
        let mut backing: std::vec::Vec<u8> = (0..64).collect();
        let (ram, base) = ram(&mut backing);
        for start in 0..17u8 {
            for length in 0..40usize {
                let mut got = std::vec![0xee; length];
                ram.read(Ipa(base + u64::from(start)), &mut got).unwrap();
                assert!(got.iter().copied().eq((start..64).take(length)), "{start} {length}");
                let new: std::vec::Vec<u8> = got.iter().map(|byte| byte ^ 0x80).collect();
                ram.write(Ipa(base + u64::from(start)), &new).unwrap();
                let mut all = [0; 64];
                ram.read(Ipa(base), &mut all).unwrap();
                let written = usize::from(start)..usize::from(start) + length;
                let expected = |at: usize| at as u8 ^ if written.contains(&at) { 0x80 } else { 0 };
                assert!(all.iter().enumerate().all(|(at, &byte)| byte == expected(at)), "{start} {length}");
                ram.write(Ipa(base + u64::from(start)), &got).unwrap();
            }
        }
    }

    #[test]
    fn numbers_of_16_bits_are_little_endian_and_aligned() {
        let mut backing = std::vec![0u64; 2];
        let bytes = backing.as_mut_ptr().expose_provenance() as u64;
        let bank = Bank::direct(Range::new(Pa(bytes), 16));
        let ram = GuestRam { banks: [bank].into_iter().collect() };
        ram.store16(Ipa(bytes + 2), 0x1234).unwrap();
        let mut got = [0; 4];
        ram.read(Ipa(bytes + 1), &mut got).unwrap();
        assert_eq!((got, ram.load16(Ipa(bytes + 2))), ([0, 0x34, 0x12, 0], Ok(0x1234)));
        for bad in [bytes + 1, bytes + 15, bytes + 16, bytes - 2, u64::MAX - 1] {
            assert_eq!((ram.load16(Ipa(bad)), ram.store16(Ipa(bad), 1).is_err()), (Err(NotGuestRam(Ipa(bad))), true));
        }
        assert_eq!(ram.load16(Ipa(bytes + 14)), Ok(0));
    }

    #[test]
    fn an_access_beyond_the_ram_is_refused_as_a_whole() {
        let mut backing = std::vec![0u8; 64];
        let (ram, base) = ram(&mut backing);
        assert_eq!(ram.write(Ipa(base + 60), &[0; 5]), Err(NotGuestRam(Ipa(base + 60))));
        assert_eq!(ram.read(Ipa(base - 1), &mut [0; 2]), Err(NotGuestRam(Ipa(base - 1))));
        assert_eq!(ram.translate(Ipa(u64::MAX), 2), Err(NotGuestRam(Ipa(u64::MAX))));
    }

    /// The banks are the two halves of a Vec, which are adjacent in reverse order in guest-physical addresses.
    #[test]
    fn an_access_across_two_banks_is_copied_piece_by_piece() {
        let mut backing: std::vec::Vec<u8> = (0..64).collect();
        let base = backing.as_mut_ptr().expose_provenance() as u64;
        let mut banks = ArrayVec::new();
        banks.push(Bank { ipa: Ipa(0x1000), pa: Pa(base + 32), size: 32 });
        banks.push(Bank { ipa: Ipa(0x1020), pa: Pa(base), size: 32 });
        let ram = GuestRam { banks };
        let mut got = [0; 4];
        ram.read(Ipa(0x101e), &mut got).unwrap();
        assert_eq!(got, [62, 63, 0, 1]);
        ram.write(Ipa(0x101f), &[100, 101]).unwrap();
        let source = [7u8; 6];
        let source = Range::new(Pa(source.as_ptr().expose_provenance() as u64), 6);
        ram.copy(source, Ipa(0x103a)).unwrap();
        assert_eq!((backing[63], backing[0], backing[1]), (100, 101, 1));
        assert_eq!(backing[25..33], [25, 7, 7, 7, 7, 7, 7, 32]);
        assert_eq!(ram.write(Ipa(0x103f), &[0, 0]), Err(NotGuestRam(Ipa(0x103f))));
        assert_eq!(backing[31], 7, "nothing is written if not all of it is RAM");
        assert_eq!(ram.translate(Ipa(0x101f), 1), Ok(Pa(base + 63)));
        assert_eq!(ram.translate(Ipa(0x101f), 2), Err(NotGuestRam(Ipa(0x101f))));
        assert_eq!(ram.translate(Ipa(0xfff), 1), Err(NotGuestRam(Ipa(0xfff))));
        assert_eq!(ram.size(), 64);
    }

    #[test]
    fn what_was_filled_in_is_loaded_into_another_ram_across_banks() {
        let (mut first, mut second) = (std::vec![0u8; 64], std::vec![0u8; 64]);
        let banks = |backing: &mut std::vec::Vec<u8>, ipa: u64, first: u64| {
            let base = backing.as_mut_ptr().expose_provenance() as u64;
            let low = Bank { ipa: Ipa(ipa), pa: Pa(base + 64 - first), size: first };
            let high = Bank { ipa: Ipa(ipa + first), pa: Pa(base), size: 64 - first };
            GuestRam { banks: [low, high].into_iter().collect() }
        };
        let (kept, ram) = (banks(&mut first, 0, 20), banks(&mut second, 0x1000, 7));
        let image: std::vec::Vec<u8> = (1..=60).collect();
        kept.fill(Ipa(0), &image[..33]).unwrap();
        kept.fill(Ipa(33), &image[33..]).unwrap();
        assert_eq!(kept.fill(Ipa(60), &[1; 5]), Err(NotGuestRam(Ipa(60))));
        for done in (0..60).step_by(12) {
            ram.load_from(&kept, done, 12, Ipa(0x1002 + done)).unwrap();
        }
        let mut got = [0; 64];
        ram.read(Ipa(0x1000), &mut got).unwrap();
        assert_eq!((&got[..2], &got[2..62], &got[62..]), (&[0; 2][..], &image[..], &[0; 2][..]));
        assert_eq!(ram.load_from(&kept, 60, 5, Ipa(0x1000)), Err(LoadError::Target(NotGuestRam(Ipa(60)))));
        assert_eq!(ram.load_from(&kept, 0, 5, Ipa(0x103c)), Err(LoadError::Target(NotGuestRam(Ipa(0x103c)))));
    }

    #[test]
    fn ram_that_was_not_declared_free_is_refused() {
        let range = Range::new(Pa(0x1000), 0x1000);
        assert_eq!(check(range), Err(NotFreeRam(range)));
        assert!(GuestRam::new([Bank::direct(range)].into_iter().collect()).is_err());
        assert_eq!(wipe(range), Err(NotFreeRam(range)));
        assert_eq!(peek(range, &mut [0; 4]), Err(NotFreeRam(range)));
    }
}
