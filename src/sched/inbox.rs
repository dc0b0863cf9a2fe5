//! The inbox of a CPU: a bit for each vCPU, which any CPU may set and the owner clears.
//!
//! A CPU that goes offline closes its inbox and empties it one last time, while other CPUs may be about to post. The
//! CPU that posts checks *after* it has set the bit whether the inbox is open; the CPU that closes the inbox takes its
//! contents *after* it has closed it. So at least one of the two sees the vCPU, and only one of them clears the bit:
//! the vCPU is neither lost nor in two places.

use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::util::bits::set_bits;
use alloc::vec::Vec;

/// One CPU's inbox.
pub struct Inbox {
    open: AtomicBool,
    words: Vec<AtomicU64>,
    /// A bit for each word that may have bits set.
    posted: AtomicU64,
}

/// The most vCPUs of an inbox.
const MOST: usize = 64 * 64;

impl Inbox {
    /// An empty, closed inbox for vCPUs with indices below `slots`.
    pub fn new(slots: usize) -> Inbox {
        debug_assert!(slots <= MOST);
        let words = (0..slots.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Inbox { open: AtomicBool::new(false), words, posted: AtomicU64::new(0) }
    }

    /// Opens the inbox.
    pub fn open(&self) {
        self.open.store(true, Ordering::SeqCst);
    }

    /// Closes the inbox: what is posted from now on is handed back. Call [`Inbox::empty`] afterwards.
    pub fn close(&self) {
        self.open.store(false, Ordering::SeqCst);
    }

    /// Posts a vCPU. Returns `false` if the inbox is closed; the vCPU is then still the caller's.
    #[must_use]
    pub fn post(&self, slot: usize) -> bool {
        let Some(word) = self.words.get(slot / 64) else { return true };
        let bit = 1 << (slot % 64);
        word.fetch_or(bit, Ordering::SeqCst);
        self.posted.fetch_or(1 << (slot / 64), Ordering::SeqCst);
        // Closed: if the owner has cleared the bit already, it has the vCPU.
        self.open.load(Ordering::SeqCst) || word.fetch_and(!bit, Ordering::SeqCst) & bit == 0
    }

    /// Takes out the vCPUs that are visible to this CPU now.
    pub fn take(&self, mut each: impl FnMut(usize)) {
        if self.posted.load(Ordering::SeqCst) == 0 {
            return;
        }
        for index in set_bits(self.posted.swap(0, Ordering::SeqCst)) {
            if let Some(word) = self.words.get(index as usize) {
                take_word(index as usize, word, &mut each);
            }
        }
    }

    /// Takes out all vCPUs, once the inbox is closed. Each word is exchanged, not only read, so that a CPU that posts
    /// to this word afterwards sees that the inbox is closed.
    pub fn empty(&self, mut each: impl FnMut(usize)) {
        self.words.iter().enumerate().for_each(|(index, word)| take_word(index, word, &mut each));
    }
}

fn take_word(index: usize, word: &AtomicU64, each: &mut impl FnMut(usize)) {
    set_bits(word.swap(0, Ordering::SeqCst)).for_each(|bit| each(index * 64 + bit as usize));
}

#[cfg(all(test, loom))]
impl Inbox {
    /// Whether the inbox is open. For the model that shows why [`Inbox::post`] has its order.
    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::SeqCst)
    }

    /// [`Inbox::post`] without the check of whether the inbox is open.
    pub fn post_unchecked(&self, slot: usize) {
        self.words[slot / 64].fetch_or(1 << (slot % 64), Ordering::SeqCst);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_post_to_an_open_inbox_is_taken_once_and_to_a_closed_one_is_handed_back() {
        let inbox = Inbox::new(130);
        assert!(!inbox.post(3), "closed at first");
        inbox.open();
        assert!(inbox.post(3) && inbox.post(129));
        inbox.close();
        assert!(!inbox.post(64));
        let mut taken = Vec::new();
        inbox.take(|slot| taken.push(slot));
        inbox.empty(|slot| taken.push(slot));
        assert_eq!(taken, [3, 129]);
    }
}
