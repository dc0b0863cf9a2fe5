//! Counts exceptions to EL2 from outside, without counters in the guest or the hypervisor.
//!
//! QEMU logs every exception that it delivers (`-d int`) and, as trace events, each interrupt acknowledge, list register write
//! and NVMe read. The log is switched on over QMP for a part of a run, on QEMU's deterministic clock (`-icount`). The guest's
//! program `mark` bounds that part with two supervisor calls, and the count runs from the first NVMe read in it to the last.
//!
//! Exceptions are classified by ESR_EL2.EC, interrupts by the INTID of the next acknowledge on that CPU. An LPI that a guest
//! acknowledges was injected directly if no list register write put it there.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use crate::fail::{Doing, Failure, Outcome};
use crate::qemu::{Disk, Machine};
use crate::qmp::Qmp;
use crate::session::Session;

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
    let counts = Counts::read(&raw(file), Clock::Instructions)?;
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
    /// Counts a log.
    pub fn read(path: &Path, clock: Clock) -> Outcome<Self> {
        let file = std::fs::File::open(path).doing(format_args!("opening {}", path.display()))?;
        let mut reader = Reader::default();
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

/// Where an exception to EL2 came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    Guest,
    Hypervisor,
}

#[derive(Debug, Default)]
struct Reader {
    began: bool,
    ended: bool,
    counts: Counts,
    /// The counts at the latest NVMe read: nothing after the last one counts.
    kept: Option<Counts>,
    cpu: usize,
    kind: String,
    from: Option<From>,
    /// By CPU: an interrupt that was delivered to EL2 and whose acknowledge, which gives the source, has not come yet.
    unnamed: BTreeMap<usize, From>,
    /// By CPU: LPIs put into list registers and not yet acknowledged.
    listed: BTreeSet<(usize, u64)>,
}

impl Reader {
    fn line(&mut self, line: &str) {
        if let Some(rest) = line.strip_prefix("Taking exception ") {
            self.kind = between(rest, "[", "]").unwrap_or_default().to_owned();
            self.cpu = rest.rsplit(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0);
            self.from = None;
        } else if let Some(rest) = line.strip_prefix("...from ") {
            self.from = match rest.trim() {
                "EL1 to EL2" | "EL0 to EL2" => Some(From::Guest),
                "EL2 to EL2" => Some(From::Hypervisor),
                _ => None,
            };
            let Some(from) = self.from else { return };
            if from == From::Hypervisor {
                self.counts.nested += 1;
            }
            // The class of a synchronous exception comes with ESR on the next line.
            if self.interrupt() && self.unnamed.insert(self.cpu, from) == Some(From::Guest) {
                *self.counts.exits.entry("interrupt: nothing to acknowledge".into()).or_default() += 1;
            }
        } else if let Some(rest) = line.strip_prefix("...with ESR ") {
            let esr = rest.rsplit("0x").next().and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
            match esr {
                0x5600_4d01 => self.began = true,
                0x5600_4d02 => self.ended = true,
                _ => {}
            }
            let interrupt =
                self.unnamed.contains_key(&self.cpu) && matches!(self.kind.as_str(), "IRQ" | "FIQ" | "SError");
            if self.from == Some(From::Guest) && !interrupt {
                *self.counts.exits.entry(class(esr, &self.kind)).or_default() += 1;
            }
            self.from = None;
        } else if let Some(rest) = line.strip_prefix("gicv3_icc_iar1_read ") {
            self.acknowledged(rest);
        } else if let Some(rest) = line.strip_prefix("gicv3_icv_iar_read ") {
            let (cpu, value) = cpu_and_value(rest);
            if (LPI..1 << 24).contains(&value) {
                if self.listed.remove(&(cpu, value)) { self.counts.listed += 1 } else { self.counts.direct += 1 }
            }
        } else if let Some(rest) = line.strip_prefix("gicv3_ich_lr_write ") {
            let (cpu, value) = cpu_and_value(rest);
            if value >> 62 != 0 {
                self.listed.insert((cpu, value & 0xffff_ffff));
            }
        } else if line.starts_with("pci_nvme_irq_msix ") {
            self.counts.messages += 1;
        } else if line.starts_with("pci_nvme_read ") && self.began {
            self.read();
        }
    }

    /// Whether the current exception is asynchronous.
    fn interrupt(&self) -> bool {
        matches!(self.kind.as_str(), "IRQ" | "FIQ" | "SError")
    }

    /// Handles an NVMe read: the first starts the count, and each later one may be its end.
    fn read(&mut self) {
        match &mut self.kept {
            None => {
                self.counts = Counts { ios: 1, ..Counts::default() };
                self.kept = Some(Counts::default());
            }
            Some(kept) => {
                self.counts.ios += 1;
                *kept = self.counts.clone();
            }
        }
    }

    fn acknowledged(&mut self, rest: &str) {
        let (cpu, intid) = cpu_and_value(rest);
        let source = Source::of(intid);
        *self.counts.taken.entry(source).or_default() += 1;
        if self.unnamed.remove(&cpu) == Some(From::Guest) {
            *self.counts.exits.entry(format!("interrupt: {}", source.name())).or_default() += 1;
        }
    }

    fn finish(self) -> Result<Counts, String> {
        if !(self.began && self.ended) {
            return Err("the log has no begin or end mark; the guest must run dw.test=count".into());
        }
        self.kept.filter(|counts| counts.ios > 1).ok_or_else(|| "no NVMe reads between the marks".into())
    }
}

/// CPU and value in `… cpu 0x2 value 0x2003`.
fn cpu_and_value(text: &str) -> (usize, u64) {
    let hex = |word: &str| u64::from_str_radix(word.trim_start_matches("0x"), 16).unwrap_or(0);
    let after = |name: &str| {
        let mut words = text.split_whitespace();
        words.find(|word| *word == name)?;
        words.next().map(hex)
    };
    (after("cpu").unwrap_or(0) as usize, after("value").unwrap_or(0))
}

fn between<'a>(text: &'a str, open: &str, close: &str) -> Option<&'a str> {
    text.split_once(open)?.1.split_once(close).map(|(inner, _)| inner)
}

/// The class of a synchronous exception, from ESR_EL2 (Arm ARM, D24.2.45).
fn class(esr: u64, kind: &str) -> String {
    match esr >> 26 & 0x3f {
        0x01 => WAIT.into(),
        0x07 => "FP or SVE (trapped)".into(),
        0x09 => "pointer authentication (trapped)".into(),
        0x16 => "HVC".into(),
        0x17 => "SMC".into(),
        0x18 => match (esr >> 20 & 3, esr >> 14 & 7, esr >> 10 & 15, esr >> 1 & 15, esr >> 17 & 7) {
            (3, 0, 12, 11, 5) => "ICC_SGI1R_EL1 (an SGI sent)".into(),
            (op0, op1, crn, crm, op2) => format!("system register S{op0}_{op1}_C{crn}_C{crm}_{op2}"),
        },
        0x19 => "SVE (trapped)".into(),
        0x20 => "instruction abort".into(),
        0x24 => "data abort".into(),
        ec => format!("EC {ec:#04x} [{kind}]"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEGIN: &str = "Taking exception 2 [SVC] on CPU 0\n...from EL0 to EL1\n...with ESR 0x15/0x56004d01\n";
    const END: &str = "Taking exception 2 [SVC] on CPU 0\n...from EL0 to EL1\n...with ESR 0x15/0x56004d02\n";
    const READ: &str =
        "pci_nvme_read cid 1 nsid 1 nlb 8 count 4096 lba 0x7b80\npci_nvme_irq_msix raising MSI-X IRQ vector 3\n";
    const IRQ: &str = "Taking exception 5 [IRQ] on CPU 2\n...from EL1 to EL2\n...with ESR 0x16/0x5a000000\n";
    const WFI: &str =
        "Taking exception 1 [Undefined Instruction] on CPU 2\n...from EL1 to EL2\n...with ESR 0x1/0x7e00000\n";

    fn count(parts: &[&str]) -> Result<Counts, String> {
        let mut reader = Reader::default();
        parts.concat().lines().for_each(|line| reader.line(line));
        reader.finish()
    }

    #[test]
    fn only_exits_between_the_first_and_the_last_read_count() {
        let counts = count(&[WFI, BEGIN, WFI, READ, WFI, READ, WFI, END]).unwrap();
        assert_eq!(counts.ios, 2);
        assert_eq!(counts.total(), 1);
        assert_eq!(counts.messages, 1);
    }

    #[test]
    fn an_interrupt_is_classified_by_its_acknowledge() {
        let iar = "gicv3_icc_iar1_read GICv3 ICC_IAR1 read cpu 0x2 value 0x2003\n";
        let counts = count(&[BEGIN, READ, IRQ, iar, READ, END]).unwrap();
        assert_eq!(counts.exits["interrupt: LPI"], 1);
        assert_eq!(counts.of(Source::Lpi), 1);
        assert_eq!(counts.total(), 1);
    }

    #[test]
    fn an_interrupt_taken_while_el2_idles_is_not_an_exit_of_a_guest() {
        let idle = "Taking exception 5 [IRQ] on CPU 2\n...from EL2 to EL2\n...with ESR 0x16/0x5a000000\n";
        let iar = "gicv3_icc_iar1_read GICv3 ICC_IAR1 read cpu 0x2 value 0x1b\n";
        let counts = count(&[BEGIN, READ, idle, iar, READ, END]).unwrap();
        assert_eq!((counts.total(), counts.nested, counts.of(Source::Timer)), (0, 1, 1));
    }

    #[test]
    fn an_acknowledge_is_direct_unless_a_list_register_held_the_lpi() {
        let lr = "gicv3_ich_lr_write GICv3 ICH_LR0_EL2 write cpu 0x1 value 0x50a0000000002004\n";
        let listed = "gicv3_icv_iar_read GICv3 ICV_IAR1 read cpu 0x1 value 0x2004\n";
        let direct = "gicv3_icv_iar_read GICv3 ICV_IAR1 read cpu 0x1 value 0x2005\n";
        let counts = count(&[BEGIN, READ, lr, listed, direct, listed, READ, END]).unwrap();
        assert_eq!((counts.listed, counts.direct), (1, 2));
    }

    #[test]
    fn writes_of_sgi_registers_have_a_class_of_their_own() {
        assert_eq!(class(0x623a_3036, ""), "ICC_SGI1R_EL1 (an SGI sent)");
    }

    #[test]
    fn a_log_without_marks_is_an_error() {
        assert!(count(&[READ, READ]).is_err());
        assert!(count(&[BEGIN, READ, READ]).is_err());
    }
}
