//! Small EL1 guests as dom0: one that checks its features, one whose vCPUs share a CPU and map an
//! address to different pages, one that sleeps until an LPI wakes it.

use std::time::{Duration, Instant};

use crate::image;
use crate::qemu::{Boot, Disk, Machine};
use crate::qtest::Qtest;
use crate::session::{End, Event, Session};
use crate::test::linux::Transcript;
use crate::test::{Case, Lab, Verdict};

/// A device whose BAR does not answer reads of eight bytes, and so no walk of a stage 1 table there.
pub(super) const XHCI: [&str; 2] = ["-device", "qemu-xhci"];

/// The number of MSIs that are sent and of which none may be lost.
const MESSAGES: u64 = 10_000;

/// An MSI that has not been taken after this long is lost, on a busy host, too.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// The cases of this topic.
pub fn cases() -> Vec<Case> {
    let case = |name, shows, run| Case { name, shows, bare: false, run };
    let anywhere = |name, shows, run| Case { name, shows, bare: true, run };
    vec![
        case("guest-features-max", "hidden features are UNDEFINED, exposed ones work, -cpu max", |lab| {
            features(
                lab,
                "max",
                "",
                &Expected { does: "Spectre v2: CSV2; Spectre-BHB: CSV2", told: "1 -1 1", serrors: "0" },
            )
        }),
        case("guest-features-v1", "the same, -cpu neoverse-v1, which needs a loop of branches at each exit", |lab| {
            let does = "Neoverse V1; Spectre v2: CSV2; Spectre-BHB: loop of 32 branches";
            features(lab, "neoverse-v1", "", &Expected { does, told: "1 -1 0", serrors: "0" })
        }),
        case("guest-features-v1-off", "the same with spec-ctrl=no: guests are told that they are vulnerable", |lab| {
            let does = "Neoverse V1; Spectre v2: CSV2; Spectre-BHB: vulnerable (switched off)";
            features(lab, "neoverse-v1", "spec-ctrl=no", &Expected { does, told: "1 -1 -1", serrors: "0" })
        }),
        case("guest-features-n1", "the same, -cpu neoverse-n1, ssbd=force-enable: guests do not see SSBS", |lab| {
            let does = "Neoverse N1; Spectre v2: CSV2; Spectre-BHB: loop of 24 branches";
            features(
                lab,
                "neoverse-n1",
                "spec-ctrl=ssbd=force-enable",
                &Expected { does, told: "1 -2 0", serrors: "0" },
            )
        }),
        case("guest-features-a57", "the same, -cpu cortex-a57, which needs firmware that QEMU has not", |lab| {
            let does = "Cortex-A57; Spectre v2: vulnerable (the firmware has no SMCCC_ARCH_WORKAROUND_1)";
            features(lab, "cortex-a57", "", &Expected { does, told: "-1 -1 -1", serrors: "0" })
        }),
        case(
            "walk",
            "EL2 survives a guest that breaks its tables before an access without a syndrome; AArch32",
            |lab| walk(lab, machine(lab, "guest-walk")?),
        ),
        anywhere(
            "lines",
            "a level-sensitive interrupt comes if its line is high when it may, and not if it has fallen",
            |lab| lines(lab, machine(lab, "guest-lines")?),
        ),
        case("lines-v3", "the same on a GICv3", |lab| {
            let machine = machine(lab, "guest-lines")?;
            let properties = machine.properties.replace("gic-version=4", "gic-version=3");
            lines(lab, Machine { properties, ..machine })
        }),
        case("gicv41-lines", "the same on a GICv4.1", |lab| lines(lab, lab.gicv41(machine(lab, "guest-lines")?)?)),
        case("twins", "two vCPUs on one CPU map one address to two pages, and each sees its own", twins),
        anywhere("wake-1", "10,000 MSIs at random moments, one sleeping vCPU, none lost", |lab| {
            wake(lab, 1, "vwfi=trap")
        }),
        anywhere("wake-4", "the same with four vCPUs", |lab| wake(lab, 4, "vwfi=trap")),
        anywhere("wake-4-software", "the same with direct=off", |lab| wake(lab, 4, "vwfi=trap direct=off")),
    ]
}

/// A machine with the guest `name` as dom0's kernel.
pub(super) fn machine(lab: &Lab, name: &str) -> Result<Machine, String> {
    let kernel = lab.dir.join("kernel");
    image::build_guest(name, &kernel).map_err(|failure| failure.text)?;
    let mut machine = Machine {
        boot: lab.boot.clone(),
        kernel: Some(kernel),
        initrd: None,
        disk: Disk::None,
        log: Some(lab.dir.join("guest.log")),
        ..Machine::default()
    };
    if matches!(lab.boot, Boot::Bare) {
        // Alone, the guest wants EL1 and the GIC that it would be shown.
        machine.properties = "gic-version=3,dtb-randomness=off".into();
    }
    Ok(match &lab.gicv41 {
        Some(gic) => machine.on_gicv41(gic),
        None => machine,
    })
}

/// What is right on a machine.
pub(super) struct Expected<'a> {
    /// The beginning of what EL2 logs for each CPU.
    pub(super) does: &'a str,
    /// What guests are told of SMCCC_ARCH_WORKAROUND_1 to 3.
    pub(super) told: &'a str,
    /// How many SErrors the guest takes.
    pub(super) serrors: &'a str,
}

fn features(lab: &Lab, cpu: &str, hv: &str, expected: &Expected) -> Verdict {
    let machine = Machine { cpu: cpu.into(), hv: hv.into(), ..machine(lab, "guest-features")? };
    features_on(lab, &machine, expected).map(|_| ())
}

/// Runs the guest `features` on `machine` and judges it.
pub(super) fn features_on(lab: &Lab, machine: &Machine, expected: &Expected) -> Result<Transcript, String> {
    let transcript = lab.watch(machine, 60, |_, _| Ok(()))?;
    if transcript.end != End::Off {
        return Err(format!("{:?} ({})", transcript.end, lab.dir.join("console.log").display()));
    }
    let lines = || transcript.lines.iter().map(|(_, line)| line.trim());
    let failures: Vec<&str> = lines().filter_map(|line| line.strip_prefix("GUEST FAIL ")).collect();
    if !failures.is_empty() {
        return Err(failures.join("; "));
    }
    for cpu in 0..machine.smp {
        let line = format!("CPU{cpu}: {}", expected.does);
        if !lines().any(|logged| logged.contains(&line)) {
            return Err(format!("EL2 did not log `{line}`"));
        }
    }
    for (what, expected) in [("TOLD workarounds", expected.told), ("TOOK serrors", expected.serrors)] {
        let said = lines().find_map(|line| line.strip_prefix("GUEST ")?.strip_prefix(what));
        if said.map(str::trim) != Some(expected) {
            return Err(format!("the guest said {what} {said:?}, not {expected}"));
        }
    }
    let done = lines().find_map(|line| line.strip_prefix("GUEST DONE features ")).ok_or("the guest did not finish")?;
    println!("   {done}");
    if !done.ends_with(" fail=0") || done.starts_with("pass=0 ") {
        return Err(format!("the guest counts {done}"));
    }
    lab.complaints()?;
    Ok(transcript)
}

/// Runs the guest `walk` on `machine`.
pub(super) fn walk(lab: &Lab, machine: Machine) -> Verdict {
    let mut machine = Machine { smp: 1, cpu: "max".into(), ..machine };
    machine.extra.extend(XHCI.map(String::from));
    let transcript = lab.watch(&machine, 60, |_, _| Ok(()))?;
    let lines = || transcript.lines.iter().map(|(_, line)| line.trim());
    if let Some(line) = lines().find(|line| line.starts_with("GUEST FAIL")) {
        return Err(line.to_owned());
    }
    match lines().find(|line| line.starts_with("GUEST PASS walk tables=9 aarch32=3")) {
        Some(line) if transcript.end == End::Off => println!("   {line}"),
        _ => return Err(format!("{:?} ({})", transcript.end, lab.dir.join("console.log").display())),
    }
    lab.complaints()
}

/// Runs the guest `lines` on `machine`.
fn lines(lab: &Lab, machine: Machine) -> Verdict {
    let transcript = lab.watch(&Machine { smp: 1, ..machine }, 60, |_, _| Ok(()))?;
    let said = || transcript.lines.iter().map(|(_, line)| line.trim());
    let failures: Vec<&str> = said().filter_map(|line| line.strip_prefix("GUEST FAIL ")).collect();
    if !failures.is_empty() {
        return Err(failures.join("; "));
    }
    match said().find_map(|line| line.strip_prefix("GUEST DONE lines ")) {
        Some("pass=51 fail=0") if transcript.end == End::Off => {}
        other => return Err(format!("{other:?}, {:?} ({})", transcript.end, lab.dir.join("console.log").display())),
    }
    lab.complaints()
}

fn twins(lab: &Lab) -> Verdict {
    let hv = "sched=credit sched_credit_tslice_ms=1 dom0_max_vcpus=2".to_owned();
    let machine = Machine { smp: 1, hv, ..machine(lab, "guest-twins")? };
    let transcript = lab.watch(&machine, 120, |_, _| Ok(()))?;
    let lines = || transcript.lines.iter().map(|(_, line)| line.trim());
    if let Some(line) = lines().find(|line| line.starts_with("GUEST FAIL")) {
        return Err(line.to_owned());
    }
    match lines().find(|line| line.starts_with("GUEST PASS twins vcpus=2 ")) {
        Some(line) if transcript.end == End::Off => println!("   {line}"),
        _ => return Err(format!("{:?} ({})", transcript.end, lab.dir.join("console.log").display())),
    }
    lab.complaints()
}

fn wake(lab: &Lab, smp: u32, hv: &str) -> Verdict {
    let mut machine = Machine { smp, hv: hv.into(), ..machine(lab, "guest-wake")? };
    // The path of a socket must be short, so it is not in the case's folder.
    let socket = std::env::temp_dir().join(format!("doorward-qtest-{}", std::process::id()));
    machine.extra.extend(Qtest::flags(&socket));
    let mut session = lab.start(&machine, 240)?;
    let verdict = play(&mut session, &socket, machine.translater());
    drop(session);
    let _ = std::fs::remove_file(&socket);
    verdict.map_err(|why| format!("{why} ({})", lab.dir.join("console.log").display()))?;
    lab.complaints()
}

/// Waits until the guest `wake` is ready on a machine with this GITS_TRANSLATER; returns its counters, and whether `also` was true for a line before that.
pub(super) fn ready(
    session: &mut Session,
    translater: u64,
    also: impl Fn(&str) -> bool,
) -> Result<(Table, bool), String> {
    let (mut table, mut seen) = (None, false);
    loop {
        match session.next() {
            Event::Line(line) => {
                seen |= also(&line);
                if let Some(rest) = line.trim().strip_prefix("GUEST COUNTERS ") {
                    table = Some(Table::parse(rest, translater).ok_or_else(|| format!("the guest printed `{line}`"))?);
                } else if line.trim().starts_with("GUEST READY") {
                    return Ok((table.ok_or("the guest printed no address of its counters")?, seen));
                } else if line.trim().starts_with("GUEST FAIL") {
                    return Err(line);
                }
            }
            Event::Ended(end) => return Err(format!("the guest was never ready: {end:?}")),
        }
    }
}

/// Waits until the guest has ended successfully.
pub(super) fn passed(session: &mut Session) -> Verdict {
    let mut passed = false;
    loop {
        match session.next() {
            // Its lines have a mark when it does not have the keyboard.
            Event::Line(line) => passed |= line.trim().ends_with("GUEST PASS wake"),
            Event::Ended(End::Off) if passed => return Ok(()),
            Event::Ended(end) => return Err(format!("the guest failed: {end:?}")),
        }
    }
}

/// Waits until the guest is ready, sends messages, and makes it end.
fn play(session: &mut Session, socket: &std::path::Path, translater: u64) -> Verdict {
    let (table, _) = ready(session, translater, |_| false)?;
    let mut qtest = Qtest::connect(socket).map_err(|failure| failure.text)?;
    let start = Instant::now();
    send_messages(&mut qtest, table)?;
    let took = start.elapsed().as_secs_f64();
    println!("   {MESSAGES} messages to {} events on {} vCPUs in {took:.1} s, none lost", table.events, table.cpus);
    table.stop(&mut qtest).map_err(|failure| failure.text)?;
    passed(session)
}

/// The guest's page of counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) address: u64,
    pub(super) events: usize,
    cpus: usize,
    /// GITS_TRANSLATER: a store of an event's number there is a message.
    pub(super) translater: u64,
}

/// The word that counts unexpected interrupts.
const UNEXPECTED: u64 = 508;
/// The word that is 1 once all vCPUs sleep.
const READY: u64 = 510;
/// The word that makes the guest end.
const STOP: u64 = 511;

impl Table {
    /// `0xADDRESS events=E cpus=N`.
    fn parse(text: &str, translater: u64) -> Option<Self> {
        let mut words = text.split_whitespace();
        let address = u64::from_str_radix(words.next()?.trim_start_matches("0x"), 16).ok()?;
        let events = words.next()?.strip_prefix("events=")?.parse().ok()?;
        let cpus = words.next()?.strip_prefix("cpus=")?.parse().ok()?;
        Some(Self { address, events, cpus, translater })
    }

    pub(super) fn word(self, index: u64) -> u64 {
        self.address + 8 * index
    }

    pub(super) fn stop(self, qtest: &mut Qtest) -> crate::fail::Outcome {
        qtest.write64(self.word(STOP), 1)?;
        qtest.write32(self.translater, 0)
    }
}

/// Sends messages of one to three events at a time, at random times. An event is sent again only after its last message was taken,
/// as two messages of one event may legally become one interrupt.
fn send_messages(qtest: &mut Qtest, table: Table) -> Verdict {
    let say = |failure: crate::fail::Failure| failure.text;
    let ready = Instant::now() + PATIENCE;
    while qtest.read64(table.word(READY)).map_err(say)? != 1 {
        if Instant::now() > ready {
            return Err("the vCPUs did not go to sleep".into());
        }
    }
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut sent = vec![0u64; table.events];
    let mut total = 0;
    while total < MESSAGES {
        for _ in 0..=random.below(3) {
            let event = random.below(table.events as u64) as usize;
            if qtest.read64(table.word(event as u64)).map_err(say)? == sent[event] {
                pause(random.below(200));
                qtest.write32(table.translater, event as u32).map_err(say)?;
                sent[event] += 1;
                total += 1;
            }
        }
        let until = Instant::now() + PATIENCE;
        loop {
            let taken = qtest.read_words(table.address, table.events).map_err(say)?;
            if taken == sent {
                break;
            }
            if let Some(event) = (0..table.events).find(|event| taken[*event] > sent[*event]) {
                return Err(format!("event {event} was taken {} times and sent {} times", taken[event], sent[event]));
            }
            if Instant::now() > until {
                let event = (0..table.events).find(|event| taken[*event] != sent[*event]).unwrap_or(0);
                return Err(format!("after {total} messages, number {} of event {event} was not taken", sent[event]));
            }
        }
        // The vCPU is about to sleep again, which is the critical time.
        pause(random.below(150));
    }
    match qtest.read64(table.word(UNEXPECTED)).map_err(say)? {
        0 => Ok(()),
        unexpected => Err(format!("{unexpected} unexpected interrupts")),
    }
}

/// Spins for some microseconds: a sleep would take far longer.
fn pause(microseconds: u64) {
    let until = Instant::now() + Duration::from_micros(microseconds);
    while Instant::now() < until {
        std::hint::spin_loop();
    }
}

/// The xorshift64* generator, with the same seed in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % limit.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_of_the_counters_is_parsed() {
        let table = Table::parse("0x40a31000 events=16 cpus=4", 0x40).unwrap();
        assert_eq!(table, Table { address: 0x40a3_1000, events: 16, cpus: 4, translater: 0x40 });
        assert_eq!(table.word(STOP), 0x40a3_1ff8);
        assert!(Table::parse("0x40a31000", 0x40).is_none());
    }
}
