//! I/O on the passed-through NVMe disk: the five jobs, CPU hotplug under load, driver unbind and bind.

use crate::qemu::{Boot, Machine};
use crate::test::linux::Transcript;
use crate::test::{Case, Lab, Verdict};

/// The cases of this topic.
pub fn cases() -> Vec<Case> {
    let case = |name, shows, run| Case { name, shows, bare: true, run };
    vec![
        case("io-fio-max", "five fio jobs, direct injection, -cpu max", |lab| fio(lab, "max", "")),
        case("io-fio-neoverse-v1", "five fio jobs, direct injection, -cpu neoverse-v1", |lab| {
            fio(lab, "neoverse-v1", "")
        }),
        case("io-fio-software", "five fio jobs, direct=off", |lab| fio(lab, "max", "direct=off")),
        case("io-fio-trapped-wfi", "five fio jobs, vwfi=trap", |lab| fio(lab, "max", "vwfi=trap")),
        case("io-fio-software-trapped-wfi", "five fio jobs, direct=off vwfi=trap", |lab| {
            fio(lab, "max", "direct=off vwfi=trap")
        }),
        case("io-latency-trapped-wfi", "vwfi=trap: no completion takes longer than 50 ms", latency),
        case("io-hotplug", "50 times CPU_OFF and CPU_ON under load", |lab| hotplug(lab, "")),
        case("io-hotplug-software", "the same with direct=off", |lab| hotplug(lab, "direct=off")),
        case("io-rebind", "the NVMe driver unbound and bound 20 times", |lab| rebind(lab, "")),
        case("io-rebind-software", "the same with direct=off", |lab| rebind(lab, "direct=off")),
    ]
}

fn fio(lab: &Lab, cpu: &str, hv: &str) -> Verdict {
    let machine = Machine { cpu: cpu.into(), hv: hv.into(), ..lab.linux("fio", "1500") };
    let transcript = lab.linux_run(&machine, 400)?;
    for job in transcript.said("job") {
        println!("   {job}");
    }
    let jobs = transcript.said("job").count();
    if jobs == 5 { Ok(()) } else { Err(format!("{jobs} jobs ended, not 5")) }
}

/// Attempts of the latency case.
const LATENCY_ATTEMPTS: usize = 4;
/// The longest time that a completion may take, in microseconds.
const LONGEST: u64 = 50_000;

/// A lost wake-up shows in every attempt. A host that was busy with something else for 50 ms does not, and also delays a Linux
/// without the hypervisor.
fn latency(lab: &Lab) -> Verdict {
    let ours = quickest(lab, Machine { hv: "vwfi=trap".into(), ..lab.linux("latency", "2000") })?;
    if ours <= LONGEST {
        return Ok(());
    }
    let inner = Lab { dir: lab.dir.join("bare"), boot: Boot::Bare, long: lab.long, gicv41: lab.gicv41.clone() };
    std::fs::create_dir_all(&inner.dir).map_err(|error| error.to_string())?;
    let bare = quickest(&inner, inner.linux("latency", "2000"))?;
    if bare > LONGEST && ours <= 2 * bare {
        println!("   bare Linux is delayed by {bare} us on this host, so the limit does not apply");
        return Ok(());
    }
    Err(format!(
        "the longest completion took {ours} us in the best of {LATENCY_ATTEMPTS} attempts, bare Linux {bare} us"
    ))
}

/// The longest completion of the best attempt, in microseconds.
fn quickest(lab: &Lab, machine: Machine) -> Result<u64, String> {
    let mut best = u64::MAX;
    for _ in 0..LATENCY_ATTEMPTS {
        let transcript = lab.linux_run(&machine, 200)?;
        let job = transcript.said("job").next().ok_or("no job ended")?;
        println!("   {job}");
        best = best.min(Transcript::field::<u64>(job, "max_us").ok_or("fio printed no longest completion")?);
        if best <= LONGEST {
            break;
        }
    }
    Ok(best)
}

fn hotplug(lab: &Lab, hv: &str) -> Verdict {
    let transcript = lab.linux_run(&Machine { hv: hv.into(), ..lab.linux("hotplug", "50") }, 400)?;
    match transcript.said("cpus").next() {
        Some("4 rounds 50") => Ok(()),
        other => Err(format!("at the end: cpus {}", other.unwrap_or("unknown"))),
    }
}

fn rebind(lab: &Lab, hv: &str) -> Verdict {
    let transcript = lab.linux_run(&Machine { hv: hv.into(), ..lab.linux("rebind", "20") }, 300)?;
    match transcript.number("rounds")? {
        20 => Ok(()),
        rounds => Err(format!("{rounds} rounds, not 20")),
    }
}
