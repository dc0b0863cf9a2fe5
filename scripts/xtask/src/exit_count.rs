//! Counts exceptions to EL2 from outside, without counters in the guest or the hypervisor.
//!
//! QEMU logs every exception that it delivers (`-d int`) and, as trace events, each interrupt acknowledge, list register write
//! and NVMe read. The log is switched on over QMP for a part of a run, on QEMU's deterministic clock (`-icount`). The guest's
//! program `mark` bounds that part with two supervisor calls, and the count runs from the first NVMe read in it to the last.
//!
//! Exceptions are classified by ESR_EL2.EC, interrupts by the INTID of the next acknowledge on that CPU. An LPI that a guest
//! acknowledges was injected directly if no list register write put it there.
//!
//! A Linux with KVM can be counted in the same way, with its own programs at EL0 told from a guest's by the vPE that is resident.

mod log;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use crate::fail::{Doing, Failure, Outcome};
use crate::qemu::{Disk, Machine};
use crate::qmp::Qmp;
use crate::session::Session;
use log::Reader;

const EVENTS: [&str; 6] = [
    "gicv3_icc_iar1_read",
    "gicv3_icv_iar_read",
    "gicv3_ich_lr_write",
    "pci_nvme_read",
    "pci_nvme_irq_msix",
    "gicv3_its_translation_write",
];

/// The class of a WFI or WFE that trapped.
pub const WAIT: &str = "WFI or WFE";

/// The class of a timer interrupt.
pub const TIMER: &str = "interrupt: timer";

/// The class of a store to ICC_SGI1R_EL1.
pub const SENT: &str = "ICC_SGI1R_EL1 (an SGI sent)";

/// The smallest LPI.
const LPI: u64 = 8192;

/// The path of QEMU's log for a run whose table goes to `file`.
fn raw(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".raw");
    name.into()
}

/// The clock of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// The number of executed instructions (`-icount`). QEMU runs all CPUs in one thread and logs exceptions, so the count is
    /// exact. Idle time passes at once, so it says nothing about sleeping.
    Instructions,
    /// Real time, with a thread for each CPU. Exceptions cannot be counted, as QEMU logs them in several pieces.
    Real,
}

/// What runs at EL2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hypervisor {
    /// Only guests run at EL1 and EL0.
    #[default]
    Doorward,
    /// A Linux with KVM and VHE, whose own programs run at EL0. It makes a guest's vPE resident while it runs the guest and not
    /// while it runs a program, and the log has [`RESIDENCY`] from the start.
    Kvm,
}

/// The trace events that say when a vPE is resident.
pub const RESIDENCY: [&str; 2] = ["gicv3_vpe_enter", "gicv3_vpe_leave"];

/// Sets up a machine for counting.
pub fn prepare(machine: &mut Machine, file: &Path, clock: Clock) {
    machine.log = Some(raw(file));
    machine.qmp = Some(std::env::temp_dir().join(format!("doorward-qmp-{}", std::process::id())));
    if clock == Clock::Instructions {
        machine.extra.extend(["-icount".to_owned(), "shift=0,sleep=off".to_owned()]);
    }
    if matches!(machine.disk, Disk::Scratch(_)) {
        machine.disk = Disk::Null;
    }
    if !machine.append.contains("dw.test=") {
        machine.append += " dw.test=count dw.arg=4k,1,1";
    }
}

/// Opens and closes the counting window when the guest asks for it.
pub struct Window {
    socket: PathBuf,
    clock: Clock,
}

impl Window {
    /// The window of a machine that [`prepare`] has set up.
    pub fn new(machine: &Machine, clock: Clock) -> Self {
        Self { socket: machine.qmp.clone().unwrap_or_default(), clock }
    }

    /// Handles a line of the console.
    pub fn line(&mut self, session: &mut Session, line: &str) -> Outcome {
        let masks = if line.starts_with("DW-TEST: count?") {
            let events: Vec<String> = EVENTS.iter().map(|event| format!("trace:{event}")).collect();
            let exceptions = if self.clock == Clock::Instructions { "int," } else { "" };
            format!("{exceptions}guest_errors,unimp,{}", events.join(","))
        } else if line.starts_with("DW-TEST: counted") {
            "guest_errors,unimp".to_owned()
        } else {
            return Ok(());
        };
        Qmp::connect(&self.socket)?.monitor(&format!("log {masks}"))?;
        session.type_in("\n")
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// Reads the log, and prints and writes the table.
pub fn report(file: &Path) -> Outcome {
    let counts = Counts::read(&raw(file), Clock::Instructions, Hypervisor::Doorward)?;
    let table = counts.table();
    print!("{table}");
    std::fs::write(file, table).doing(format_args!("writing {}", file.display()))
}

/// The source of an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// A software-generated interrupt.
    Sgi,
    /// The EL1 or EL2 timers.
    Timer,
    /// The GIC's maintenance interrupt.
    Maintenance,
    /// Another PPI or SPI.
    Peripheral,
    /// An LPI: a device's, or a doorbell.
    Lpi,
    /// An acknowledge that returned no interrupt.
    Spurious,
}

impl Source {
    fn of(intid: u64) -> Self {
        match intid {
            0..=15 => Self::Sgi,
            25 => Self::Maintenance,
            26..=28 | 30 => Self::Timer,
            1020..=1023 => Self::Spurious,
            LPI.. => Self::Lpi,
            _ => Self::Peripheral,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Sgi => "SGI",
            Self::Timer => "timer",
            Self::Maintenance => "maintenance",
            Self::Peripheral => "SPI or PPI",
            Self::Lpi => "LPI",
            Self::Spurious => "spurious",
        }
    }
}

/// The counts between the first and the last NVMe read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// NVMe reads.
    pub ios: u64,
    /// MSI-X messages of the NVMe controller.
    pub messages: u64,
    /// Exceptions from a guest (EL1 or EL0) to EL2, by class.
    pub exits: BTreeMap<String, u64>,
    /// Exceptions from EL2 to EL2.
    pub nested: u64,
    /// Interrupts acknowledged at EL2 (or by a Linux without the hypervisor), by source.
    pub taken: BTreeMap<Source, u64>,
    /// LPIs that a guest acknowledged without a list register.
    pub direct: u64,
    /// LPIs that a guest acknowledged from a list register.
    pub listed: u64,
}

impl Counts {
    /// Counts a log of a machine with this hypervisor.
    pub fn read(path: &Path, clock: Clock, hypervisor: Hypervisor) -> Outcome<Self> {
        let file = std::fs::File::open(path).doing(format_args!("opening {}", path.display()))?;
        let mut reader = Reader::default();
        reader.hypervisor = hypervisor;
        if clock == Clock::Real {
            // Without exceptions in the log there are no marks: count all of the window.
            (reader.began, reader.ended) = (true, true);
        }
        for line in BufReader::new(file).split(b'\n') {
            let line = line.doing(format_args!("reading {}", path.display()))?;
            reader.line(&String::from_utf8_lossy(&line));
        }
        reader.finish().map_err(|why| Failure::new(format!("{}: {why}", path.display())))
    }

    /// The number of exceptions from a guest to EL2.
    pub fn total(&self) -> u64 {
        self.exits.values().sum()
    }

    /// The number of interrupts acknowledged from `source`.
    pub fn of(&self, source: Source) -> u64 {
        self.taken.get(&source).copied().unwrap_or(0)
    }

    /// The exits per I/O that neither timer interrupts nor SGIs explain. An SGI is an exit of the CPU that sends it and an
    /// interrupt of the one that receives it, unless GICv4.1 delivers it.
    pub fn unexplained(&self) -> f64 {
        let sent = self.exits.get(SENT).copied().unwrap_or(0);
        let explained = self.of(Source::Timer) + self.of(Source::Sgi) + sent;
        self.total().saturating_sub(explained) as f64 / self.ios.max(1) as f64
    }

    /// The counts as a table.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let ios = self.ios.max(1) as f64;
        let mut row = |name: &str, count: u64| {
            let _ = writeln!(text, "{name:<44} {count:>8} {:>9.3} per I/O", count as f64 / ios);
        };
        row("I/Os", self.ios);
        row("MSI-X messages", self.messages);
        row("exceptions from a guest to EL2", self.total());
        for (class, count) in &self.exits {
            row(&format!("  {class}"), *count);
        }
        row("exceptions from EL2 to EL2", self.nested);
        for (source, count) in &self.taken {
            row(&format!("interrupts taken at EL2: {}", source.name()), *count);
        }
        row("LPIs a guest acknowledged directly", self.direct);
        row("LPIs a guest acknowledged by list register", self.listed);
        text
    }
}
