//! Recalls: vCPUs that have to leave their guests before another one may go on.
//!
//! Some registers of the virtual GIC concern interrupts that are in the list registers of other vCPUs, and some concern
//! residency. Such an access takes effect when these vCPUs have left their guests, and the vCPU that makes it may not
//! go on before. Its CPU does not wait for the others: it kicks them and goes on with its run loop, which takes
//! interrupts and asks the scheduler, until the domain is settled
//! (`Domain::is_settled`).
//!
//! Who has recalled whom is not recorded. A vCPU waits until none of its domain is recalled, so it may wait for a recall
//! of another vCPU, too. A vCPU that waits is out of its guest, so none waits for it, and they cannot wait for each
//! other.

use crate::sync::atomic::{AtomicU64, Ordering};

/// The recalls of one domain, by number, from 1 on.
pub struct Recalls {
    /// The last one that was begun.
    last: AtomicU64,
    /// The last one that is known to have ended, as all before it.
    ended: AtomicU64,
}

impl Recalls {
    /// There was none.
    #[allow(clippy::new_without_default, reason = "a default would not say that there was none")]
    pub fn new() -> Recalls {
        Recalls { last: AtomicU64::new(0), ended: AtomicU64::new(0) }
    }

    /// Counts a recall. The vCPU reads as recalled already.
    pub(super) fn begin(&self) {
        self.last.fetch_add(1, Ordering::SeqCst);
    }

    /// Whether all have ended. `any` says whether any vCPU reads as recalled.
    pub(super) fn have_ended(&self, any: impl FnOnce() -> bool) -> bool {
        // Read before `any` is asked: what is begun later is not looked at by `any`.
        let last = self.last.load(Ordering::SeqCst);
        if self.ended.load(Ordering::SeqCst) >= last {
            return true;
        }
        if any() {
            return false;
        }
        self.ended.fetch_max(last, Ordering::SeqCst);
        true
    }

    /// The number of recalls so far.
    pub(super) fn count(&self) -> u64 {
        self.last.load(Ordering::SeqCst)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn recalls_have_ended_when_no_vcpu_is_recalled_any_more() {
        let recalls = Recalls::new();
        assert!(recalls.have_ended(|| unreachable!("nobody was recalled, so nobody is asked")));
        recalls.begin();
        assert!(!recalls.have_ended(|| true));
        assert!(recalls.have_ended(|| false));
        assert!(recalls.have_ended(|| unreachable!("this is known")));
    }

    #[test]
    fn a_recall_that_begins_while_the_vcpus_are_looked_at_has_not_ended() {
        let recalls = Recalls::new();
        recalls.begin();
        let found = recalls.have_ended(|| {
            recalls.begin();
            false
        });
        assert!(found, "the first one has");
        assert!(!recalls.have_ended(|| true));
    }
}

/// Run by `RUSTFLAGS="--cfg loom" cargo test --lib interleavings`.
#[cfg(all(test, loom))]
mod interleavings {
    use super::*;
    use loom::sync::Arc;

    /// A vCPU that changes something recalls another one and goes on when the domain is settled; a third vCPU looks at
    /// the same time whether it is. The other vCPU then has seen the change.
    #[test]
    fn a_vcpu_that_goes_on_has_been_seen_by_the_one_that_it_recalled() {
        const OUT: u64 = 0;
        const IN_GUEST: u64 = 1;
        const RECALLED: u64 = 2;
        loom::model(|| {
            // The change; what the other vCPU knows of it; its presence. Swaps and not stores: loom orders a store
            // before what it cannot be before.
            let all = Arc::new((AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(IN_GUEST), Recalls::new()));
            let target = all.clone();
            let target = loom::thread::spawn(move || {
                // It leaves its guest, and is about to enter again: from then on it can be recalled, and it looks.
                target.2.swap(OUT, Ordering::SeqCst);
                target.2.swap(IN_GUEST, Ordering::SeqCst);
                target.1.swap(target.0.fetch_add(0, Ordering::SeqCst), Ordering::SeqCst);
            });
            let third = all.clone();
            let third = loom::thread::spawn(move || {
                third.3.have_ended(|| third.2.load(Ordering::SeqCst) == RECALLED);
            });
            all.0.swap(1, Ordering::SeqCst);
            if all.2.compare_exchange(IN_GUEST, RECALLED, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
                all.3.begin();
            }
            let settled = all.3.have_ended(|| all.2.load(Ordering::SeqCst) == RECALLED);
            target.join().unwrap();
            third.join().unwrap();
            assert!(!settled || all.1.load(Ordering::SeqCst) == 1, "it runs without the change");
        });
    }
}
