//! The order of ITS commands and residency in QEMU's trace of runs that map, move and unmap.

use std::io::{BufRead, BufReader};

use crate::qemu::Machine;
use crate::test::{Case, Lab, Verdict};
use crate::trace_checker::{Checker, EVENTS};

/// The cases of this topic.
pub fn cases() -> Vec<Case> {
    let case = |name, shows, run| Case { name, shows, bare: false, run };
    vec![
        case("order-rebind", "the order of ITS commands and residency, with the driver unbound and bound", |lab| {
            ordered(lab, "rebind", "3", &["vmapp", "vmapti", "vsync", "vinvall", "discard", "inv", "resident"])
        }),
        case("order-hotplug", "the same with CPU_OFF and CPU_ON under load", |lab| {
            ordered(lab, "hotplug", "6", &["vmapp", "vmapti", "vsync", "resident"])
        }),
    ]
}

/// Checks that the trace of a run has each of `kinds` and no error.
fn ordered(lab: &Lab, test: &str, arg: &str, kinds: &[&str]) -> Verdict {
    let mut machine = Machine { hv: "vwfi=trap".into(), ..lab.linux(test, arg) };
    // Other cases check guest errors; this log has only the trace.
    let log = lab.dir.join("trace.log");
    machine.log = None;
    machine.extra.extend(["-D".into(), log.display().to_string()]);
    for event in EVENTS {
        machine.extra.extend(["-trace".into(), event.into()]);
    }
    let transcript = lab.watch(&machine, 300, |_, _| Ok(()))?;
    let _ = std::fs::write(lab.dir.join("guest.log"), "");
    lab.judge(&transcript)?;
    let file = std::fs::File::open(&log).map_err(|error| format!("{}: {error}", log.display()))?;
    let mut checker = Checker::default();
    for line in BufReader::new(file).lines() {
        checker.line(&line.map_err(|error| format!("{}: {error}", log.display()))?);
    }
    checker.finish();
    let seen: Vec<String> = checker.seen.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
    println!("   {}", seen.join(", "));
    if let Some(kind) = kinds.iter().find(|kind| !checker.seen.contains_key(**kind)) {
        return Err(format!("the trace has no {kind} ({})", log.display()));
    }
    if checker.wrong.is_empty() { Ok(()) } else { Err(format!("{} ({})", checker.wrong.join("; "), log.display())) }
}
