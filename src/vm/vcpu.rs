//! A virtual CPU: what of it everybody may touch, and what only the CPU that runs it may.

use crate::arch::el1::El1Context;
use crate::arch::vcpu::GuestRegs;
use crate::ids::{CpuId, DomId, Ipa, Mpidr, VcpuId, VpeId};
use crate::sched::RunState;
use crate::sync::{Lock, Owned, Rank};
use crate::vgic::LrImage;
use crate::vm::dev::vtimer::VTimer;
use core::sync::atomic::{AtomicBool, Ordering};

/// Where a vCPU starts, as PSCI CPU_ON says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// The first instruction.
    pub entry: Ipa,
    /// What x0 holds there.
    pub context: u64,
}

/// A virtual CPU.
pub struct Vcpu {
    /// Its domain.
    pub domain: DomId,
    /// Its place in the domain.
    pub id: VcpuId,
    /// What it reads as its affinity.
    pub affinity: Mpidr,
    /// The CPU it runs on.
    pub cpu: CpuId,
    /// Its vPE, if its LPIs can be direct.
    pub vpe: Option<VpeId>,
    /// Whether it sleeps, runs or is off.
    pub run: RunState,
    /// Set by its CPU from before interrupts are put into list registers until the guest has been left: a
    /// change made while it is set needs an SGI to be seen.
    in_guest: AtomicBool,
    start: Lock<Option<Start>>,
    context: Owned<Context>,
}

/// What belongs to the CPU that runs the vCPU.
pub struct Context {
    /// General registers, PC and PSTATE.
    pub regs: GuestRegs,
    /// EL1's system registers, while they are not in the CPU.
    pub el1: El1Context,
    /// List registers.
    pub lrs: LrImage,
    /// CNTP_*.
    pub timer: VTimer,
    /// An SError waits to be taken (HCR_EL2.VSE).
    pub serror: bool,
}

impl Vcpu {
    /// A vCPU that is off.
    #[must_use]
    pub fn new(
        domain: DomId,
        id: VcpuId,
        affinity: Mpidr,
        cpu: CpuId,
        vpe: Option<VpeId>,
        list_registers: usize,
    ) -> Vcpu {
        Vcpu {
            domain,
            id,
            affinity,
            cpu,
            vpe,
            run: RunState::new(),
            in_guest: AtomicBool::new(false),
            start: Lock::new(Rank::Domain, None),
            context: Owned::new(Context {
                regs: GuestRegs::default(),
                el1: El1Context::reset(),
                lrs: LrImage::new(list_registers),
                timer: VTimer::default(),
                serror: false,
            }),
        }
    }

    /// Powers it on. `false` if it was on.
    #[must_use]
    pub fn power_on(&self, start: Start) -> bool {
        let mut slot = self.start.lock();
        if slot.is_some() || !self.run.power_on() {
            return false;
        }
        *slot = Some(start);
        true
    }

    /// Where to start, if it was powered on and has not run since.
    pub fn take_start(&self) -> Option<Start> {
        self.start.lock().take()
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
    pub fn own(&self) -> crate::sync::Ownership<'_, Context> {
        match self.context.take() {
            Some(context) => context,
            None => panic!("{} of {} is owned twice", self.id, self.domain),
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
