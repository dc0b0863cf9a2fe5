//! Counters of what EL2 does; takes no lock, allocates nothing.
//!
//! Each CPU counts into its own line, so that counting costs an uncontended add. Reading sums over CPUs and
//! is approximate while others count: good for a debug key, and exact once a machine is quiet.

use crate::ids::CpuId;
use core::sync::atomic::{AtomicU64, Ordering};

/// CPUs that can be told apart; the rest share the last line.
const LINES: usize = 256;

macro_rules! events {
    ($($(#[$doc:meta])* $name:ident => $label:literal,)*) => {
        /// What is counted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Event {
            $($(#[$doc])* $name,)*
        }

        impl Event {
            /// Every event, in the order in which they are shown.
            pub const ALL: &'static [Event] = &[$(Event::$name,)*];

            /// The name that a debug key prints.
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
    /// A physical interrupt ended a stay in the guest.
    ExitIrq => "exit irq",
    /// WFI or WFE trapped.
    ExitWfx => "exit wfx",
    /// HVC.
    ExitHvc => "exit hvc",
    /// SMC.
    ExitSmc => "exit smc",
    /// A system register access trapped.
    ExitSysreg => "exit sysreg",
    /// A stage-2 data abort: emulated MMIO, or an error of the guest.
    ExitDataAbort => "exit data abort",
    /// A stage-2 instruction abort.
    ExitInstrAbort => "exit instruction abort",
    /// An SError taken from the guest.
    ExitSerror => "exit serror",
    /// Any other exception class.
    ExitOther => "exit other",
    /// An instruction was answered with UNDEF.
    UndefInjected => "undef injected",
    /// An access was answered with an abort.
    AbortInjected => "abort injected",
    /// A software-generated interrupt between CPUs of the hypervisor.
    IrqKick => "irq kick",
    /// The guest's virtual timer.
    IrqVtimer => "irq vtimer",
    /// The hypervisor's own timer.
    IrqHtimer => "irq htimer",
    /// A maintenance interrupt of the virtual CPU interface.
    IrqMaintenance => "irq maintenance",
    /// A shared peripheral interrupt.
    IrqSpi => "irq spi",
    /// A device LPI taken at EL2 and injected by list register.
    IrqLpi => "irq lpi",
    /// A device LPI was moved to the CPU of its vCPU.
    LpiMove => "lpi move",
    /// A doorbell.
    IrqDoorbell => "irq doorbell",
    /// A doorbell for a vCPU that was already awake.
    DoorbellSpurious => "doorbell spurious",
    /// An LPI or a doorbell came too often and was masked.
    RateLimitMask => "rate limit mask",
    /// One that was masked may come again.
    RateLimitUnmask => "rate limit unmask",
    /// A physical interrupt that nobody owns.
    IrqUnknown => "irq unknown",
    /// A vCPU blocked.
    Block => "block",
    /// A block was called off because an interrupt was pending.
    BlockCancelled => "block cancelled",
    /// A blocked vCPU was woken.
    Wake => "wake",
    /// Another vCPU was switched in on a CPU than the one before.
    Switch => "switch",
    /// A vCPU was switched in on another CPU than the one it ran on before.
    Move => "move",
    /// A vPE became resident on another CPU than the one before: it takes a VMOVP.
    VpeMove => "vPE move",
    /// An idle CPU took a vCPU out of another's queue.
    Steal => "steal",
    /// A CPU gave a vCPU of its queue to another.
    Push => "push",
    /// A CPU that is taken out gave a vCPU that waited there to another.
    Evacuate => "evacuate",
    /// A vCPU's timer woke it.
    WakeTimer => "wake by timer",
    /// A vCPU ran after another of its domain: the TLB was cleaned.
    TlbClean => "tlb clean",
    /// A guest stored to a GITS_TRANSLATER; ignored.
    TranslaterStore => "translater store",
    /// A guest touched an address that nothing answers.
    UnmappedAccess => "unmapped access",
}

const EVENTS: usize = Event::ALL.len();

#[repr(align(64))]
struct Line([AtomicU64; EVENTS]);

static COUNTS: [Line; LINES] = [const { Line([const { AtomicU64::new(0) }; EVENTS]) }; LINES];

/// Counts one `event` on `cpu`.
#[inline]
pub fn count(cpu: CpuId, event: Event) {
    let line = &COUNTS[cpu.index().min(LINES - 1)];
    line.0[event as usize].fetch_add(1, Ordering::Relaxed);
}

/// How often `event` was counted on `cpu`.
#[must_use]
pub fn on(cpu: CpuId, event: Event) -> u64 {
    COUNTS[cpu.index().min(LINES - 1)].0[event as usize].load(Ordering::Relaxed)
}

/// How often `event` was counted on all CPUs.
#[must_use]
pub fn total(event: Event) -> u64 {
    COUNTS.iter().map(|line| line.0[event as usize].load(Ordering::Relaxed)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_kept_apart_by_cpu_and_summed() {
        let before = total(Event::UnmappedAccess);
        count(CpuId(1), Event::UnmappedAccess);
        count(CpuId(7), Event::UnmappedAccess);
        count(CpuId(7), Event::UnmappedAccess);
        assert_eq!(total(Event::UnmappedAccess) - before, 3);
        assert_eq!(on(CpuId(7), Event::UnmappedAccess), 2);
    }
}
