//! Translations that the SMMU may have cached, and the tables that it may walk (IHI 0070, 3.21.1 and 4.4).
//!
//! The SMMU may walk all tables that a cached or reachable STE leads to, at any time, and keep each valid translation and
//! each pointer to a table until it is invalidated. The model follows the tables of each VMID: when the CPU publishes a
//! change of a descriptor, the translation before it is kept, or the pointer to the table before it. What no change has
//! touched is the same in memory and in the caches.

use crate::config::Staleness;
use crate::machine::State;
use crate::memory::Use;
use crate::ste::Stage2;
use crate::walk::{self, Descriptor, Leaf, NT, Place, WalkFault};
use std::collections::{BTreeMap, BTreeSet};

/// A table that walks of a VMID can reach.
#[derive(Clone, Copy)]
struct Table {
    place: Place,
    stage2: Stage2,
    /// Memory leads to it. Otherwise only a cached pointer does.
    live: bool,
}

/// What belongs to a VMID.
#[derive(Default)]
struct Space {
    /// Stage 2 of the STEs with this VMID, with their streams. Two at once are a violation.
    roots: Vec<(Stage2, BTreeSet<u32>)>,
    /// The last of `roots`, while translations of it may be cached.
    last: Option<Stage2>,
    tables: Vec<Table>,
    /// Translations that may be cached and are no longer in memory.
    leaves: Vec<Leaf>,
    /// Translations that transactions have used, for [`Staleness::OnUse`].
    used: Vec<Leaf>,
}

/// The TLB.
#[derive(Default)]
pub(crate) struct Tlb {
    spaces: BTreeMap<u16, Space>,
    /// Pages with tables, with the VMIDs that use them.
    pages: BTreeMap<u64, BTreeSet<u16>>,
}

/// What an invalidation covers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scope {
    /// `None`: all VMIDs.
    pub(crate) vmid: Option<u16>,
    /// First address and size. `None`: all.
    pub(crate) range: Option<(u64, u64)>,
    /// Pointers to tables stay.
    pub(crate) leaf: bool,
    /// Only translations of this level.
    pub(crate) level: Option<u8>,
}

impl Scope {
    /// Whether translations of an address are covered.
    pub(crate) fn reaches(&self, vmid: u16, address: u64) -> bool {
        self.vmid.is_none_or(|v| v == vmid)
            && self.range.is_none_or(|(first, size)| address >= first && address - first < size)
    }

    fn covers(&self, leaf: &Leaf) -> bool {
        self.range.is_none_or(|(first, size)| leaf.overlaps(first, size)) && self.level.is_none_or(|l| l == leaf.level)
    }
}

/// A descriptor that a publish may change, with its value before.
pub(crate) struct WatchedDescriptor {
    vmid: u16,
    place: Place,
    entry: u64,
    old: u64,
}

/// Bound on the tables of a VMID, so that tables that refer to each other cannot keep the model busy.
const MOST_TABLES: usize = 4096;

impl State {
    // ---- reachability

    /// A stream's STE now leads to these tables.
    pub(crate) fn bind_stage2(&mut self, stream: u32, stage2: &Stage2) {
        let vmid = stage2.vmid;
        let space = self.tlb.spaces.entry(vmid).or_default();
        if let Some((_, streams)) = space.roots.iter_mut().find(|(s, _)| s.equivalent(stage2)) {
            streams.insert(stream);
            return;
        }
        let shared = !space.roots.is_empty();
        let reused = space.last.is_some_and(|s| !s.equivalent(stage2));
        space.roots.push((*stage2, BTreeSet::from([stream])));
        space.last = Some(*stage2);
        if shared {
            self.flag(
                "5.2 STE",
                format!("stream {stream:#x} has VMID {vmid:#x} with another stage 2 than other streams"),
            );
        } else if reused {
            self.flag(
                "4.4",
                format!(
                    "VMID {vmid:#x} is used again by stream {stream:#x} while translations of other tables are cached"
                ),
            );
        }
        self.add_table(stage2, Place::root(stage2));
    }

    /// A stream's STE no longer leads to these tables, in memory or cached.
    pub(crate) fn unbind_stage2(&mut self, stream: u32, stage2: &Stage2) {
        let Some(space) = self.tlb.spaces.get_mut(&stage2.vmid) else { return };
        for (_, streams) in space.roots.iter_mut().filter(|(s, _)| s.equivalent(stage2)) {
            streams.remove(&stream);
        }
        let gone: Vec<Stage2> = space.roots.iter().filter(|(_, s)| s.is_empty()).map(|(s, _)| *s).collect();
        space.roots.retain(|(_, streams)| !streams.is_empty());
        for stage2 in gone {
            self.retire(stage2.vmid, Place::root(&stage2));
        }
    }

    fn read_entry(&self, stage2: &Stage2, place: &Place, entry: u64) -> u64 {
        self.mem.device_read64(place.at + entry * 8, self.walk_snoop(stage2)).0
    }

    /// Adds a table that memory leads to, and all tables below it.
    fn add_table(&mut self, stage2: &Stage2, place: Place) {
        let Some(space) = self.tlb.spaces.get_mut(&stage2.vmid) else { return };
        if let Some(known) = space.tables.iter_mut().find(|t| t.place == place) {
            if known.live {
                return;
            }
            known.live = true;
        } else {
            if space.tables.len() >= MOST_TABLES {
                return;
            }
            space.tables.push(Table { place, stage2: *stage2, live: true });
            self.mem.attach(place.at, place.bytes(), Use::Stage2(stage2.vmid));
            for page in place.at / 4096..(place.at + place.bytes()).div_ceil(4096) {
                self.tlb.pages.entry(page).or_default().insert(stage2.vmid);
            }
        }
        let trouble = self.mem.trouble(place.at, place.bytes(), self.walk_snoop(stage2));
        if self.flag_memory("3.21.1", "a stage 2 table that the SMMU can reach", place.at, trouble) {
            return;
        }
        for entry in 0..place.entries {
            self.descriptor_added(stage2, place, entry);
        }
    }

    /// A descriptor is now in memory.
    fn descriptor_added(&mut self, stage2: &Stage2, place: Place, entry: u64) {
        let word = self.read_entry(stage2, &place, entry);
        match walk::decode(word, place.level) {
            Descriptor::Invalid => {}
            Descriptor::Leaf(output) => self.check_break(stage2, place.leaf(entry, word, output)),
            Descriptor::Table(at) => {
                let below = place.below(entry, at);
                self.check_break_table(stage2, below);
                self.add_table(stage2, below);
            }
        }
    }

    /// Whether a change between this block and smaller blocks or pages needs break-before-make.
    fn sizes_matter(&self, block: u64) -> bool {
        self.cfg.bbml == 0 || (self.cfg.bbml == 1 && block & NT == 0)
    }

    /// Records a violation if a new translation contradicts one that may be cached.
    fn check_break(&mut self, stage2: &Stage2, new: Leaf) {
        let Some(space) = self.tlb.spaces.get(&stage2.vmid) else { return };
        let sizes = self.sizes_matter(new.word);
        let contradicts = |old: &Leaf| {
            let at = old.first.max(new.first);
            old.overlaps(new.first, new.size())
                && (old.output_of(at) != new.output_of(at)
                    || old.attributes() != new.attributes()
                    || (old.level < new.level && self.sizes_matter(old.word))
                    || (old.level > new.level && sizes))
        };
        let below = |t: &Table| !t.live && t.place.overlaps(new.first, new.size()) && t.place.level > new.level;
        let why = if let Some(old) = space.leaves.iter().find(|l| contradicts(l)) {
            format!("{:#x} was mapped to {:#x}", old.first, old.output)
        } else if sizes && space.tables.iter().any(below) {
            "it was mapped by a table".into()
        } else {
            return;
        };
        let (vmid, first, output) = (stage2.vmid, new.first, new.output);
        self.flag(
            "3.21.1.1",
            format!("VMID {vmid:#x}: {first:#x} is mapped to {output:#x} without break-before-make: {why}"),
        );
    }

    /// Records a violation if a new table replaces another, or a block, that may be cached.
    fn check_break_table(&mut self, stage2: &Stage2, new: Place) {
        let Some(space) = self.tlb.spaces.get(&stage2.vmid) else { return };
        let other =
            |t: &Table| !t.live && t.place.level == new.level && t.place.first == new.first && t.place.at != new.at;
        let block = |l: &Leaf| l.level < new.level && l.overlaps(new.first, new.span()) && self.sizes_matter(l.word);
        let why = if space.tables.iter().any(other) {
            "another table"
        } else if space.leaves.iter().any(block) {
            "a block"
        } else {
            return;
        };
        let (vmid, first, at) = (stage2.vmid, new.first, new.at);
        self.flag(
            "3.21.1.1",
            format!(
                "VMID {vmid:#x}: {first:#x} is mapped by a table at {at:#x} without break-before-make: it was {why}"
            ),
        );
    }

    /// A table is no longer reachable through memory, nor are the tables below it. Pointers to them may be cached.
    fn retire(&mut self, vmid: u16, place: Place) {
        let Some(space) = self.tlb.spaces.get_mut(&vmid) else { return };
        let Some(table) = space.tables.iter_mut().find(|t| t.place == place && t.live) else { return };
        table.live = false;
        let stage2 = table.stage2;
        for entry in 0..place.entries {
            if let Descriptor::Table(at) = walk::decode(self.read_entry(&stage2, &place, entry), place.level) {
                self.retire(vmid, place.below(entry, at));
            }
        }
    }

    // ---- changes in memory

    /// Returns the descriptors in a range of memory, before it is published.
    pub(crate) fn watched_descriptors(&self, at: u64, size: u64) -> Vec<WatchedDescriptor> {
        let end = at + size;
        let mut found = Vec::new();
        let pages = self.tlb.pages.range(at / 4096..end.div_ceil(4096));
        for vmid in pages.flat_map(|(_, vmids)| vmids).copied().collect::<BTreeSet<u16>>() {
            for table in &self.tlb.spaces[&vmid].tables {
                let place = table.place;
                let (first, last) = (at.max(place.at), end.min(place.at + place.bytes()));
                if first < last {
                    found.extend(((first - place.at) / 8..(last - place.at).div_ceil(8)).map(|entry| {
                        let old = self.read_entry(&table.stage2, &place, entry);
                        WatchedDescriptor { vmid, place, entry, old }
                    }));
                }
            }
        }
        found
    }

    /// Follows the changes of descriptors after they were published.
    pub(crate) fn descriptors_published(&mut self, watched: Vec<WatchedDescriptor>) {
        for WatchedDescriptor { vmid, place, entry, old } in watched {
            let Some(space) = self.tlb.spaces.get_mut(&vmid) else { continue };
            let Some(table) = space.tables.iter().find(|t| t.place == place).copied() else { continue };
            if self.read_entry(&table.stage2, &place, entry) == old {
                continue;
            }
            match walk::decode(old, place.level) {
                Descriptor::Leaf(output) => self.keep(&table.stage2, place.leaf(entry, old, output)),
                Descriptor::Table(at) => self.retire(vmid, place.below(entry, at)),
                Descriptor::Invalid => {}
            }
            if table.live {
                self.descriptor_added(&table.stage2, place, entry);
            }
        }
    }

    /// Keeps a translation that may be cached. One that causes a fault is never cached.
    fn keep(&mut self, stage2: &Stage2, leaf: Leaf) {
        let cacheable = leaf.accessed() || stage2.no_access_faults;
        if cacheable
            && leaf.output >> stage2.output_bits.min(48) == 0
            && let Some(space) = self.tlb.spaces.get_mut(&stage2.vmid)
            && !space.leaves.contains(&leaf)
        {
            space.leaves.push(leaf);
        }
    }

    // ---- invalidation

    /// Invalidates cached translations.
    pub(crate) fn invalidate_translations(&mut self, scope: Scope) {
        let vmids: Vec<u16> =
            self.tlb.spaces.keys().copied().filter(|v| scope.vmid.is_none_or(|vmid| vmid == *v)).collect();
        for vmid in vmids {
            let Some(space) = self.tlb.spaces.get_mut(&vmid) else { continue };
            space.leaves.retain(|l| !scope.covers(l));
            space.used.retain(|l| !scope.covers(l));
            if !scope.leaf {
                let covered =
                    |t: &Table| !t.live && scope.range.is_none_or(|(first, size)| t.place.overlaps(first, size));
                self.remove_tables(vmid, covered, |leaf| scope.covers(leaf));
            }
            self.tidy(vmid);
        }
    }

    /// Removes tables. Translations in them stay cached, except those that `forgotten` names.
    fn remove_tables(&mut self, vmid: u16, which: impl Fn(&Table) -> bool, forgotten: impl Fn(&Leaf) -> bool) {
        let Some(space) = self.tlb.spaces.get_mut(&vmid) else { return };
        let (removed, kept): (Vec<Table>, Vec<Table>) = space.tables.iter().partition(|t| which(t));
        space.tables = kept;
        for Table { place, stage2, .. } in removed {
            for entry in 0..place.entries {
                let word = self.read_entry(&stage2, &place, entry);
                if let Descriptor::Leaf(output) = walk::decode(word, place.level) {
                    let leaf = place.leaf(entry, word, output);
                    if !forgotten(&leaf) {
                        self.keep(&stage2, leaf);
                    }
                }
            }
            self.mem.detach(place.at, Use::Stage2(vmid));
        }
        for vmids in self.tlb.pages.values_mut() {
            vmids.remove(&vmid);
        }
        for table in self.tlb.spaces.get(&vmid).map_or(&[][..], |s| &s.tables) {
            let (at, bytes) = (table.place.at, table.place.bytes());
            for page in at / 4096..(at + bytes).div_ceil(4096) {
                self.tlb.pages.entry(page).or_default().insert(vmid);
            }
        }
        self.tlb.pages.retain(|_, vmids| !vmids.is_empty());
    }

    /// Forgets a VMID of which nothing is cached.
    fn tidy(&mut self, vmid: u16) {
        let Some(space) = self.tlb.spaces.get_mut(&vmid) else { return };
        if space.leaves.is_empty() && !space.tables.iter().any(|t| !t.live) {
            space.last = space.roots.last().map(|(s, _)| *s);
            if space.roots.is_empty() && space.used.is_empty() {
                self.tlb.spaces.remove(&vmid);
            }
        }
    }

    /// Translation is off: no table is walked, but all translations may stay cached.
    pub(crate) fn stop_walks(&mut self) {
        for vmid in self.tlb.spaces.keys().copied().collect::<Vec<_>>() {
            self.remove_tables(vmid, |_| true, |_| false);
        }
    }

    /// Records a violation if tables of a VMID have stores that are not published when it is invalidated.
    pub(crate) fn check_tables_published(&mut self, scope: Scope) {
        let spaces = self.tlb.spaces.iter().filter(|(v, _)| scope.vmid.is_none_or(|vmid| vmid == **v));
        let tables: Vec<Table> = spaces.flat_map(|(_, s)| s.tables.iter().copied()).collect();
        for t in tables {
            let snoop = self.walk_snoop(&t.stage2);
            let first = scope.range.map_or(0, |(first, _)| first);
            let bits = walk::shift(t.place.level);
            let entries = match scope.range {
                None => 0..t.place.entries,
                Some((_, size)) if t.place.overlaps(first, size) => {
                    let last = (first + size - 1 - t.place.first) >> bits;
                    first.saturating_sub(t.place.first) >> bits..(last + 1).min(t.place.entries)
                }
                Some(_) => continue,
            };
            let (at, bytes) = (t.place.at + entries.start * 8, (entries.end - entries.start) * 8);
            let trouble = self.mem.trouble(at, bytes, snoop);
            self.flag_memory("4.4", "a stage 2 table whose translations are invalidated", at, trouble);
        }
    }

    // ---- look-ups

    /// Translates an input address that is in range.
    pub(crate) fn translate_stage2(&mut self, stage2: &Stage2, address: u64) -> Result<Leaf, WalkFault> {
        let (mut old, mut pointers) = (Vec::new(), Vec::new());
        if let Some(space) = self.tlb.spaces.get(&stage2.vmid) {
            let cached = if self.cfg.staleness == Staleness::OnUse { &space.used } else { &space.leaves };
            old.extend(cached.iter().filter(|l| l.covers(address)).copied().map(Ok));
            if !matches!(self.cfg.staleness, Staleness::OnUse | Staleness::Immediate) {
                let stale = |t: &&Table| !t.live && t.place.overlaps(address, 1);
                pointers.extend(space.tables.iter().filter(stale).map(|t| (t.stage2, t.place)));
            }
        }
        if !old.is_empty() || !pointers.is_empty() {
            for (stage2, place) in pointers {
                old.push(self.walk(&stage2, place, address));
            }
            if self.stale() {
                let n = self.pick(old.len());
                return old.swap_remove(n);
            }
        }
        let found = self.walk(stage2, Place::root(stage2), address);
        if self.cfg.staleness == Staleness::OnUse
            && let Ok(leaf) = found
        {
            self.tlb.spaces.entry(stage2.vmid).or_default().used.push(leaf);
        }
        found
    }
}
