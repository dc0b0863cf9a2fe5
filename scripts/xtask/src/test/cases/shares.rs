//! What the credit scheduler gives to domains that would all like everything: by weight, and no more than the cap.
//!
//! The guests measure for how much of the same 60 seconds of the machine's time they had a CPU. That time is the instructions'
//! (`-icount`), so the host's load does not matter. The hypervisor has no say in it: its own account is not looked at.

use crate::domu::DomU;
use crate::image;
use crate::qemu::{Disk, Machine};
use crate::test::linux::Transcript;
use crate::test::{Case, Lab, Verdict};

/// CPUs, with 13 vCPUs on them.
const CPUS: u32 = 4;

/// How long they measure, in milliseconds.
const WINDOW: f64 = 60_000.0;

/// How far a share may be from what its weight or its cap says, as a part of it.
const TOLERANCE: f64 = 0.05;

/// The least and the most that all guests may have had together, as a part of all CPUs. The hypervisor needs some, and two
/// vCPUs never have the same CPU at once: with more than all, the guests would have measured badly.
const IN_ALL: std::ops::RangeInclusive<f64> = 0.97..=1.01;

/// 32 ns for an instruction: four CPUs of 8 MIPS, whose minute is over soon. QEMU runs one after another until its next timer
/// is due, and they come out unequal if that is far off; a filter of a network that nobody uses has a timer each
/// millisecond.
const FLAGS: [&str; 6] = [
    "-icount",
    "shift=5,sleep=off",
    "-netdev",
    "hubport,id=nobody,hubid=0",
    "-object",
    "filter-buffer,id=pace,netdev=nobody,interval=1000",
];

/// What a domain asks for.
struct Claim {
    vcpus: u32,
    weight: u32,
    /// In percent of a CPU, for each vCPU; by its weight it would get more.
    cap: Option<u32>,
}

/// dom0 first.
const CLAIMS: [Claim; 4] = [
    Claim { vcpus: 4, weight: 256, cap: None },
    Claim { vcpus: 4, weight: 512, cap: None },
    Claim { vcpus: 4, weight: 128, cap: None },
    Claim { vcpus: 1, weight: 1024, cap: Some(25) },
];

/// The cases of this topic.
pub fn cases() -> Vec<Case> {
    vec![Case {
        name: "sched-shares",
        shows: "shares of 60 s follow weights, and a cap is kept, within 5 %",
        bare: false,
        run: shares,
    }]
}

/// The part of all CPUs that each is to have.
fn expected() -> Vec<f64> {
    let capped = |claim: &Claim| claim.cap.map(|cap| f64::from(cap * claim.vcpus) / 100.0 / f64::from(CPUS));
    let rest = 1.0 - CLAIMS.iter().filter_map(capped).sum::<f64>();
    let weight = |claim: &Claim| f64::from(claim.vcpus * claim.weight);
    let weights: f64 = CLAIMS.iter().filter(|claim| claim.cap.is_none()).map(weight).sum();
    CLAIMS.iter().map(|claim| capped(claim).unwrap_or(rest * weight(claim) / weights)).collect()
}

/// Which domain says in `line` for how many milliseconds its vCPUs had a CPU, and that number.
fn said(line: &str) -> Option<(usize, f64)> {
    // Another domain may have spoken into it.
    let (before, rest) = line.trim_end().strip_suffix(" end")?.split_once("GUEST SHARE ")?;
    let domain = before.trim().strip_prefix("(d").and_then(|rest| rest.strip_suffix(')')?.parse().ok()).unwrap_or(0);
    Some((domain, Transcript::field(rest, "ms")?))
}

fn shares(lab: &Lab) -> Verdict {
    let kernel = lab.dir.join("kernel");
    image::build_guest("guest-busy", &kernel).map_err(|failure| failure.text)?;
    let domu = |claim: &Claim| DomU {
        kernel: kernel.clone(),
        cpus: claim.vcpus,
        mem: 16,
        weight: Some(claim.weight),
        cap: claim.cap,
        ..DomU::default()
    };
    let machine = Machine {
        kernel: Some(kernel.clone()),
        initrd: None,
        disk: Disk::None,
        smp: CPUS,
        // A share is one of all the CPUs' time, and some of that is the hypervisor's. With long slices that is little, also on
        // CPUs that are as slow as these; and the guests can tell time without a CPU from a turn of QEMU's other CPUs.
        hv: format!("sched=credit sched_credit_tslice_ms=40 dom0_max_vcpus={}", CLAIMS[0].vcpus),
        domus: CLAIMS[1..].iter().map(domu).collect(),
        log: Some(lab.dir.join("guest.log")),
        extra: FLAGS.map(str::to_owned).to_vec(),
        ..Machine::default()
    };
    let mut had = [None; CLAIMS.len()];
    let transcript = lab.watch(&machine, 240, |session, line| {
        if line.contains("GUEST FAIL") {
            return Err(line.to_owned());
        }
        if let Some((domain, ms)) = said(line)
            && let Some(slot) = had.get_mut(domain)
        {
            *slot = Some(ms);
            if had.iter().all(Option::is_some) {
                session.kill();
            }
        }
        Ok(())
    })?;
    let had: Vec<f64> = had.into_iter().flatten().collect();
    if had.len() != CLAIMS.len() {
        return Err(format!("{} of {} domains said what they had: {:?}", had.len(), CLAIMS.len(), transcript.end));
    }
    let all = had.iter().sum::<f64>();
    let mut wrong = Vec::new();
    for (domain, (ms, expected)) in had.iter().zip(expected()).enumerate() {
        // What the hypervisor needs goes off all alike.
        let share = ms / all;
        let off = share / expected - 1.0;
        let (share, expected) = (100.0 * share, 100.0 * expected);
        println!("   dom{domain}: {share:.2} % of what all had, {expected:.2} % expected ({:+.1} %)", 100.0 * off);
        if off.abs() > TOLERANCE {
            wrong.push(format!("dom{domain} has {share:.2} %, not {expected:.2} %"));
        }
    }
    let all = all / WINDOW / f64::from(CPUS);
    println!("   all: {:.2} % of the CPUs' time", 100.0 * all);
    if !IN_ALL.contains(&all) {
        wrong.push(format!("all together had {:.2} % of the CPUs", 100.0 * all));
    }
    if wrong.is_empty() { lab.complaints() } else { Err(wrong.join("; ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up_and_a_line_names_its_domain() {
        let expected = expected();
        assert!((expected.iter().sum::<f64>() - 1.0).abs() < 1e-9);
        assert!((expected[3] - 0.0625).abs() < 1e-9);
        assert!((expected[1] / expected[2] - 4.0).abs() < 1e-9);
        assert_eq!(said("(d2) GUEST SHARE vcpus=4 ms=12 end"), Some((2, 12.0)));
        assert_eq!(said("GUEST SHARE vcpus=4 ms=12 end"), Some((0, 12.0)));
        assert_eq!(said("GUEST SHARE vcpus=4 ms=1"), None);
    }
}
