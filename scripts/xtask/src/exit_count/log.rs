//! Parses QEMU's log of a counted run.

use std::collections::{BTreeMap, BTreeSet};

use super::{Counts, Hypervisor, LPI, RESIDENCY, SENT, Source, WAIT};

/// Where an exception to EL2 came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    Guest,
    Hypervisor,
}

/// The counts while a log is read.
#[derive(Debug, Default)]
pub struct Reader {
    /// What runs at EL2.
    pub hypervisor: Hypervisor,
    /// The mark at the beginning was seen.
    pub began: bool,
    /// The mark at the end was seen.
    pub ended: bool,
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
    /// CPUs on which a vPE is resident.
    resident: BTreeSet<usize>,
}

impl Reader {
    /// Handles one line of the log.
    pub fn line(&mut self, line: &str) {
        if let Some(rest) = line.strip_prefix("Taking exception ") {
            self.kind = between(rest, "[", "]").unwrap_or_default().to_owned();
            self.cpu = rest.rsplit(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0);
            self.from = None;
        } else if let Some(rest) = line.strip_prefix("...from ") {
            self.from = match rest.trim() {
                // From one of KVM's own programs.
                "EL0 to EL2" if self.hypervisor == Hypervisor::Kvm && !self.resident.contains(&self.cpu) => None,
                "EL1 to EL2" | "EL0 to EL2" => Some(From::Guest),
                "EL2 to EL2" => Some(From::Hypervisor),
                _ => None,
            };
            let Some(from) = self.from else { return };
            if from == From::Hypervisor {
                self.counts.nested += 1;
            }
            // The class of a synchronous exception comes with ESR on the next line. KVM takes the interrupt that made a guest
            // leave a second time, at EL2.
            let again = from == From::Hypervisor && self.hypervisor == Hypervisor::Kvm;
            if self.interrupt()
                && !(again && self.unnamed.contains_key(&self.cpu))
                && self.unnamed.insert(self.cpu, from) == Some(From::Guest)
            {
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
        } else if let Some(rest) = line.strip_prefix(RESIDENCY[0]) {
            self.resident.extend(redistributor(rest));
        } else if let Some(rest) = line.strip_prefix(RESIDENCY[1]) {
            redistributor(rest).map(|cpu| self.resident.remove(&cpu));
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

    /// The counts at the end of the log.
    pub fn finish(self) -> Result<Counts, String> {
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

/// The CPU of `… redistributor 0x1: …`, if it is one of the first sixteen, whose affinity is their number.
fn redistributor(text: &str) -> Option<usize> {
    usize::from_str_radix(between(text, "redistributor 0x", ":")?, 16).ok()
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
            (3, 0, 12, 11, 5) => SENT.into(),
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
    use super::super::TIMER;
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
    fn under_kvm_programs_of_the_host_are_not_a_guest_and_an_interrupt_is_one_exit() {
        let enter = "gicv3_vpe_enter GICv3 redistributor 0x2: vPE 0x1 resident, groups 0x2\n";
        let leave = "gicv3_vpe_leave GICv3 redistributor 0x2: vPE 0x1 leaves, PendingLast 0 Doorbell 1\n";
        let user = "Taking exception 2 [SVC] on CPU 2\n...from EL0 to EL2\n...with ESR 0x15/0x56000000\n";
        let user_irq = "Taking exception 5 [IRQ] on CPU 2\n...from EL0 to EL2\n...with ESR 0x16/0x5a000000\n";
        let again = "Taking exception 5 [IRQ] on CPU 2\n...from EL2 to EL2\n...with ESR 0x16/0x5a000000\n";
        let iar = "gicv3_icc_iar1_read GICv3 ICC_IAR1 read cpu 0x2 value 0x1b\n";
        let parts =
            [enter, BEGIN, READ, IRQ, again, iar, user_irq, again, iar, leave, user, user_irq, again, iar, READ, END];
        let mut reader = Reader { hypervisor: Hypervisor::Kvm, ..Reader::default() };
        parts.concat().lines().for_each(|line| reader.line(line));
        let counts = reader.finish().unwrap();
        assert_eq!(counts.exits, [(TIMER.to_owned(), 2)].into());
        assert_eq!(count(&parts).unwrap().total(), 4);
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
        assert_eq!(class(0x623a_3036, ""), SENT);
    }

    #[test]
    fn a_log_without_marks_is_an_error() {
        assert!(count(&[READ, READ]).is_err());
        assert!(count(&[BEGIN, READ, READ]).is_err());
    }
}
