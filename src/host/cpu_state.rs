//! The state of each physical CPU, in one struct for each CPU.
//!
//! Any CPU may read it. A CPU writes only its own entry, with two exceptions: [`Hotplug`], which is also written by the
//! CPU that handles a debug key (`control::hotplug`), and `place`, which the boot CPU sets.

use super::timer::SoftTimer;
use crate::arch::smp::Secondary;
use crate::ids::CpuId;
use crate::sync::Once;
use crate::vcpu::Vcpu;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

/// The hotplug state of a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Hotplug {
    /// In service, or never started.
    InService,
    /// It has been asked to leave.
    Leaving,
    /// Off, or about to call CPU_OFF.
    Off,
    /// It waits at EL2 because CPU_OFF failed.
    Parked,
    /// It has been asked to return.
    Returning,
    /// Bring-up failed.
    Failed,
}

impl Hotplug {
    const ALL: [Hotplug; 6] =
        [Hotplug::InService, Hotplug::Leaving, Hotplug::Off, Hotplug::Parked, Hotplug::Returning, Hotplug::Failed];
}

/// The state of one CPU, aligned so that two CPUs do not share a cache line.
#[repr(align(64))]
pub struct CpuState {
    online: AtomicBool,
    hotplug: AtomicU8,
    /// The VTTBR_EL2 that the CPU has loaded; 0 for the empty stage 2.
    stage2: AtomicU64,
    /// The vCPU whose registers the CPU holds, see [`tag`]; 0 for none.
    registers_of: AtomicU64,
    /// The place at which the firmware starts the CPU; empty for the boot CPU.
    place: Once<Secondary>,
    /// Its EL2 timer.
    pub timer: SoftTimer,
}

/// A vCPU of a domain as one number, never 0.
fn tag(vcpu: &Vcpu) -> u64 {
    1 << 32 | u64::from(vcpu.domain.0) << 16 | u64::from(vcpu.id.0)
}

impl CpuState {
    fn new() -> CpuState {
        CpuState {
            online: AtomicBool::new(false),
            hotplug: AtomicU8::new(Hotplug::InService as u8),
            stage2: AtomicU64::new(0),
            registers_of: AtomicU64::new(0),
            place: Once::new(),
            timer: SoftTimer::new(),
        }
    }

    /// Records whether the CPU is in service.
    pub fn set_online(&self, now: bool) {
        self.online.store(now, Ordering::SeqCst);
    }

    /// Whether the CPU has been brought up and has not been taken out of service since.
    #[must_use]
    pub fn is_online(&self) -> bool {
        self.online.load(Ordering::SeqCst)
    }

    /// Records the VTTBR_EL2 that the CPU has loaded. The store is a release: when another CPU sees the new value, the
    /// previous stage 2 is no longer in use.
    pub fn set_stage2(&self, vttbr: u64) {
        self.stage2.store(vttbr, Ordering::Release);
    }

    /// The VTTBR_EL2 that the CPU has loaded; 0 for the empty stage 2.
    #[must_use]
    pub fn stage2(&self) -> u64 {
        self.stage2.load(Ordering::Acquire)
    }

    /// Whether the CPU still holds the registers of `vcpu`, saved from it and not overwritten since.
    #[must_use]
    pub fn holds_registers_of(&self, vcpu: &Vcpu) -> bool {
        self.registers_of.load(Ordering::Relaxed) == tag(vcpu)
    }

    /// Records whose registers the CPU holds.
    pub fn set_registers_of(&self, vcpu: Option<&Vcpu>) {
        self.registers_of.store(vcpu.map_or(0, tag), Ordering::Relaxed);
    }

    /// Records where the firmware started the CPU, so that it can be started again.
    pub fn set_place(&self, place: Secondary) {
        // A CPU is started for the first time once; later starts reuse the place.
        self.place.call_once(|| place);
    }

    /// What is needed to start the CPU again; `None` for the boot CPU.
    #[must_use]
    pub fn place(&self) -> Option<&Secondary> {
        self.place.get()
    }

    /// The hotplug state of the CPU.
    #[must_use]
    pub fn hotplug(&self) -> Hotplug {
        let raw = self.hotplug.load(Ordering::SeqCst);
        Hotplug::ALL.into_iter().find(|state| *state as u8 == raw).unwrap_or(Hotplug::Failed)
    }

    /// Whether the CPU has been asked to leave. The run loop reads this each time it chooses a vCPU.
    #[inline]
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        self.hotplug.load(Ordering::Acquire) == Hotplug::Leaving as u8
    }

    /// Sets the hotplug state.
    pub fn set_hotplug(&self, state: Hotplug) {
        self.hotplug.store(state as u8, Ordering::SeqCst);
    }

    /// Changes the hotplug state from `from` to `to`. Returns `false` if it was not `from`.
    pub fn change_hotplug(&self, from: Hotplug, to: Hotplug) -> bool {
        self.hotplug.compare_exchange(from as u8, to as u8, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }
}

/// All CPUs of the machine, by [`CpuId`].
pub struct Cpus {
    cpus: Vec<CpuState>,
    taken_out: AtomicU64,
    returned: AtomicU64,
    vpes_moved: AtomicU64,
}

impl Cpus {
    /// `count` CPUs, none of them online.
    #[must_use]
    pub fn new(count: usize) -> Cpus {
        Cpus {
            cpus: (0..count).map(|_| CpuState::new()).collect(),
            taken_out: AtomicU64::new(0),
            returned: AtomicU64::new(0),
            vpes_moved: AtomicU64::new(0),
        }
    }

    /// The state of `cpu`.
    ///
    /// # Panics
    ///
    /// If the machine has no such CPU.
    #[must_use]
    pub fn get(&self, cpu: CpuId) -> &CpuState {
        &self.cpus[cpu.index()]
    }

    /// The numbers of all CPUs of the machine, online or not.
    pub fn ids(&self) -> impl DoubleEndedIterator<Item = CpuId> + ExactSizeIterator + Clone {
        (0..self.cpus.len() as u16).map(CpuId)
    }

    /// The states of all CPUs.
    pub fn iter(&self) -> impl Iterator<Item = &CpuState> {
        self.cpus.iter()
    }

    /// The first CPU in one of the given hotplug states.
    #[must_use]
    pub fn first_in(&self, states: &[Hotplug]) -> Option<CpuId> {
        self.ids().find(|&cpu| states.contains(&self.get(cpu).hotplug()))
    }

    /// The online CPU with the highest number.
    #[must_use]
    pub fn last_online(&self) -> Option<CpuId> {
        self.ids().rfind(|&cpu| self.get(cpu).is_online())
    }

    /// The number of CPUs that are online.
    #[must_use]
    pub fn online(&self) -> usize {
        self.iter().filter(|cpu| cpu.is_online()).count()
    }

    /// Counts a CPU that was taken out, and the vPEs that moved because of it.
    pub fn count_taken_out(&self, vpes: u32) {
        self.taken_out.fetch_add(1, Ordering::Relaxed);
        self.vpes_moved.fetch_add(vpes.into(), Ordering::Relaxed);
    }

    /// Counts a CPU that has returned.
    pub fn count_returned(&self) {
        self.returned.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns how many CPUs were taken out, how many returned, and how many vPEs moved because of it.
    #[must_use]
    pub fn hotplug_counts(&self) -> (u64, u64, u64) {
        let [out, back, vpes] =
            [&self.taken_out, &self.returned, &self.vpes_moved].map(|count| count.load(Ordering::Relaxed));
        (out, back, vpes)
    }
}
