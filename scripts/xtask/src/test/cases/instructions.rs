//! What a wake, a switch and a move of a vPE cost in instructions, and that it does not grow with the number of vCPUs.
//!
//! The limits are a little above what was measured when they were set: whoever makes a path longer is to notice.

use crate::instruction_count::{self, Purpose};
use crate::test::{Case, Lab, Verdict};

/// The most that the median of each may be.
const LIMITS: [(Purpose, u64); 4] =
    [(Purpose::Wake, 1600), (Purpose::Switch, 1900), (Purpose::Sleep, 1350), (Purpose::Move, 900)];

/// Instructions by which 64 vCPUs may cost more than four: who has run goes in near the end of a longer queue, which is searched
/// in halves and of which the shorter part is moved. Of four vCPUs it mostly goes to the end.
const GROWTH: u64 = 220;

/// Stays of a kind, for its median to mean something, in one of the runs. How often a sleeper's home is the CPU that idles, and
/// not that of who wakes it, is chance: another run may hardly have any.
const LEAST: usize = 10;

/// The cases of this topic.
pub fn cases() -> Vec<Case> {
    vec![Case {
        name: "sched-cost",
        shows: "instructions for a wake, a switch, a sleep and a VMOVP, with 4 and with 64 vCPUs",
        bare: false,
        run: judge,
    }]
}

fn judge(lab: &Lab) -> Verdict {
    let run = |vcpus, hv| {
        println!("   -- {vcpus} vCPUs {hv}");
        let costs = instruction_count::measure(&lab.dir, vcpus, hv, false).map_err(|failure| failure.text)?;
        costs.print();
        Ok::<_, String>(costs)
    };
    let (few, many) = (run(4, "")?, run(64, "")?);
    // Who is moved all the time causes VMOVPs.
    let moved = run(16, "sched-torture=1ms")?;
    for (purpose, limit) in LIMITS {
        let runs: &[_] = if purpose == Purpose::Move { &[&moved] } else { &[&few, &many] };
        if !runs.iter().any(|costs| costs.median(purpose, LEAST).is_some()) {
            return Err(format!("`{purpose}` was seen less than {LEAST} times"));
        }
        let medians: Vec<u64> = runs.iter().filter_map(|costs| costs.median(purpose, 1)).collect();
        if let Some(over) = medians.iter().find(|median| **median > limit) {
            return Err(format!("`{purpose}` takes {over} instructions, at most {limit} expected"));
        }
        if let [few, many] = medians[..]
            && many > few + GROWTH
        {
            return Err(format!("`{purpose}` takes {few} instructions with 4 vCPUs and {many} with 64"));
        }
    }
    Ok(())
}
