//! IPIs of dom0 as virtual SGIs. EL2's counters say what they cost, and QEMU's trace which of them vPEs have taken.

use super::acknowledged;
use crate::domu::DomU;
use crate::qemu::Machine;
use crate::session::NEXT;
use crate::test::cases::sched::busy;
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
