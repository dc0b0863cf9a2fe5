//! Why something a guest asked of its ITS was not done, and how often.
//!
//! A command error has no register to show itself in (GITS_TYPER.SEIS is 0; IHI 0069, 5.3.1), and a log line per
//! error would hand the log to the guest. So each kind has a counter, and its first occurrence one line.

macro_rules! refusals {
    ($($(#[$doc:meta])* $name:ident, $text:literal;)*) => {
        /// The reasons.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Refusal {
            $($(#[$doc])* $name,)*
        }

        impl Refusal {
            /// All of them, in the order of their counters.
            pub const ALL: &'static [Refusal] = &[$(Refusal::$name,)*];

            /// As the end of the sentence "a command was skipped because ...".
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
    /// No command of a GICv3 ITS.
    UnknownCommand, "its opcode is none of GICv3's";
    /// The memory behind GITS_CREADR is not the guest's.
    QueueUnreadable, "the command queue is not in the guest's memory";
    /// GITS_CWRITER points behind the end of the queue.
    WriterBeyondQueue, "GITS_CWRITER is beyond the queue";
    /// GITS_CBASER or GITS_BASERn was written while the ITS was not quiescent.
    WriteWhileEnabled, "the register is read-only until the ITS is quiescent";
    /// No register has this size and alignment.
    BadAccess, "no register has that size and alignment";
    /// A CPU wrote to the translation frame.
    TranslaterWrite, "a CPU wrote to the translation frame";
    /// DeviceID beyond GITS_TYPER.Devbits.
    DeviceRange, "the DeviceID is beyond GITS_TYPER.Devbits";
    /// The device is not this domain's.
    DeviceNotOwned, "the device is not this domain's";
    /// No MAPD for this device.
    DeviceUnmapped, "the device is not mapped";
    /// MAPD asks for more EventID bits than GITS_TYPER.IDbits.
    SizeRange, "the ITT is larger than GITS_TYPER.IDbits allows";
    /// EventID beyond what MAPD said.
    EventRange, "the EventID is beyond the device's ITT";
    /// No MAPTI for this event.
    EventUnmapped, "the event is not mapped";
    /// ICID beyond GITS_TYPER.CIDbits.
    CollectionRange, "the collection number is beyond GITS_TYPER.CIDbits";
    /// No MAPC for this collection.
    CollectionUnmapped, "the collection is not mapped";
    /// Not an LPI of this guest.
    VintidRange, "the INTID is not an LPI of this guest";
    /// RDbase names no vCPU.
    UnknownTarget, "the target is no vCPU";
    /// All device slots are taken.
    DeviceQuota, "the domain's quota of devices is used up";
    /// All ITT entries are taken.
    IttQuota, "the domain's quota of ITT entries is used up";
    /// All events are taken, or the event is beyond one device's share.
    EventQuota, "the domain's quota of events is used up";
    /// The host could not map the device or the event; the guest's mapping stands and delivers nothing.
    HostMap, "the host could not map it";
    /// The host could not unmap it; it is unmapped for the guest all the same.
    HostUnmap, "the host could not unmap it";
    /// The event is mapped for the guest, but an earlier failure keeps it off the host.
    NotAtHost, "the event is not mapped on the host";
}

/// How often each thing happened since the vITS was made.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// Commands executed to the end, refused ones included.
    pub commands: u64,
    refusals: [u64; Refusal::ALL.len()],
}

impl Counters {
    /// How often `why` happened.
    #[must_use]
    pub fn of(&self, why: Refusal) -> u64 {
        self.refusals.get(why as usize).copied().unwrap_or(0)
    }

    /// Each reason that occurred at all.
    pub fn refusals(&self) -> impl Iterator<Item = (Refusal, u64)> + '_ {
        Refusal::ALL.iter().map(|&why| (why, self.of(why))).filter(|&(_, times)| times != 0)
    }

    /// Counts one, and says whether it is the first of its kind.
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
    fn each_reason_has_a_counter_of_its_own_and_speaks_once() {
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
