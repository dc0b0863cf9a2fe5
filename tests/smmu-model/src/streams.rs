//! The stream table, and what the SMMU may have cached of it (IHI 0070, 3.3, 3.21.3 and 5.1).
//!
//! The SMMU may read any reachable structure at any time and keep it until it is invalidated. So what it may have
//! cached is each value that the structure has had since its last invalidation. The model keeps the oldest of these: when
//! the CPU publishes a change of a structure, the value before the change is kept, unless an older one is kept already.
//! Where nothing is kept, memory has not changed since the invalidation.

use crate::config::Staleness;
use crate::eventq::{C_BAD_STREAMID, F_STE_FETCH};
use crate::machine::State;
use crate::memory::{Trouble, Use};
use crate::regs::ADDRESS;
use crate::ste::{self, Action, Stage2, Ste};
use std::collections::{BTreeMap, BTreeSet};

/// The geometry of the stream table.
#[derive(Clone, Copy)]
pub(crate) struct Table {
    base: u64,
    /// Number of StreamID bits.
    bits: u32,
    /// Number of StreamID bits of the second level.
    split: Option<u32>,
}

impl Table {
    /// Number of bytes of the table, or of its first level.
    fn bytes(&self) -> u64 {
        match self.split {
            None => 64 << self.bits,
            Some(split) => 8 << self.bits.saturating_sub(split),
        }
    }
}

/// STEs that lie one after the other in memory.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Array {
    at: u64,
    first: u32,
    count: u32,
}

/// The stream table and its caches.
#[derive(Default)]
pub(crate) struct Streams {
    /// The table, from SMMUEN = 1 until SMMUEN = 0 is acknowledged.
    pub(crate) table: Option<Table>,
    /// Oldest values of STEs that may be cached.
    pub(crate) stes: BTreeMap<u32, Ste>,
    /// Oldest values of first-level descriptors that may be cached.
    pub(crate) descriptors: BTreeMap<u32, u64>,
    /// STEs that transactions have used, for [`Staleness::OnUse`].
    pub(crate) used: BTreeMap<u32, Ste>,
    /// Second-level arrays that are reachable through memory or a cached descriptor.
    arrays: BTreeMap<u64, Array>,
    /// Stage 2 of the STEs of each stream, cached or in memory.
    bound: BTreeMap<u32, Vec<Stage2>>,
}

/// A structure that a publish may change, with its value before.
pub(crate) enum Watched {
    Descriptor { index: u32, old: u64 },
    Ste { stream: u32, at: u64, old: Ste },
}

impl State {
    /// Checks the stream table when SMMUEN is set, and finds what is reachable through it.
    pub(crate) fn open_streams(&mut self) {
        const SECTION: &str = "6.3 SMMU_STRTAB_BASE";
        let cfg = self.regs.strtab_cfg;
        let (log2, split, format) = (cfg & 0x3f, (cfg >> 6) & 0x1f, (cfg >> 16) & 3);
        if log2 > self.cfg.stream_bits {
            self.flag("6.3 SMMU_STRTAB_BASE_CFG", format!("LOG2SIZE {log2} is more than SIDSIZE"));
        }
        if format > 1 || (format == 1 && !matches!(split, 6 | 8 | 10)) {
            self.flag("6.3 SMMU_STRTAB_BASE_CFG", format!("reserved FMT or SPLIT: {cfg:#x}"));
        }
        let two_level = format == 1 && self.cfg.two_level;
        let split = two_level.then_some(if matches!(split, 8 | 10) { split } else { 6 });
        // The alignment follows from the literal LOG2SIZE.
        let literal = Table { base: 0, bits: log2.min(40), split };
        let base = self.regs.strtab_base & ADDRESS & !(literal.bytes().max(64) - 1);
        let table = Table { base, bits: log2.min(self.cfg.stream_bits), split };
        if base != self.regs.strtab_base & ADDRESS {
            self.flag(SECTION, format!("the table at {:#x} is not aligned to its size", self.regs.strtab_base));
        }
        let trouble = self.mem.trouble(base, table.bytes(), self.table_snoop());
        self.flag_memory(SECTION, "the stream table", base, trouble);
        self.check_attributes(6);
        let caches = [
            (self.unknown.streams, "CMD_CFGI_ALL"),
            (self.unknown.translations, "CMD_TLBI_NSNH_ALL"),
            (self.unknown.hyp && self.cfg.hyp, "CMD_TLBI_EL2_ALL"),
        ];
        for (_, command) in caches.iter().filter(|(unknown, _)| *unknown) {
            self.flag("3.11", format!("SMMUEN is set, but caches were not invalidated by {command} and a SYNC"));
        }
        self.mem.attach_once(base, table.bytes(), Use::StreamTable);
        self.streams.table = Some(table);
        self.find_arrays();
        for array in self.arrays() {
            self.bind_array(array);
        }
    }

    /// Forgets the stream table after SMMUEN = 0 is acknowledged. What may be cached of it stays in the caches.
    pub(crate) fn close_streams(&mut self) {
        for array in self.arrays() {
            for stream in (0..array.count).map(|n| array.first + n) {
                let ste = self.read_ste(array.at + u64::from(stream - array.first) * 64).0;
                if ste::valid(&ste) {
                    self.streams.stes.entry(stream).or_insert(ste);
                }
            }
        }
        self.streams.table = None;
        self.streams.arrays.clear();
        self.streams.descriptors.clear();
        self.mem.detach_all(|u| matches!(u, Use::StreamTable | Use::StreamArray(_)));
        for stream in self.streams.bound.keys().copied().collect::<Vec<_>>() {
            self.rebind(stream, vec![]);
        }
        self.stop_walks();
        // An SMMU need not invalidate anything by itself.
        self.unknown.streams = true;
        self.unknown.translations = true;
    }

    fn read_ste(&self, at: u64) -> (Ste, Option<Trouble>) {
        let mut bytes = [0; 64];
        let trouble = self.mem.device_read(at, &mut bytes, self.table_snoop());
        let mut ste = [0; 8];
        for (word, chunk) in ste.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = chunk.iter().rev().fold(0, |w, b| w << 8 | u64::from(*b));
        }
        (ste, trouble)
    }

    fn read_descriptor(&self, table: Table, index: u32) -> u64 {
        self.mem.device_read64(table.base + u64::from(index) * 8, self.table_snoop()).0
    }

    /// The array of STEs that a first-level descriptor points to, if it is valid.
    fn array_of(table: Table, index: u32, descriptor: u64) -> Option<Array> {
        let (split, span) = (table.split?, (descriptor & 0x1f) as u32);
        if span == 0 || span > 11 || span > split + 1 {
            return None;
        }
        let count = 1 << (span - 1);
        let at = descriptor & ADDRESS & !0x3f & !(u64::from(count) * 64 - 1);
        Some(Array { at, first: index << split, count })
    }

    /// All reachable STEs.
    fn arrays(&self) -> Vec<Array> {
        match self.streams.table {
            Some(Table { base, bits, split: None }) => vec![Array { at: base, first: 0, count: 1 << bits }],
            _ => self.streams.arrays.values().copied().collect(),
        }
    }

    /// Finds the second-level arrays that are reachable now.
    fn find_arrays(&mut self) {
        let Some(table) = self.streams.table else { return };
        let Some(split) = table.split else { return };
        let mut arrays = BTreeMap::new();
        for index in 0..1u32 << table.bits.saturating_sub(split) {
            let now = self.read_descriptor(table, index);
            let cached = self.streams.descriptors.get(&index).copied();
            for descriptor in [Some(now), cached].into_iter().flatten() {
                let Some(array) = State::array_of(table, index, descriptor) else { continue };
                let section = "5.1 L1STD";
                if descriptor & ADDRESS & !0x3f != array.at {
                    self.flag(section, format!("L2Ptr of {descriptor:#x} is not aligned to its array"));
                }
                if self.streams.arrays.get(&array.at) != Some(&array) {
                    let trouble = self.mem.trouble(array.at, u64::from(array.count) * 64, self.table_snoop());
                    self.flag_memory(section, "the second-level stream table", array.at, trouble);
                }
                arrays.insert(array.at, (array, index));
            }
        }
        self.mem.detach_all(|u| matches!(u, Use::StreamArray(_)));
        for (at, (array, index)) in &arrays {
            self.mem.attach_once(*at, u64::from(array.count) * 64, Use::StreamArray(*index));
        }
        self.streams.arrays = arrays.into_iter().map(|(at, (array, _))| (at, array)).collect();
    }

    // ---- changes in memory

    /// Returns the structures in a range of memory, before it is published.
    pub(crate) fn watched_streams(&self, at: u64, size: u64) -> Vec<Watched> {
        let Some(table) = self.streams.table else { return Vec::new() };
        let mut found = Vec::new();
        let end = at + size;
        let entries = |from: u64, bytes: u64, entry: u64| {
            let (first, last) = (at.max(from), end.min(from + bytes));
            if first < last { (first - from) / entry..(last - from).div_ceil(entry) } else { 0..0 }
        };
        if table.split.is_some() {
            for index in entries(table.base, table.bytes(), 8) {
                let index = index as u32;
                found.push(Watched::Descriptor { index, old: self.read_descriptor(table, index) });
            }
        }
        for array in self.arrays() {
            for n in entries(array.at, u64::from(array.count) * 64, 64) {
                let at = array.at + n * 64;
                found.push(Watched::Ste { stream: array.first + n as u32, at, old: self.read_ste(at).0 });
            }
        }
        found
    }

    /// Follows the changes of structures after they were published.
    pub(crate) fn streams_published(&mut self, watched: Vec<Watched>) {
        let Some(table) = self.streams.table else { return };
        for w in &watched {
            if let Watched::Ste { stream, at, old } = w {
                let now = self.read_ste(*at).0;
                if now != *old {
                    self.ste_changed(*stream, old, &now);
                }
            }
        }
        let mut reachable = false;
        for w in watched {
            if let Watched::Descriptor { index, old } = w
                && self.read_descriptor(table, index) != old
            {
                self.streams.descriptors.entry(index).or_insert(old);
                reachable = true;
            }
        }
        if reachable {
            let before: BTreeSet<u64> = self.streams.arrays.keys().copied().collect();
            self.find_arrays();
            for array in self.arrays() {
                if !before.contains(&array.at) {
                    self.bind_array(array);
                }
            }
        }
    }

    fn ste_changed(&mut self, stream: u32, old: &Ste, now: &Ste) {
        // The SMMU reads the words in any order, so it may have seen each of them before or after the change.
        let oldest = *self.streams.stes.entry(stream).or_insert(*old);
        let used = ste::used_words(&oldest) | ste::used_words(now);
        let changed = (0..8).filter(|&n| used >> n & 1 != 0 && oldest[n] != now[n]).count();
        if changed > 1 && (ste::valid(&oldest) || ste::valid(now)) {
            self.flag(
                "3.21.3.1",
                format!(
                    "{changed} words of the STE of stream {stream:#x} changed, while it is or was valid, without a step \
                     with V = 0 that was invalidated: the SMMU may see a mixture"
                ),
            );
        }
        self.check_ste(stream, now);
        self.bind_stream(stream, now);
    }

    /// Records a violation if an STE is valid and has a fault.
    fn check_ste(&mut self, stream: u32, now: &Ste) {
        if ste::valid(now)
            && let Some(fault) = ste::faults(&self.cfg, now)
        {
            self.flag("5.2 STE", format!("stream {stream:#x}: {fault}"));
        }
    }

    /// Finds the stage 2 tables of the STEs of an array.
    fn bind_array(&mut self, array: Array) {
        for n in 0..array.count {
            let (now, trouble) = self.read_ste(array.at + u64::from(n) * 64);
            // What is not published has been reported for the array as a whole.
            if trouble.is_some() {
                continue;
            }
            if ste::valid(&now) || self.streams.stes.contains_key(&(array.first + n)) {
                self.check_ste(array.first + n, &now);
                self.bind_stream(array.first + n, &now);
            }
        }
    }

    /// Finds the stage 2 tables that are reachable through a stream, whose STE in memory is given.
    fn bind_stream(&mut self, stream: u32, now: &Ste) {
        let stes = [Some(*now), self.streams.stes.get(&stream).copied()];
        let bound = stes
            .into_iter()
            .flatten()
            .filter_map(|ste| match ste::decode(&self.cfg, &ste) {
                Action::Translate(stage2) => Some(stage2),
                _ => None,
            })
            .collect();
        self.rebind(stream, bound);
    }

    fn rebind(&mut self, stream: u32, bound: Vec<Stage2>) {
        let before = self.streams.bound.remove(&stream).unwrap_or_default();
        for stage2 in bound.iter().filter(|s| !before.iter().any(|b| b.equivalent(s))) {
            self.bind_stage2(stream, stage2);
        }
        for stage2 in before.iter().filter(|s| !bound.iter().any(|b| b.equivalent(s))) {
            self.unbind_stage2(stream, stage2);
        }
        if !bound.is_empty() {
            self.streams.bound.insert(stream, bound);
        }
    }

    // ---- invalidation

    /// Invalidates what is cached of the streams `first` to `last`. `descriptors`: also that of the first level.
    pub(crate) fn invalidate_streams(&mut self, first: u32, last: u32, descriptors: bool) {
        self.streams.used.retain(|stream, _| !(first..=last).contains(stream));
        self.streams.stes.retain(|stream, _| !(first..=last).contains(stream));
        let before = self.arrays();
        if descriptors && let Some(Table { split: Some(split), .. }) = self.streams.table {
            self.streams.descriptors.retain(|index, _| !(first >> split..=last >> split).contains(index));
            self.find_arrays();
        }
        // STEs of an array that is no longer reachable stay cached if they were not invalidated themselves.
        let after = self.arrays();
        for array in before.iter().filter(|a| !after.contains(a)) {
            for stream in (0..array.count).map(|n| array.first + n) {
                let now = self.read_ste(array.at + u64::from(stream - array.first) * 64).0;
                if !(first..=last).contains(&stream) && ste::valid(&now) {
                    self.streams.stes.entry(stream).or_insert(now);
                }
            }
        }
        for stream in self.streams.bound.keys().copied().filter(|s| (first..=last).contains(s)).collect::<Vec<_>>() {
            let now = self.locate(stream).map_or([0; 8], |at| self.read_ste(at).0);
            self.bind_stream(stream, &now);
        }
    }

    /// Records a violation if an STE in a range has stores that are not published when it is invalidated.
    pub(crate) fn check_published(&mut self, first: u32, last: u32) {
        for array in self.arrays() {
            let (from, to) = (first.max(array.first), last.min(array.first + array.count - 1));
            if from <= to {
                let at = array.at + u64::from(from - array.first) * 64;
                let trouble = self.mem.trouble(at, u64::from(to - from + 1) * 64, self.table_snoop());
                self.flag_memory("4.3", "an STE that is invalidated", at, trouble);
            }
        }
    }

    // ---- look-ups

    /// The address of a stream's STE as memory has it.
    fn locate(&self, stream: u32) -> Option<u64> {
        let table = self.streams.table?;
        if u64::from(stream) >> table.bits != 0 {
            return None;
        }
        self.arrays_containing(table, stream)
    }

    fn arrays_containing(&self, table: Table, stream: u32) -> Option<u64> {
        let array = match table.split {
            None => Array { at: table.base, first: 0, count: 1 << table.bits },
            Some(split) => State::array_of(table, stream >> split, self.read_descriptor(table, stream >> split))?,
        };
        (stream - array.first < array.count).then(|| array.at + u64::from(stream - array.first) * 64)
    }

    /// Looks a stream's STE up. The error is the number of an event, and the address of the fetch that was aborted.
    pub(crate) fn look_up(&mut self, stream: u32) -> Result<Ste, (u8, u64)> {
        let Some(table) = self.streams.table else { return Err((C_BAD_STREAMID, 0)) };
        if u64::from(stream) >> table.bits != 0 {
            return Err((C_BAD_STREAMID, 0));
        }
        let cached = match self.cfg.staleness {
            Staleness::OnUse => self.streams.used.get(&stream),
            _ => self.streams.stes.get(&stream),
        };
        if let Some(ste) = cached.copied()
            && self.stale()
        {
            return Ok(ste);
        }
        let at = match table.split {
            None => self.arrays_containing(table, stream),
            Some(split) => {
                let index = stream >> split;
                let cached = self.streams.descriptors.get(&index).copied();
                let descriptor = match cached {
                    Some(old) if self.cfg.staleness != Staleness::OnUse && self.stale() => old,
                    _ => self.read_descriptor(table, index),
                };
                State::array_of(table, index, descriptor)
                    .filter(|a| stream - a.first < a.count)
                    .map(|a| a.at + u64::from(stream - a.first) * 64)
            }
        };
        let at = at.ok_or((C_BAD_STREAMID, 0))?;
        let (ste, trouble) = self.read_ste(at);
        if std::mem::take(&mut self.faults.ste_fetch_aborts) {
            return Err((F_STE_FETCH, at));
        }
        if trouble == Some(Trouble::NotAllocated) {
            self.flag_memory("3.21.3", "an STE that is fetched", at, trouble);
            return Err((F_STE_FETCH, at));
        }
        if self.cfg.staleness == Staleness::OnUse {
            self.streams.used.insert(stream, ste);
        }
        Ok(ste)
    }

    /// Records a violation if the attributes in SMMU_CR1 from bit `at` on are reserved.
    pub(crate) fn check_attributes(&mut self, at: u32) {
        let field = |n: u32| (self.regs.cr1 >> (at + n)) & 3;
        if field(0) == 3 || field(2) == 3 || (field(4) == 1 && field(0) | field(2) != 0) {
            self.flag("6.3 SMMU_CR1", format!("reserved attributes: {:#x}", self.regs.cr1));
        }
    }
}
