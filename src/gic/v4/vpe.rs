//! VMs and vPEs as the driver keeps them, and the types that the verbs on them share.

use crate::gic::its::Ticket;
use crate::ids::{CpuId, EventId, ItsId, Lpi, Pa};
use crate::sync::Lock;
use arrayvec::ArrayVec;

/// How many ITSs can map vPEs: an ITSList has 16 bits.
pub const ITSS: usize = 16;

/// A VM as the GIC sees it: vPEs that share a configuration table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VmHandle(pub(super) u16);

/// What is kept of a VM.
pub struct Vm {
    /// Its configuration table.
    pub config: Pa,
    pub id_bits: u8,
    /// How many vPEs it has.
    pub vpes: u32,
    /// One of its vPEs could not be unmapped, so its configuration table is never freed.
    pub quarantined: bool,
}

/// What is kept of a vPE, under the lock of its [`Slot`].
pub struct Vpe {
    pub vm: VmHandle,
    pub id_bits: u8,
    /// The VM's configuration table.
    pub config: Pa,
    /// The virtual pending table.
    pub vpt: Pa,
    pub doorbell: Lpi,
    /// The CPU at whose redistributor it lives: every ITS that maps it names this one, unless it is `moving`.
    pub home: CpuId,
    pub moving: Option<Moving>,
    /// An ITS was not seen to complete its mapping or unmapping: its pending table is neither used again nor freed.
    pub is_lost: bool,
    pub resident: Option<CpuId>,
    /// The CPU whose redistributor was not seen to complete the write-back of this vPE.
    pub unclean_on: Option<CpuId>,
    /// The ITSs that map it, one bit for each ItsId.
    pub mapped: u16,
    /// How many events of each ITS are mapped to it.
    pub events: [u32; ITSS],
    pub backend: BackendState,
}

/// What the backend keeps of a vPE. GICv4.1 needs none of it.
#[derive(Clone, Copy, Default)]
pub struct BackendState {
    pub control: Control,
    /// GICR_VPROPBASER, computed once.
    pub vpropbaser: u64,
    /// GICR_VPENDBASER without Valid and `carry`, computed once.
    pub vpendbaser: u64,
    /// Bits of GICR_VPENDBASER that the redistributor reported when the vPE left, and wants back when it enters.
    pub carry: u64,
}

/// How the configuration and the redistributor of a doorbell are changed on GICv4.0.
#[derive(Clone, Copy, Default)]
pub enum Control {
    /// By its redistributor: GICR_INVLPIR, and GICR_CLRLPIR where it is implemented.
    Direct,
    /// By ITS commands on an event of the proxy device.
    Proxy(EventId),
    /// By INVALL: the proxy device has no event left.
    #[default]
    Coarse,
}

/// The place of a vPE, by vPEID.
pub struct Slot {
    pub vpe: Lock<Option<Vpe>>,
}

/// Which interrupt groups the guest has enabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterruptGroups {
    /// GICD_CTLR.EnableGrp0.
    pub group0: bool,
    /// GICD_CTLR.EnableGrp1.
    pub group1: bool,
}

impl InterruptGroups {
    /// What Linux enables.
    #[cfg(test)]
    pub const GROUP1: InterruptGroups = InterruptGroups { group0: false, group1: true };
}

/// Why a vPE leaves its CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Its vCPU is preempted and stays runnable: no doorbell is needed.
    Preempt,
    /// Its vCPU waits for an interrupt: a doorbell is needed.
    Block,
}

/// How far a vPE has left its redistributor.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum WriteBack {
    /// GICR_VPENDBASER.Valid and Dirty are both 0: all state is written back.
    Clean,
    /// Valid is 0; the write-back was not seen to complete.
    Dirty,
    /// Valid could not be cleared because Dirty stayed set.
    Stuck,
}

/// What a redistributor reported when a vPE left it.
#[derive(Clone, Copy)]
pub struct Left {
    /// An interrupt is pending, or may be.
    pub pending: bool,
    /// [`BackendState::carry`].
    pub carry: u64,
    pub state: WriteBack,
}

impl Left {
    /// Valid could not be cleared: an interrupt may be pending.
    pub const STUCK: Left = Left { pending: true, carry: 0, state: WriteBack::Stuck };

    /// Valid was cleared. Without a completed write-back (`clean`) an interrupt may be pending.
    pub fn new(pending: bool, carry: u64, clean: bool) -> Left {
        Left { pending: pending || !clean, carry, state: if clean { WriteBack::Clean } else { WriteBack::Dirty } }
    }
}

/// What happens to a pending doorbell when its vPE moves.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum PendingDoorbell {
    /// It may be dropped: the vPE is about to run.
    Drop,
    /// It stays pending, at the old home or the new one.
    Keep,
}

/// Commands about a vPE's home that were posted and not yet seen to complete: a move, or in ITSList mode also a map or
/// unmap.
pub struct Moving {
    /// The new home.
    pub to: CpuId,
    /// The ITSs on whose queues commands were posted, each with its last position.
    pub tickets: ArrayVec<(u8, Ticket), ITSS>,
    /// The ITSs on whose queues the move has yet to be posted (ITSList mode), one bit for each ItsId.
    pub missing: u16,
}

impl Moving {
    /// Nothing is posted yet.
    pub fn new(to: CpuId) -> Self {
        Moving { to, tickets: ArrayVec::new(), missing: 0 }
    }

    /// Notes a command that was posted on an ITS. It comes after those that were posted there before.
    pub fn add(&mut self, its: ItsId, ticket: Ticket) {
        match self.tickets.iter_mut().find(|(i, _)| *i == its.0) {
            Some((_, last)) => *last = ticket,
            None => self.tickets.push((its.0, ticket)),
        }
    }
}
