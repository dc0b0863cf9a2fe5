//! DomUs: a Linux with a console of its own, domains that are restarted 200 times, domains that end in every possible way.
//! Meanwhile dom0 does verified I/O.

use crate::domu::DomU;
use crate::image;
use crate::paths;
use crate::qemu::{Boot, Machine};
use crate::session::{NEXT, Session};
use crate::test::linux::Transcript;
use crate::test::{Case, Lab, Verdict};

/// dom0 has two of the four CPUs; the domUs have the others.
pub(super) const HV: &str = "dom0_max_vcpus=2";

/// Restarts of a small domain.
const RESETS: usize = 200;

/// What the guests that are restarted say in each life.
const LIVES: [&str; 2] = ["GUEST AGAIN ", "GUEST ENDS "];

/// So many reports of free memory come before that of dom0 stays as it is.
const SETTLING: usize = 3;

/// The cases of this topic.
pub fn cases() -> Vec<Case> {
    let case = |name, shows, run| Case { name, shows, bare: false, run };
    vec![
        case("domain-linux", "a second Linux with two vCPUs runs a typed command, powers off and is torn down", linux),
        case("domain-refused", "a domU with a mistyped PCI function is not built, and the next one runs", refused),
        case("domain-resets", "200 resets of a small domain leak no memory and no ids", |lab| {
            resets(lab, guest(lab, "guest-again")?, HV, 4)
        }),
        case("domain-resets-credit", "the same with sched=credit, on the two CPUs that dom0 uses, too", |lab| {
            resets(lab, guest(lab, "guest-again")?, "sched=credit", 2)
        }),
        case(
            "domain-crashes",
            "on-crash=restart: 200 restarts after crashes and resets leak no memory and no ids",
            |lab| resets(lab, guest(lab, "guest-ends")?, "sched=credit on-crash=restart", 2),
        ),
        case(
            "domain-ends",
            "domains that crash, hang or power off are torn down, those that hang by a debug key",
            ends,
        ),
    ]
}

/// A machine with `domu`, and a dom0 that does verified I/O until a line is typed.
pub(super) fn machine(lab: &Lab, domu: DomU) -> Machine {
    Machine { hv: HV.into(), domus: vec![domu], ..lab.linux("until", "") }
}

/// Types the line that ends dom0's test if it is `time`, when dom0 prints a line and has the keyboard.
pub(super) fn stop(session: &mut Session, line: &str, time: bool) -> Verdict {
    if time && line.starts_with("DW-TEST: round ") {
        session.type_in("\r").map_err(|failure| failure.text)?;
    }
    Ok(())
}

pub(super) fn guest(lab: &Lab, name: &str) -> Result<DomU, String> {
    debug_assert!(matches!(lab.boot, Boot::Doorward));
    let kernel = lab.dir.join("kernel");
    image::build_guest(name, &kernel).map_err(|failure| failure.text)?;
    Ok(DomU { kernel, cpus: 2, mem: 16, ..DomU::default() })
}

/// A domU with the guest `name` and a seed.
pub(super) fn seeded(lab: &Lab, name: &str, seed: u64) -> Result<DomU, String> {
    let kernel = lab.dir.join(format!("kernel-{seed}"));
    image::build_seeded_guest(name, seed, &kernel).map_err(|failure| failure.text)?;
    Ok(DomU { kernel, cpus: 2, mem: 16, ..DomU::default() })
}

/// The hypervisor's report of free resources, without its time stamp.
pub(super) fn free(line: &str) -> Option<&str> {
    line.split_once(" info host: free memory: ").map(|(_, rest)| rest)
}

fn linux(lab: &Lab) -> Verdict {
    second_linux(lab, &machine(lab, second_domu()))
}

/// A Linux with two vCPUs.
pub(super) fn second_domu() -> DomU {
    DomU { initrd: Some(paths::initramfs()), cpus: 2, mem: 512, ..DomU::default() }
}

/// Runs a machine of [`machine`] with [`second_domu`]: a command that is typed there is answered, it powers off, and its
/// memory is free again.
pub(super) fn second_linux(lab: &Lab, machine: &Machine) -> Verdict {
    let (mut moved, mut answered, mut gone) = (false, false, false);
    let transcript = lab.watch(machine, 150, |session, line| {
        let say = |failure: crate::fail::Failure| failure.text;
        if line.starts_with("(d1) A shell of the test initramfs") {
            session.type_in(NEXT).map_err(say)?;
        } else if line.starts_with("(dom1 has the keyboard)") {
            moved = true;
            session.type_in("echo answer $(nproc) $((6 * 7)); poweroff -f\r").map_err(say)?;
        } else if line.trim() == "answer 2 42" {
            // Its output has no mark, as it has the keyboard.
            answered = true;
        }
        if line.starts_with("(nobody has the keyboard") {
            session.type_in(NEXT).map_err(say)?;
        }
        gone |= line.starts_with("(dom0 has the keyboard)");
        stop(session, line, gone)
    })?;
    lab.judge(&transcript)?;
    match (moved, answered) {
        (true, true) if transcript.lines.iter().any(|(_, line)| line.contains("dom1: powered off")) => {}
        _ => return Err(format!("keyboard moved: {moved}, the domain answered: {answered}, or it did not power off")),
    }
    match transcript.lines.iter().filter_map(|(_, line)| free(line)).next_back() {
        Some(free) if free.contains(" 512 MiB for domUs") => Ok(()),
        other => Err(format!("at the end: {other:?}")),
    }
}

/// Two domUs, the first with a function that is none.
fn refused(lab: &Lab) -> Verdict {
    let good = guest(lab, "guest-again")?;
    let bad = DomU { pci: vec!["0000:00:01.0".into(), "01:00.0".into()], ..good.clone() };
    let machine = Machine { domus: vec![bad, good], ..machine(lab, DomU::default()) };
    let (mut refused, mut lives) = (false, false);
    let transcript = lab.watch(&machine, 60, |session, line| {
        refused |= line.contains("error build: dom1 `domU1`: not built: PCI functions: `01:00.0`: not a PCI function");
        lives |= line.starts_with("(d2) ") && LIVES.iter().any(|says| line.contains(says));
        stop(session, line, refused && lives)
    })?;
    let errors = transcript.lines.iter().filter(|(_, line)| line.contains("] error ")).count();
    if refused && lives && errors == 1 {
        Ok(())
    } else {
        Err(format!("refused {refused}, lives {lives}, {errors} errors"))
    }
}

fn resets(lab: &Lab, domu: DomU, hv: &str, smp: u32) -> Verdict {
    let machine = Machine { hv: format!("{hv} restart-delay=0"), smp, ..machine(lab, domu) };
    let transcript = restarted(lab, &machine, RESETS)?;
    if hv.contains("on-crash=restart") {
        // Four of the guest's five ways to end are crashes.
        let said = |way: &str| transcript.lines.iter().any(|(_, line)| line.contains(way));
        if let Some(way) = ENDS[..4].iter().find(|(way, _)| !said(way)) {
            return Err(format!("it never ended `{}`", way.0));
        }
    }
    Ok(())
}

/// Runs a machine with a domU that ends again and again until it has been restarted so often. What is free must stay the same, and
/// dom0's I/O must go on.
pub(super) fn restarted(lab: &Lab, machine: &Machine, restarts: usize) -> Result<Transcript, String> {
    let (mut lives, mut counts) = (0, Vec::new());
    let mut settled = false;
    let mut leaving = false;
    let transcript = lab.watch(machine, 150, |session, line| {
        if line.contains("GUEST FAIL") {
            return Err(line.to_owned());
        }
        // While dom0 starts, its devices take frames; when it powers off, they give them back.
        settled |= line.starts_with("DW-TEST: ");
        leaving |= line.starts_with("DW-TEST: port ") || line.starts_with("DW-TEST: exit ");
        lives += usize::from(LIVES.iter().any(|says| line.contains(says)));
        // At most once in a second.
        if let Some(free) = free(line).filter(|_| settled && !leaving) {
            counts.push(free.to_owned());
        }
        stop(session, line, lives > restarts && counts.len() > SETTLING)
    })?;
    lab.judge(&transcript)?;
    // dom0's disk may take its last frames in the first rounds.
    let (early, late) = counts.split_at(counts.len().min(SETTLING));
    println!("   {lives} lives; free: {}", late.last().map_or("", |last| last));
    match late.iter().position(|free| Some(free) != late.first()) {
        _ if lives <= restarts || late.is_empty() => {
            Err(format!("{lives} lives and {} reports of free memory", counts.len()))
        }
        Some(at) => Err(format!("free in report {}: {}, before: {}", at + early.len(), late[at], late[0])),
        None => Ok(transcript),
    }
}

/// The ways in which the guest `ends` ends with seed 1, 2 and so on, and what the hypervisor reports.
const ENDS: [(&str, &str); 8] = [
    ("without vectors", "crashed"),
    ("without a stack", "crashed"),
    ("with all vCPUs off", "crashed"),
    ("by saying that it crashed", "crashed"),
    ("by a reset", "reset"),
    ("by power off", "powered off"),
    ("never", "crashed"),
    ("never, in its own vectors", "crashed"),
];

/// The index of the reset, which another case tests.
const RESET: usize = 4;

fn ends(lab: &Lab) -> Verdict {
    let mut domus = Vec::new();
    for (seed, (way, _)) in (1..).zip(ENDS).filter(|(_, (way, _))| *way != ENDS[RESET].0) {
        domus.push((way, seeded(lab, "guest-ends", seed)?));
    }
    let pool = 16 * domus.len();
    let (ways, domus): (Vec<_>, Vec<_>) = domus.into_iter().unzip();
    // The last two hang after their message.
    let hang = ways.len() - 1..=ways.len();
    let hv = "sched=credit".to_owned();
    let machine = Machine { hv, domus, ..lab.linux("until", "") };
    let (mut ended, mut typed, mut free_at_end) = (0, false, None);
    let transcript = lab.watch(&machine, 150, |session, line| {
        if line.contains("GUEST FAIL") {
            return Err(line.to_owned());
        }
        if let Some(free) = free(line) {
            free_at_end = Some(free.to_owned());
            // The first report comes before any domain is built.
            ended += 1;
        }
        // Tear down by debug keys the domains that have not ended by themselves.
        if ended == ways.len() - 1 && !typed && line.starts_with("DW-TEST: round ") {
            typed = true;
            session.type_in(&format!("{}nKnK{NEXT}", NEXT.repeat(3))).map_err(|failure| failure.text)?;
        }
        stop(session, line, ended == ways.len() + 1)
    })?;
    lab.judge(&transcript)?;
    let said = |words: &str| transcript.lines.iter().any(|(_, line)| line.contains(words));
    for (id, way) in (1..).zip(&ways) {
        let end = ENDS.iter().find(|(known, _)| known == way).map_or("", |(_, end)| end);
        if !said(&format!("(d{id}) GUEST ENDS {way}")) || !said(&format!(" dom{id}: {end}")) {
            return Err(format!("dom{id} did not end `{way}`, or the hypervisor did not report `{end}`"));
        }
        if said(&format!("dom{id}: ended by hand")) != hang.contains(&id) {
            return Err(format!("dom{id}, which ends `{way}`, was torn down by hand, or should have been"));
        }
    }
    println!("   dom0: {} rounds of verified writes meanwhile", transcript.number("rounds")?);
    match free_at_end {
        Some(free) if free.contains(&format!(" {pool} MiB for domUs")) => Ok(()),
        other => Err(format!("at the end: {other:?}")),
    }
}
