//! Physical CPUs that debug keys take offline and back online, while dom0 does verified I/O on its disk.
//!
//! Each key is typed when the answer to the previous one has been printed.

use crate::qemu::Machine;
use crate::session::{NEXT, Session};
use crate::test::linux::Transcript;
use crate::test::{Case, Lab, Verdict};

/// Times that a CPU goes offline and comes back, with direct and with software injection.
const CYCLES: usize = 100;
const CYCLES_SOFTWARE: usize = 20;

/// A key and the hypervisor's answer; without a key, a line of dom0.
pub(super) type Step = (Option<char>, &'static str);

/// dom0 has run for a while since the last change.
pub(super) const TICK: Step = (None, "DW-TEST: tick");

/// The cases of this topic.
pub fn cases() -> Vec<Case> {
    let case = |name, shows, run| Case { name, shows, bare: false, run };
    vec![
        case(
            "cpus-out-and-back",
            "a CPU goes offline and comes back 100 times under verified I/O; then all but one go",
            |lab| under_load(lab, "direct=on", CYCLES),
        ),
        case("cpus-out-and-back-software", "the same 20 times with direct=off", |lab| {
            under_load(lab, "direct=off", CYCLES_SOFTWARE)
        }),
        case("cpus-bound", "sched=null: a CPU goes offline only if it has no vCPU", bound),
    ]
}

/// Does the steps one by one, from dom0's first round of I/O on; then makes dom0 stop.
pub(super) fn drive(lab: &Lab, machine: &Machine, seconds: u64, steps: &[Step]) -> Result<Transcript, String> {
    let mut next = 0;
    let mut started = false;
    let transcript = lab.watch(machine, seconds, |session, line| {
        let round = line.starts_with("DW-TEST: round ");
        if !started && round {
            started = true;
            return press(session, steps, next);
        }
        match steps.get(next) {
            Some((_, answer)) if started && line.contains(answer) => {
                next += 1;
                press(session, steps, next)
            }
            Some(_)
                if line.contains("stays in service: ")
                    || line.contains("stays out of service: ")
                    || line.contains("bring-up failed") =>
            {
                Err(format!("step {next}: `{}`", line.trim()))
            }
            None if round => session.type_in("\r").map_err(|failure| failure.text),
            _ => Ok(()),
        }
    })?;
    lab.judge(&transcript)?;
    match steps.get(next) {
        Some((key, answer)) => Err(format!("no answer `{answer}` to {key:?}, step {next}")),
        None => Ok(transcript),
    }
}

fn press(session: &mut Session, steps: &[Step], next: usize) -> Verdict {
    let Some((Some(key), _)) = steps.get(next) else { return Ok(()) };
    session.type_in(&format!("{NEXT}{key}{NEXT}")).map_err(|failure| failure.text)
}

fn under_load(lab: &Lab, hv: &str, cycles: usize) -> Verdict {
    // Every online CPU has a vCPU that computes.
    let machine = Machine { hv: format!("sched=credit dom0_max_vcpus=6 {hv}"), ..lab.linux("until", "4") };
    let key = |key, answer| [(Some(key), answer), TICK];
    let cycle = [key('o', "CPU3: out of service; moved to CPU2"), key('O', "CPU3: back in service")].concat();
    let rest = [
        key('o', "CPU3: out of service; moved to CPU2"),
        key('o', "CPU2: out of service; moved to CPU1"),
        key('o', "CPU1: out of service; moved to CPU0"),
        key('o', "CPU0: stays in service: it is the boot CPU"),
        key('O', "CPU1: back in service"),
        key('O', "CPU2: back in service"),
        key('O', "CPU3: back in service"),
        key('O', "no CPU is out of service"),
        key('s', "VMOVPs: "),
    ];
    let steps: Vec<Step> = [cycle.repeat(cycles), rest.concat()].concat();
    let transcript = drive(lab, &machine, 400, &steps)?;
    let shown =
        |word: &str| transcript.lines.iter().rev().map(|(_, line)| line.trim()).find(|line| line.contains(word));
    let outs = cycles + 3;
    println!("   dom0: {} rounds of verified writes meanwhile", transcript.number("rounds")?);
    for word in ["taken out: ", "evacuate: ", "VMOVPs: "] {
        println!("   {}", shown(word).unwrap_or("nothing"));
    }
    let line = shown("taken out: ").ok_or("the scheduler's state was not printed")?;
    if !line.starts_with(&format!("4 CPUs; taken out: {outs}, back: {outs}, ")) {
        return Err(format!("after {outs} cycles: `{line}`"));
    }
    // The home of a vPE is the CPU that its vCPU ran on last.
    if hv.contains("direct=on") && line.ends_with(": 0") {
        return Err(format!("no vPE was moved: `{line}`"));
    }
    Ok(())
}

fn bound(lab: &Lab) -> Verdict {
    let machine = Machine { hv: "dom0_max_vcpus=3".into(), ..lab.linux("until", "") };
    let steps = [
        (Some('o'), "CPU3: out of service; moved to CPU2"),
        (Some('o'), "CPU2: stays in service: dom0 vCPU2 can run on no other CPU"),
        (Some('O'), "CPU3: back in service"),
        (Some('O'), "no CPU is out of service"),
    ];
    drive(lab, &machine, 120, &steps).map(|_| ())
}
