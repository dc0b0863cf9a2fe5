//! The bodies of answers whose status is `Ok`. Other answers carry a [`Detail`] or nothing.

use crate::name::Name;
use crate::values::{CpuState, DomainState, OnCrash, Sbdf, VcpuState, Vwfi};
use crate::wire::{CpuSet, List, bodies};

bodies! {
    /// The body of an answer that is not `Ok`; it may be missing altogether.
    Detail<'a> {
        /// What is wrong, in lower case and without a full stop; at most 200 bytes, may be empty.
        text: &'a str,
    }

    /// Answers `version`.
    Chosen<'a> {
        /// The lowest version that the server speaks.
        min: u8,
        /// The highest.
        max: u8,
        /// The version that both speak and that the client has to put into its headers; 0 if there is none.
        version: u8,
        /// The hypervisor's release, such as `0.1.0`.
        release: &'a str,
    }

    /// Answers `info`.
    Info<'a> {
        /// Microseconds since the machine was started.
        uptime_us: u64,
        /// Physical CPUs of the machine.
        cpus: u32,
        /// Those in service.
        cpus_online: u32,
        /// The frequency of the generic timer in Hz.
        timer_hz: u64,
        /// RAM of the machine in bytes.
        memory: u64,
        /// Bytes that a new domain could get.
        memory_free: u64,
        /// Bytes that the hypervisor's heap has free.
        heap_free: u64,
        /// Bytes that are not used again because hardware may still access them.
        memory_quarantined: u64,
        /// Domains, dom0 and those being built included.
        domains: u32,
        /// The most domains there can be.
        domains_max: u32,
        /// vCPUs of all domains.
        vcpus: u32,
        /// vPEs in use; 0 without GICv4.
        vpes: u32,
        /// The most vPEs there can be; 0 without GICv4.
        vpes_max: u32,
        /// The GIC's architecture version in tenths: 30, 40 or 41.
        gic: u8,
        /// ITSs.
        itss: u8,
        /// Whether device interrupts go to guests directly.
        direct: bool,
        /// What `vwfi=` is.
        vwfi: Vwfi,
        /// SMMUs that translate.
        smmus: u32,
        /// The scheduler: `null` or `credit`.
        scheduler: &'a str,
        /// What the firmware calls the machine; may be empty.
        machine: &'a str,
        /// The hypervisor's command line.
        cmdline: &'a str,
    }

    /// Answers `list` and `lookup`.
    Domain<'a> {
        /// The id.
        id: u32,
        /// What it does.
        state: DomainState,
        /// Its vCPUs.
        vcpus: u32,
        /// Those that are not off.
        vcpus_on: u32,
        /// RAM in bytes.
        memory: u64,
        /// Bytes that its images take beside its RAM.
        memory_images: u64,
        /// CPU time of all of its vCPUs, in nanoseconds.
        cpu_time_ns: u64,
        /// Microseconds since it was started; 0 before.
        age_us: u64,
        /// Exits of all of its vCPUs.
        exits: u64,
        /// The scheduler's weight for each vCPU.
        weight: u32,
        /// The most CPU time of each vCPU in percent of a CPU; 0: no limit.
        cap: u32,
        /// Whether device interrupts go to all of its vCPUs directly.
        direct: bool,
        /// Whether it has a console.
        console: bool,
        /// What happens if it crashes.
        on_crash: OnCrash,
        /// Seconds without a timer interrupt after which it counts as crashed; 0: never.
        watchdog_s: u32,
        /// How often it was restarted.
        restarts: u32,
        /// The PCI functions that it has.
        functions: u32,
        /// The name.
        name: Name<'a>,
    }

    /// One vCPU.
    Vcpu {
        /// The number.
        vcpu: u32,
        /// What it does.
        state: VcpuState,
        /// Where it runs, or has run last; [`crate::ALL`] if it has never.
        cpu: u32,
        /// CPU time in nanoseconds.
        cpu_time_ns: u64,
        /// Exits.
        exits: u64,
        /// How often it went to another CPU.
        moves: u64,
        /// The scheduler's weight.
        weight: u32,
        /// The most CPU time in percent of a CPU; 0: no limit.
        cap: u32,
        /// Whether device interrupts go to it directly.
        direct: bool,
        /// What its WFI and WFE do.
        vwfi: Vwfi,
        /// Where it may run.
        affinity: CpuSet,
    }

    /// Answers `vcpus`.
    VcpuPage<'a> {
        /// What to ask for next; [`crate::ALL`]: that was all.
        next: u32,
        /// vCPUs, in the order of their numbers.
        vcpus: List<'a, Vcpu>,
    }

    /// Answers `create`.
    Created {
        /// The id of the domain, by which its images are sent.
        domain: u32,
    }

    /// Answers `build`.
    Built {
        /// EL2's time for it, in microseconds, without the copying of images.
        time_us: u64,
        /// Its longest step in microseconds.
        longest_step_us: u64,
        /// The steps.
        steps: u32,
    }

    /// One PCI function.
    PciFunction<'a> {
        /// Where it is.
        sbdf: Sbdf,
        /// The domain that has it; [`crate::ALL`] if none has.
        domain: u32,
        /// The vendor's number.
        vendor: u16,
        /// The device's number.
        device: u16,
        /// Class in bits 23 to 16, subclass in 15 to 8, programming interface in 7 to 0.
        class: u32,
        /// Whether it can be given to a domU.
        assignable: bool,
        /// Why it cannot; empty if it can.
        why: &'a str,
    }

    /// Answers `pci-list`.
    PciPage<'a> {
        /// What to ask for next; [`crate::ALL`]: that was all.
        next: u32,
        /// Functions, in the order of their numbers.
        functions: List<'a, PciFunction<'a>>,
    }

    /// One physical CPU.
    Cpu {
        /// The number.
        cpu: u32,
        /// What it does.
        state: CpuState,
        /// MPIDR_EL1.
        mpidr: u64,
        /// The domain whose vCPU it runs; [`crate::ALL`] if it is idle.
        domain: u32,
        /// That vCPU; [`crate::ALL`] if it is idle.
        vcpu: u32,
    }

    /// Answers `cpus`.
    CpuPage<'a> {
        /// What to ask for next; [`crate::ALL`]: that was all.
        next: u32,
        /// CPUs, in the order of their numbers.
        cpus: List<'a, Cpu>,
    }

    /// Answers `log`.
    LogChunk<'a> {
        /// The position of the first byte in all that was ever logged. More than what was asked for if that is
        /// overwritten: the difference is lost.
        first: u64,
        /// The position to ask for next. The same as `first` if there is no more yet.
        next: u64,
        /// Bytes of the log, from `first` on. May begin and end in the middle of a line.
        bytes: &'a [u8],
    }

    /// One counter.
    Counter<'a> {
        /// Its value.
        value: u64,
        /// Its name, such as `exit sysreg`.
        name: &'a str,
    }

    /// Answers `counters`.
    CounterPage<'a> {
        /// What to ask for next; [`crate::ALL`]: that was all.
        next: u32,
        /// When they were read, in microseconds since the machine was started.
        time_us: u64,
        /// Counters, in the same order each time.
        counters: List<'a, Counter<'a>>,
    }
}
