//! Reasons why a request of a guest to its ITS was not carried out, and counters for them.
//!
//! No register reports a command error (GITS_TYPER.SEIS is 0; IHI 0069, 5.3.1), and one log line per error would let
//! the guest flood the log. So each reason has a counter, and only its first occurrence is logged.

macro_rules! refusals {
    ($($(#[$doc:meta])* $name:ident, $text:literal;)*) => {
        /// Why a request was not carried out.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Refusal {
            $($(#[$doc])* $name,)*
        }

        impl Refusal {
            /// All reasons, in the order of their counters.
            pub const ALL: &'static [Refusal] = &[$(Refusal::$name,)*];

            /// The reason as a clause, for log lines.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self {
                    $(Refusal::$name => $text,)*
                }
            }
        }
    };
}

refusals! {
    /// A GICv3 ITS has no such command.
    UnknownCommand, "unknown opcode";
    /// The command at GITS_CREADR is not in the guest's memory.
    QueueUnreadable, "the command queue is not in the guest's memory";
    /// GITS_CWRITER is beyond the end of the queue.
    WriterBeyondQueue, "GITS_CWRITER is beyond the queue";
    /// GITS_CBASER or GITS_BASERn was written while the ITS was not quiescent.
    WriteWhileEnabled, "the register is read-only until the ITS is quiescent";
    /// No register has this size and alignment.
    BadAccess, "no register has this size and alignment";
    /// A CPU wrote to the translation frame.
    TranslaterWrite, "a CPU wrote to the translation frame";
    /// The DeviceID is beyond GITS_TYPER.Devbits.
    DeviceRange, "the DeviceID is beyond GITS_TYPER.Devbits";
    /// The domain does not own the device.
    DeviceNotOwned, "the domain does not own the device";
    /// The device is not mapped (MAPD).
    DeviceUnmapped, "the device is not mapped";
    /// MAPD asks for more EventID bits than GITS_TYPER.IDbits.
    SizeRange, "the ITT is larger than GITS_TYPER.IDbits allows";
    /// The EventID is beyond what MAPD allows.
    EventRange, "the EventID is beyond the device's ITT";
    /// The event is not mapped (MAPTI).
    EventUnmapped, "the event is not mapped";
    /// The ICID is beyond GITS_TYPER.CIDbits.
    CollectionRange, "the collection number is beyond GITS_TYPER.CIDbits";
    /// The collection is not mapped (MAPC).
    CollectionUnmapped, "the collection is not mapped";
    /// The INTID is not an LPI of this guest.
    VintidRange, "the INTID is not an LPI of this guest";
    /// RDbase is not a vCPU.
    UnknownTarget, "the target is not a vCPU";
    /// The quota of devices is used up.
    DeviceQuota, "the domain's quota of devices is used up";
    /// The quota of ITT entries is used up.
    IttQuota, "the domain's quota of ITT entries is used up";
    /// The quota of events is used up, or the event is beyond the quota of one device.
    EventQuota, "the domain's quota of events is used up";
    /// The host could not map the device or the event. It stays mapped for the guest and delivers no interrupt.
    HostMap, "the host could not map it";
    /// The host could not unmap the device or the event. It is unmapped for the guest.
    HostUnmap, "the host could not unmap it";
    /// The event is mapped for the guest but, because of an earlier failure, not on the host.
    NotAtHost, "the event is not mapped on the host";
}

/// Counters of a virtual ITS, since it was made.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// Number of commands that are complete, including refused ones.
    pub commands: u64,
    refusals: [u64; Refusal::ALL.len()],
}

impl Counters {
    /// How often `why` occurred.
    #[must_use]
    pub fn of(&self, why: Refusal) -> u64 {
        self.refusals.get(why as usize).copied().unwrap_or(0)
    }

    /// The reasons that occurred, with how often.
    pub fn refusals(&self) -> impl Iterator<Item = (Refusal, u64)> + '_ {
        Refusal::ALL.iter().map(|&why| (why, self.of(why))).filter(|&(_, times)| times != 0)
    }

    /// Counts one occurrence of `why`. Returns whether it is the first.
    pub(super) fn count(&mut self, why: Refusal) -> bool {
        let Some(times) = self.refusals.get_mut(why as usize) else { return false };
        *times = times.saturating_add(1);
        *times == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_own_counter_and_is_reported_once() {
        let mut counters = Counters::default();
        for (times, &why) in Refusal::ALL.iter().enumerate() {
            assert!(counters.count(why));
            (0..times).for_each(|_| assert!(!counters.count(why)));
        }
        for (times, &why) in Refusal::ALL.iter().enumerate() {
            assert_eq!(counters.of(why), times as u64 + 1);
        }
        assert_eq!(counters.refusals().count(), Refusal::ALL.len());
    }
}
