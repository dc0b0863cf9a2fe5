//! What has happened to domains and the machine, for the tools of dom0: a ring of fixed size.
//!
//! Whoever makes something happen records it here and waits for nobody. The server of dom0's requests (`control::manage`)
//! passes it on when dom0 takes it. What was not taken in time is overwritten; a reader sees that by the sequence numbers.

use crate::console::limit::now_us;
use crate::ids::{DomId, DomainName};
use crate::sync::{Lock, Rank};
use alloc::collections::VecDeque;
use arrayvec::ArrayString;
use core::sync::atomic::{AtomicBool, Ordering};
use doorward_api::{ALL, Event, EventKind};

/// The number of events that are kept.
const KEPT: usize = 256;

/// The longest text of an event, in bytes. What is longer is cut.
pub const TEXT: usize = 96;

/// An event.
#[derive(Clone, Debug)]
pub struct Recorded {
    sequence: u64,
    time_us: u64,
    kind: EventKind,
    /// [`ALL`] if it concerns the machine.
    domain: u32,
    name: DomainName,
    text: ArrayString<TEXT>,
}

impl Recorded {
    /// The event as the protocol has it.
    #[must_use]
    pub fn event(&self) -> Event<'_> {
        let Recorded { sequence, time_us, kind, domain, .. } = *self;
        Event { sequence, time_us, kind, domain, name: &self.name, text: &self.text }
    }

    /// Its sequence number.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }
}

struct Ring {
    events: VecDeque<Recorded>,
    /// The number of events so far.
    last: u64,
}

/// The events of the machine.
pub struct Events {
    ring: Lock<Ring>,
    /// Something has happened that the server has not looked at.
    news: AtomicBool,
}

impl Events {
    /// Nothing has happened. Nothing is allocated after this call.
    #[must_use]
    #[allow(clippy::new_without_default, reason = "it allocates")]
    pub fn new() -> Events {
        let ring = Ring { events: VecDeque::with_capacity(KEPT), last: 0 };
        Events { ring: Lock::new(Rank::Events, ring), news: AtomicBool::new(false) }
    }

    /// Records what has happened to a domain.
    pub fn record(&self, kind: EventKind, domain: DomId, name: &DomainName, text: &str) {
        self.push(kind, domain.0.into(), *name, text);
    }

    /// Records what has happened to the machine.
    pub fn record_machine(&self, kind: EventKind, text: &str) {
        self.push(kind, ALL, DomainName::new_const(), text);
    }

    fn push(&self, kind: EventKind, domain: u32, name: DomainName, text: &str) {
        let cut = text.get(..text.floor_char_boundary(TEXT)).unwrap_or_default();
        let text = ArrayString::from(cut).unwrap_or_default();
        let mut ring = self.ring.lock();
        if ring.events.len() == KEPT {
            ring.events.pop_front();
        }
        ring.last = ring.last.saturating_add(1);
        let event = Recorded { sequence: ring.last, time_us: now_us(), kind, domain, name, text };
        ring.events.push_back(event);
        drop(ring);
        self.announce();
    }

    /// The first event that is kept with a sequence number above `after`.
    #[must_use]
    pub fn next(&self, after: u64) -> Option<Recorded> {
        let ring = self.ring.lock();
        let first = ring.events.front()?.sequence;
        let index = usize::try_from(after.saturating_add(1).saturating_sub(first)).ok()?;
        ring.events.get(index).cloned()
    }

    /// The sequence number of the last event.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.ring.lock().last
    }

    /// Says that there is something that the server should look at.
    pub fn announce(&self) {
        self.news.store(true, Ordering::Release);
    }

    /// Whether there is something that the server should look at.
    #[inline]
    #[must_use]
    pub fn has_news(&self) -> bool {
        self.news.load(Ordering::Relaxed)
    }

    /// Whether there was. What is announced after this call is announced anew.
    #[must_use]
    pub fn take_news(&self) -> bool {
        self.news.swap(false, Ordering::AcqRel)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_in_order_and_those_that_were_overwritten_are_missing() {
        let events = Events::new();
        assert!(events.next(0).is_none() && !events.take_news());
        let name = DomainName::from("web").unwrap();
        events.record(EventKind::Created, DomId(7), &name, "");
        events.record_machine(EventKind::CpuOffline, &"\u{e4}".repeat(TEXT));
        assert!(events.take_news() && !events.take_news());
        let [first, second] = [0, 1].map(|after| events.next(after).unwrap());
        assert_eq!((first.event().sequence, first.event().domain, first.event().name), (1, 7, "web"));
        assert_eq!((second.event().domain, second.event().text.len()), (ALL, TEXT));
        assert!(events.next(2).is_none() && events.next(u64::MAX).is_none());
        (0..KEPT).for_each(|_| events.record(EventKind::Paused, DomId(1), &name, ""));
        assert_eq!((events.next(0).unwrap().sequence(), events.last()), (3, KEPT as u64 + 2));
        assert_eq!(events.next(KEPT as u64 + 1).unwrap().sequence(), KEPT as u64 + 2);
    }
}
