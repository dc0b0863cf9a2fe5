//! What others hand to a CPU: a bit for each vCPU, set by anybody, taken out by the CPU.
//!
//! A CPU that is taken out closes its inbox and empties it one last time, while others may be about to post. Whoever
//! posts looks *after* that whether the inbox is open; who closes it takes *after* that what is in it. So each vCPU is
//! seen by one of them at least, and its bit is taken out by one of them only: it is neither lost nor in two places.

use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use alloc::vec::Vec;

/// One CPU's inbox.
pub struct Inbox {
    open: AtomicBool,
    words: Vec<AtomicU64>,
    /// Words in which there may be something, a bit for each.
    posted: AtomicU64,
}

/// vCPUs that an inbox has room for.
const MOST: usize = 64 * 64;

impl Inbox {
    /// Empty and closed, for vCPUs numbered below `slots`.
    pub fn new(slots: usize) -> Inbox {
        debug_assert!(slots <= MOST);
        let words = (0..slots.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Inbox { open: AtomicBool::new(false), words, posted: AtomicU64::new(0) }
    }

    /// What is posted from now on stays.
    pub fn open(&self) {
        self.open.store(true, Ordering::SeqCst);
    }

    /// What is posted from now on goes back. What is in it is to be taken out afterwards.
    pub fn close(&self) {
        self.open.store(false, Ordering::SeqCst);
    }

    /// Puts a vCPU in. `false`: the inbox is closed, and the vCPU is the caller's as before.
    #[must_use]
    pub fn post(&self, slot: usize) -> bool {
        let Some(word) = self.words.get(slot / 64) else { return true };
        let bit = 1 << (slot % 64);
        word.fetch_or(bit, Ordering::SeqCst);
        self.posted.fetch_or(1 << (slot / 64), Ordering::SeqCst);
        // Closed: it is whose who takes it out, and the CPU may have been faster.
        self.open.load(Ordering::SeqCst) || word.fetch_and(!bit, Ordering::SeqCst) & bit == 0
    }

    /// Takes out what is in it, as far as it can be seen from here now.
    pub fn take(&self, mut each: impl FnMut(usize)) {
        if self.posted.load(Ordering::SeqCst) == 0 {
            return;
        }
        let mut words = self.posted.swap(0, Ordering::SeqCst);
        while words != 0 {
            let index = words.trailing_zeros() as usize;
            words &= words - 1;
            if let Some(word) = self.words.get(index) {
                take_word(index, word, &mut each);
            }
        }
    }

    /// Takes out everything, once the inbox is closed. Each word is exchanged, and not only looked at: whoever posts
    /// after that sees what was done before it, that the inbox is closed.
    pub fn empty(&self, mut each: impl FnMut(usize)) {
        self.words.iter().enumerate().for_each(|(index, word)| take_word(index, word, &mut each));
    }
}

fn take_word(index: usize, word: &AtomicU64, each: &mut impl FnMut(usize)) {
    let mut bits = word.swap(0, Ordering::SeqCst);
    while bits != 0 {
        each(index * 64 + bits.trailing_zeros() as usize);
        bits &= bits - 1;
    }
}

#[cfg(all(test, loom))]
impl Inbox {
    /// For the test that shows what the order in [`Inbox::post`] is for.
    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::SeqCst)
    }

    /// As [`Inbox::post`], without the look.
    pub fn post_unseen(&self, slot: usize) {
        self.words[slot / 64].fetch_or(1 << (slot % 64), Ordering::SeqCst);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn what_is_posted_to_an_open_inbox_is_taken_once_and_to_a_closed_one_goes_back() {
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
