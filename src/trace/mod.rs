//! Event counters, without locks or allocation.
//!
//! Each CPU has its own cache line of counters, so that counting is an uncontended add. A read sums over all CPUs. It
//! is approximate while CPUs count, which is good enough for a debug key, and exact while they do not.

use crate::ids::CpuId;
use core::sync::atomic::{AtomicU64, Ordering};

/// The number of sets of counters. CPUs beyond that share the last set.
const SETS: usize = 256;

macro_rules! events {
    ($($(#[$doc:meta])* $name:ident => $label:literal,)*) => {
        /// An event that is counted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Event {
            $($(#[$doc])* $name,)*
        }

        impl Event {
            /// All events, in the order in which they are displayed.
            pub const ALL: &'static [Event] = &[$(Event::$name,)*];

            /// Returns the name that a debug key prints.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self {
                    $(Event::$name => $label,)*
                }
            }
        }
    };
}

events! {
    /// A physical interrupt caused an exit from the guest.
    ExitIrq => "exit irq",
    /// WFI or WFE trapped.
    ExitWfx => "exit wfx",
    /// HVC trapped.
    ExitHvc => "exit hvc",
    /// SMC trapped.
    ExitSmc => "exit smc",
    /// A system register access trapped.
    ExitSysreg => "exit sysreg",
    /// A stage 2 data abort: an access to emulated MMIO, or an error of the guest.
    ExitDataAbort => "exit data abort",
    /// A stage 2 instruction abort.
    ExitInstrAbort => "exit instruction abort",
    /// An SError was taken from the guest.
    ExitSerror => "exit serror",
    /// An exception of any other class was taken from the guest.
    ExitOther => "exit other",
    /// An undefined instruction exception was injected.
    UndefInjected => "undef injected",
    /// An abort was injected.
    AbortInjected => "abort injected",
    /// An SGI from another CPU of the hypervisor was taken.
    IrqKick => "irq kick",
    /// The interrupt of the guest's virtual timer was taken.
    IrqVtimer => "irq vtimer",
    /// The interrupt of the hypervisor's timer was taken.
    IrqHtimer => "irq htimer",
    /// A maintenance interrupt of the virtual CPU interface was taken.
    IrqMaintenance => "irq maintenance",
    /// A shared peripheral interrupt was taken.
    IrqSpi => "irq spi",
    /// A device LPI was taken at EL2, to be injected by list register.
    IrqLpi => "irq lpi",
    /// A device LPI was moved to the CPU of its vCPU.
    LpiMove => "lpi move",
    /// A doorbell was taken.
    IrqDoorbell => "irq doorbell",
    /// A doorbell was taken for a vCPU that was already awake.
    DoorbellSpurious => "doorbell spurious",
    /// An LPI or a doorbell exceeded its rate limit and was masked.
    RateLimitMask => "rate limit mask",
    /// An LPI or a doorbell that had been masked was unmasked.
    RateLimitUnmask => "rate limit unmask",
    /// A physical interrupt without an owner was taken.
    IrqUnknown => "irq unknown",
    /// A vCPU blocked.
    Block => "block",
    /// A vCPU was about to block and did not, because an interrupt was pending.
    BlockCancelled => "block cancelled",
    /// A blocked vCPU was woken.
    Wake => "wake",
    /// A CPU switched from one vCPU to another.
    Switch => "switch",
    /// A vCPU was switched in on a different CPU than before.
    Move => "move",
    /// A vPE became resident on a different CPU than before, which takes a VMOVP.
    VpeMove => "vPE move",
    /// An idle CPU took a vCPU from the run queue of another CPU.
    Steal => "steal",
    /// A CPU passed a vCPU of its run queue to another CPU.
    Push => "push",
    /// A CPU that is taken offline passed a waiting vCPU to another CPU.
    Evacuate => "evacuate",
    /// A vCPU's timer woke it.
    WakeTimer => "wake by timer",
    /// A vCPU ran after another one of its domain, and the TLB was invalidated.
    TlbClean => "tlb clean",
    /// A guest stored to a GITS_TRANSLATER, which is ignored.
    TranslaterStore => "translater store",
    /// A guest accessed an address without a device.
    UnmappedAccess => "unmapped access",
}

const EVENTS: usize = Event::ALL.len();

#[repr(align(64))]
struct Counters([AtomicU64; EVENTS]);

static COUNTS: [Counters; SETS] = [const { Counters([const { AtomicU64::new(0) }; EVENTS]) }; SETS];

/// Counts one `event` on `cpu`.
#[inline]
pub fn count(cpu: CpuId, event: Event) {
    let counters = &COUNTS[cpu.index().min(SETS - 1)];
    counters.0[event as usize].fetch_add(1, Ordering::Relaxed);
}

/// Returns the count of `event` on `cpu`.
#[must_use]
pub fn on(cpu: CpuId, event: Event) -> u64 {
    COUNTS[cpu.index().min(SETS - 1)].0[event as usize].load(Ordering::Relaxed)
}

/// Returns the count of `event` on all CPUs.
#[must_use]
pub fn total(event: Event) -> u64 {
    COUNTS.iter().map(|counters| counters.0[event as usize].load(Ordering::Relaxed)).sum()
}

/// The longest steps, in ticks.
static LONGEST_STEP: [AtomicU64; SETS] = [const { AtomicU64::new(0) }; SETS];

/// Records how long a step of what a vCPU had started took on `cpu`, in ticks.
pub fn record_step(cpu: CpuId, ticks: u64) {
    LONGEST_STEP[cpu.index().min(SETS - 1)].fetch_max(ticks, Ordering::Relaxed);
}

/// Returns how long the longest step on any CPU took, in ticks.
#[must_use]
pub fn longest_step() -> u64 {
    LONGEST_STEP.iter().map(|longest| longest.load(Ordering::Relaxed)).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_counted_per_cpu_and_summed() {
        let before = total(Event::UnmappedAccess);
        count(CpuId(1), Event::UnmappedAccess);
        count(CpuId(7), Event::UnmappedAccess);
        count(CpuId(7), Event::UnmappedAccess);
        assert_eq!(total(Event::UnmappedAccess) - before, 3);
        assert_eq!(on(CpuId(7), Event::UnmappedAccess), 2);
    }
}
