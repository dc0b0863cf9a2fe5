//! What a domU gets of a CPU that it shares with a dom0 whose ITS is kept busy.
//!
//! dom0 stores to GITS_CWRITER for a full queue of 32,767 MOVALLs, again and again. EL2 executes them, in steps. The domU measures
//! for how much of two seconds it has the CPU and how long it is without it. The time is that of the instructions (`-icount`), so
//! the load of the host does not matter.

use crate::domu::DomU;
use crate::qemu::Machine;
use crate::test::linux::Transcript;
use crate::test::{Case, Lab, Verdict};

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

/// The cases of this topic.
pub fn cases() -> Vec<Case> {
    vec![Case {
        name: "sched-its-flood",
        shows: "a dom0 that fills its ITS's command queue shares a CPU by weight, within 5 %",
        bare: false,
        run: its_flood,
    }]
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

fn its_flood(lab: &Lab) -> Verdict {
    let machine = guests::machine(lab, "guest-flood")?;
    let mut wrong = Vec::new();
    for weight in WEIGHTS {
        wrong.extend(shares(lab, &machine, weight)?);
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
}

/// One run with a domU of this weight. Returns what is wrong.
fn shares(lab: &Lab, machine: &Machine, weight: u32) -> Result<Vec<String>, String> {
    let kernel = machine.kernel.clone().unwrap_or_default();
    let machine = Machine {
        smp: 1,
        // MOVALL is between two vCPUs; the second one stays off.
        hv: format!("sched=credit sched_credit_tslice_ms={} dom0_max_vcpus=2", SLICE_US / 1000),
        domus: vec![DomU { kernel, mem: 16, weight: Some(weight), ..DomU::default() }],
        extra: CLOCK.map(str::to_owned).to_vec(),
        ..machine.clone()
    };
    let (mut domu, mut stores) = (None, Vec::new());
    let transcript = lab.watch(&machine, 60, |session, line| {
        if line.contains("GUEST FAIL") {
            return Err(line.to_owned());
        }
        stores.extend(store(line));
        domu = domu.or(measured(line));
        if domu.is_some() && !stores.is_empty() {
            session.kill();
        }
        Ok(())
    })?;
    let (Some(Measured { share, gap_us }), Some(shortest)) = (domu, stores.iter().min()) else {
        return Err(format!("weight {weight}: {domu:?}, stores {stores:?}: {:?}", transcript.end));
    };
    let expected = f64::from(weight) / f64::from(weight + DOM0_WEIGHT);
    let off = share / expected - 1.0;
    println!(
        "   weight {weight}: {:.2} % of the CPU, {:.2} % expected ({:+.1} %); without it for {gap_us} us at most; \
         {} stores, the shortest took {shortest} us",
        100.0 * share,
        100.0 * expected,
        100.0 * off,
        stores.len()
    );
    let mut wrong = Vec::new();
    if off.abs() > TOLERANCE {
        wrong.push(format!("weight {weight}: {:.2} %, not {:.2} %", 100.0 * share, 100.0 * expected));
    }
    if gap_us > LONGEST_GAP_US {
        wrong.push(format!("weight {weight}: {gap_us} us without a CPU, more than {LONGEST_GAP_US}"));
    }
    if *shortest < SHORTEST_STORE_US {
        wrong.push(format!("weight {weight}: a store took {shortest} us only"));
    }
    lab.complaints()?;
    Ok(wrong)
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
    }
}
