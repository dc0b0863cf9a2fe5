//! Boots the Linux of the initramfs for a case, as dom0 or as a domU, and checks what must hold of every such run.

use std::path::PathBuf;
use std::time::Duration;

use super::Lab;
use crate::qemu::{Boot, Machine};
use crate::session::{Echo, End, Event, Input, Session};

/// The console of a finished run.
pub struct Transcript {
    /// Lines with the time since QEMU was started.
    pub lines: Vec<(Duration, String)>,
    /// How it ended.
    pub end: End,
}

impl Transcript {
    /// The rest of each line that the guest's test printed as `DW-TEST: KIND …`.
    pub fn said<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a str> {
        self.lines.iter().filter_map(move |(_, line)| line.strip_prefix("DW-TEST: ")?.strip_prefix(kind)).map(str::trim)
    }

    /// What domain `id` has printed: the lines with its mark, without it, and all lines while it has the keyboard. Those of the
    /// hypervisor cannot be told from the latter.
    pub fn of(&self, id: usize) -> Transcript {
        let mark = format!("(d{id}) ");
        let mut holder = Some(0);
        let mut lines = Vec::new();
        for (at, line) in &self.lines {
            if let Some(rest) = line.strip_prefix(&mark) {
                lines.push((*at, rest.to_owned()));
            } else if let Some((domain, _)) =
                line.strip_prefix("(dom").and_then(|rest| rest.split_once(" has the keyboard"))
            {
                holder = domain.parse().ok();
            } else if line.starts_with("(nobody has the keyboard")
                || line.starts_with("(the hypervisor has the keyboard")
            {
                holder = None;
            } else if holder == Some(id) && !line.starts_with("(d") {
                lines.push((*at, line.clone()));
            }
        }
        Transcript { lines, end: self.end.clone() }
    }

    /// The number in the first line `DW-TEST: KIND …`.
    pub fn number(&self, kind: &str) -> Result<u64, String> {
        let text = self.said(kind).next().ok_or_else(|| format!("the guest printed no `{kind}`"))?;
        text.parse().map_err(|_| format!("`{kind}` is `{text}`, not a number"))
    }

    /// The value of `KEY=` in a line.
    pub fn field<T: std::str::FromStr>(line: &str, key: &str) -> Option<T> {
        let mut words = line.split_whitespace();
        words.find_map(|word| word.strip_prefix(key)?.strip_prefix('=')?.parse().ok())
    }
}

/// How many times slower than an idle host a busy one may be. Deadlines only bound how long a hang goes on.
const PATIENCE: u32 = 5;

/// Has Linux report a stall of RCU or of a CPU after two minutes, as it does for tasks: after the default of twenty seconds
/// the report says only that the host is busy. A stall that lasts does not outlast the case's deadline.
const STALLS: &str = " rcupdate.rcu_cpu_stall_timeout=120 watchdog_thresh=60";

impl Lab {
    /// A machine that runs the guest's test `name`.
    pub fn linux(&self, name: &str, arg: &str) -> Machine {
        let mut machine =
            Machine { boot: self.boot.clone(), log: Some(self.dir.join("guest.log")), ..Machine::default() };
        machine.append += &format!(" dw.test={name}");
        machine.append += STALLS;
        if !arg.is_empty() {
            machine.append += &format!(" dw.arg={arg}");
        }
        if matches!(self.boot, Boot::Bare) {
            machine.append += " iommu.passthrough=1";
        }
        match &self.gicv41 {
            Some(gic) => machine.on_gicv41(gic),
            None => machine,
        }
    }

    /// The same machine with a GICv4.1. Flags in `extra` make it unkind: see `scripts/qemu-gicv41/README.md`.
    pub fn gicv41(&self, machine: Machine) -> Result<Machine, String> {
        machine.with_gicv41().map_err(|failure| failure.text)
    }

    /// Starts a machine whose console goes to the case's `console.log`. It is killed when it has been on for [`PATIENCE`] times
    /// the `seconds` that are enough on an idle host.
    pub fn start(&self, machine: &Machine, seconds: u64) -> Result<Session, String> {
        let command = machine.batch().map_err(|failure| failure.text)?;
        let _ = std::fs::write(self.dir.join("command"), crate::qemu::shown(&command) + "\n");
        let limit = Some(Duration::from_secs(seconds) * PATIENCE);
        let session = Session::start(command, Echo::Off, Input::Typed, Some(&self.dir.join("console.log")), limit);
        session.map_err(|failure| failure.text)
    }

    /// Runs a machine to its end, however it ends; `each` is called with every line. `seconds` as for [`Lab::start`].
    pub fn watch(
        &self,
        machine: &Machine,
        seconds: u64,
        mut each: impl FnMut(&mut Session, &str) -> Result<(), String>,
    ) -> Result<Transcript, String> {
        let mut session = self.start(machine, seconds)?;
        let mut lines = Vec::new();
        loop {
            match session.next() {
                Event::Line(line) => {
                    each(&mut session, &line)?;
                    lines.push((session.started.elapsed(), line));
                }
                Event::Ended(end) => return Ok(Transcript { lines, end }),
            }
        }
    }

    /// Runs a Linux case to its end and checks what holds of all: it powers off by itself, its test succeeds, its kernel reports
    /// no lost interrupt or I/O error, and QEMU reports no wrong access to the GIC, the ITS or the SMMU.
    pub fn linux_run(&self, machine: &Machine, seconds: u64) -> Result<Transcript, String> {
        let transcript = self.watch(machine, seconds, |_, _| Ok(()))?;
        self.judge(&transcript)?;
        Ok(transcript)
    }

    /// The checks of [`Lab::linux_run`].
    pub fn judge(&self, transcript: &Transcript) -> Result<(), String> {
        self.judge_end(transcript)?;
        self.judge_test(transcript)?;
        self.complaints()
    }

    /// Checks that the machine was powered off.
    pub fn judge_end(&self, transcript: &Transcript) -> Result<(), String> {
        let console = self.dir.join("console.log");
        let last = transcript
            .lines
            .iter()
            .rev()
            .map(|(_, line)| line.trim())
            .find(|line| !line.is_empty())
            .unwrap_or("(nothing)");
        match &transcript.end {
            End::Off => Ok(()),
            End::TimedOut => Err(format!("time-out; the last line was `{last}` ({})", console.display())),
            End::Fatal(line) => Err(format!("{line} ({})", console.display())),
            End::Broken(why) => Err(format!("{why}; the last line was `{last}`")),
        }
    }

    /// Checks that the test of a Linux has succeeded, and that its kernel has reported nothing.
    pub fn judge_test(&self, transcript: &Transcript) -> Result<(), String> {
        let console = self.dir.join("console.log");
        let last = transcript.lines.iter().rev().map(|(_, line)| line.trim()).find(|line| !line.is_empty());
        let last = last.unwrap_or("(nothing)");
        if let Some(why) = transcript.said("fail").next() {
            return Err(format!("the guest failed: {why} ({})", console.display()));
        }
        match transcript.said("exit").next() {
            Some("0") => {}
            Some(code) => return Err(format!("the guest's test ended with exit code {code} ({})", console.display())),
            None => {
                return Err(format!(
                    "the guest's test did not end; the last line was `{last}` ({})",
                    console.display()
                ));
            }
        }
        if let Some(line) = transcript.said("dmesg").next() {
            return Err(format!("the guest's kernel reports: {line} ({})", console.display()));
        }
        if transcript.said("done").next().is_none() {
            return Err(format!("the guest did not finish ({})", console.display()));
        }
        Ok(())
    }

    /// Checks that QEMU's log has no complaint about an interrupt controller or an SMMU. A run without the hypervisor is not checked.
    pub fn complaints(&self) -> Result<(), String> {
        self.complaints_but(|_| false)
    }

    /// The same, with complaints that the case expects.
    pub fn complaints_but(&self, expected: impl Fn(&str) -> bool) -> Result<(), String> {
        let log: PathBuf = self.dir.join("guest.log");
        if matches!(self.boot, Boot::Bare) {
            return Ok(());
        }
        let text = std::fs::read(&log).map_err(|error| format!("{}: {error}", log.display()))?;
        let text = String::from_utf8_lossy(&text).into_owned();
        match text.lines().find(|line| is_complaint(line) && !expected(line)) {
            Some(line) => Err(format!("QEMU complains: `{line}` ({})", log.display())),
            None => Ok(()),
        }
    }
}

/// Whether this line of QEMU's log is a complaint about the GIC, the ITS or the SMMU. Exceptions and trace events, which a counted
/// run has in the same file, are not.
fn is_complaint(line: &str) -> bool {
    const EVENTS: [&str; 6] =
        ["gicv3_icc_", "gicv3_icv_", "gicv3_ich_", "gicv3_its_translation_write", "gicv3_vpe_", "pci_nvme_"];
    // A trace event starts with its name, a message with a function's name and a colon.
    let event = line.split(' ').next().filter(|word| !word.ends_with(':'));
    let traced = event.is_some_and(|event| EVENTS.iter().any(|known| event.starts_with(known)));
    let lower = line.to_ascii_lowercase();
    // Messages of QEMU's ITS start with a function's name: `process_vmapti: …`, `vmovp_callback: …`.
    let ours = ["gic", "its_", "its:", "smmu", "process_", "_callback:", "cmd processing", "vpe", "vte"];
    !traced && ours.iter().any(|word| lower.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_are_distinguished_from_other_lines_of_qemus_log() {
        assert!(is_complaint("gicv3_dist_read: invalid guest read at offset 000000000000000c size 4"));
        assert!(is_complaint("process_vmapti: Doorbell 50 not 1023 and not a valid LPI"));
        assert!(is_complaint("smmuv3: something"));
        assert!(is_complaint("gicv3_vpe_map: VMAPP of vPE 0x1, which is mapped already"));
        assert!(is_complaint("vpe_enter: vPE 0x1 made resident and not mapped"));
        assert!(!is_complaint("gicv3_vpe_enter GICv3 redistributor 0x1: vPE 0x1 resident, groups 0x2"));
        assert!(!is_complaint("gicv3_icc_iar1_read GICv3 ICC_IAR1 read cpu 0x2 value 0x2003"));
        assert!(!is_complaint("pl011_read: Bad offset 40"));
    }

    #[test]
    fn the_lines_of_a_domain_are_those_with_its_mark_or_while_it_has_the_keyboard() {
        let lines = [
            "of 0",
            "(d1) of 1",
            "(dom1 has the keyboard)",
            "also of 1",
            "(d0) also of 0",
            "(nobody has the keyboard: dom1 has ended; three times Ctrl-A moves it to dom0)",
            "of EL2",
            "(dom0 has the keyboard)",
            "again of 0",
        ];
        let lines = lines.map(|line| (Duration::ZERO, line.to_owned())).to_vec();
        let transcript = Transcript { lines, end: End::Off };
        let of = |id| transcript.of(id).lines.into_iter().map(|(_, line)| line).collect::<Vec<_>>();
        assert_eq!(of(0), ["of 0", "also of 0", "again of 0"]);
        assert_eq!(of(1), ["of 1", "also of 1"]);
    }

    #[test]
    fn fields_are_found_by_their_key() {
        assert_eq!(Transcript::field::<u64>("read-4k error=0 kib=8000 max_us=12", "max_us"), Some(12));
        assert_eq!(Transcript::field::<u64>("read-4k", "max_us"), None);
    }
}
