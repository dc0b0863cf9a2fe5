//! Machines with 2 to 32 CPUs, of which the second half has Aff3 = 1 and a vPE table of its own. Each vCPU takes the interrupts of
//! its disk queue, and IPIs, as virtual ones: first on a CPU of its own, then while vCPUs are moved between all CPUs.

use crate::qemu::Machine;
use crate::test::linux::Transcript;
use crate::test::{Case, Lab, Verdict};

use super::{AFF3, LPI};

/// The cases, and whether they run with `--long` only.
const CASES: [(&str, bool); 4] =
    [("gicv41-cpus-2", true), ("gicv41-cpus-8", false), ("gicv41-cpus-16", true), ("gicv41-cpus-32", true)];

/// Reads, and lines, for each CPU.
const EACH: u64 = 20;

/// In GICR_TYPER.Affinity_Value: Aff3 = 1.
const SECOND_HALF: u64 = 1 << 24;

pub fn cases() -> Vec<Case> {
    let case = |name, shows, run| Case { name, shows, bare: false, run };
    vec![
        case(
            CASES[0].0,
            "two CPUs, one of them with Aff3 = 1: vLPIs and vSGIs on each, and moves between them",
            |lab| both(lab, 2),
        ),
        case(CASES[1].0, "the same with eight CPUs, four of them with Aff3 = 1", |lab| both(lab, 8)),
        case(CASES[2].0, "the same with sixteen CPUs", |lab| both(lab, 16)),
        case(CASES[3].0, "the same with thirty-two CPUs", |lab| both(lab, 32)),
    ]
}

/// Whether the case `name` runs with `--long` only.
pub fn is_long(name: &str) -> bool {
    CASES.iter().any(|&(case, long)| case == name && long)
}

fn both(lab: &Lab, smp: u32) -> Verdict {
    placed(lab, smp)?;
    moved(lab, smp)
}

/// The trace and the console of a run.
struct Run {
    trace: String,
    lpis: Vec<u64>,
    ipis: Vec<u64>,
}

fn run(lab: &Lab, what: &str, smp: u32, hv: &str) -> Result<Run, String> {
    let inner = Lab { dir: lab.dir.join(what), boot: lab.boot.clone(), long: lab.long, gicv41: None };
    std::fs::create_dir_all(&inner.dir).map_err(|error| error.to_string())?;
    let mut machine = Machine { smp, hv: hv.into(), ..inner.gicv41(inner.linux("each-cpu", &EACH.to_string()))? };
    machine.properties += AFF3;
    for event in ["gicv3_vpe_acknowledge", "gicv3_vpe_move"] {
        machine.extra.extend(["-trace".into(), event.into()]);
    }
    let transcript = inner.linux_run(&machine, 60 + 15 * u64::from(smp))?;
    let cpus = transcript.number("cpus")?;
    if cpus != u64::from(smp) {
        return Err(format!("{what}: dom0 has {cpus} CPUs, the machine {smp}"));
    }
    let log = inner.dir.join("guest.log");
    let trace = std::fs::read_to_string(&log).map_err(|error| format!("{}: {error}", log.display()))?;
    Ok(Run { trace, lpis: taken(&transcript, "lpis", smp)?, ipis: taken(&transcript, "ipis", smp)? })
}

/// The interrupts that each CPU of dom0 has taken meanwhile, by its /proc/interrupts.
fn taken(transcript: &Transcript, what: &str, cpus: u32) -> Result<Vec<u64>, String> {
    let counts = |when: &str| -> Result<Vec<u64>, String> {
        let label = format!("{what}-{when}");
        let text = transcript.said(&label).next().ok_or_else(|| format!("the guest printed no `{label}`"))?;
        let counts: Vec<u64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        if counts.len() == cpus as usize { Ok(counts) } else { Err(format!("`{label}` is `{text}`")) }
    };
    Ok(counts("before")?.iter().zip(counts("after")?).map(|(before, after)| after.saturating_sub(*before)).collect())
}

/// What one redistributor has presented to vPEs, by QEMU's trace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Presented {
    /// GICR_TYPER.Affinity_Value.
    affinity: u64,
    vlpis: u64,
    vsgis: u64,
}

/// By redistributor that has presented something, in the order of affinities.
fn presented(trace: &str) -> Vec<Presented> {
    let mut all: Vec<Presented> = Vec::new();
    for line in trace.lines().filter(|line| line.starts_with("gicv3_vpe_acknowledge ")) {
        let Some(affinity) = hex_after(line, "redistributor ") else { continue };
        let Some(intid) = line.rsplit(' ').next().and_then(|word| word.parse::<u64>().ok()) else { continue };
        let at = match all.binary_search_by_key(&affinity, |one| one.affinity) {
            Ok(at) => at,
            Err(at) => {
                all.insert(at, Presented { affinity, ..Presented::default() });
                at
            }
        };
        match intid {
            0..16 => all[at].vsgis += 1,
            LPI.. => all[at].vlpis += 1,
            _ => {}
        }
    }
    all
}

/// The hexadecimal number after `label`.
fn hex_after(line: &str, label: &str) -> Option<u64> {
    let word = line.split_once(label)?.1.split([' ', ':']).next()?;
    u64::from_str_radix(word.trim_start_matches("0x"), 16).ok()
}

/// Each vCPU on a CPU of its own, which is therefore the one whose redistributor presents its interrupts.
fn placed(lab: &Lab, smp: u32) -> Verdict {
    let Run { trace, lpis, ipis } = run(lab, "placed", smp, "sched=null")?;
    let presented = presented(&trace);
    let second = presented.iter().filter(|one| one.affinity & SECOND_HALF != 0).count();
    if (presented.len(), second) != (smp as usize, smp as usize / 2) {
        return Err(format!("{} redistributors presented interrupts, {second} of them with Aff3 = 1", presented.len()));
    }
    let least = |of: &[u64]| of.iter().min().copied().unwrap_or(0);
    println!("   placed: at least {} LPIs and {} IPIs on each of {smp} CPUs", least(&lpis), least(&ipis));
    for (cpu, ((one, &lpis), &ipis)) in presented.iter().zip(&lpis).zip(&ipis).enumerate() {
        // An I/O can complete before dd sleeps, but not all twenty, and not all lines find a CPU awake.
        if lpis < EACH / 2 || ipis == 0 {
            return Err(format!("CPU{cpu} took {lpis} LPIs and {ipis} IPIs: too few to say anything"));
        }
        if one.vlpis < lpis || one.vsgis < ipis {
            return Err(format!("CPU{cpu} took {lpis} LPIs and {ipis} IPIs, but its vPE {one:?}"));
        }
    }
    Ok(())
}

/// The vCPUs change CPUs each millisecond, also between the halves.
fn moved(lab: &Lab, smp: u32) -> Verdict {
    let Run { trace, lpis, ipis } = run(lab, "moved", smp, "sched=credit sched-torture=1ms")?;
    let half = u64::from(smp / 2);
    let moves = trace.lines().filter(|line| line.starts_with("gicv3_vpe_move "));
    let moves: Vec<_> =
        moves.filter_map(|line| Some((hex_after(line, "RDbase ")?, hex_after(line, " to ")?))).collect();
    let between = moves.iter().filter(|&&(from, to)| (from < half) != (to < half)).count();
    let presented = presented(&trace);
    let (vlpis, vsgis) = presented.iter().fold((0, 0), |(l, s), one| (l + one.vlpis, s + one.vsgis));
    let (lpis, ipis): (u64, u64) = (lpis.iter().sum(), ipis.iter().sum());
    println!(
        "   moved: {} moves, {between} between the halves; {lpis} LPIs, {ipis} IPIs; {vlpis} vLPIs and {vsgis} vSGIs",
        moves.len()
    );
    if between == 0 || vlpis < lpis || vsgis < ipis {
        return Err("not all interrupts are virtual ones, or no vPE was moved between the halves".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interrupts_are_counted_by_redistributor() {
        let trace = "gicv3_vpe_acknowledge GICv3 redistributor 0x1000004: vPE 0x3 takes 8193\n\
            gicv3_vpe_move GICv3 vPE 0x1 moved from RDbase 0x0 to 0x5 DB 1\n\
            gicv3_vpe_acknowledge GICv3 redistributor 0x0: vPE 0x0 takes 1\n\
            gicv3_vpe_acknowledge GICv3 redistributor 0x1000004: vPE 0x3 takes 0\n\
            gicv3_vpe_acknowledge GICv3 redistributor 0x1000004: vPE 0x3 takes 8192\n";
        let all =
            [Presented { affinity: 0, vlpis: 0, vsgis: 1 }, Presented { affinity: 0x100_0004, vlpis: 2, vsgis: 1 }];
        assert_eq!(presented(trace), all);
        let line = trace.lines().nth(1).unwrap();
        assert_eq!((hex_after(line, "RDbase "), hex_after(line, " to ")), (Some(0), Some(5)));
    }
}
