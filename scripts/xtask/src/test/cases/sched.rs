//! More vCPUs than CPUs: I/O jobs under the credit scheduler, with and without vCPUs that are moved each millisecond.

use crate::domu::DomU;
use crate::image::{self, Profile};
use crate::paths;
use crate::qemu::Machine;
use crate::session::NEXT;
use crate::test::linux::Transcript;
use crate::test::{Case, Lab, Verdict};

/// The cases of this topic.
pub fn cases() -> Vec<Case> {
    let case = |name, shows, run| Case { name, shows, bare: false, run };
    vec![
        case("sched-oversubscribed", "five fio jobs, 8 vCPUs on 4 CPUs", |lab| fio(lab, "", 180)),
        case("sched-oversubscribed-software", "the same with direct=off", |lab| fio(lab, "direct=off", 180)),
        case("sched-trapped-wfi", "the same with vwfi=trap", |lab| fio(lab, "vwfi=trap", 180)),
        case("sched-native-wfi", "the same with vwfi=native", |lab| fio(lab, "vwfi=native", 240)),
        case("sched-crowded", "8 vCPUs of dom0 and 8 busy ones of two domains on 4 CPUs", crowded),
        case("sched-torture", "verified writes while vCPUs are moved each millisecond, for a minute", torture),
        case("sched-torture-debug", "the same, shorter, by a debug build, which asserts its invariants", torture_debug),
        case("sched-torture-software", "five fio jobs, vCPUs moved, direct=off", |lab| {
            fio(lab, "sched-torture=1ms direct=off", 400)
        }),
        case("sched-hotplug", "CPU_OFF and CPU_ON, 4 vCPUs on 2 CPUs", hotplug),
        case("sched-alone", "vwfi=auto, one vCPU to a CPU: no WFI or WFE traps", alone),
    ]
}

/// A part of the line that a busy domain prints once it is busy.
pub const BUSY: &str = ") DW-TEST: busy ";

/// A domU with Linux that keeps all its vCPUs busy.
pub fn busy(cpus: u32) -> DomU {
    let append = "console=ttyAMA0 dw.test=busy".into();
    DomU { initrd: Some(paths::initramfs()), cpus, mem: 384, append, ..DomU::default() }
}

/// A machine with `sched=credit` and the options `hv`.
fn machine(lab: &Lab, test: &str, arg: &str, hv: &str) -> Machine {
    Machine { hv: format!("sched=credit {hv}"), ..lab.linux(test, arg) }
}

/// Runs `machine` to its end. The guest's test waits at its end for a line; meanwhile debug keys print the scheduler's state and
/// the exits. The debug keys get the keyboard after all domains.
fn asked(lab: &Lab, mut machine: Machine, seconds: u64) -> Result<Transcript, String> {
    machine.append += " dw.wait";
    let question = format!("{}sx{NEXT}", NEXT.repeat(1 + machine.domus.len()));
    let transcript = lab.watch(&machine, seconds, |session, line| {
        let keys = match line.trim() {
            "DW-TEST: waits" => &question,
            "(dom0 has the keyboard)" => "\r",
            _ => return Ok(()),
        };
        session.type_in(keys).map_err(|failure| failure.text)
    })?;
    lab.judge(&transcript)?;
    Ok(transcript)
}

fn fio(lab: &Lab, hv: &str, seconds: u64) -> Verdict {
    let machine = machine(lab, "fio", "500", &format!("dom0_max_vcpus=8 {hv}"));
    let each = vmovps_for_each_move(&machine);
    let transcript = jobs(lab, machine, seconds, 5)?;
    if !hv.contains("direct=off") {
        moves(&transcript, each)?;
    }
    Ok(())
}

/// Runs fio's jobs to their end.
fn jobs(lab: &Lab, machine: Machine, seconds: u64, jobs: usize) -> Result<Transcript, String> {
    let transcript = asked(lab, machine, seconds)?;
    for job in transcript.said("job") {
        println!("   {job}");
    }
    match transcript.said("job").count() {
        ended if ended == jobs => Ok(transcript),
        ended => Err(format!("{ended} jobs ended, not {jobs}")),
    }
}

/// Runs sixteen vCPUs on four CPUs; half of them are always runnable.
fn crowded(lab: &Lab) -> Verdict {
    let machine = machine(lab, "fio", "100", "dom0_max_vcpus=8 dom0_mem=1G");
    let machine = Machine { domus: vec![busy(4), busy(4)], ..machine };
    let each = vmovps_for_each_move(&machine);
    let transcript = jobs(lab, machine, 600, 5)?;
    let busy = transcript.lines.iter().filter(|(_, line)| line.contains(BUSY)).count();
    if busy != 2 {
        return Err(format!("{busy} domains were busy, not 2"));
    }
    moves(&transcript, each)
}

const TORTURE: &str = "dom0_max_vcpus=8 sched-torture=1ms";

fn torture(lab: &Lab) -> Verdict {
    let seconds: u64 = if lab.long { 600 } else { 60 };
    let machine = machine(lab, "torture", &seconds.to_string(), TORTURE);
    let each = vmovps_for_each_move(&machine);
    moves(&jobs(lab, machine, seconds * 2 + 240, 1)?, each)
}

/// The debug build panics if a vPE is resident twice or on another CPU than its home, or is moved while resident.
fn torture_debug(lab: &Lab) -> Verdict {
    let image = lab.dir.join("doorward.img");
    image::pack("doorward", Profile::Debug, &image, None).map_err(|failure| failure.text)?;
    let machine = Machine { image, ..machine(lab, "torture", if lab.long { "300" } else { "20" }, TORTURE) };
    let each = vmovps_for_each_move(&machine);
    moves(&jobs(lab, machine, if lab.long { 1200 } else { 400 }, 1)?, each)
}

/// How many ITSs get each VMOVP: one, or all of them where none informs the others (GITS_TYPER.VMOVP).
fn vmovps_for_each_move(machine: &Machine) -> u64 {
    let listed = machine.extra.iter().any(|flag| flag == "arm-gicv3-its.x-vmovp=off");
    let itss = machine.properties.split(',').find_map(|property| property.strip_prefix("x-its-count=")?.parse().ok());
    if listed { itss.unwrap_or(1) } else { 1 }
}

/// Checks that there were `each` VMOVPs for each move of a vPE. The two are counted separately while CPUs go on, so they may differ
/// a bit. Where ITSs wait for one another, a move can also be late on a busy host: the vCPU then runs elsewhere, and the
/// VMOVPs of that move are counted although the vCPU has not moved.
fn moves(transcript: &Transcript, each: u64) -> Verdict {
    let line = transcript.lines.iter().find_map(|(_, line)| Some(line.split_once("vPE moves: ")?.1));
    let (moves, commands) =
        line.and_then(|line| line.trim().split_once(", VMOVPs: ")).ok_or("the moves were not printed")?;
    println!("   vPE moves {moves}, VMOVPs {commands}");
    if let Some((_, counts)) = transcript.lines.iter().find_map(|(_, line)| line.split_once("residency: ")) {
        println!("   residency: {}", counts.trim());
    }
    let number = |text: &str| text.parse::<u64>().map_err(|_| format!("`{text}` is not a number"));
    let (moves, commands) = (number(moves)?, number(commands)?);
    let (least, late) = (moves * each, if each > 1 { moves * each / 20 } else { 0 });
    if moves == 0 || commands + 4 * each < least || commands > least + late + 4 * each {
        return Err(format!("{commands} VMOVPs for {moves} moves, {each} for each expected"));
    }
    Ok(())
}

fn hotplug(lab: &Lab) -> Verdict {
    let machine = Machine { smp: 2, ..machine(lab, "hotplug", "20", "dom0_max_vcpus=4") };
    let transcript = lab.linux_run(&machine, 240)?;
    match transcript.said("cpus").next() {
        Some("4 rounds 20") => Ok(()),
        other => Err(format!("at the end: cpus {}", other.unwrap_or("unknown"))),
    }
}

fn alone(lab: &Lab) -> Verdict {
    let transcript = asked(lab, machine(lab, "fio", "200", ""), 150)?;
    let asked = transcript.lines.iter().any(|(_, line)| line.contains("exit irq: "));
    let wfx = transcript.lines.iter().find(|(_, line)| line.contains("exit wfx: "));
    match (asked, wfx) {
        (false, _) => Err("the exits were not printed".to_owned()),
        (true, Some((_, line))) => Err(format!("WFI or WFE trapped: {}", line.trim())),
        (true, None) => Ok(()),
    }
}
