//! What the credit scheduler gives to domains that would all like everything: by weight, and no more than the cap.
//!
//! The guests count what they get done in the same 60 seconds of the machine's time. That time is the instructions' (`-icount`),
//! so the host's load does not matter.

use crate::domu::DomU;
use crate::image;
use crate::qemu::{Disk, Machine};
use crate::test::linux::Transcript;
use crate::test::{Case, Lab, Verdict};

/// CPUs, with 13 vCPUs on them.
const CPUS: u32 = 4;

/// How far a share may be from what its weight says, as a part of it.
const TOLERANCE: f64 = 0.05;
/// The same for a cap, which is a part of a CPU and not of what is left of it beside the hypervisor.
const CAP_TOLERANCE: f64 = 0.1;

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
        shows: "shares of 60 s follow weights within 5 %, and a cap within 10 %",
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

/// Which domain says in `line` how much it got done, and how much that is.
fn said(line: &str) -> Option<(usize, f64)> {
    // Another domain may have spoken into it.
    let (before, rest) = line.trim_end().strip_suffix(" end")?.split_once("GUEST SHARE ")?;
    let domain = before.trim().strip_prefix("(d").and_then(|rest| rest.strip_suffix(')')?.parse().ok()).unwrap_or(0);
    Some((domain, Transcript::field(rest, "turns")?))
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
        // A cap is a part of a CPU, and what is measured is a part of what all guests got done, from which the hypervisor's
        // own time is missing. With long slices that is little, also on CPUs that are as slow as these.
        hv: format!("sched=credit sched_credit_tslice_ms=40 dom0_max_vcpus={}", CLAIMS[0].vcpus),
        domus: CLAIMS[1..].iter().map(domu).collect(),
        log: Some(lab.dir.join("guest.log")),
        // 32 ns for an instruction: four CPUs of 8 MIPS, whose minute is over soon.
        extra: ["-icount", "shift=5,sleep=off"].map(str::to_owned).to_vec(),
        ..Machine::default()
    };
    let mut turns = [None; CLAIMS.len()];
    let transcript = lab.watch(&machine, 240, |session, line| {
        if line.contains("GUEST FAIL") {
            return Err(line.to_owned());
        }
        if let Some((domain, count)) = said(line)
            && let Some(slot) = turns.get_mut(domain)
        {
            *slot = Some(count);
            if turns.iter().all(Option::is_some) {
                session.kill();
            }
        }
        Ok(())
    })?;
    let turns: Vec<f64> = turns.into_iter().flatten().collect();
    if turns.len() != CLAIMS.len() {
        return Err(format!(
            "{} of {} domains said how far they came: {:?}",
            turns.len(),
            CLAIMS.len(),
            transcript.end
        ));
    }
    let all: f64 = turns.iter().sum();
    let mut wrong = Vec::new();
    for (domain, (share, expected)) in turns.iter().map(|turns| turns / all).zip(expected()).enumerate() {
        let off = share / expected - 1.0;
        println!(
            "   dom{domain}: {:.2} % of the CPUs, {:.2} % expected ({:+.1} %)",
            100.0 * share,
            100.0 * expected,
            100.0 * off
        );
        let tolerance = if CLAIMS[domain].cap.is_some() { CAP_TOLERANCE } else { TOLERANCE };
        if off.abs() > tolerance {
            wrong.push(format!("dom{domain} has {:.2} %, not {:.2} %", 100.0 * share, 100.0 * expected));
        }
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
        assert_eq!(said("(d2) GUEST SHARE vcpus=4 turns=12 end"), Some((2, 12.0)));
        assert_eq!(said("GUEST SHARE vcpus=4 turns=12 end"), Some((0, 12.0)));
        assert_eq!(said("GUEST SHARE vcpus=4 turns=1"), None);
    }
}
