//! Everything that exists only with virtual LPIs.

use super::proxy::Proxy;
use super::vpe::{Slot, Vm};
use super::vpe_tables::VpeTables;
use crate::ids::{CpuId, Lpi, VpeId};
use crate::sync::{Lock, Once, Rank};
use crate::util::bits::IdAllocator;
use alloc::boxed::Box;
use alloc::vec::Vec;

/// vPEs are kept in chunks of this many; a chunk is allocated when a vPE in it is first used, and kept.
pub const CHUNK: usize = 64;
type Chunk = Box<[Slot]>;

/// Which GICv4 the machine has. The verbs do not ask: they call the functions of [`backend`](super::backend).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generation {
    V40,
    V41,
}

/// The state of the GICv4 verbs.
pub struct State {
    pub generation: Generation,
    /// vPEIDs.
    pub ids: IdAllocator,
    chunks: Box<[Once<Chunk>]>,
    pub vms: Lock<Vec<Option<Vm>>>,
    pub moves: Lock<Moves>,
    pub proxy: Option<Proxy>,
    pub tables: VpeTables,
}

/// What the moves of all vPEs share in ITSList mode.
#[derive(Default)]
pub struct Moves {
    pub sequence: u16,
    /// A broadcast that some command queue had no room for; no other broadcast may overtake it.
    pub unfinished: Option<Broadcast>,
}

/// A VMOVP that goes to several ITSs.
pub struct Broadcast {
    pub vpe: VpeId,
    pub to: CpuId,
    /// The doorbell that the command names, if it names one.
    pub doorbell: Option<Lpi>,
    pub sequence: u16,
    /// The ITSs that it goes to, one bit for each ItsId.
    pub list: u16,
    /// Those on whose queues it has yet to be posted.
    pub missing: u16,
}

impl State {
    /// No VM, with room for `vpes` vPEs.
    pub fn new(generation: Generation, vpes: u32, proxy: Option<Proxy>, tables: VpeTables) -> Self {
        State {
            generation,
            ids: IdAllocator::new(vpes),
            chunks: (0..(vpes as usize).div_ceil(CHUNK)).map(|_| Once::new()).collect(),
            vms: Lock::new(Rank::VmMap, Vec::new()),
            moves: Lock::new(Rank::Vmovp, Moves::default()),
            proxy,
            tables,
        }
    }

    /// The place of a vPE; `None` if no vPE of its chunk has been used yet.
    #[inline]
    pub fn slot(&self, vpe: VpeId) -> Option<&Slot> {
        self.chunks.get(vpe.index() / CHUNK)?.get()?.get(vpe.index() % CHUNK)
    }

    /// Allocates the chunk of a vPE if it is the first in it. `false`: the vPEID is beyond the limit. Called under the
    /// VM-map lock.
    pub fn make_room(&self, vpe: VpeId) -> bool {
        let Some(chunk) = self.chunks.get(vpe.index() / CHUNK) else { return false };
        chunk.call_once(|| (0..CHUNK).map(|_| Slot { vpe: Lock::new(Rank::Vpe, None) }).collect());
        true
    }

    /// Every place that has been used, by vPEID.
    pub fn slots(&self) -> impl Iterator<Item = (VpeId, &Slot)> {
        let chunks = self.chunks.iter().enumerate().filter_map(|(n, chunk)| Some((n, chunk.get()?)));
        chunks.flat_map(|(n, chunk)| (0..).zip(chunk).map(move |(m, slot)| (VpeId((n * CHUNK) as u16 + m), slot)))
    }
}
