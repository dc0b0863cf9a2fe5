//! The shares of CPU time that the credit scheduler gives to busy domains: by weight, and no more than the cap.
//!
//! The guests measure their CPU time during the same 60 seconds of the machine's time, which QEMU's clock of instructions
//! (`-icount`) makes independent of the host's load. The hypervisor's own accounting is not used.

use crate::domu::DomU;
use crate::image;
use crate::qemu::{Disk, Machine};
use crate::test::linux::Transcript;
use crate::test::{Case, Lab, Verdict};

/// Number of CPUs, for 13 vCPUs.
const CPUS: u32 = 4;

/// Duration of the measurement, in milliseconds.
const WINDOW: f64 = 60_000.0;

/// The largest relative error of a share.
const TOLERANCE: f64 = 0.05;

/// The share of all CPUs that all guests must have together. The hypervisor needs some time; more than 1 would be an error of the
/// measurement.
const IN_ALL: std::ops::RangeInclusive<f64> = 0.97..=1.01;

/// 32 ns for each instruction: four CPUs of 8 MIPS, for a short run. QEMU runs each CPU in turn until QEMU's next timer expires, so
/// the CPUs get unequal time if that is far off. The filter of an unused network has a timer each millisecond.
const FLAGS: [&str; 6] = [
    "-icount",
    "shift=5,sleep=off",
    "-netdev",
    "hubport,id=unused,hubid=0",
    "-object",
    "filter-buffer,id=pace,netdev=unused,interval=1000",
];

/// The configuration of a domain.
struct Claim {
    vcpus: u32,
    weight: u32,
    /// In percent of a CPU, for each vCPU. By weight the domain would get more.
    cap: Option<u32>,
}

/// The domains, dom0 first.
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
        shows: "shares of CPU time follow weights, and a cap is kept, within 5 %",
        bare: false,
        run: shares,
    }]
}

/// The expected share of all CPUs of each domain.
fn expected() -> Vec<f64> {
    let capped = |claim: &Claim| claim.cap.map(|cap| f64::from(cap * claim.vcpus) / 100.0 / f64::from(CPUS));
    let rest = 1.0 - CLAIMS.iter().filter_map(capped).sum::<f64>();
    let weight = |claim: &Claim| f64::from(claim.vcpus * claim.weight);
    let weights: f64 = CLAIMS.iter().filter(|claim| claim.cap.is_none()).map(weight).sum();
    CLAIMS.iter().map(|claim| capped(claim).unwrap_or(rest * weight(claim) / weights)).collect()
}

/// The domain and the CPU time in milliseconds that a line reports.
fn said(line: &str) -> Option<(usize, f64)> {
    // Another line may have been printed into it.
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
        // With long time slices the hypervisor needs little time, even on CPUs as slow as these, and the guests can distinguish
        // time without a CPU from the time in which QEMU runs its other CPUs.
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
        return Err(format!("{} of {} domains reported their CPU time: {:?}", had.len(), CLAIMS.len(), transcript.end));
    }
    let all = had.iter().sum::<f64>();
    let mut wrong = Vec::new();
    for (domain, (ms, expected)) in had.iter().zip(expected()).enumerate() {
        // The hypervisor's time reduces all shares alike.
        let share = ms / all;
        let off = share / expected - 1.0;
        let (share, expected) = (100.0 * share, 100.0 * expected);
        println!("   dom{domain}: {share:.2} % of the guests' time, {expected:.2} % expected ({:+.1} %)", 100.0 * off);
        if off.abs() > TOLERANCE {
            wrong.push(format!("dom{domain} has {share:.2} %, not {expected:.2} %"));
        }
    }
    let all = all / WINDOW / f64::from(CPUS);
    println!("   all: {:.2} % of the CPUs' time", 100.0 * all);
    if !IN_ALL.contains(&all) {
        wrong.push(format!("all guests together had {:.2} % of the CPUs", 100.0 * all));
    }
    if wrong.is_empty() { lab.complaints() } else { Err(wrong.join("; ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expected_shares_add_up_and_reports_are_parsed() {
        let expected = expected();
        assert!((expected.iter().sum::<f64>() - 1.0).abs() < 1e-9);
        assert!((expected[3] - 0.0625).abs() < 1e-9);
        assert!((expected[1] / expected[2] - 4.0).abs() < 1e-9);
        assert_eq!(said("(d2) GUEST SHARE vcpus=4 ms=12 end"), Some((2, 12.0)));
        assert_eq!(said("GUEST SHARE vcpus=4 ms=12 end"), Some((0, 12.0)));
        assert_eq!(said("GUEST SHARE vcpus=4 ms=1"), None);
    }
}
