//! What a domU gets of a CPU that it shares with a dom0 that makes EL2 work.
//!
//! dom0 makes a store again and again that causes as much work as one can, such as one to GITS_CWRITER for a full queue of 32,767
//! MOVALLs. EL2 does it in steps, and records the longest one. The domU measures for how much of two seconds it has the CPU and how
//! long it is without it. The time is that of the instructions (`-icount`), so
//! the load of the host does not matter.

use crate::domu::DomU;
use crate::image;
use crate::qemu::Machine;
use crate::session::NEXT;
use crate::test::linux::Transcript;
use crate::test::{Case, Lab, Verdict};

use super::domains::seeded;
use super::guests;

/// Weight of dom0's vCPUs.
const DOM0_WEIGHT: u32 = 256;

/// Weights of the domU's vCPU, one for each run.
const WEIGHTS: [u32; 2] = [256, 512];

/// A time slice in microseconds.
pub(super) const SLICE_US: u32 = 10_000;

/// How far the domU's share may be from what its weight says, as a part of it.
const TOLERANCE: f64 = 0.05;

/// How long the domU may be without a CPU: two slices, because dom0 gets a second one when both have the same virtual time, and
/// what the step of the ITS's work takes that is under way when a slice ends.
pub(super) const LONGEST_GAP_US: u32 = 2 * SLICE_US + 1_000;

/// How long a store must at least take: if all its commands could be executed within a few slices, the case would show nothing.
const SHORTEST_STORE_US: u32 = 10 * SLICE_US;

/// 2 ns for an instruction.
pub(super) const CLOCK: [&str; 2] = ["-icount", "shift=1,sleep=off"];

/// How long a step of dom0's work may take: 200,000 instructions, which are 200 us at 10^9 instructions a second, at [`CLOCK`].
const LONGEST_STEP_US: u32 = 2 * 200;

/// The cases of this topic.
pub fn cases() -> Vec<Case> {
    let case = |name, shows, run| Case { name, shows, bare: false, run };
    vec![
        case(
            "sched-its-flood",
            "a dom0 that fills its ITS's command queue shares a CPU by weight, within 5 %",
            its_flood,
        ),
        case("sched-its-mapc", "127 MAPC of 2,048 events keep another domain from a CPU for a slice at most", |lab| {
            act(lab, 1, 1)
        }),
        case("sched-its-mapd", "MAPD of many devices, mapped and not: the same", |lab| act(lab, 2, 1)),
        case("sched-its-unmap", "MAPD without V of a device with 2,048 events: the same", |lab| act(lab, 3, 1)),
        case("sched-its-invall", "INVALL of 2,048 events: the same", |lab| act(lab, 4, 1)),
        case("sched-its-lpis", "EnableLPIs with full tables and GITS_CTLR.Enabled: the same", |lab| act(lab, 5, 1)),
        case(
            "sched-group1",
            "EnableGrp1 off and on: a vCPU that has to leave its guest does, and nothing is logged",
            group1,
        ),
        case("sched-teardown", "a domain that ends is taken down though no CPU is idle or interrupted", teardown),
        case("sched-ports", "full queues of the console device, with large buffers and with many: the same", |lab| {
            act(lab, 8, 1)
        }),
        case("sched-its-cwriter", "a second vCPU that keeps moving CWRITER: the same", |lab| act(lab, 6, 2)),
    ]
}

/// What a domain has measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Measured {
    /// Its part of the CPU.
    pub share: f64,
    /// The longest time without a CPU, in microseconds.
    pub gap_us: u32,
}

/// What the domain that measures says in `line`.
pub(super) fn measured(line: &str) -> Option<Measured> {
    let (_, rest) = line.trim_end().strip_suffix(" end")?.split_once("GUEST METER ")?;
    let window: f64 = Transcript::field(rest, "window_us")?;
    let had: f64 = Transcript::field(rest, "had_us")?;
    Some(Measured { share: had / window, gap_us: Transcript::field(rest, "gap_us")? })
}

/// How long a store of dom0 took, in microseconds, if `line` says so.
fn store(line: &str) -> Option<u32> {
    let (_, rest) = line.trim_end().strip_suffix(" end")?.split_once("GUEST FLOOD ")?;
    Transcript::field(rest, "us")
}

/// The longest step that the debug key `x` prints, in microseconds.
fn step(line: &str) -> Option<u32> {
    line.trim_end().strip_suffix(" us")?.split_once("longest step of a vCPU's work: ")?.1.parse().ok()
}

/// Full queues of MOVALL, for each weight.
fn its_flood(lab: &Lab) -> Verdict {
    let machine = machine(lab, 0)?;
    let mut wrong = Vec::new();
    for weight in WEIGHTS {
        let run = Run::of(lab, &machine, weight, 1)?;
        wrong.extend(run.wrong());
        if run.shortest_us < SHORTEST_STORE_US {
            wrong.push(format!("weight {weight}: a store took {} us only", run.shortest_us));
        }
    }
    if wrong.is_empty() { lab.complaints() } else { Err(wrong.join("; ")) }
}

/// One of the guest's other acts, in which so many of dom0's vCPUs run.
fn act(lab: &Lab, seed: u64, dom0_vcpus: u32) -> Verdict {
    let wrong = Run::of(lab, &machine(lab, seed)?, DOM0_WEIGHT, dom0_vcpus)?.wrong();
    if wrong.is_empty() { lab.complaints() } else { Err(wrong.join("; ")) }
}

/// A dom0 that toggles GICD_CTLR.EnableGrp1 while its other vCPU, on another CPU, is in its guest all the time. With [`CLOCK`] QEMU
/// runs its CPUs in turn, so that the other one takes up to 100 ms to leave its guest: no wait with a deadline would do.
fn group1(lab: &Lab) -> Verdict {
    const SEED: u64 = 7;
    let machine =
        Machine { smp: 2, hv: "sched=null".into(), extra: CLOCK.map(str::to_owned).to_vec(), ..machine(lab, SEED)? };
    let mut found = None;
    let transcript = lab.watch(&machine, 60, |session, line| {
        if line.contains("GUEST FAIL") {
            return Err(line.to_owned());
        }
        found = found.or(store(line).zip(Transcript::field::<u32>(line, "commands")));
        if found.is_some() {
            session.kill();
        }
        Ok(())
    })?;
    let (us, stores) = found.ok_or("the guest made no stores")?;
    println!("   {stores} stores took {us} us, {} us each", us / stores);
    if let Some((_, line)) = transcript.lines.iter().find(|(_, line)| line.contains(" warn ")) {
        return Err(line.clone());
    }
    lab.complaints()
}

/// The seeds with which `tests/guests/ends` is busy for ever, and powers off.
const BUSY: u64 = 7;
const POWERS_OFF: u64 = 6;

/// How long the teardown of a domain of 16 MiB may take, in microseconds: a millisecond for each of the 128 pieces of its RAM that
/// are zeroed, and half as long again for the rest.
const TEARDOWN_US: u64 = 192_000;

/// The time stamp of a line of EL2's log, in microseconds.
fn logged_at(line: &str) -> Option<u64> {
    let (seconds, rest) = line.split_once('[')?.1.split_once('.')?;
    Some(seconds.trim().parse::<u64>().ok()? * 1_000_000 + rest.get(..6)?.parse::<u64>().ok()?)
}

/// A dom0 that is busy and takes no interrupt, and a domU that powers off.
fn teardown(lab: &Lab) -> Verdict {
    let dom0 = seeded(lab, "guest-ends", BUSY)?;
    let machine = Machine {
        smp: 1,
        kernel: Some(dom0.kernel),
        hv: format!("sched=credit sched_credit_tslice_ms={}", SLICE_US / 1000),
        domus: vec![DomU { cpus: 1, ..seeded(lab, "guest-ends", POWERS_OFF)? }],
        extra: CLOCK.map(str::to_owned).to_vec(),
        ..guests::machine(lab, "guest-ends")?
    };
    const GONE: &str = " MiB for domUs; ";
    let (mut ended, mut down) = (None, None);
    lab.watch(&machine, 15, |session, line| {
        if line.contains("dom1: powered off") {
            ended = logged_at(line);
        } else if ended.is_some() && line.contains(GONE) {
            down = logged_at(line);
            session.kill();
        }
        Ok(())
    })?;
    let (ended, down) = (ended.ok_or("the domU did not power off")?, down.ok_or("the domU was never taken down")?);
    println!("   taken down {} us after its end", down - ended);
    if down - ended > TEARDOWN_US {
        return Err(format!("taken down {} us after its end, more than {TEARDOWN_US}", down - ended));
    }
    lab.complaints()
}

/// A machine whose dom0 performs an act of `tests/guests/flood`.
fn machine(lab: &Lab, seed: u64) -> Result<Machine, String> {
    let machine = guests::machine(lab, "guest-flood")?;
    let kernel = machine.kernel.clone().unwrap_or_default();
    image::build_seeded_guest("guest-flood", seed, &kernel).map_err(|failure| failure.text)?;
    Ok(machine)
}

/// What one run has shown.
struct Run {
    domu: Measured,
    stores: usize,
    shortest_us: u32,
    step_us: u32,
    weight: u32,
    /// What the domU's share has to be.
    expected: f64,
}

impl Run {
    /// Runs dom0, of which `dom0_vcpus` vCPUs are never idle, beside a domU of this weight.
    fn of(lab: &Lab, machine: &Machine, weight: u32, dom0_vcpus: u32) -> Result<Run, String> {
        let kernel = machine.kernel.clone().unwrap_or_default();
        let machine = Machine {
            smp: 1,
            // MOVALL is between two vCPUs.
            hv: format!("sched=credit sched_credit_tslice_ms={} dom0_max_vcpus=2", SLICE_US / 1000),
            domus: vec![DomU { kernel, mem: 16, weight: Some(weight), ..DomU::default() }],
            extra: CLOCK.map(str::to_owned).to_vec(),
            ..machine.clone()
        };
        let (mut domu, mut stores, mut longest) = (None, Vec::new(), None);
        let mut asked = false;
        let transcript = lab.watch(&machine, 60, |session, line| {
            if line.contains("GUEST FAIL") {
                return Err(line.to_owned());
            }
            stores.extend(store(line));
            domu = domu.or(measured(line));
            longest = longest.or(step(line));
            if domu.is_some() && !stores.is_empty() && !asked {
                asked = true;
                // From dom0 past the domU to the debug keys.
                session.type_in(&format!("{NEXT}{NEXT}x")).map_err(|failure| failure.text)?;
            }
            if longest.is_some() {
                session.kill();
            }
            Ok(())
        })?;
        let (Some(domu), Some(&shortest_us), Some(step_us)) = (domu, stores.iter().min(), longest) else {
            let end = transcript.end;
            return Err(format!("weight {weight}: {domu:?}, stores {stores:?}, step {longest:?}: {end:?}"));
        };
        let expected = share_of(weight, dom0_vcpus);
        let run = Run { domu, stores: stores.len(), shortest_us, step_us, weight, expected };
        println!(
            "   weight {weight}: {:.2} % of the CPU, {:.2} % expected; without it for {} us at most; {} stores, the \
             shortest took {shortest_us} us; the longest step took {step_us} us",
            100.0 * domu.share,
            100.0 * expected,
            domu.gap_us,
            run.stores,
        );
        Ok(run)
    }

    /// What is wrong with it.
    fn wrong(&self) -> Vec<String> {
        let Run { domu: Measured { share, gap_us }, weight, expected, .. } = *self;
        let mut wrong = Vec::new();
        if (share / expected - 1.0).abs() > TOLERANCE {
            wrong.push(format!("weight {weight}: {:.2} %, not {:.2} %", 100.0 * share, 100.0 * expected));
        }
        if gap_us > LONGEST_GAP_US {
            wrong.push(format!("weight {weight}: {gap_us} us without a CPU, more than {LONGEST_GAP_US}"));
        }
        if self.step_us > LONGEST_STEP_US {
            wrong.push(format!("weight {weight}: a step took {} us, more than {LONGEST_STEP_US}", self.step_us));
        }
        wrong
    }
}

/// The part of the CPU that a domU of this weight has to get.
fn share_of(weight: u32, dom0_vcpus: u32) -> f64 {
    f64::from(weight) / f64::from(weight + dom0_vcpus * DOM0_WEIGHT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complete_lines_of_both_domains_are_read() {
        let line = "(d1) GUEST METER window_us=2000 had_us=1000 gap_us=12 end";
        assert_eq!(measured(line), Some(Measured { share: 0.5, gap_us: 12 }));
        assert_eq!(measured("(d1) GUEST METER window_us=2000 had_us=1000"), None);
        assert_eq!(store("GUEST FLOOD commands=32767 from_us=5 us=700000 end"), Some(700_000));
        assert_eq!(store(line), None);
        assert_eq!(logged_at("[    1.234567] info domain: dom1: powered off"), Some(1_234_567));
        assert_eq!(step("  longest step of a vCPU's work: 12 us"), Some(12));
        assert_eq!(step("  longest step of a vCPU's work: 1"), None);
    }
}
