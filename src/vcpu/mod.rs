//! A virtual CPU: the state that any CPU may access, and the state that only the CPU that runs it may access.
//!
//! The fields of [`Vcpu`] itself are atomic or immutable, so any CPU may use them at any time. [`Context`] holds the
//! registers. It is owned by the CPU that runs the vCPU, from switch-in to switch-out ([`Vcpu::own`]).

pub mod list_regs;
pub mod meter;
mod scheduled;
mod work;

use crate::arch::el1::{El1Context, VirtualTimer};
use crate::arch::fp::FpContext;
use crate::arch::ich;
use crate::arch::vcpu::GuestRegs;
use crate::dev::vtimer::VTimer;
use crate::ids::{CpuId, DomId, Intid, Ipa, Mpidr, VcpuId, VpeId};
use crate::sched::{Entity, RunState, State};
use crate::sync::{Exclusive, ExclusiveGuard, Lock, Rank};
use crate::vgic::LrImage;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};
use meter::Meter;
pub use work::{ItsWork, Loaded, Restart, Work};

/// Where a vCPU starts, as given to PSCI CPU_ON (DEN0022, 5.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// The address of the first instruction.
    pub entry: Ipa,
    /// The value of X0 at the entry point.
    pub context: u64,
}

/// "No CPU", in atomics that hold a CPU number.
const NO_CPU: u16 = u16::MAX;

/// The vCPU is out of the guest, and its list registers have been read back.
const OUT: u8 = 0;
/// It is in the guest, or about to enter it and may have put pending interrupts into list registers. A change takes
/// effect only after an SGI has made it exit.
const IN_GUEST: u8 = 1;
/// The same, and it has been recalled: something waits for it to leave.
const RECALLED: u8 = 2;

/// A virtual CPU.
pub struct Vcpu {
    /// The domain that the vCPU belongs to.
    pub domain: DomId,
    /// The number of the vCPU in the domain.
    pub id: VcpuId,
    /// The value that the guest reads from MPIDR_EL1.
    pub affinity: Mpidr,
    /// The vPE; `None` if the vCPU's LPIs are injected by software.
    pub vpe: Option<VpeId>,
    /// Whether it is off, runnable, running or blocked.
    pub run: RunState,
    /// The scheduler's data: weight, cap, affinity, run time.
    pub entity: Entity,
    /// How often it has left its guest. Written by the CPU that runs it.
    exits: AtomicU64,
    /// The cost of the device interrupts that EL2 has taken for the vCPU.
    pub meter: Meter,
    /// [`OUT`], [`IN_GUEST`] or [`RECALLED`].
    presence: AtomicU8,
    /// The CPU that holds its system registers and physical PPIs.
    live: AtomicU16,
    /// The CPU whose EL2 timer wakes it while it is blocked.
    timer_cpu: AtomicU16,
    /// Physical PPIs that its CPU has to deactivate before the next entry, one bit each.
    deactivate: AtomicU32,
    start: Lock<Option<Start>>,
    /// True while `start` holds a value. It is read before each switch without taking the lock.
    starting: AtomicBool,
    context: Exclusive<Context>,
}

/// The state that belongs to the CPU that runs the vCPU.
pub struct Context {
    /// General registers, PC and PSTATE.
    pub regs: GuestRegs,
    /// EL1 system registers, while they are not in a CPU.
    pub el1: El1Context,
    /// FP and SIMD registers, while they are not in a CPU.
    pub fp: FpContext,
    /// The virtual timer, while it is not in a CPU.
    pub vtimer: VirtualTimer,
    /// The virtual CPU interface without list registers, while it is not in a CPU.
    pub ich: ich::State,
    /// The CPU that EL1 and FP registers were saved from. It still holds them unless another vCPU has run there since.
    pub saved_from: Option<CpuId>,
    /// The CPU on which the vPE was resident last; before the first residency, the vPE's initial home.
    pub resident_on: Option<CpuId>,
    /// The image of its list registers.
    pub lrs: LrImage,
    /// The emulated physical timer (CNTP_*).
    pub timer: VTimer,
    /// A virtual SError is pending (HCR_EL2.VSE).
    pub serror: bool,
    /// The number of consecutive faults at one instruction of the guest's own exception handler.
    pub handler_faults: u32,
    /// Work of EL2 that this vCPU performs. It does not enter the guest before the work is done.
    pub work: Option<Work>,
    /// The instruction that the guest executes again because EL2 did not find it.
    pub executed_again: Again,
}

/// An instruction that is executed again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Again {
    /// Its address.
    pub pc: u64,
    /// How often in a row.
    pub times: u32,
}

impl Vcpu {
    /// A vCPU that is off. `home` is the CPU that it runs on first, with `list_registers` list registers.
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
            exits: AtomicU64::new(0),
            meter: Meter::default(),
            presence: AtomicU8::new(OUT),
            live: AtomicU16::new(NO_CPU),
            timer_cpu: AtomicU16::new(NO_CPU),
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
                work: None,
                executed_again: Again::default(),
            }),
        }
    }

    /// Counts an exit. Called by the CPU that runs the vCPU.
    #[inline]
    pub fn count_exit(&self) {
        self.exits.store(self.exits.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// How often it has left its guest.
    #[must_use]
    pub fn exits(&self) -> u64 {
        self.exits.load(Ordering::Relaxed)
    }

    /// Powers the vCPU on. Returns `false` if it was on already.
    #[must_use]
    pub fn power_on(&self, start: Start) -> bool {
        let mut slot = self.start.lock();
        // The lock makes this the only place where a vCPU leaves the state Off, one caller at a time.
        if slot.is_some() || self.run.get() != State::Off {
            return false;
        }
        // `start` is set first: with sched=null the vCPU's CPU may pick it up as soon as it is runnable.
        *slot = Some(start);
        self.starting.store(true, Ordering::SeqCst);
        let changed = self.run.power_on();
        debug_assert!(changed, "{} {}: powered on twice", self.domain, self.id);
        changed
    }

    /// Makes the vCPU, which is off, runnable to perform `work`. No vCPU of the domain is on that could power it on.
    pub fn power_on_for(&self, work: Work) {
        let mut context = self.own();
        context.vtimer = VirtualTimer::default();
        context.timer = VTimer::default();
        context.work = Some(work);
        drop(context);
        let changed = self.run.power_on();
        debug_assert!(changed, "{} {}: on", self.domain, self.id);
    }

    /// Takes the start address, if the vCPU was powered on and has not run since.
    pub fn take_start(&self) -> Option<Start> {
        if !self.starting.load(Ordering::SeqCst) {
            return None;
        }
        let mut slot = self.start.lock();
        self.starting.store(false, Ordering::SeqCst);
        slot.take()
    }

    /// Whether the vCPU was powered on and has not run since.
    #[must_use]
    pub fn is_starting(&self) -> bool {
        self.start.lock().is_some()
    }

    /// Takes the registers, for the CPU that runs the vCPU. They are released when the guard is dropped.
    ///
    /// # Panics
    ///
    /// If they are taken already: a vCPU runs on one CPU at a time.
    #[must_use]
    pub fn own(&self) -> ExclusiveGuard<'_, Context> {
        match self.context.take() {
            Some(context) => context,
            None => panic!("{} {}: registers are owned by two CPUs", self.domain, self.id),
        }
    }

    /// The CPU that the vCPU runs on, or ran on last.
    #[must_use]
    pub fn cpu(&self) -> CpuId {
        self.entity.cpu()
    }

    /// The CPU that holds the system registers; `None` while they are saved in memory.
    #[must_use]
    pub fn live_on(&self) -> Option<CpuId> {
        Some(self.live.load(Ordering::SeqCst)).filter(|&cpu| cpu != NO_CPU).map(CpuId)
    }

    /// Records the CPU that holds the system registers; `None` if they are saved in memory.
    pub fn set_live(&self, cpu: Option<CpuId>) {
        self.live.store(cpu.map_or(NO_CPU, |cpu| cpu.0), Ordering::SeqCst);
    }

    /// Records that the EL2 timer of `cpu` is to wake the vCPU.
    pub fn set_timer_cpu(&self, cpu: CpuId) {
        self.timer_cpu.store(cpu.0, Ordering::SeqCst);
    }

    /// Returns and clears the CPU whose EL2 timer was to wake the vCPU.
    pub fn take_timer_cpu(&self) -> Option<CpuId> {
        if self.timer_cpu.load(Ordering::SeqCst) == NO_CPU {
            return None;
        }
        Some(self.timer_cpu.swap(NO_CPU, Ordering::SeqCst)).filter(|&cpu| cpu != NO_CPU).map(CpuId)
    }

    /// Requests that the vCPU's CPU deactivates a physical PPI before the next entry.
    pub fn ask_to_deactivate(&self, ppi: Intid) {
        self.deactivate.fetch_or(1u32.wrapping_shl(ppi.0), Ordering::SeqCst);
    }

    /// Returns and clears the physical PPIs that have to be deactivated, one bit each.
    #[must_use]
    pub fn take_deactivations(&self) -> u32 {
        match self.deactivate.load(Ordering::SeqCst) {
            0 => 0,
            _ => self.deactivate.swap(0, Ordering::SeqCst),
        }
    }

    /// Marks the vCPU as in the guest. Its CPU calls this before it looks for pending interrupts and enters the guest.
    pub fn entering(&self) {
        self.presence.store(IN_GUEST, Ordering::SeqCst);
    }

    /// Marks the vCPU as out of the guest. Its CPU calls this after an exit, when it has read the list registers back,
    /// or if it does not enter the guest.
    pub fn left(&self) {
        self.presence.store(OUT, Ordering::SeqCst);
    }

    /// Whether the vCPU is in the guest or about to enter it, so that it sees a change only after an SGI has made it
    /// exit.
    #[must_use]
    pub fn is_in_guest(&self) -> bool {
        self.presence.load(Ordering::SeqCst) != OUT
    }

    /// Recalls the vCPU if it is in the guest. The caller then makes it exit; until it has,
    /// [`is_recalled`](Vcpu::is_recalled) returns `true`. Returns `false` if it is not in the guest.
    #[must_use]
    pub fn recall(&self) -> bool {
        // A vCPU that is recalled already has not left since, so it will see what the caller has changed.
        let found = self.presence.compare_exchange(IN_GUEST, RECALLED, Ordering::SeqCst, Ordering::SeqCst);
        found != Err(OUT)
    }

    /// Whether the vCPU was recalled and has not left the guest since.
    #[must_use]
    pub fn is_recalled(&self) -> bool {
        self.presence.load(Ordering::SeqCst) == RECALLED
    }
}
