//! Interrupt storms. A device that sends MSIs without end: EL2 takes a limited number, another domain on the same CPU keeps its
//! share, and no message is lost. A guest that sends SGIs without end: the others keep their shares, and dom0's I/O is verified.
//!
//! The device is qtest, which stores to GITS_TRANSLATER as fast as QEMU takes it. It belongs to dom0: a small guest that sleeps
//! in between, or Linux, whose disk then shares a vCPU and its rate with the flood. Counts are compared with what the rate allows
//! in the time that has passed by the hypervisor's clock, so the speed of the host does not matter.
//!
//! On a GICv4.1 doorbells are not masked: each rings once for each time that the vCPU blocks, which takes the vCPU's own time.

mod sgis;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::domains::seeded;
use super::guests::{self, PATIENCE};
use crate::domu::{DomU, TreeEdit};
use crate::fail::Outcome;
use crate::qemu::Machine;
use crate::qtest::Qtest;
use crate::session::{Event, NEXT, Session};
use crate::test::{Case, Lab, Verdict};

/// `irq-rate=`: the lowest that EL2 accepts, so that the flood is far above it.
const RATE: u64 = 100;

/// 4 ns of the machine's time for each instruction, whatever the host's time is. On a busy host the machine gets slower and
/// its clock with it, so the flood stays above the rate.
const CLOCK: [&str; 2] = ["-icount", "shift=2,sleep=off"];

/// The number that EL2 accepts at once (`host::rate_limit`).
const BURST: u64 = 32;

/// How long a storm lasts at least, by the hypervisor's clock, in milliseconds.
const DURATION_MS: u64 = 1_000;
/// How many messages it has at least.
const MESSAGES: u64 = 10_000;
/// After each of these the hypervisor is asked for its clock.
const ROUND: Duration = Duration::from_secs(2);

/// Messages sent at once.
const BATCH: u32 = 16;
/// The pause after them, in which QEMU runs its CPU.
const PAUSE: Duration = Duration::from_micros(200);

/// The number of messages must be at least so many times the number allowed.
const EXCESS: u64 = 5;

/// The cases of this topic.
pub fn cases() -> Vec<Case> {
    let case = |name, shows, run| Case { name, shows, bare: false, run };
    vec![
        case("storm-doorbells", "a flood of MSIs: doorbells keep to the rate, another domain keeps its share", |lab| {
            storm(lab, "direct=on", "irq doorbell: ")
        }),
        case("storm-software", "the same with direct=off: LPIs keep to the rate", |lab| {
            storm(lab, "direct=off", "irq lpi: ")
        }),
        case(
            "storm-io",
            "dom0's verified I/O continues during a flood to the same vCPU, and another domain keeps its share",
            |lab| verified(lab, "direct=on", "irq doorbell: "),
        ),
        case("storm-io-software", "the same with direct=off", |lab| verified(lab, "direct=off", "irq lpi: ")),
        case("storm-exits", "a guest that sends SGIs without end, on the one CPU that all vCPUs share", sgis::exits),
    ]
}

/// What precedes the CPU time of a vCPU in milliseconds.
const RAN: &str = "has run ";

/// The number after `label`.
fn after(line: &str, label: &str) -> Option<u64> {
    let digits = line.split_once(label)?.1.trim_start().split(|c: char| !c.is_ascii_digit());
    digits.into_iter().next()?.parse().ok()
}

/// The hypervisor's clock in milliseconds, if the line reports it.
fn clock(line: &str) -> Option<u64> {
    after(line, "in ").filter(|_| line.trim_end().ends_with(" ms:"))
}

/// The hypervisor's counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Account {
    /// Its clock, in milliseconds.
    ms: u64,
    /// Interrupts of the device that EL2 took.
    taken: u64,
    /// How often EL2 masked one.
    masked: u64,
    /// CPU time of the other domain, in milliseconds.
    other_ms: u64,
    /// How often a vPE has left its CPU because its vCPU blocks.
    blocks: u64,
}

impl Account {
    /// Reads a line of the debug keys `x` and `s`. Returns `true` for the last one.
    fn read(&mut self, line: &str, label: &str) -> bool {
        let other = line.contains("dom1 ").then(|| after(line, RAN)).flatten();
        for (value, field) in [
            (after(line, label), &mut self.taken),
            (after(line, "rate limit mask: "), &mut self.masked),
            (after(line, "left to block "), &mut self.blocks),
            (clock(line), &mut self.ms),
            (other, &mut self.other_ms),
        ] {
            *field = value.unwrap_or(*field);
        }
        line.contains("vPE moves: ")
    }
}

/// Reads the counters by debug keys, which have the keyboard.
fn ask(session: &mut Session, label: &str) -> Result<Account, String> {
    session.type_in("xs").map_err(|failure| failure.text)?;
    let mut account = Account::default();
    loop {
        match session.next() {
            Event::Line(line) if account.read(&line, label) => return Ok(account),
            Event::Line(_) => {}
            Event::Ended(end) => return Err(format!("{end:?} while the hypervisor printed its counters")),
        }
    }
}

/// `machine` with one CPU, which dom0's vCPU shares with that of a busy domain, and the socket for the flood.
fn flooded(lab: &Lab, hv: &str, machine: Machine) -> Result<(Machine, PathBuf), String> {
    // The seed of a guest that is busy for ever.
    let busy = DomU { cpus: 1, ..seeded(lab, "guest-ends", 7)? };
    let hv = format!("sched=credit dom0_max_vcpus=1 irq-rate={RATE} {hv}");
    let mut machine = Machine { smp: 1, hv, domus: vec![busy], ..machine };
    let socket = std::env::temp_dir().join(format!("doorward-storm-{}", std::process::id()));
    machine.extra.extend(Qtest::flags(&socket));
    Ok((machine, socket))
}

fn storm(lab: &Lab, hv: &str, label: &str) -> Verdict {
    let (mut machine, socket) = flooded(lab, hv, guests::machine(lab, "guest-wake")?)?;
    machine.extra.extend(CLOCK.map(str::to_owned));
    let mut session = lab.start(&machine, 240)?;
    let verdict = play(&mut session, &socket, &machine, label);
    drop(session);
    let _ = std::fs::remove_file(&socket);
    verdict.map_err(|why| format!("{why} ({})", lab.dir.join("console.log").display()))?;
    lab.complaints()
}

fn play(session: &mut Session, socket: &Path, machine: &Machine, label: &str) -> Verdict {
    let translater = machine.translater();
    let say = |failure: crate::fail::Failure| failure.text;
    let (table, busy) = guests::ready(session, translater, |line| line.contains("(d1) GUEST ENDS never"))?;
    if !busy {
        wait_for(session, "(d1) GUEST ENDS never")?;
    }
    let mut qtest = Qtest::connect(socket).map_err(say)?;
    // Move the keyboard past the other domain to the debug keys.
    session.type_in(&NEXT.repeat(2)).map_err(say)?;
    let before = ask(session, label)?;

    let events = table.events as u32;
    let batch: Vec<u32> = (0..BATCH).map(|n| n % events).collect();
    let mut sent = 0;
    loop {
        let start = Instant::now();
        while start.elapsed() < ROUND {
            qtest.flood(translater, &batch).map_err(say)?;
            sent += u64::from(BATCH);
            std::thread::sleep(PAUSE);
        }
        let so_far = ask(session, label)?;
        if sent >= MESSAGES && so_far.ms >= before.ms + DURATION_MS {
            break;
        }
    }
    let mut seen = Vec::new();
    for event in 0..events {
        seen.push(qtest.read64(table.word(event.into())).map_err(say)?);
        qtest.write32(translater, event).map_err(say)?;
    }
    let after = ask(session, label)?;

    kept(Bound::of(machine), &before, &after, sent, events.into())?;
    let until = Instant::now() + PATIENCE;
    loop {
        let now = qtest.read_words(table.address, table.events).map_err(say)?;
        match now.iter().zip(&seen).position(|(now, seen)| now <= seen) {
            None => break,
            Some(event) if Instant::now() > until => return Err(format!("the last message of event {event} was lost")),
            Some(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
    table.stop(&mut qtest).map_err(say)?;
    guests::passed(session)
}

/// What bounds the interrupts that EL2 takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bound {
    /// `irq-rate=`: what is above it is masked.
    Rate,
    /// One doorbell for each time that the vCPU blocks.
    Blocks,
}

impl Bound {
    /// What bounds doorbells, and with `direct=off` the device's LPIs.
    fn of(machine: &Machine) -> Self {
        if machine.has_gicv41() && !machine.hv.contains("direct=off") { Bound::Blocks } else { Bound::Rate }
    }
}

/// Checks that `sent` messages were a storm, that EL2 took no more than is allowed, and that the other domain had its share.
/// `events` is the number of events that lead to the vCPU.
fn kept(bound: Bound, before: &Account, after: &Account, sent: u64, events: u64) -> Verdict {
    let (ms, taken) = (after.ms - before.ms, after.taken - before.taken);
    let (masked, other) = (after.masked - before.masked, after.other_ms - before.other_ms);
    // One for each event and the doorbell, and two at the ends of the measurement.
    let allowed = match bound {
        Bound::Rate => BURST + RATE * (ms + 1) / 1000 + events + 1 + 2,
        Bound::Blocks => after.blocks - before.blocks + 1,
    };
    println!(
        "   {sent} messages in {ms} ms: {taken} taken, {allowed} allowed, {masked} masks; the other ran {other} ms"
    );
    if sent < EXCESS * allowed {
        return Err(format!("only {sent} messages in {ms} ms"));
    }
    if taken > allowed || (masked == 0) != (bound == Bound::Blocks) {
        return Err(format!("{taken} interrupts taken in {ms} ms, {allowed} allowed, {masked} masks"));
    }
    // Both have the same weight.
    if other < ms * 45 / 100 {
        return Err(format!("the other domain ran {other} of {ms} ms"));
    }
    Ok(())
}

/// A PCIe port of dom0, on bus 0. Its driver takes interrupts and ignores those without a reason.
const PORT: u16 = 0x1e;

/// Its interrupt, the disk's two, and one to spare.
const LINUX_EVENTS: u64 = 4;

/// Rounds of verified I/O during the storm.
const ROUNDS: u32 = 2;

/// Runs Linux with verified I/O on the vCPU that the flood goes to.
fn verified(lab: &Lab, hv: &str, label: &str) -> Verdict {
    let (mut machine, socket) = flooded(lab, hv, lab.linux("until", ""))?;
    machine.edits.push(TreeEdit::Device0(PORT << 3));
    let port = format!("pcie-root-port,bus=pcie.0,addr={PORT:#x},chassis=1,hotplug=off");
    machine.extra.extend(["-device".to_owned(), port]);
    // Linux disables an interrupt that comes 100,000 times without a reason.
    machine.append += " noirqdebug";

    let flood = Flood::new(machine.translater());
    // `sent` is set when the second account is requested.
    let (mut accounts, mut account, mut sent) = (Vec::new(), Account::default(), None);
    let (mut busy, mut rounds) = (false, 0);
    let watched = std::thread::scope(|scope| {
        let watched = lab.watch(&machine, 240, |session, line| {
            busy |= line.contains("(d1) GUEST ENDS never");
            if account.read(line, label) {
                accounts.push(account);
                if accounts.len() == 1 {
                    scope.spawn(|| flood.run(&socket));
                }
            }
            if !line.starts_with("DW-TEST: round ") || !busy {
                return Ok(());
            }
            // The debug keys, past the other domain's console, and back; or the line that ends dom0's test.
            let ask = format!("{}xs{NEXT}", NEXT.repeat(2));
            let keys = match accounts.len() {
                0 => &ask,
                1 => {
                    flood.failed()?;
                    rounds += 1;
                    if rounds <= ROUNDS || flood.sent() < MESSAGES || sent.is_some() {
                        return Ok(());
                    }
                    sent = Some(flood.sent());
                    &ask
                }
                _ => {
                    flood.stop();
                    "\r"
                }
            };
            session.type_in(keys).map_err(|failure| failure.text)
        });
        flood.stop();
        watched
    });
    let _ = std::fs::remove_file(&socket);
    let transcript = watched?;
    lab.judge(&transcript)?;
    let (&[before, after], Some(sent)) = (&accounts[..], sent) else {
        return Err(format!("{} accounts, not 2", accounts.len()));
    };
    let (rounds, port) = (transcript.number("rounds")?, transcript.number("port")?);
    println!("   dom0: {rounds} rounds of verified I/O, and {port} interrupts of the device that floods");
    kept(Bound::of(&machine), &before, &after, sent, LINUX_EVENTS)?;
    if port == 0 { Err("dom0's driver took no interrupt of the flood".into()) } else { Ok(()) }
}

/// A flood from a thread of its own.
struct Flood {
    translater: u64,
    sent: AtomicU64,
    over: AtomicBool,
    failure: OnceLock<String>,
}

impl Flood {
    fn new(translater: u64) -> Self {
        Self { translater, sent: AtomicU64::new(0), over: AtomicBool::new(false), failure: OnceLock::new() }
    }

    fn run(&self, socket: &Path) {
        let flood = || -> Outcome {
            let mut qtest = Qtest::connect(socket)?;
            while !self.over.load(Ordering::Relaxed) {
                qtest.flood(self.translater, &[0; BATCH as usize])?;
                self.sent.fetch_add(BATCH.into(), Ordering::Relaxed);
                std::thread::sleep(PAUSE);
            }
            Ok(())
        };
        if let Err(failure) = flood() {
            // Keep the first failure.
            let _ = self.failure.set(failure.text);
        }
    }

    fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    fn stop(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    fn failed(&self) -> Verdict {
        self.failure.get().map_or(Ok(()), |why| Err(why.clone()))
    }
}

fn wait_for(session: &mut Session, words: &str) -> Verdict {
    loop {
        match session.next() {
            Event::Line(line) if line.contains(words) => return Ok(()),
            Event::Line(_) => {}
            Event::Ended(end) => return Err(format!("{end:?} before `{words}`")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hypervisors_counters_are_parsed() {
        let mut account = Account::default();
        let lines = [
            "in 12345 ms:",
            "             exit irq: 77",
            "              irq lpi: 42",
            "                       cpu0: 41",
            "           rate limit mask: 7",
            "  dom0 vcpu0: weight 256, cap 0, has run 1 ms, last on cpu0, moved 0 times",
            "  dom1 vcpu0: weight 256, cap 0, has run 999 ms, last on cpu0, moved 0 times",
        ];
        assert!(!lines.iter().any(|line| account.read(line, "irq lpi: ")));
        let residency = "  residency: entered 6, left to block 5, left preempted 0; doorbells 2, spurious 0";
        assert!(!account.read(residency, "irq lpi: "));
        assert!(account.read("  vPE moves: 0, VMOVPs: 0", "irq lpi: "));
        assert_eq!(account, Account { ms: 12345, taken: 42, masked: 7, other_ms: 999, blocks: 5 });
    }
}
