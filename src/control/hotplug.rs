//! Taking a CPU out of the machine and back in, while guests run.
//!
//! Two debug keys ask for it. The CPU that takes the key chooses which CPU goes and has the scheduler give nothing more to
//! it; the rest is done by the CPU that goes, in its own loop, where no vCPU is in it:
//!
//! 1. Who waits there goes to other CPUs' queues; who sleeps there until a time is woken, and sleeps on elsewhere.
//! 2. SPIs, events, vPEs and doorbells go elsewhere ([`crate::gic::Gic::take_out`]). If that fails, the CPU stays.
//! 3. What interrupts came on the way are taken, and those that it masked are unmasked; then its interface takes no more.
//! 4. PSCI CPU_OFF. Where the firmware has none, the CPU waits at EL2 until it is wanted again.
//!
//! It comes back as it came at boot, to the same stack and the same block of its own. Nothing that was in it is there any
//! more: no vCPU's registers, and what TLBs hold is from before and forgotten.
//!
//! The boot CPU stays. It has no place that the firmware could start it at, and takes the console's interrupts.

use crate::arch::psci::{self, PsciError};
use crate::arch::smp::Place;
use crate::arch::sysreg::{self, Writeable};
use crate::arch::{barrier, timer};
use crate::console::line;
use crate::domain::irq;
use crate::gic::{TakeOutError, cpuif};
use crate::host::Hypervisor;
use crate::host::hypervisor;
use crate::ids::{CpuId, DomId, VcpuId};
use crate::mm::hw::El2;
use crate::mmio::Hw;
use crate::sync::Once;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// How long a CPU that goes may take until the firmware says that it is off.
const OFF_LIMIT_US: u64 = 1_000_000;

/// Where a CPU is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum State {
    /// It is in, or has never been.
    In,
    /// It has been asked to go.
    Asked,
    /// It is off, or a few instructions before that.
    Out,
    /// It waits at EL2 to be called back.
    Waits,
    /// It has been called back.
    Coming,
    /// It could not be brought up again.
    Lost,
}

impl State {
    const ALL: [State; 6] = [State::In, State::Asked, State::Out, State::Waits, State::Coming, State::Lost];
}

/// What the hypervisor keeps about it.
pub struct Hotplug {
    states: Vec<AtomicU8>,
    /// Where the firmware starts each CPU but the boot CPU.
    places: Vec<Once<Place>>,
    outs: AtomicU64,
    backs: AtomicU64,
    vpes: AtomicU64,
}

/// Why nothing is done.
enum Refusal {
    /// Another CPU, or this one, has been asked and is not there yet.
    OnItsWay(CpuId),
    BootCpu(CpuId),
    /// This vCPU can run nowhere else.
    Bound(CpuId, DomId, VcpuId),
    Gic(CpuId, TakeOutError),
    NoneIsOut,
    Firmware(CpuId, PsciError),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::OnItsWay(cpu) => write!(f, "{cpu} is still on its way"),
            Refusal::BootCpu(cpu) => write!(f, "{cpu} stays: the machine was started on it, and it has the console"),
            Refusal::Bound(cpu, domain, vcpu) => write!(f, "{cpu} stays: {vcpu} of {domain} can run nowhere else"),
            Refusal::Gic(cpu, error) => write!(f, "{cpu} stays: {error}"),
            Refusal::NoneIsOut => f.write_str("no CPU is out"),
            Refusal::Firmware(cpu, error) => write!(f, "{cpu} stays out: {error}"),
        }
    }
}

impl Hotplug {
    /// `cpus` CPUs, none of which has been taken out.
    #[must_use]
    pub fn new(cpus: usize) -> Hotplug {
        Hotplug {
            states: (0..cpus).map(|_| AtomicU8::new(State::In as u8)).collect(),
            places: (0..cpus).map(|_| Once::new()).collect(),
            outs: AtomicU64::new(0),
            backs: AtomicU64::new(0),
            vpes: AtomicU64::new(0),
        }
    }

    /// Where `cpu` was started, and can be again.
    pub fn remember(&self, cpu: CpuId, place: Place) {
        if let Some(slot) = self.places.get(cpu.index()) {
            slot.call_once(|| place);
        }
    }

    fn state(&self, cpu: CpuId) -> State {
        let raw = self.states.get(cpu.index()).map_or(0, |state| state.load(Ordering::SeqCst));
        State::ALL.into_iter().find(|state| *state as u8 == raw).unwrap_or(State::Lost)
    }

    fn set(&self, cpu: CpuId, state: State) {
        if let Some(slot) = self.states.get(cpu.index()) {
            slot.store(state as u8, Ordering::SeqCst);
        }
    }

    /// `false`: it is in another state than `from`.
    fn change(&self, cpu: CpuId, from: State, to: State) -> bool {
        self.states.get(cpu.index()).is_some_and(|state| {
            state.compare_exchange(from as u8, to as u8, Ordering::SeqCst, Ordering::SeqCst).is_ok()
        })
    }

    fn cpus(&self) -> impl DoubleEndedIterator<Item = CpuId> {
        (0..self.states.len() as u16).map(CpuId)
    }

    /// The first CPU in one of these states.
    fn first(&self, states: &[State]) -> Option<CpuId> {
        self.cpus().find(|cpu| states.contains(&self.state(*cpu)))
    }

    /// Whether `cpu` has been asked to go.
    #[inline]
    #[must_use]
    pub fn is_asked(&self, cpu: CpuId) -> bool {
        self.states.get(cpu.index()).is_some_and(|state| state.load(Ordering::Acquire) == State::Asked as u8)
    }

    /// `cpu` has been brought up, for the first time or again.
    pub fn came_up(&self, cpu: CpuId) {
        if self.change(cpu, State::Coming, State::In) {
            self.backs.fetch_add(1, Ordering::Relaxed);
            line(format_args!("{cpu} is back"));
        }
    }

    /// `cpu` could not be brought up.
    pub fn failed(&self, cpu: CpuId) {
        self.set(cpu, State::Lost);
    }

    /// How often CPUs were taken out and came back, and how many vPEs were moved for it.
    #[must_use]
    pub fn counts(&self) -> (u64, u64, u64) {
        let [outs, backs, vpes] = [&self.outs, &self.backs, &self.vpes].map(|count| count.load(Ordering::Relaxed));
        (outs, backs, vpes)
    }
}

/// The debug key that takes the last CPU out.
pub(crate) fn take_out() {
    if let Err(refusal) = ask_out(hypervisor()) {
        line(format_args!("{refusal}"));
    }
}

fn ask_out(hv: &Hypervisor) -> Result<(), Refusal> {
    let hotplug = &hv.hotplug;
    if let Some(cpu) = hotplug.first(&[State::Asked, State::Coming]) {
        return Err(Refusal::OnItsWay(cpu));
    }
    let Some(cpu) = hotplug.cpus().rfind(|cpu| hv.is_online(*cpu)) else { return Err(Refusal::NoneIsOut) };
    if hotplug.places.get(cpu.index()).and_then(Once::get).is_none() {
        return Err(Refusal::BootCpu(cpu));
    }
    hv.sched.take_offline(cpu).map_err(|vcpu| Refusal::Bound(cpu, vcpu.domain, vcpu.id))?;
    hotplug.set(cpu, State::Asked);
    hv.send_kick(cpu);
    Ok(())
}

/// This CPU has been asked to go, and no vCPU is in it. Returns if it stays, or was called back without having been off.
pub(crate) fn leave(hv: &Hypervisor, cpu: CpuId) {
    let hotplug = &hv.hotplug;
    let nobody = hv.sched.next(cpu, timer::now());
    debug_assert!(nobody.is_none(), "{cpu} has been taken out, and is to run somebody");
    hv.set_online(cpu, false);
    // An SPI that another CPU sends here is seen below, or that CPU sees that this one goes.
    barrier::dsb_sy();
    let Some(to) = hotplug.cpus().rfind(|other| hv.is_online(*other)) else { unreachable!("the boot CPU stays") };
    let moved = match hv.gic.take_out(cpu, to) {
        Ok(moved) => moved,
        Err(error) => {
            hv.set_online(cpu, true);
            hv.sched.bring_online(cpu);
            hotplug.set(cpu, State::In);
            line(format_args!("{}", Refusal::Gic(cpu, error)));
            return;
        }
    };
    hv.unload_stage2(cpu);
    hv.forget_last_on(cpu);
    sysreg::CNTV_CTL_EL0.set(0);
    hv.own_ppis().for_each(|ppi| hv.gic.ppi_disable(cpu, ppi));
    // Kicks, and doorbells that rang before they moved.
    irq::take_all(cpu);
    irq::relieve_all(cpu);
    hv.timer(cpu).give_up(&mut |vcpu| _ = hv.wake(vcpu));
    cpuif::shut();
    hotplug.outs.fetch_add(1, Ordering::Relaxed);
    hotplug.vpes.fetch_add(moved.vpes.into(), Ordering::Relaxed);
    hotplug.set(cpu, State::Out);
    line(format_args!("{cpu} is out; to {to} went {moved}"));
    let error = psci::cpu_off();
    line(format_args!("{cpu} waits at EL2: {error}"));
    if hotplug.change(cpu, State::Out, State::Waits) {
        while hotplug.state(cpu) == State::Waits {
            barrier::wfe();
        }
    }
    if let Err(error) = hv.bring_up(cpu) {
        log::error!("{cpu} is of no use: {error}");
        barrier::park()
    }
}

/// The debug key that takes a CPU back in.
pub(crate) fn take_back() {
    if let Err(refusal) = call_back(hypervisor()) {
        line(format_args!("{refusal}"));
    }
}

fn call_back(hv: &Hypervisor) -> Result<(), Refusal> {
    let hotplug = &hv.hotplug;
    if let Some(cpu) = hotplug.first(&[State::Asked, State::Coming]) {
        return Err(Refusal::OnItsWay(cpu));
    }
    let cpu = hotplug.first(&[State::Out, State::Waits]).ok_or(Refusal::NoneIsOut)?;
    let place = hotplug.places.get(cpu.index()).and_then(Once::get).ok_or(Refusal::NoneIsOut)?;
    hotplug.set(cpu, State::Coming);
    // One that waits sees it; one that is off is started; one in between does the first or can soon be started.
    barrier::dsb_ishst();
    barrier::sev();
    let mut answer = Ok(());
    let _ = El2.wait(OFF_LIMIT_US, || {
        answer = place.start();
        answer != Err(PsciError::AlreadyOn) || hotplug.state(cpu) == State::In
    });
    match answer {
        Ok(()) | Err(PsciError::OnPending) => Ok(()),
        // Unless it is back without having been off.
        Err(error) if hotplug.change(cpu, State::Coming, State::Out) => Err(Refusal::Firmware(cpu, error)),
        Err(_) => Ok(()),
    }
}
