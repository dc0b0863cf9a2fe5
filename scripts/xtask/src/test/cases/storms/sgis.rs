//! A guest that sends SGIs without end: the other domains keep their shares.

use super::{RAN, after, clock};
use crate::domu::DomU;
use crate::qemu::Machine;
use crate::session::NEXT;
use crate::test::cases::domains::seeded;
use crate::test::{Lab, Verdict};

/// Duration of the measurement of shares by the hypervisor's clock, in milliseconds.
const SHARES_MS: u64 = 5_000;

/// The CPU time of two vCPUs and the hypervisor's clock, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Shares {
    ms: u64,
    flooding: u64,
    busy: u64,
}

impl Shares {
    fn read(&mut self, line: &str) {
        let ran = |vcpu: &str| line.contains(vcpu).then(|| after(line, RAN).unwrap_or(0));
        for (value, field) in [
            (ran("dom1 vCPU0: "), &mut self.flooding),
            (ran("dom2 vCPU0: "), &mut self.busy),
            (clock(line), &mut self.ms),
        ] {
            *field = value.unwrap_or(*field);
        }
    }
}

/// Runs four vCPUs on one CPU: dom0 with I/O, one that sends SGIs, one that each SGI wakes, and one that is busy.
pub fn exits(lab: &Lab) -> Verdict {
    let mut domus = Vec::new();
    for (seed, cpus) in [(9, 2), (7, 1)] {
        domus.push(DomU { cpus, ..seeded(lab, "guest-ends", seed)? });
    }
    let hv = "sched=credit dom0_max_vcpus=1".to_owned();
    let machine = Machine { smp: 1, hv, domus, ..lab.linux("until", "") };
    let (mut started, mut now, mut shares) = (0, Shares::default(), Vec::new());
    let transcript = lab.watch(&machine, 240, |session, line| {
        started += usize::from(line.contains("GUEST ENDS never"));
        now.read(line);
        if line.contains("vPE moves: ") {
            shares.push(now);
        }
        let looked = shares.first().is_some_and(|first| now.ms >= first.ms + SHARES_MS);
        if started == 2 && line.starts_with("DW-TEST: round ") {
            // The debug keys, past both consoles, and back; at the end the line that ends dom0's test.
            let keys = if looked { "\r" } else { &format!("{}xs{NEXT}", NEXT.repeat(3)) };
            session.type_in(keys).map_err(|failure| failure.text)?;
        }
        Ok(())
    })?;
    lab.judge(&transcript)?;
    let (Some(first), Some(last)) = (shares.first(), shares.last()) else {
        return Err("the shares were not printed".into());
    };
    let (ms, flooding, busy) = (last.ms - first.ms, last.flooding - first.flooding, last.busy - first.busy);
    let rounds = transcript.number("rounds")?;
    println!(
        "   in {ms} ms the busy one ran {busy}, the flooding one {flooding}; dom0: {rounds} rounds of verified writes"
    );
    // Four vCPUs of one weight, two of which sleep at times.
    if busy * 10 < flooding * 9 || busy * 4 * 10 < ms * 9 {
        return Err(format!("of {ms} ms the busy one had {busy}, the flooding one {flooding}"));
    }
    Ok(())
}
