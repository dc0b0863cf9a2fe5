//! Which domain each stream belongs to, and how often its transactions fail.
//!
//! A stream whose transactions fail more often than [`LIMIT`] times in a second is to be cut off: EL2 handles each of
//! these events, and the device decides how many there are.
//!
//! Of a flood, the SMMU may have lost the most part. So a failure that was in its queue when that had no room left counts for
//! [`CROWDED`] ones: a device that has had a sixteenth of a queue of 512 events is cut off at once, and one that has had a
//! smaller part, or part of a smaller queue, when that happens again.

use crate::ids::{DomId, SmmuId, StreamId, Streams};
use alloc::vec::Vec;

/// The largest number of failed transactions of a stream in a second.
pub const LIMIT: u32 = 100;
/// The number of failures that one in a full queue counts for.
const CROWDED: u32 = 4;
/// A second, in microseconds.
const PERIOD_US: u64 = 1_000_000;
/// The number of streams whose failures are counted one by one. Further ones replace those that have not failed for longest.
/// No more streams than these are cut off one by one either: each may take a leaf of the stream table.
const COUNTED: usize = 32;

/// The failures of one stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Failures {
    smmu: SmmuId,
    stream: StreamId,
    /// The start of the second in which `count` happened, in microseconds.
    since_us: u64,
    count: u32,
    cut_off: bool,
}

/// Streams that were given to a domain together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Owned {
    domain: DomId,
    streams: Streams,
    /// They reach nothing any more, whatever becomes of the domain.
    is_quarantined: bool,
}

/// The streams that domains own, and the failures of streams.
#[derive(Debug, Default)]
pub struct Owners {
    owned: Vec<Owned>,
    failures: Vec<Failures>,
}

/// What follows from a failed transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The owner of the stream, if it has one.
    pub owner: Option<DomId>,
    /// What has to be cut off now.
    pub cut_off: CutOff,
}

/// What has to be cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CutOff {
    /// Nothing.
    Nothing,
    /// The stream.
    Stream,
    /// All streams of the owner: too many of them were cut off one by one.
    Owner,
}

impl Owners {
    /// No stream has an owner. Memory for failures is reserved, so that none is allocated later.
    #[must_use]
    pub fn new() -> Owners {
        Owners { owned: Vec::new(), failures: Vec::with_capacity(COUNTED) }
    }

    /// The domain that owns a stream.
    #[must_use]
    pub fn owner(&self, smmu: SmmuId, stream: StreamId) -> Option<DomId> {
        self.owned.iter().find(|owned| owned.streams.contains(smmu, stream)).map(|owned| owned.domain)
    }

    /// The owner of any of these streams.
    #[must_use]
    pub fn owner_of_any(&self, streams: Streams) -> Option<DomId> {
        self.owned.iter().find(|owned| owned.streams.overlaps(streams)).map(|owned| owned.domain)
    }

    /// Makes a domain the owner of streams that have none.
    pub fn give(&mut self, domain: DomId, streams: Streams) {
        self.owned.push(Owned { domain, streams, is_quarantined: false });
    }

    /// Leaves these streams of a domain without an owner, if they were given to it together.
    pub fn take_back_streams(&mut self, domain: DomId, streams: Streams) {
        self.owned.retain(|owned| (owned.domain, owned.streams) != (domain, streams));
    }

    /// The streams of a domain that are not in quarantine.
    pub fn of(&self, domain: DomId) -> impl Iterator<Item = Streams> {
        let of_domain = move |owned: &&Owned| owned.domain == domain && !owned.is_quarantined;
        self.owned.iter().filter(of_domain).map(|owned| owned.streams)
    }

    /// Puts streams that were given to a domain together into quarantine: it keeps them for ever.
    pub fn quarantine(&mut self, domain: DomId, streams: Streams) {
        let same = |owned: &&mut Owned| (owned.domain, owned.streams) == (domain, streams);
        self.owned.iter_mut().filter(same).for_each(|owned| owned.is_quarantined = true);
    }

    /// Leaves the streams of a domain without an owner, but for those in quarantine, and forgets their failures.
    pub fn take_back(&mut self, domain: DomId) {
        self.forget_failures(domain);
        self.owned.retain(|owned| owned.domain != domain || owned.is_quarantined);
    }

    /// Forgets the failures of a domain's streams: it begins anew.
    pub fn forget_failures(&mut self, domain: DomId) {
        let Owners { owned, failures } = self;
        let is_its = |failed: &Failures| {
            owned.iter().any(|owned| owned.domain == domain && owned.streams.contains(failed.smmu, failed.stream))
        };
        failures.retain(|failed| !is_its(failed));
    }

    /// Counts a failed transaction at `now_us`. `crowded`: the SMMU had no room for further ones.
    pub fn count(&mut self, smmu: SmmuId, stream: StreamId, crowded: bool, now_us: u64) -> Verdict {
        let owner = self.owner(smmu, stream);
        let found = self.failures.iter().position(|failed| (failed.smmu, failed.stream) == (smmu, stream));
        let fresh = Failures { smmu, stream, since_us: now_us, count: 0, cut_off: false };
        let index = found.unwrap_or_else(|| self.make_room(fresh));
        let cut_off_before = self.failures.iter().filter(|failed| failed.cut_off).count();
        let is_last = cut_off_before >= COUNTED.saturating_sub(1);
        let Some(failed) = self.failures.get_mut(index) else { return Verdict { owner, cut_off: CutOff::Nothing } };
        if now_us.saturating_sub(failed.since_us) >= PERIOD_US {
            (failed.since_us, failed.count) = (now_us, 0);
        }
        failed.count = failed.count.saturating_add(if crowded { CROWDED } else { 1 });
        let is_new = failed.count > LIMIT && !failed.cut_off;
        failed.cut_off |= is_new;
        let cut_off = match is_new {
            false => CutOff::Nothing,
            true if is_last && owner.is_some() => CutOff::Owner,
            true => CutOff::Stream,
        };
        Verdict { owner, cut_off }
    }

    /// Adds an entry for the failures of a stream. Returns its index.
    fn make_room(&mut self, fresh: Failures) -> usize {
        if self.failures.len() < COUNTED {
            self.failures.push(fresh);
            return self.failures.len().saturating_sub(1);
        }
        // One that is cut off is kept if possible: what it has sent before that may still be in the queue.
        let oldest = (0..).zip(&self.failures).min_by_key(|(_, failed)| (failed.cut_off, failed.since_us));
        let index = oldest.map_or(0, |(index, _)| index);
        if let Some(slot) = self.failures.get_mut(index) {
            *slot = fresh;
        }
        index
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOM1: DomId = DomId(1);

    fn streams(smmu: u8, first: u32, last: u32) -> Streams {
        Streams { smmu: SmmuId(smmu), first: StreamId(first), last: StreamId(last) }
    }

    /// Counts `failures` failures of a stream of SMMU 0 at a time. Returns how often it is to be cut off.
    fn fail(owners: &mut Owners, stream: u32, failures: u32, now_us: u64) -> usize {
        let verdicts = (0..failures).map(|_| owners.count(SmmuId(0), StreamId(stream), false, now_us).cut_off);
        verdicts.filter(|cut_off| *cut_off != CutOff::Nothing).count()
    }

    #[test]
    fn a_stream_has_the_owner_that_it_was_given_to_until_it_is_taken_back() {
        let mut owners = Owners::new();
        owners.give(DomId(0), streams(0, 0, 7));
        owners.give(DOM1, streams(0, 8, 8));
        let owner = |owners: &Owners, smmu, stream| owners.owner(SmmuId(smmu), StreamId(stream));
        assert_eq!([owner(&owners, 0, 7), owner(&owners, 0, 8)], [Some(DomId(0)), Some(DOM1)]);
        assert_eq!([owner(&owners, 0, 9), owner(&owners, 1, 7)], [None, None]);
        assert_eq!(owners.owner_of_any(streams(0, 8, 20)), Some(DOM1));
        assert_eq!(owners.of(DOM1).collect::<Vec<_>>(), [streams(0, 8, 8)]);
        owners.take_back(DOM1);
        assert_eq!(owners.owner_of_any(streams(0, 8, 20)), None);
    }

    #[test]
    fn a_stream_is_cut_off_once_when_it_fails_too_often_in_a_second() {
        let mut owners = Owners::new();
        assert_eq!(fail(&mut owners, 5, LIMIT, 0), 0);
        assert_eq!(fail(&mut owners, 5, LIMIT, 1_000_000), 0, "a new second");
        assert_eq!(fail(&mut owners, 5, 3 * LIMIT, 1_999_999), 1);
        assert_eq!(fail(&mut owners, 6, LIMIT, 1_999_999), 0, "another stream");
    }

    #[test]
    fn a_domain_that_begins_anew_has_its_failures_forgotten() {
        let mut owners = Owners::new();
        owners.give(DOM1, streams(0, 5, 5));
        assert_eq!(fail(&mut owners, 5, 2 * LIMIT, 0), 1);
        owners.forget_failures(DOM1);
        assert_eq!(fail(&mut owners, 5, LIMIT, 0), 0);
        assert_eq!(fail(&mut owners, 5, 1, 0), 1);
    }

    #[test]
    fn failures_of_any_number_of_streams_take_the_same_memory() {
        let mut owners = Owners::new();
        let room = owners.failures.capacity();
        assert_eq!(fail(&mut owners, 0, 2 * LIMIT, 0), 1);
        (1..1000).for_each(|stream| assert_eq!(fail(&mut owners, stream, 1, u64::from(stream)), 0));
        assert_eq!((owners.failures.len(), owners.failures.capacity()), (COUNTED, room));
        // That it is cut off is remembered.
        assert_eq!(fail(&mut owners, 0, 2 * LIMIT, 0), 0);
    }

    #[test]
    fn a_domain_of_which_too_many_streams_are_cut_off_loses_all() {
        let mut owners = Owners::new();
        owners.give(DOM1, streams(0, 0, 1000));
        let last = |owners: &mut Owners, stream: u32| {
            (0..=LIMIT).map(|_| owners.count(SmmuId(0), StreamId(stream), false, 0).cut_off).last().unwrap()
        };
        for stream in 1..COUNTED as u32 {
            assert_eq!(last(&mut owners, stream), CutOff::Stream);
        }
        assert_eq!(last(&mut owners, 500), CutOff::Owner);
    }
}
