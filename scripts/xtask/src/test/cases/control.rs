//! dom0's console device: Linux's driver finds it, and a program in dom0 has the console of a domU.

use super::{domains, uefi};
use crate::domu::DomU;
use crate::qemu::Machine;
use crate::test::{Case, Lab, Verdict};

/// The cases of this topic.
pub fn cases() -> Vec<Case> {
    let case = |name, shows, run| Case { name, shows, bare: false, run };
    vec![
        case("control-console", "a program in dom0 has the console of a domU, and does not always read", |lab| {
            let machine = Machine { hv: domains::HV.into(), domus: vec![domu()], ..lab.linux("consoles", "domU1") };
            console(lab, &machine)
        }),
        case("control-console-acpi", "the same with firmware and ACPI tables", |lab| {
            let mut machine = uefi::acpi(lab, 4, domains::HV);
            machine.domus = vec![domu()];
            machine.append = machine.append.replace("dw.test=fio", "dw.test=consoles dw.arg=domU1");
            machine.make_disk_image().map_err(|failure| failure.text)?;
            let verdict = console(lab, &machine);
            uefi::forget(&machine);
            verdict
        }),
    ]
}

fn domu() -> DomU {
    domains::second_domu()
}

fn console(lab: &Lab, machine: &Machine) -> Verdict {
    let (mut unread, mut ended) = (false, false);
    let transcript = lab.watch(machine, 60, |session, line| {
        unread |= line.starts_with("DW-TEST: unread");
        if unread && !ended && line.contains(" dom1: powered off") {
            ended = true;
            session.type_in("\r").map_err(|failure| failure.text)?;
        }
        Ok(())
    })?;
    lab.judge(&transcript)?;
    let here = |line: &&(std::time::Duration, String)| line.1.contains("answer 2 42");
    if let Some((_, line)) = transcript.lines.iter().find(here) {
        return Err(format!("what dom0 has read is on the UART, too: `{line}`"));
    }
    for kind in ["drivers", "ports", "line", "kept"] {
        println!("   {kind} {}", transcript.said(kind).next().unwrap_or("?"));
    }
    Ok(())
}
