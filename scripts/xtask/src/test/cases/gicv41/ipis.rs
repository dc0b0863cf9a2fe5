//! IPIs of dom0 as virtual SGIs. EL2's counters say what they cost, and QEMU's trace which of them vPEs have taken.

use std::collections::BTreeSet;

use super::{AFF3, acknowledged};
use crate::domu::DomU;
use crate::qemu::Machine;
use crate::session::NEXT;
use crate::test::cases::cpus::{Step, TICK, drive};
use crate::test::cases::sched::busy;
use crate::test::linux::Transcript;
use crate::test::{Lab, Verdict};

/// The counters of EL2 that the cases look at.
const COUNTERS: [&str; 3] = ["exit sysreg", "irq kick", "irq doorbell"];

/// What happened between two prints of EL2's counters.
struct Cost {
    /// IPIs that dom0 has taken, by its /proc/interrupts.
    ipis: u64,
    /// Those that vPEs have taken, by QEMU's trace: of the whole run.
    virtual_sgis: u64,
    sysreg: u64,
    kicks: u64,
    doorbells: u64,
}

/// Runs the case `ipis` with these domUs, and prints EL2's counters before and after the IPIs.
fn run(lab: &Lab, hv: &str, arg: &str, domus: Vec<DomU>) -> Result<Cost, String> {
    let mut machine = Machine { hv: hv.into(), domus, ..lab.gicv41(lab.linux("ipis", arg))? };
    // The debug keys get the keyboard after all domains.
    let keys = format!("{}x{NEXT}\n", NEXT.repeat(1 + machine.domus.len()));
    machine.extra.extend(["-trace".into(), "gicv3_vpe_acknowledge".into()]);
    // The counters that each print shows, in order.
    let mut prints: Vec<[u64; COUNTERS.len()]> = Vec::new();
    let transcript = lab.watch(&machine, 120, |session, line| {
        if line.starts_with("DW-TEST: counts?") || line.starts_with("DW-TEST: counted") {
            prints.push([0; COUNTERS.len()]);
            return session.type_in(&keys).map_err(|failure| failure.text);
        }
        let counter = line.trim().split_once(": ").and_then(|(label, n)| Some((label, n.trim().parse().ok()?)));
        if let (Some(print), Some((label, n))) = (prints.last_mut(), counter)
            && let Some(at) = COUNTERS.iter().position(|name| *name == label)
        {
            print[at] = n;
        }
        Ok(())
    })?;
    lab.judge(&transcript)?;
    if !transcript.lines.iter().any(|(_, line)| line.contains("Enabling SGIs without active state")) {
        return Err("dom0 is not offered SGIs without active state".into());
    }
    let [before, after] = prints[..] else { return Err(format!("{} prints of the counters", prints.len())) };
    let cost = Cost {
        ipis: transcript.number("ipis")?,
        virtual_sgis: acknowledged(lab)?.iter().filter(|&&intid| intid < 16).count() as u64,
        sysreg: after[0] - before[0],
        kicks: after[1] - before[1],
        doorbells: after[2] - before[2],
    };
    let Cost { ipis, virtual_sgis, sysreg, kicks, doorbells } = cost;
    println!(
        "   {ipis} IPIs: {sysreg} exits by system registers, {kicks} kicks, {doorbells} doorbells; {virtual_sgis} vSGIs"
    );
    if virtual_sgis < ipis {
        return Err(format!("{ipis} IPIs, but vPEs took {virtual_sgis} virtual SGIs"));
    }
    Ok(cost)
}

/// Two vCPUs on CPUs of their own, with WFI in the guest.
pub fn running(lab: &Lab) -> Verdict {
    let rounds = 2000;
    let cost = run(lab, "", &rounds.to_string(), Vec::new())?;
    // Most wakes take an IPI: not those that find the CPU awake.
    if cost.ipis < rounds {
        return Err(format!("{} IPIs in {rounds} rounds: too few to say anything", cost.ipis));
    }
    // What dom0 prints on the console costs kicks and exits of its own.
    let slack = cost.ipis / 50;
    if cost.kicks > slack || cost.sysreg > cost.ipis + slack {
        return Err("an IPI costs more than the exit of its sender".into());
    }
    Ok(())
}

/// vCPUs that sleep in EL2 at each WFI, and share their CPUs with a domU, so that they are also preempted and moved.
pub fn asleep(lab: &Lab) -> Verdict {
    let cost = run(lab, "sched=credit", "150,moves", vec![busy(4)])?;
    if cost.doorbells < 50 { Err(format!("{} doorbells in 150 rounds", cost.doorbells)) } else { Ok(()) }
}

/// Times that a CPU goes offline and comes back.
const CYCLES: usize = 20;

/// The trace events that say which virtual SGIs are pending, and when their vPE is moved.
const PENDING: [&str; 3] = ["gicv3_vpe_set_vsgi", "gicv3_vpe_acknowledge", "gicv3_vpe_move"];

/// More runnable vCPUs than CPUs, so that vCPUs wait for a CPU with SGIs pending when it goes offline.
pub fn hotplug(lab: &Lab) -> Verdict {
    let mut machine = lab.gicv41(lab.linux("until", "6,lines"))?;
    machine.hv = "sched=credit dom0_max_vcpus=6".into();
    machine.properties += AFF3;
    for event in PENDING {
        machine.extra.extend(["-trace".into(), event.into()]);
    }
    let key = |key, answer| [(Some(key), answer), TICK];
    let cycle = [key('o', "CPU3: out of service; moved to CPU2"), key('O', "CPU3: back in service")].concat();
    let steps: Vec<Step> = cycle.repeat(CYCLES);
    let transcript = drive(lab, &machine, 240, &steps)?;
    let rounds =
        transcript.said("round").filter_map(|text| Transcript::field(&text.replace("lines ", "lines="), "lines"));
    let lines: Vec<u64> = rounds.collect();
    let log = std::fs::read_to_string(lab.dir.join("guest.log")).map_err(|error| error.to_string())?;
    let (moves, evacuated) = moved_with_sgis(&log);
    println!(
        "   {} lines in {} rounds of verified writes; {moves} moves with a virtual SGI pending, {evacuated} from CPU3 to CPU2",
        transcript.number("lines")?,
        lines.len()
    );
    if let Some(stop) = lines.windows(2).position(|pair| pair[0] >= pair[1]) {
        return Err(format!("no line came back in round {}: {lines:?}", stop + 2));
    }
    if evacuated == 0 { Err("no vPE was moved from CPU3 with a virtual SGI pending".into()) } else { Ok(()) }
}

/// The moves of vPEs with a pending virtual SGI, and those of them from RDbase 3 to 2, as for a CPU that goes offline.
fn moved_with_sgis(trace: &str) -> (usize, usize) {
    let (mut pending, mut moves, mut evacuated) = (BTreeSet::new(), 0, 0);
    for line in trace.lines() {
        let Some(vpe) = line.split_once("vPE ").and_then(|(_, rest)| rest.split(' ').next()) else { continue };
        let mut last = line.rsplit(' ');
        if line.starts_with(PENDING[0]) {
            // … vSGI N pending set to L
            let set = last.next() == Some("1");
            let Some(sgi) = last.nth(3).and_then(|word| word.parse::<u32>().ok()) else { continue };
            if set {
                pending.insert((vpe, sgi))
            } else {
                pending.remove(&(vpe, sgi))
            };
        } else if line.starts_with(PENDING[1]) {
            last.next().and_then(|word| word.parse().ok()).map(|intid| pending.remove(&(vpe, intid)));
        } else if line.starts_with(PENDING[2]) && pending.range((vpe, 0)..=(vpe, 15)).next().is_some() {
            moves += 1;
            evacuated += usize::from(line.contains("from RDbase 0x3 to 0x2 "));
        }
    }
    (moves, evacuated)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moves_with_a_pending_sgi_are_counted() {
        let set = |vpe, level| format!("gicv3_vpe_set_vsgi GICv3 vPE {vpe} vSGI 3 pending set to {level}\n");
        let takes = |irq| format!("gicv3_vpe_acknowledge GICv3 redistributor 0x0: vPE 0x1 takes {irq}\n");
        let moves = |vpe, to| format!("gicv3_vpe_move GICv3 vPE {vpe} moved from RDbase 0x3 to {to} DB 1\n");
        let count = |parts: &[String]| moved_with_sgis(&parts.concat());
        assert_eq!(count(&[set("0x1", 1), moves("0x2", "0x2"), moves("0x1", "0x1"), moves("0x1", "0x2")]), (2, 1));
        assert_eq!(count(&[set("0x1", 1), takes(3), moves("0x1", "0x2")]), (0, 0));
        assert_eq!(count(&[set("0x1", 1), takes(8192), moves("0x1", "0x2")]), (1, 1));
        assert_eq!(count(&[set("0x1", 1), set("0x1", 0), moves("0x1", "0x2")]), (0, 0));
    }
}
