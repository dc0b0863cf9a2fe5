//! The guest `chaos`, which makes random accesses wherever it can: as dom0, as a domU, as both at once, as a domU that ends at
//! random moments, and beside a domain that measures how long it is without a CPU.
//!
//! With `--long` each of its domains makes a million acts: eleven million in all, as dom0, as a domU and as both, on GICv4.0, v3
//! and v4.1.

use crate::domu::DomU;
use crate::image;
use crate::qemu::Machine;
use crate::session::End;
use crate::test::linux::Transcript;
use crate::test::{Case, Lab, Verdict};

use super::flood::{self, CLOCK, LONGEST_GAP_US, Measured, SLICE_US};
use super::{domains, guests};

/// The acts of a domU, all vCPUs together.
const ACTS: u64 = 400_000;
/// The acts of each of two domains that share CPUs.
const ACTS_BOTH: u64 = 30_000;
/// The acts of any domain with `--long`.
const ACTS_LONG: u64 = 1_000_000;
/// More acts than a run ever makes.
const ENDLESS: u64 = 1_000_000_000;

/// The bit of the guest's seed that makes it end at random moments.
const ENDS: u64 = 1 << 63;
/// The lives of a domU that ends at random moments, and the same with `--long`.
const LIVES: (usize, usize) = (25, 2_000);

/// The guest's lines about its progress are a tenth of its acts apart.
const STEPS: u64 = 10;

/// The cases of this topic.
pub fn cases() -> Vec<Case> {
    let case = |name, shows, run| Case { name, shows, bare: false, run };
    vec![
        case("chaos-1", "random accesses to registers, commands and calls harm neither EL2 nor the guest", |lab| {
            alone(lab, |machine| Ok(Machine { smp: 1, ..machine }))
        }),
        case("chaos-2", "the same from two vCPUs at once, direct=off", |lab| {
            alone(lab, |machine| Ok(Machine { smp: 2, hv: "vwfi=trap direct=off".into(), ..machine }))
        }),
        case("chaos-v3", "the same from two vCPUs on a GICv3", |lab| alone(lab, |machine| Ok(gicv3(machine)))),
        case("gicv41-chaos", "the same from two vCPUs on a GICv4.1", |lab| {
            alone(lab, |machine| lab.gicv41(Machine { smp: 2, ..machine }))
        }),
        case("chaos-both", "dom0 and a domU make random accesses on the same two CPUs", |lab| both(lab, Ok)),
        case("chaos-both-v3", "the same on a GICv3", |lab| both(lab, |machine| Ok(gicv3(machine)))),
        case("gicv41-chaos-both", "the same on a GICv4.1", |lab| both(lab, |machine| lab.gicv41(machine))),
        case(
            "chaos-gap",
            "beside a dom0, a domU, or both, that make random accesses, a domain waits for the CPU two slices at most",
            |lab| gap(lab, Ok),
        ),
        case("chaos-gap-v3", "the same on a GICv3", |lab| gap(lab, |machine| Ok(gicv3(machine)))),
        case("gicv41-chaos-gap", "the same on a GICv4.1", |lab| gap(lab, |machine| lab.gicv41(machine))),
        case("domain-chaos", "a domain that makes random accesses everywhere harms no other domain", domain),
        case(
            "domain-chaos-resets",
            "the same for one that resets, crashes or powers vCPUs off in the middle of it",
            resets,
        ),
    ]
}

fn gicv3(machine: Machine) -> Machine {
    Machine { smp: 2, properties: machine.properties.replace("gic-version=4", "gic-version=3"), ..machine }
}

/// A machine with the guest as dom0. It makes so many acts, or its own number if that is 0.
fn dom0(lab: &Lab, acts: u64) -> Result<Machine, String> {
    let kernel = lab.dir.join("kernel-dom0");
    image::build_seeded_guest("guest-chaos", (acts / 1000) << 32, &kernel).map_err(|failure| failure.text)?;
    let mut machine = Machine { kernel: Some(kernel), cpu: "max".into(), ..guests::machine(lab, "guest-chaos")? };
    machine.extra.extend(guests::XHCI.map(String::from));
    Ok(machine)
}

/// A domU with the guest, which makes so many acts.
fn domu(lab: &Lab, acts: u64) -> Result<DomU, String> {
    Ok(DomU { mem: 64, ..domains::seeded(lab, "guest-chaos", (acts / 1000) << 32)? })
}

/// The guest as dom0 on `machine`, to its end.
fn alone(lab: &Lab, machine: impl FnOnce(Machine) -> Result<Machine, String>) -> Verdict {
    let (acts, seconds) = if lab.long { (ACTS_LONG, 14_400) } else { (0, 300) };
    let machine = machine(dom0(lab, acts)?)?;
    let transcript = lab.watch(&machine, seconds, |_, line| failure(line))?;
    let lines = || transcript.lines.iter().map(|(_, line)| line.trim());
    // The seed, so that a bad run can be had again.
    let start = lines().find(|line| line.starts_with("GUEST START chaos")).ok_or("the guest did not start")?;
    if transcript.end != End::Off || !lines().any(|line| line.starts_with("GUEST PASS chaos")) {
        return Err(format!("{start}: {:?} ({})", transcript.end, lab.dir.join("console.log").display()));
    }
    println!("   {start}, {} acts", lines().find_map(|line| Transcript::field::<u64>(line, "acts")).unwrap_or(0));
    lab.complaints()
}

fn failure(line: &str) -> Verdict {
    if line.contains("GUEST FAIL") { Err(line.to_owned()) } else { Ok(()) }
}

/// The guest as dom0 and as a domU on the same two CPUs, until each has made its acts.
fn both(lab: &Lab, machine: impl FnOnce(Machine) -> Result<Machine, String>) -> Verdict {
    let (acts, seconds) = if lab.long { (ACTS_LONG, 14_400) } else { (ACTS_BOTH, 120) };
    // Each goes on until the other has made its acts, too.
    let unlimited = STEPS * acts;
    let domus = vec![domu(lab, unlimited)?];
    let machine = machine(Machine { smp: 2, hv: "sched=credit".into(), domus, ..dom0(lab, unlimited)? })?;
    let (mut made, mut seeds) = ([0u64; 2], Vec::new());
    let mut done = false;
    let transcript = lab.watch(&machine, seconds, |session, line| {
        failure(line)?;
        let (domain, said) = line.strip_prefix("(d1) ").map_or((0, line), |said| (1, said));
        if said.starts_with("GUEST START chaos") {
            seeds.push(line.to_owned());
        }
        if let Some(act) = progress(said) {
            // It is that of the first of two vCPUs.
            made[domain] = 2 * act;
        }
        if made.iter().all(|&made| made >= acts) && !done {
            done = true;
            session.kill();
        }
        Ok(())
    })?;
    if !done {
        let console = lab.dir.join("console.log");
        return Err(format!("{seeds:?}: acts {made:?}: {:?} ({})", transcript.end, console.display()));
    }
    println!("   {} acts of dom0, {} of the domU", made[0], made[1]);
    lab.complaints()
}

/// The acts of the guest's first vCPU, if it reports them in `line`.
fn progress(line: &str) -> Option<u64> {
    line.trim().strip_prefix("GUEST NOTE chaos ")?.split_once(" of ")?.0.parse().ok()
}

/// What a domain measures that shares its CPU with the guest as dom0, with the guest as domU, and with both.
fn gap(lab: &Lab, gic: impl Fn(Machine) -> Result<Machine, String>) -> Verdict {
    let mut wrong = Vec::new();
    let both = ("a dom0 and a domU", 2, beside_both(lab)?);
    for (what, guests, machine) in [("a dom0", 1, beside_dom0(lab)?), ("a domU", 1, beside_domu(lab)?), both] {
        let hv = format!("sched=credit sched_credit_tslice_ms={} dom0_max_vcpus=1", SLICE_US / 1000);
        let machine = gic(machine)?;
        let machine =
            Machine { smp: 1, hv, extra: [machine.extra, CLOCK.map(str::to_owned).to_vec()].concat(), ..machine };
        let mut found = None;
        let transcript = lab.watch(&machine, 120, |session, line| {
            failure(line)?;
            found = found.or(flood::measured(line));
            if found.is_some() {
                session.kill();
            }
            Ok(())
        })?;
        let Some(Measured { share, gap_us }) = found else {
            return Err(format!("beside {what}: nothing was measured: {:?}", transcript.end));
        };
        let started = transcript.lines.iter().filter(|(_, line)| line.contains("GUEST START chaos")).count();
        if started != guests {
            return Err(format!("beside {what}: {started} domains made random accesses, not {guests}"));
        }
        println!("   beside {what}: {:.1} % of the CPU, without it for {gap_us} us at most", 100.0 * share);
        if gap_us > LONGEST_GAP_US {
            wrong.push(format!("beside {what}: {gap_us} us without a CPU, more than {LONGEST_GAP_US}"));
        }
        lab.complaints()?;
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
}

/// The guest as dom0, and a domU that measures.
fn beside_dom0(lab: &Lab) -> Result<Machine, String> {
    let domus = vec![DomU { cpus: 1, ..domains::seeded(lab, "guest-flood", 0)? }];
    Ok(Machine { domus, ..dom0(lab, ENDLESS)? })
}

/// The guest as dom0 and as domU, and another domU that measures.
fn beside_both(lab: &Lab) -> Result<Machine, String> {
    let machine = beside_dom0(lab)?;
    let domus = [vec![DomU { cpus: 1, ..domu(lab, ENDLESS)? }], machine.domus].concat();
    Ok(Machine { domus, ..machine })
}

/// The guest as domU, and a dom0 that measures.
fn beside_domu(lab: &Lab) -> Result<Machine, String> {
    let domus = vec![DomU { cpus: 1, ..domu(lab, ENDLESS)? }];
    Ok(Machine { domus, ..guests::machine(lab, "guest-resets")? })
}

/// The guest as a domU, beside a Linux that does verified I/O.
fn domain(lab: &Lab) -> Verdict {
    let (wanted, seconds) = if lab.long { (ACTS_LONG, 14_400) } else { (ACTS, 300) };
    let machine = domains::machine(lab, domu(lab, wanted)?);
    let (mut passed, mut gone) = (None, false);
    let transcript = lab.watch(&machine, seconds, |session, line| {
        failure(line)?;
        if line.contains("GUEST PASS chaos") {
            passed = Transcript::field::<u64>(line, "acts");
        }
        gone |= line.contains(" dom1: powered off");
        domains::stop(session, line, gone)
    })?;
    lab.judge(&transcript)?;
    let acts = passed.ok_or("the guest did not finish")?;
    println!("   {acts} acts; dom0: {} rounds of verified writes meanwhile", transcript.number("rounds")?);
    if acts == wanted { Ok(()) } else { Err(format!("{acts} acts, not {wanted}")) }
}

/// The guest as a domU that ends at random moments and is restarted, beside a Linux that does verified I/O.
fn resets(lab: &Lab) -> Verdict {
    let (wanted, seconds) = if lab.long { (LIVES.1, 3600) } else { (LIVES.0, 150) };
    let seed = ENDS | (ENDLESS / 1000) << 32 & !ENDS;
    let machine = domains::machine(lab, DomU { mem: 16, ..domains::seeded(lab, "guest-chaos", seed)? });
    let machine = Machine { hv: format!("{} on-crash=restart restart-delay=0", machine.hv), ..machine };
    let mut lives = 0;
    let transcript = lab.watch(&machine, seconds, |session, line| {
        failure(line)?;
        lives += usize::from(line.contains("GUEST START chaos"));
        domains::stop(session, line, lives > wanted)
    })?;
    lab.judge(&transcript)?;
    println!("   {lives} lives; dom0: {} rounds of verified writes meanwhile", transcript.number("rounds")?);
    let said = |words: &str| transcript.lines.iter().any(|(_, line)| line.contains(words));
    match [" dom1: reset", " dom1: crashed"].iter().find(|end| !said(end)) {
        _ if lives <= wanted => Err(format!("{lives} lives only")),
        Some(end) => Err(format!("the hypervisor never reported `{}`", end.trim())),
        None => Ok(()),
    }
}
