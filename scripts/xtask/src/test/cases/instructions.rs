//! The numbers of instructions for a wake, a switch and a move of a vPE have limits and do not grow with the number of vCPUs.
//!
//! What an exit costs because of attacks on speculation is a number that follows from the kind of CPU.
//!
//! The limits are a little above what was measured when they were set, so that a path that gets longer is noticed.

use crate::instruction_count::{self, Purpose};
use crate::test::{Case, Lab, Verdict};

/// The largest median allowed for each.
const LIMITS: [(Purpose, u64); 4] =
    [(Purpose::Wake, 1420), (Purpose::Switch, 1640), (Purpose::Sleep, 1170), (Purpose::Move, 900)];

/// Instructions that 64 vCPUs may take more than four: a vCPU that has run is inserted near the end of a longer run queue, by binary
/// search and a move of the shorter part. With four vCPUs it mostly goes to the end.
const GROWTH: u64 = 220;

/// Stays that a median needs, in at least one of the runs. How often the home of a sleeping vCPU is the idle CPU, and not that of the
/// vCPU that wakes it, differs between runs.
const LEAST: usize = 10;

/// The cases of this topic.
pub fn cases() -> Vec<Case> {
    let case = |name, shows, run| Case { name, shows, bare: false, run };
    vec![
        case("sched-cost", "instructions for a wake, a switch, a sleep and a VMOVP, with 4 and with 64 vCPUs", judge),
        case(
            "spectre-loop",
            "a Neoverse V1 executes the loop of 32 branches at an exit, unless spec-ctrl=no",
            branches,
        ),
    ]
}

/// Instructions of the loop of a Neoverse V1: two to load the number, three for each of 32 branches, two barriers.
const LOOP: u64 = 2 + 3 * 32 + 2;

/// A vCPU that goes to sleep exits once, so that the two counts of the shortest way to sleep differ by one loop.
fn branches(lab: &Lab) -> Verdict {
    let sleep = |hv| {
        let costs = instruction_count::measure(&lab.dir, 4, "neoverse-v1", hv, false);
        let least = costs.map_err(|failure| failure.text)?.least(Purpose::Sleep);
        least.ok_or_else(|| format!("no `{}` was seen", Purpose::Sleep))
    };
    let (with, without) = (sleep("")?, sleep("spec-ctrl=no")?);
    println!("   going to sleep takes {with} instructions, {without} with spec-ctrl=no");
    match with.checked_sub(without) {
        Some(LOOP) => Ok(()),
        _ => Err(format!("going to sleep takes {with} instructions, and {without} without the loop of {LOOP}")),
    }
}

fn judge(lab: &Lab) -> Verdict {
    let run = |vcpus, hv| {
        println!("   -- {vcpus} vCPUs {hv}");
        let costs = instruction_count::measure(&lab.dir, vcpus, "max", hv, false).map_err(|failure| failure.text)?;
        costs.print();
        Ok::<_, String>(costs)
    };
    let (few, many) = (run(4, "")?, run(64, "")?);
    // vCPUs that are moved each millisecond cause VMOVPs.
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
