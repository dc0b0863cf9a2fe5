//! The stream table (IHI 0070, 3.3, 5.1 and 3.21.3): for each stream, what it reaches.
//!
//! A table of two levels has first-level descriptors, each of which points to a *leaf* of 2^`leaf_bits` entries. A
//! linear table is a single leaf. Each descriptor is always valid: those of streams that are not assigned point to one
//! common leaf whose entries abort. So a stray device causes no events, as it would through an invalid descriptor, and
//! the table of 65,536 streams takes 12 KiB at first. Streams that are assigned together share a leaf, too, so to assign
//! all streams takes one more leaf. Before one entry of a leaf is changed, the leaf is copied if other descriptors point
//! to it.
//!
//! The SMMU may read an entry at any time, word by word in any order, and keep any part of it until it is told to
//! invalidate it. Therefore a change goes in steps, and after each the caller has the SMMU invalidate the streams:
//!
//! 1. [`separate`](StreamTable::separate): leaves that also serve other streams are copied, with equal contents;
//! 2. [`abort`](StreamTable::abort): word 0 of the entries is changed to abort. The other words stay;
//! 3. [`prepare`](StreamTable::prepare): the other words are changed, which an entry that aborts ignores; or, if the
//!    streams stay blocked, [`settle`](StreamTable::settle) takes leaves out of use;
//! 4. [`enable`](StreamTable::enable): word 0 is changed to translate.
//!
//! So whatever mixture of words the SMMU has, from before and after a step, it is the old entry, the new one, or one
//! that aborts. The manual's example of 3.21.3.1 makes entries invalid (V = 0) in between, which would record an event
//! for each transaction.
//!
//! A leaf that is not used any more is freed by [`free_unused`](StreamTable::free_unused), which the caller calls when
//! the SMMU has completed the invalidation.

use super::error::SmmuError;
use super::facts::Facts;
use super::shape::{DESCRIPTOR, Parts, Shape};
use super::ste::{ABORT, SIZE, TRANSLATE, Translation};
use crate::ids::{Pa, StreamId};
use crate::mmio::{Coherence, Hw};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use arrayvec::ArrayVec;
use core::ops::{Range, RangeInclusive};

/// L2Ptr of a first-level descriptor, bits 55:6.
const L2PTR: u64 = 0x00ff_ffff_ffff_ffc0;
/// Bytes of a word of an entry.
const WORD: u64 = 8;

/// What happens to streams after [`StreamTable::abort`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// They are enabled.
    Enable,
    /// They stay blocked.
    Stay,
}

/// What the streams of a change shall reach, and the leaf for those that get a new one.
pub struct Change {
    streams: RangeInclusive<StreamId>,
    translation: Translation,
    leaf: Option<Pa>,
}

/// The stream table of one SMMU.
pub struct StreamTable<H> {
    hw: H,
    shape: Shape,
    coherence: Coherence,
    address_bits: u8,
    root: Pa,
    /// The common leaf that aborts; that of a linear table is the table.
    abort: Pa,
    /// How many descriptors point to each other leaf.
    uses: BTreeMap<Pa, u64>,
    /// Leaves that no descriptor points to any more, but that the SMMU may still know.
    unused: Vec<Pa>,
}

impl<H: Hw> StreamTable<H> {
    /// A table in which all streams abort.
    ///
    /// # Errors
    ///
    /// [`SmmuError::OutOfMemory`], [`SmmuError::Unreachable`].
    pub fn new(hw: H, facts: &Facts) -> Result<Self, SmmuError> {
        let shape = Shape::new(facts);
        let (coherence, address_bits) = (facts.coherence, facts.address_bits);
        let root = alloc(&hw, shape.root_size(), address_bits)?;
        let uses = BTreeMap::new();
        let mut table = StreamTable { hw, shape, coherence, address_bits, root, abort: root, uses, unused: Vec::new() };
        if shape.two_levels {
            match alloc(&table.hw, shape.leaf_size(), address_bits) {
                Ok(leaf) => table.abort = leaf,
                Err(error) => {
                    table.hw.free(root, shape.root_size(), shape.root_size());
                    return Err(error);
                }
            }
        }
        table.fill(table.abort, [0; 7]);
        if shape.two_levels {
            table.point(0..shape.leaves(), table.abort);
        }
        Ok(table)
    }

    /// The shape.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The address for STRTAB_BASE.
    pub fn root(&self) -> Pa {
        self.root
    }

    /// Frees a table that the SMMU does not use.
    pub fn free(self) {
        let shape = self.shape;
        if shape.two_levels {
            for leaf in self.uses.keys().chain(&self.unused).chain([&self.abort]) {
                self.hw.free(*leaf, shape.leaf_size(), shape.leaf_size());
            }
        }
        self.hw.free(self.root, shape.root_size(), shape.root_size());
    }

    /// Whether there are any streams, and all are in the table.
    pub fn check(&self, streams: &RangeInclusive<StreamId>) -> Result<(), SmmuError> {
        if streams.is_empty() {
            return Err(SmmuError::BadStream(*streams.start()));
        }
        for stream in [*streams.start(), *streams.end()] {
            if u64::from(stream.0).wrapping_shr(self.shape.bits.into()) != 0 {
                return Err(SmmuError::BadStream(stream));
            }
        }
        Ok(())
    }

    /// The streams whose cached configuration a change may affect: in a table of two levels, all streams of the same
    /// descriptors.
    pub fn affected(&self, streams: &RangeInclusive<StreamId>) -> RangeInclusive<StreamId> {
        if !self.shape.two_levels {
            return streams.clone();
        }
        let low = self.shape.leaf_entries().saturating_sub(1) as u32;
        StreamId(streams.start().0 & !low)..=StreamId(streams.end().0 | low)
    }

    /// Makes a change possible: takes the memory that [`prepare`](Self::prepare) needs.
    pub fn plan(&self, streams: &RangeInclusive<StreamId>, translation: Translation) -> Result<Change, SmmuError> {
        let whole = !self.shape.parts(streams).whole.is_empty();
        let leaf = if whole { Some(alloc(&self.hw, self.shape.leaf_size(), self.address_bits)?) } else { None };
        Ok(Change { streams: streams.clone(), translation, leaf })
    }

    /// Gives back what [`plan`](Self::plan) has taken, if [`prepare`](Self::prepare) was not called.
    pub fn cancel(&self, change: Change) {
        if let Some(leaf) = change.leaf {
            self.hw.free(leaf, self.shape.leaf_size(), self.shape.leaf_size());
        }
    }

    /// Copies leaves, so that those of the streams serve no others: those in use, and if the streams are to be enabled,
    /// also the common one, where they have a part of it. `true`: a descriptor has changed.
    ///
    /// # Errors
    ///
    /// [`SmmuError::OutOfMemory`], [`SmmuError::Unreachable`]: nothing has changed.
    pub fn separate(&mut self, streams: &RangeInclusive<StreamId>, then: Then) -> Result<bool, SmmuError> {
        if !self.shape.two_levels {
            return Ok(false);
        }
        let parts = self.shape.parts(streams);
        // First all memory, so that a lack of it changes nothing. A leaf may serve both an edge and what is between.
        let mut of_edges: ArrayVec<(u64, Pa), 2> = ArrayVec::new();
        let mut of_whole: BTreeMap<Pa, Pa> = BTreeMap::new();
        let copied = self.copy_shared(&parts, then, &mut of_edges, &mut of_whole);
        if let Err(error) = copied {
            for copy in of_edges.into_iter().map(|(_, copy)| copy).chain(of_whole.into_values()) {
                self.hw.free(copy, self.shape.leaf_size(), self.shape.leaf_size());
            }
            return Err(error);
        }
        for &(at, copy) in &of_edges {
            self.point(at..at.saturating_add(1), copy);
        }
        if !of_whole.is_empty() {
            for at in parts.whole {
                if let Some(&copy) = of_whole.get(&self.leaf(at)) {
                    self.point(at..at.saturating_add(1), copy);
                }
            }
        }
        Ok(!of_edges.is_empty() || !of_whole.is_empty())
    }

    fn copy_shared(
        &self,
        parts: &Parts,
        then: Then,
        of_edges: &mut ArrayVec<(u64, Pa), 2>,
        of_whole: &mut BTreeMap<Pa, Pa>,
    ) -> Result<(), SmmuError> {
        let mut inside = self.leaves_of(&parts.whole);
        for edge in &parts.edges {
            let leaf = self.leaf(edge.leaf);
            let shared = if leaf == self.abort { then == Then::Enable } else { self.uses_of(leaf) > 1 };
            if shared {
                of_edges.push((edge.leaf, self.copy(leaf)?));
                // When the edge has its copy, one use less is outside.
                if let Some(uses) = inside.get_mut(&leaf) {
                    *uses = uses.saturating_add(1);
                }
            }
        }
        for (leaf, inside) in inside {
            if self.uses_of(leaf) > inside {
                of_whole.insert(leaf, self.copy(leaf)?);
            }
        }
        Ok(())
    }

    /// Makes the entries of the streams abort. Their leaves serve no other streams. `true`: an entry has changed.
    pub fn abort(&self, streams: &RangeInclusive<StreamId>) -> bool {
        let parts = self.shape.parts(streams);
        let mut changed = false;
        for edge in &parts.edges {
            changed |= self.set_first_words(self.leaf(edge.leaf), edge.entries.clone(), ABORT);
        }
        for leaf in self.leaves_of(&parts.whole).into_keys() {
            changed |= self.set_first_words(leaf, 0..self.shape.leaf_entries(), ABORT);
        }
        changed
    }

    /// Takes leaves in which all entries abort out of use. The streams abort. `true`: a descriptor has changed.
    pub fn settle(&mut self, streams: &RangeInclusive<StreamId>) -> bool {
        if !self.shape.two_levels {
            return false;
        }
        let parts = self.shape.parts(streams);
        let mut changed = false;
        for edge in &parts.edges {
            let leaf = self.leaf(edge.leaf);
            if leaf != self.abort && (0..self.shape.leaf_entries()).all(|n| self.first_word(leaf, n) == ABORT) {
                self.point(edge.leaf..edge.leaf.saturating_add(1), self.abort);
                changed = true;
            }
        }
        changed |= parts.whole.clone().any(|at| self.leaf(at) != self.abort);
        self.point(parts.whole, self.abort);
        changed
    }

    /// Writes all words but the first of the entries, which abort, or gives the streams a leaf that has them.
    pub fn prepare(&mut self, change: &Change) {
        let parts = self.shape.parts(&change.streams);
        let words = change.translation.words();
        for edge in parts.edges {
            let leaf = self.leaf(edge.leaf);
            edge.entries.clone().for_each(|n| self.set_other_words(leaf, n, words));
            self.publish_entries(leaf, edge.entries);
        }
        if let Some(leaf) = change.leaf {
            self.fill(leaf, words);
            self.point(parts.whole, leaf);
        }
    }

    /// Makes the entries of the streams translate.
    pub fn enable(&self, change: &Change) {
        self.set_word_of(change, TRANSLATE);
    }

    /// Undoes [`enable`](Self::enable).
    pub fn disable(&self, change: &Change) {
        self.set_word_of(change, ABORT);
    }

    fn set_word_of(&self, change: &Change, word: u64) {
        for edge in self.shape.parts(&change.streams).edges {
            self.set_first_words(self.leaf(edge.leaf), edge.entries, word);
        }
        if let Some(leaf) = change.leaf {
            self.set_first_words(leaf, 0..self.shape.leaf_entries(), word);
        }
    }

    /// Frees leaves that are not used any more. The caller knows that the SMMU has invalidated all streams that had
    /// them.
    pub fn free_unused(&mut self) {
        for leaf in self.unused.drain(..) {
            self.hw.free(leaf, self.shape.leaf_size(), self.shape.leaf_size());
        }
    }

    /// The leaf of a descriptor.
    fn leaf(&self, at: u64) -> Pa {
        if self.shape.two_levels { Pa(self.hw.load64(self.descriptor(at)) & L2PTR) } else { self.root }
    }

    fn descriptor(&self, at: u64) -> Pa {
        self.root.add(at.wrapping_mul(DESCRIPTOR))
    }

    /// How many descriptors point to a leaf other than that which aborts.
    fn uses_of(&self, leaf: Pa) -> u64 {
        self.uses.get(&leaf).copied().unwrap_or(0)
    }

    /// The leaves that descriptors point to, and how many of these descriptors do; without the leaf that aborts.
    fn leaves_of(&self, descriptors: &Range<u64>) -> BTreeMap<Pa, u64> {
        let mut leaves = BTreeMap::new();
        for leaf in descriptors.clone().map(|at| self.leaf(at)).filter(|&leaf| leaf != self.abort) {
            let uses: &mut u64 = leaves.entry(leaf).or_default();
            *uses = uses.saturating_add(1);
        }
        leaves
    }

    /// A new leaf with the contents of another.
    fn copy(&self, from: Pa) -> Result<Pa, SmmuError> {
        let (size, bytes) = (self.shape.leaf_size(), self.shape.leaf_size() as u64);
        let leaf = alloc(&self.hw, size, self.address_bits)?;
        for at in (0..bytes).step_by(WORD as usize) {
            self.hw.store64(leaf.add(at), self.hw.load64(from.add(at)));
        }
        self.hw.publish(leaf, size, self.coherence);
        Ok(leaf)
    }

    /// Makes descriptors point to a leaf.
    fn point(&mut self, descriptors: Range<u64>, leaf: Pa) {
        if descriptors.is_empty() {
            return;
        }
        let span = u64::from(self.shape.leaf_bits).saturating_add(1);
        for at in descriptors.clone() {
            let before = self.leaf(at);
            if before == leaf {
                continue;
            }
            self.hw.store64(self.descriptor(at), leaf.0 & L2PTR | span);
            if let Some(uses) = self.uses.get_mut(&before) {
                *uses = uses.saturating_sub(1);
                if *uses == 0 {
                    self.uses.remove(&before);
                    self.unused.push(before);
                }
            }
            if leaf != self.abort {
                let uses = self.uses.entry(leaf).or_default();
                *uses = uses.saturating_add(1);
            }
        }
        let count = descriptors.end.saturating_sub(descriptors.start);
        let bytes = count.wrapping_mul(DESCRIPTOR) as usize;
        self.hw.publish(self.descriptor(descriptors.start), bytes, self.coherence);
    }

    /// Fills a leaf with entries that abort and have these other words.
    fn fill(&self, leaf: Pa, words: [u64; 7]) {
        for n in 0..self.shape.leaf_entries() {
            self.hw.store64(self.entry(leaf, n), ABORT);
            self.set_other_words(leaf, n, words);
        }
        self.publish_entries(leaf, 0..self.shape.leaf_entries());
    }

    fn set_other_words(&self, leaf: Pa, n: u64, words: [u64; 7]) {
        for (at, word) in (WORD..).step_by(WORD as usize).zip(words) {
            self.hw.store64(self.entry(leaf, n).add(at), word);
        }
    }

    /// Sets the first words of entries. `true`: one was another.
    fn set_first_words(&self, leaf: Pa, entries: Range<u64>, word: u64) -> bool {
        let mut changed = false;
        for n in entries.clone() {
            if self.first_word(leaf, n) != word {
                self.hw.store64(self.entry(leaf, n), word);
                changed = true;
            }
        }
        if changed {
            self.publish_entries(leaf, entries);
        }
        changed
    }

    fn first_word(&self, leaf: Pa, n: u64) -> u64 {
        self.hw.load64(self.entry(leaf, n))
    }

    fn entry(&self, leaf: Pa, n: u64) -> Pa {
        leaf.add(n.wrapping_mul(SIZE))
    }

    fn publish_entries(&self, leaf: Pa, entries: Range<u64>) {
        let bytes = entries.end.saturating_sub(entries.start).wrapping_mul(SIZE) as usize;
        self.hw.publish(self.entry(leaf, entries.start), bytes, self.coherence);
    }
}

/// Memory that is aligned to its size, and that an SMMU of `address_bits` reaches.
pub fn alloc(hw: &impl Hw, size: usize, address_bits: u8) -> Result<Pa, SmmuError> {
    let memory = hw.alloc(size, size).ok_or(SmmuError::OutOfMemory)?;
    let end = memory.0.saturating_add(size as u64);
    if end.saturating_sub(1).checked_shr(address_bits.into()).unwrap_or(0) != 0 {
        hw.free(memory, size, size);
        return Err(SmmuError::Unreachable(memory));
    }
    Ok(memory)
}
