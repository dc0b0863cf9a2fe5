//! Domains beside dom0: a Linux with a console of its own, one that is started 200 times, one that writes nonsense. dom0
//! does verified I/O all the while.

use crate::domu::DomU;
use crate::image;
use crate::paths;
use crate::qemu::{Boot, Machine};
use crate::session::Session;
use crate::test::{Case, Lab, Verdict};

/// What the hypervisor keeps for dom0 here; the other two CPUs are for the others.
const HV: &str = "dom0_max_vcpus=2";

/// Times that the small guest asks for a reset.
const RESETS: usize = 200;

/// Three times Ctrl-A.
const NEXT: &str = "\u{1}\u{1}\u{1}";

/// The cases of this topic.
pub fn cases() -> Vec<Case> {
    let case = |name, shows, run| Case { name, shows, bare: false, run };
    vec![
        case("domain-linux", "a second Linux with two vCPUs, typed to, switched off and gone", linux),
        case("domain-resets", "200 resets of a small domain leave as much free as there was", |lab| resets(lab, HV, 4)),
        case("domain-resets-credit", "the same with sched=credit, on the two CPUs that dom0 has, too", |lab| {
            resets(lab, "sched=credit", 2)
        }),
        case("domain-chaos", "a domain that writes nonsense everywhere harms nobody", chaos),
    ]
}

/// dom0 with verified I/O until a line is typed, and `domu` beside it.
fn machine(lab: &Lab, domu: DomU) -> Machine {
    Machine { hv: HV.into(), domus: vec![domu], ..lab.linux("until", "") }
}

/// Types dom0's line once it is time, when dom0 shows that it would read it.
fn stop(session: &mut Session, line: &str, time: bool) -> Verdict {
    if time && line.starts_with("DW-TEST: round ") {
        session.type_in("\r").map_err(|failure| failure.text)?;
    }
    Ok(())
}

fn guest(lab: &Lab, name: &str) -> Result<DomU, String> {
    debug_assert!(matches!(lab.boot, Boot::Doorward));
    let kernel = lab.dir.join("kernel");
    image::build_guest(name, &kernel).map_err(|failure| failure.text)?;
    Ok(DomU { kernel, cpus: 2, mem: 16, ..DomU::default() })
}

/// The hypervisor's line about what is free, without its time.
fn free(line: &str) -> Option<&str> {
    line.split_once(" info vm: free: ").map(|(_, rest)| rest)
}

fn linux(lab: &Lab) -> Verdict {
    let domu = DomU { initrd: Some(paths::initramfs()), cpus: 2, mem: 512, ..DomU::default() };
    let machine = machine(lab, domu);
    let (mut moved, mut answered, mut gone) = (false, false, false);
    let transcript = lab.watch(&machine, 150, |session, line| {
        let say = |failure: crate::fail::Failure| failure.text;
        if line.starts_with("(d1) A shell of the test initramfs") {
            session.type_in(NEXT).map_err(say)?;
        } else if line.starts_with("(dom1 has the keyboard)") {
            moved = true;
            session.type_in("echo answer $(nproc) $((6 * 7)); poweroff -f\r").map_err(say)?;
        } else if line.trim() == "answer 2 42" {
            // Its output has no mark while it has the keyboard.
            answered = true;
        }
        gone |= line.starts_with("(dom0 has the keyboard)");
        stop(session, line, gone)
    })?;
    lab.judge(&transcript)?;
    match (moved, answered) {
        (true, true) if transcript.lines.iter().any(|(_, line)| line.contains("dom1 powered off")) => {}
        _ => return Err(format!("keyboard moved: {moved}, the domain answered: {answered}, or it did not power off")),
    }
    match transcript.lines.iter().filter_map(|(_, line)| free(line)).next_back() {
        Some(free) if free.contains(" 512 MiB for domains") => Ok(()),
        other => Err(format!("at the end: {other:?}")),
    }
}

fn resets(lab: &Lab, hv: &str, smp: u32) -> Verdict {
    let machine = Machine { hv: hv.into(), smp, ..machine(lab, guest(lab, "guest-again")?) };
    let mut counts = Vec::new();
    let mut settled = false;
    let transcript = lab.watch(&machine, 150, |session, line| {
        if line.contains("GUEST FAIL") {
            return Err(line.to_owned());
        }
        // dom0's own devices take frames while it starts.
        settled |= line.starts_with("DW-TEST: init");
        if let Some(free) = free(line).filter(|_| settled) {
            counts.push(free.to_owned());
        }
        stop(session, line, counts.len() >= RESETS)
    })?;
    lab.judge(&transcript)?;
    // dom0's disk may have taken its last frames in the first rounds.
    let (early, late) = counts.split_at(counts.len().min(5));
    println!("   {} resets; free: {}", counts.len(), late.last().map_or("", |last| last));
    match late.iter().position(|free| Some(free) != late.first()) {
        _ if counts.len() < RESETS => Err(format!("{} resets, not {RESETS}", counts.len())),
        Some(at) => Err(format!("free at reset {}: {}, before: {}", at + early.len(), late[at], late[0])),
        None => Ok(()),
    }
}

fn chaos(lab: &Lab) -> Verdict {
    let machine = machine(lab, DomU { mem: 64, ..guest(lab, "guest-chaos")? });
    let (mut passed, mut gone) = (false, false);
    let transcript = lab.watch(&machine, 150, |session, line| {
        if line.contains("GUEST FAIL") {
            return Err(line.to_owned());
        }
        passed |= line.contains("GUEST PASS chaos");
        gone |= line.contains(" dom1 powered off");
        stop(session, line, gone)
    })?;
    lab.judge(&transcript)?;
    println!("   dom0: {} rounds of verified writes meanwhile", transcript.number("rounds")?);
    if passed { Ok(()) } else { Err("the guest did not come through".into()) }
}
