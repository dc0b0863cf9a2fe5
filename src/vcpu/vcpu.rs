//! A virtual CPU: what of it everybody may touch, and what only the CPU that runs it may.

use crate::arch::el1::{El1Context, VirtualTimer};
use crate::arch::fp::FpContext;
use crate::arch::ich;
use crate::arch::vcpu::GuestRegs;
use crate::dev::vtimer::VTimer;
use crate::host::rate_limit::Meter;
use crate::ids::{CpuId, DomId, Intid, Ipa, Mpidr, VcpuId, VpeId};
use crate::sched::{Entity, QueueLink, RunState, Scheduled, SleepLink, State};
use crate::sync::{Exclusive, Lock, Rank};
use crate::vgic::LrImage;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering};
use intrusive_collections::intrusive_adapter;

/// Where a vCPU starts, as PSCI CPU_ON says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// The first instruction.
    pub entry: Ipa,
    /// What x0 holds there.
    pub context: u64,
}

/// No CPU.
const NOWHERE: u16 = u16::MAX;

/// A virtual CPU.
pub struct Vcpu {
    /// Its domain.
    pub domain: DomId,
    /// Its place in the domain.
    pub id: VcpuId,
    /// What it reads as its affinity.
    pub affinity: Mpidr,
    /// Its vPE, if its LPIs can be direct.
    pub vpe: Option<VpeId>,
    /// Whether it sleeps, runs or is off.
    pub run: RunState,
    /// Its share of the CPUs, and where it may run.
    pub entity: Entity,
    /// What its devices' interrupts have cost.
    pub meter: Meter,
    /// Set by its CPU from before interrupts are put into list registers until the guest has been left: a
    /// change made while it is set needs an SGI to be seen.
    in_guest: AtomicBool,
    /// The CPU that its system registers and physical PPIs are in.
    live: AtomicU16,
    /// The CPU that keeps the time for it while it sleeps.
    asleep_on: AtomicU16,
    /// Physical PPIs that its CPU is to deactivate before it enters.
    deactivate: AtomicU32,
    start: Lock<Option<Start>>,
    /// There is a `start`: looked at before each switch, without the lock.
    starting: AtomicBool,
    context: Exclusive<Context>,
}

/// What belongs to the CPU that runs the vCPU.
pub struct Context {
    /// General registers, PC and PSTATE.
    pub regs: GuestRegs,
    /// EL1's system registers, while they are not in the CPU.
    pub el1: El1Context,
    /// FP and SIMD registers, likewise.
    pub fp: FpContext,
    /// The virtual timer, likewise.
    pub vtimer: VirtualTimer,
    /// What its CPU interface holds beside list registers, likewise.
    pub ich: ich::State,
    /// The CPU that EL1's and the FP registers were saved from, and that holds them still if nobody came after.
    pub saved_from: Option<CpuId>,
    /// Where its vPE was resident last; before that, where it was made.
    pub resident_on: Option<CpuId>,
    /// List registers.
    pub lrs: LrImage,
    /// CNTP_*.
    pub timer: VTimer,
    /// An SError waits to be taken (HCR_EL2.VSE).
    pub serror: bool,
    /// Faults of its exception handler itself, one after the other.
    pub handler_faults: u32,
}

impl Vcpu {
    /// A vCPU that is off.
    #[must_use]
    pub fn new(
        domain: DomId,
        id: VcpuId,
        affinity: Mpidr,
        home: CpuId,
        vpe: Option<VpeId>,
        list_registers: usize,
    ) -> Vcpu {
        Vcpu {
            domain,
            id,
            affinity,
            vpe,
            run: RunState::new(),
            entity: Entity::new(home),
            meter: Meter::default(),
            in_guest: AtomicBool::new(false),
            live: AtomicU16::new(NOWHERE),
            asleep_on: AtomicU16::new(NOWHERE),
            deactivate: AtomicU32::new(0),
            start: Lock::new(Rank::Domain, None),
            starting: AtomicBool::new(false),
            context: Exclusive::new(Context {
                regs: GuestRegs::default(),
                el1: El1Context::reset(),
                fp: FpContext::reset(),
                vtimer: VirtualTimer::default(),
                ich: ich::State::default(),
                saved_from: None,
                resident_on: Some(home),
                lrs: LrImage::new(list_registers),
                timer: VTimer::default(),
                serror: false,
                handler_faults: 0,
            }),
        }
    }

    /// Powers it on. `false` if it was on.
    #[must_use]
    pub fn power_on(&self, start: Start) -> bool {
        let mut slot = self.start.lock();
        // Only here does a vCPU that is off become another, and one at a time.
        if slot.is_some() || self.run.get() != State::Off {
            return false;
        }
        // Said first: with sched=null its CPU may take it up as soon as it is runnable.
        *slot = Some(start);
        self.starting.store(true, Ordering::SeqCst);
        let comes = self.run.power_on();
        debug_assert!(comes, "{} of {} is powered on twice", self.id, self.domain);
        comes
    }

    /// Where to start, if it was powered on and has not run since.
    pub fn take_start(&self) -> Option<Start> {
        if !self.starting.load(Ordering::SeqCst) {
            return None;
        }
        let mut slot = self.start.lock();
        self.starting.store(false, Ordering::SeqCst);
        slot.take()
    }

    /// Whether it was powered on and has not run since.
    #[must_use]
    pub fn is_starting(&self) -> bool {
        self.start.lock().is_some()
    }

    /// Its registers, for the CPU that runs it.
    ///
    /// # Panics
    ///
    /// If another CPU has them: a vCPU runs on one CPU.
    #[must_use]
    pub fn own(&self) -> crate::sync::ExclusiveGuard<'_, Context> {
        match self.context.take() {
            Some(context) => context,
            None => panic!("{} of {} is owned twice", self.id, self.domain),
        }
    }

    /// The CPU it runs on, or ran on last.
    #[must_use]
    pub fn cpu(&self) -> CpuId {
        self.entity.cpu()
    }

    /// The CPU that its system registers are in; `None` while they are saved.
    #[must_use]
    pub fn live_on(&self) -> Option<CpuId> {
        Some(self.live.load(Ordering::SeqCst)).filter(|&cpu| cpu != NOWHERE).map(CpuId)
    }

    /// Its system registers are in `cpu`, or saved.
    pub fn set_live(&self, cpu: Option<CpuId>) {
        self.live.store(cpu.map_or(NOWHERE, |cpu| cpu.0), Ordering::SeqCst);
    }

    /// `cpu` keeps the time for it.
    pub fn set_asleep_on(&self, cpu: CpuId) {
        self.asleep_on.store(cpu.0, Ordering::SeqCst);
    }

    /// Who keeps the time for it; it is then nobody.
    pub fn take_asleep_on(&self) -> Option<CpuId> {
        if self.asleep_on.load(Ordering::SeqCst) == NOWHERE {
            return None;
        }
        Some(self.asleep_on.swap(NOWHERE, Ordering::SeqCst)).filter(|&cpu| cpu != NOWHERE).map(CpuId)
    }

    /// Has its CPU deactivate a physical PPI before it enters.
    pub fn ask_to_deactivate(&self, ppi: Intid) {
        self.deactivate.fetch_or(1u32.wrapping_shl(ppi.0), Ordering::SeqCst);
    }

    /// The physical PPIs to deactivate, a bit for each.
    #[must_use]
    pub fn take_deactivations(&self) -> u32 {
        match self.deactivate.load(Ordering::SeqCst) {
            0 => 0,
            _ => self.deactivate.swap(0, Ordering::SeqCst),
        }
    }

    /// Its CPU is about to look for interrupts and enter.
    pub fn entering(&self) {
        self.in_guest.store(true, Ordering::SeqCst);
    }

    /// Its CPU has left the guest.
    pub fn left(&self) {
        self.in_guest.store(false, Ordering::SeqCst);
    }

    /// Whether what it runs with may be stale until an SGI makes it leave.
    #[must_use]
    pub fn is_in_guest(&self) -> bool {
        self.in_guest.load(Ordering::SeqCst)
    }
}

intrusive_adapter!(pub QueueAdapter = Arc<Vcpu>: Vcpu { entity.queue_link => QueueLink });
intrusive_adapter!(pub SleepAdapter = Arc<Vcpu>: Vcpu { entity.sleep_link => SleepLink });

impl Scheduled for Vcpu {
    type QueueAdapter = QueueAdapter;
    type SleepAdapter = SleepAdapter;

    fn entity(&self) -> &Entity {
        &self.entity
    }

    fn run_state(&self) -> &RunState {
        &self.run
    }
}
