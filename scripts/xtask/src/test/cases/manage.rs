//! Domains that dom0 creates, watches and ends at run time, by `dw`.

use super::flood::CLOCK;
use crate::image;
use crate::paths;
use crate::qemu::Machine;
use crate::setup::initramfs::{self, Tree};
use crate::test::linux::Transcript;
use crate::test::{Case, Lab, Verdict};

/// The number of domains that exist at the same time.
const MANY: usize = 12;
const VERY_MANY: usize = 64;

/// What a step of a creation may take, and all of them for a small domain: 200,000 and 5,000,000 instructions, in microseconds
/// at [`CLOCK`].
const LONGEST_STEP_US: u64 = 2 * 200;
const BUILD_US: u64 = 2 * 5_000;

/// The cases of this topic.
pub fn cases() -> Vec<Case> {
    let case = |name, shows, run| Case { name, shows, bare: false, run };
    vec![
        case(
            "manage-domains",
            "dom0 creates twelve domains, pauses half of them and destroys all: nothing leaks",
            |lab| domains(lab, MANY),
        ),
        case("manage-failures", "creations that fail, or whose client is killed, leave nothing behind", failures),
        case("manage-steps", "no step of the creation of a small domain takes more than 200,000 instructions", steps),
        case("manage-64", "64 domains of 32 MiB at the same time", |lab| domains(lab, VERY_MANY)),
    ]
}

/// A dom0 that has the kernel of a small guest in a file.
fn machine(lab: &Lab, test: &str, argument: &str, ram_mib: usize) -> Result<Machine, String> {
    let kernel = lab.dir.join("hello");
    let text = |failure: crate::fail::Failure| failure.text;
    image::build_guest("guest-hello", &kernel).map_err(text)?;
    let mut tree = Tree::default();
    tree.file("guests/hello", initramfs::read(&kernel).map_err(text)?);
    // Linux unpacks archives that follow one another.
    let mut archive = initramfs::read(&paths::initramfs()).map_err(text)?;
    archive.extend(tree.pack());
    let initrd = lab.dir.join("initramfs");
    std::fs::write(&initrd, archive).map_err(|error| format!("{}: {error}", initrd.display()))?;
    let machine = lab.linux(test, argument);
    let hv = format!("sched=credit dom0_mem=512M domu_mem={ram_mib}M");
    Ok(Machine { hv, initrd: Some(initrd), mem: format!("{}M", 1024 + ram_mib), ..machine })
}

fn domains(lab: &Lab, count: usize) -> Verdict {
    // Each has its RAM and 2 MiB for its kernel; there is one more for a moment.
    let machine = machine(lab, "manage", &count.to_string(), (count + 1) * 34)?;
    let transcript = lab.linux_run(&machine, 60 + 2 * count as u64)?;
    // The domain before these, number 1, may have ended before it could say anything.
    let is_one = |(_, line): &&(std::time::Duration, String)| {
        (2..count + 2)
            .any(|id| line.strip_prefix(&format!("(d{id}) ")).is_some_and(|said| said.contains("GUEST HELLO")))
    };
    // The second of these was reset.
    let (hellos, expected) = (transcript.lines.iter().filter(is_one).count(), count + 1);
    if hellos != expected {
        return Err(format!("{hellos} times a domain has said hello, of {expected}"));
    }
    for kind in ["created", "creations", "refused", "destructions"] {
        transcript.said(kind).for_each(|said| println!("   {kind} {said}"));
    }
    Ok(())
}

fn failures(lab: &Lab) -> Verdict {
    let machine = machine(lab, "manage-failures", "", 256)?;
    let transcript = lab.linux_run(&machine, 60)?;
    let refusals = transcript.said("refused").count();
    if refusals != 7 {
        return Err(format!("{refusals} of 7 creations were refused"));
    }
    transcript.said("refused").for_each(|said| println!("   {said}"));
    println!("   {} clients were killed", transcript.said("killed").count());
    Ok(())
}

/// Counts instructions, by the time that they take at [`CLOCK`].
fn steps(lab: &Lab) -> Verdict {
    let machine = machine(lab, "manage-steps", "", 300)?;
    let machine = Machine { smp: 2, extra: CLOCK.map(str::to_owned).to_vec(), ..machine };
    let transcript = lab.linux_run(&machine, 120)?;
    let all: Vec<(&str, &str)> = transcript.said("created").filter_map(|said| said.split_once(' ')).collect();
    for (vcpus, cost) in &all {
        println!("   {vcpus} vCPUs: {cost}");
        let words = cost.replace(['{', '}', '"'], "").replace(',', " ").replace(':', "=");
        let value = |key| Transcript::field::<u64>(&words, key).ok_or(format!("`{cost}` has no {key}"));
        let (build, longest) = (value("build_us")?, value("longest_step_us")?);
        // One with 123 vCPUs has a step of 1.6 million instructions (README, limits): its figures are printed only.
        if *vcpus == "1" && (longest > LONGEST_STEP_US || build > BUILD_US) {
            return Err(format!("a domain of {vcpus} vCPUs took {build} us, and its longest step {longest} us"));
        }
    }
    if all.len() == 2 { Ok(()) } else { Err(format!("{} of 2 domains were created", all.len())) }
}
