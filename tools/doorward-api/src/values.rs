//! States and settings that are one byte, and the address of a PCI function.

use crate::wire::{Body, Malformed, NoRoom, Reader, Writer, bytes};
use core::fmt;
use core::str::FromStr;

bytes! {
    /// What a domain does.
    DomainState {
        /// It has been created, and gets its images.
        Building = 0, "building";
        /// It is built, and has not been started.
        Built = 1, "built";
        /// At least one of its vCPUs runs, or waits for a CPU.
        Running = 2, "running";
        /// All of its vCPUs wait for an interrupt, or are off.
        Blocked = 3, "blocked";
        /// It was paused.
        Paused = 4, "paused";
        /// It has powered itself off, and is taken down.
        Shutdown = 5, "shutdown";
        /// It has crashed, and is taken down or waits to be restarted.
        Crashed = 6, "crashed";
        /// It is taken down.
        Dying = 7, "dying";
        /// It has asked for a reset, or was reset, and is made anew.
        Restarting = 8, "restarting";
    }

    /// What a vCPU does.
    VcpuState {
        /// It is off (PSCI).
        Off = 0, "off";
        /// It runs on its CPU.
        Running = 1, "running";
        /// It waits for its CPU.
        Waiting = 2, "waiting";
        /// It waits for an interrupt.
        Blocked = 3, "blocked";
        /// Its domain is paused.
        Paused = 4, "paused";
    }

    /// What a physical CPU does.
    CpuState {
        /// It is in service.
        Online = 0, "online";
        /// It was taken out of service.
        Offline = 1, "offline";
        /// It did not start, or was never started.
        Absent = 2, "absent";
    }

    /// What an image is.
    ImageKind {
        /// An arm64 Image.
        Kernel = 0, "kernel";
        /// An initramfs or a RAM disk.
        Ramdisk = 1, "ramdisk";
    }

    /// What happens to a domain that crashes.
    OnCrash {
        /// It is taken down.
        Destroy = 0, "destroy";
        /// It is restarted from its images.
        Restart = 1, "restart";
        /// It stays as it is, paused, to be looked at.
        Preserve = 2, "preserve";
    }

    /// What WFI and WFE do; see `vwfi=` in docs/cmdline.md.
    Vwfi {
        /// They trap while another vCPU could use the CPU.
        Auto = 0, "auto";
        /// The CPU waits in the guest.
        Native = 1, "native";
        /// WFI blocks the vCPU in EL2, WFE yields.
        Trap = 2, "trap";
    }

    /// What counters are about.
    Scope {
        /// The machine. The id is 0.
        Machine = 0, "machine";
        /// A domain, by its id.
        Domain = 1, "domain";
        /// A physical CPU, by its number.
        Cpu = 2, "cpu";
    }

    /// What has happened.
    EventKind {
        /// A domain has been built.
        Created = 0, "created";
        /// A domain has been started.
        Started = 1, "started";
        /// A domain was paused.
        Paused = 2, "paused";
        /// A domain was unpaused.
        Unpaused = 3, "unpaused";
        /// A domain has powered itself off.
        Shutdown = 4, "shutdown";
        /// A domain has crashed; the text says why.
        Crashed = 5, "crashed";
        /// A domain is made anew: after a reset, or a crash.
        Restarted = 6, "restarted";
        /// A domain is gone, and its memory is free.
        Destroyed = 7, "destroyed";
        /// A device was cut off; the text names it and says why.
        DeviceCutOff = 8, "device-cut-off";
        /// A physical CPU was taken out of service; the text names it.
        CpuOffline = 9, "cpu-offline";
        /// A physical CPU was taken back into service; the text names it.
        CpuOnline = 10, "cpu-online";
        /// Events were lost, because the reader was too slow; the sequence numbers say how many.
        Lost = 11, "lost";
    }
}

/// A PCI function: segment in bits 31 to 16, bus in 15 to 8, device in 7 to 3, function in 2 to 0. Its text is that of
/// `lspci -D`: `0000:00:03.0`. The segment may be missing in what is read.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sbdf(pub u32);

impl fmt::Display for Sbdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [low, bus, ..] = self.0.to_le_bytes();
        write!(f, "{:04x}:{bus:02x}:{:02x}.{}", self.0 >> 16, low >> 3, low & 7)
    }
}

impl fmt::Debug for Sbdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Sbdf {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Sbdf, Malformed> {
        let number = |text: &str, digits: usize, below: u32| {
            let well_formed = (1..=digits).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            u32::from_str_radix(text, 16).ok().filter(|&number| well_formed && number < below).ok_or(Malformed)
        };
        let (path, function) = text.rsplit_once('.').ok_or(Malformed)?;
        let (path, device) = path.rsplit_once(':').ok_or(Malformed)?;
        let (segment, bus) = path.rsplit_once(':').unwrap_or(("0", path));
        let (segment, bus) = (number(segment, 4, 1 << 16)?, number(bus, 2, 1 << 8)?);
        Ok(Sbdf(segment << 16 | bus << 8 | number(device, 2, 32)? << 3 | number(function, 1, 8)?))
    }
}

impl Body<'_> for Sbdf {
    fn put(&self, out: &mut Writer<'_>) -> Result<(), NoRoom> {
        self.0.put(out)
    }

    fn take(from: &mut Reader<'_>) -> Result<Sbdf, Malformed> {
        u32::take(from).map(Sbdf)
    }
}
