//! GICv4.1: the vPE tables of redistributors and ITSs, and which of them share a table (IHI 0069, 12.11
//! GICR_VPROPBASER, 12.19 GITS_TYPER.SVPET).
//!
//! Redistributors with the same affinity down to the level that GICR_TYPER.CommonLPIAff names share one vPE table. So
//! do an ITS and the redistributors of its affinity, down to the level of GITS_TYPER.SVPET, and ITSs with the same
//! level and affinity; then it is the table that GITS_BASER2 points at. Sharing is transitive: if two ITSs share with
//! two redistributors that share with each other, all four share one table.
//!
//! Sharing is computed before the first table is made. A table that no ITS shares is made when the first CPU of its
//! group is brought up, by that CPU: GIC-600 and later read the registers that describe it as zero until the CPU has
//! power. Each redistributor is pointed at its table once. Second levels are allocated in all tables before a vPEID is
//! used, and in a new table for all vPEIDs in use.

use crate::gic::error::GicError;
use crate::gic::facts::common_affinity;
use crate::gic::its::Its;
use crate::gic::redist::{Redist, VPE_TABLE_PAGES};
use crate::gic::table::{Table, TableError};
use crate::mmio::Hw;
use crate::sync::Once;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

/// An affinity, and how many levels of it (from Aff3 down) name the redistributors and ITSs that share.
type Reach = (u32, u8);

fn reaches((own, levels): Reach, other: u32) -> bool {
    common_affinity(own, levels) == common_affinity(other, levels)
}

/// Which ITSs and redistributors share a vPE table: those with equal labels.
pub struct Sharing {
    itss: Vec<usize>,
    redists: Vec<usize>,
}

impl Sharing {
    /// Computes the labels from the reach of each ITS and of each redistributor (`None`: it shares with none, or is
    /// absent).
    pub fn of(itss: &[Option<Reach>], redists: &[Option<Reach>]) -> Sharing {
        let all: Vec<Option<Reach>> = itss.iter().chain(redists).copied().collect();
        let count = all.len();
        let mut labels: Vec<usize> = (0..count).collect();
        // Called with `a` before `b`. The level of an ITS says with which redistributors it shares.
        let share = |a: usize, b: usize| match (all[a], all[b]) {
            (Some(one), Some(other)) => {
                let mixed = a < itss.len() && b >= itss.len();
                (mixed || one.1 == other.1) && reaches(one, other.0)
            }
            _ => false,
        };
        // Repeated until nothing changes, because each round may carry a label only one step further.
        let mut changed = true;
        while changed {
            changed = false;
            for a in 0..count {
                for b in a + 1..count {
                    if labels[a] != labels[b] && share(a, b) {
                        let label = labels[a].min(labels[b]);
                        (labels[a], labels[b]) = (label, label);
                        changed = true;
                    }
                }
            }
        }
        let redists = labels.split_off(itss.len());
        Sharing { itss: labels, redists }
    }

    /// The table that this ITS shares with one that was brought up earlier.
    pub fn of_its<H>(&self, its: usize, earlier: &[Option<Its<H>>]) -> Option<Table> {
        let label = self.itss.get(its)?;
        let same = earlier.iter().zip(&self.itss).filter(|(_, l)| *l == label);
        same.filter_map(|(its, _)| its.as_ref()?.vpe_table).next()
    }
}

/// Redistributors that share a vPE table.
struct Group {
    label: usize,
    table: Once<Table>,
    /// No ITS uses the table and no redistributor has been pointed at it yet: it is all zero, and the first
    /// redistributor gets Z set.
    fresh: AtomicBool,
}

/// All groups, and the label of each redistributor.
#[derive(Default)]
pub struct VpeTables {
    groups: Vec<Group>,
    labels: Vec<usize>,
    /// The number of entries that a table is made with.
    wanted: u64,
}

impl VpeTables {
    /// Plans a group for each label. Those that share the table of an ITS have it from the start.
    pub fn plan<H: Hw + Clone>(
        sharing: &Sharing,
        itss: &[Option<Its<H>>],
        wanted: u64,
    ) -> Result<VpeTables, TableError> {
        let mut groups: Vec<Group> = Vec::new();
        for &label in &sharing.redists {
            if groups.iter().any(|g| g.label == label) {
                continue;
            }
            let same = itss.iter().zip(&sharing.itss).filter(|(_, l)| **l == label);
            let shared = same.filter_map(|(its, _)| its.as_ref()?.vpe_table).next();
            let table = match shared {
                Some(table) => Once::initialized(table.fits(VPE_TABLE_PAGES)?),
                None => Once::new(),
            };
            groups.push(Group { label, table, fresh: AtomicBool::new(shared.is_none()) });
        }
        Ok(VpeTables { groups, labels: sharing.redists.clone(), wanted })
    }

    fn of<H>(&self, redist: &Redist<H>) -> Result<&Group, TableError> {
        let label = self.labels.get(redist.cpu.index()).ok_or(TableError::Range)?;
        self.groups.iter().find(|g| g.label == *label).ok_or(TableError::Range)
    }

    /// Makes the table of a redistributor's group if that has none, with room for at least `vpes` vPEs. The redistributor
    /// is powered: its register says what a table looks like.
    ///
    /// Called under the VM-map lock, or before there are vPEs.
    pub fn make<H: Hw + Clone>(&self, redist: &Redist<H>, vpes: u64) -> Result<&Table, TableError> {
        let group = self.of(redist)?;
        if let Some(table) = group.table.get() {
            return Ok(table);
        }
        let table = redist.make_vpe_table(self.wanted)?;
        if table.capacity() < vpes {
            redist.free_vpe_table(&table);
            return Err(TableError::Range);
        }
        Ok(group.table.call_once(|| table))
    }

    /// Points a redistributor at its group's table, unless it still uses it from before its CPU was taken out of
    /// service, and makes sure that there is memory behind the entries of the vPEs in `used`. The rest is as for
    /// [`make`](Self::make).
    pub fn attach<H: Hw + Clone>(
        &self,
        redist: &Redist<H>,
        coherent: bool,
        vpes: u64,
        mut used: impl Iterator<Item = u64>,
    ) -> Result<(), GicError> {
        let error = |e| GicError::VpeTable(redist.cpu, e);
        let table = self.make(redist, vpes).map_err(error)?;
        if !redist.has_vpe_table(table) {
            let first = self.of(redist).map_err(error)?.fresh.swap(false, Ordering::AcqRel);
            if !redist.set_vpe_table(table, first, coherent) {
                return Err(GicError::RegisterWrite(redist.cpu));
            }
        }
        used.try_for_each(|id| redist.ensure_vpe(table, id)).map_err(error)
    }

    fn made(&self) -> impl Iterator<Item = &Table> {
        self.groups.iter().filter_map(|g| g.table.get())
    }

    /// Makes sure that every table has memory behind the entry of a vPE. Called under the VM-map lock.
    pub fn ensure<H: Hw>(&self, hw: &H, id: u64) -> Result<(), TableError> {
        self.made().try_for_each(|table| table.ensure(hw, id))
    }

    /// How many vPEs every table has room for; without tables, any number.
    pub fn capacity(&self) -> u64 {
        self.made().map(Table::capacity).min().unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sharing_is_transitive() {
        // All redistributors share one table (CommonLPIAff 0), so two ITSs of different sockets share it, too.
        let s = Sharing::of(&[Some((0, 1)), Some((1 << 24, 1)), None], &[Some((0, 0)), Some((1 << 24, 0))]);
        assert_eq!((s.itss, s.redists), (vec![0, 0, 2], vec![0, 0]));
        // Each socket has its own table.
        let s =
            Sharing::of(&[Some((0, 1)), Some((1 << 24, 1))], &[Some((0x100, 1)), Some((1 << 24, 1)), Some((0x200, 1))]);
        assert_eq!((s.itss, s.redists), (vec![0, 1], vec![0, 1, 0]));
        // Graviton3: one ITS shares with the first half of the redistributors; the second half has a table of its own.
        let half = |n: u32| [Some((n << 24, 1)), None, Some((n << 24 | 0x100, 1))];
        let s = Sharing::of(&[Some((0, 1))], &[half(0), half(1)].concat());
        assert_eq!(
            (s.itss, s.redists),
            (vec![0], vec![0, 2, 0, 4, 5, 4]),
            "a CPU without a redistributor shares with none"
        );
    }

    #[test]
    fn redistributors_of_different_levels_do_not_share() {
        for itss in [&[][..], &[None]] {
            let s = Sharing::of(itss, &[Some((0x100, 1)), Some((0x100, 2)), Some((0x200, 1))]);
            let n = itss.len();
            assert_eq!(s.redists, [n, n + 1, n]);
        }
    }
}
