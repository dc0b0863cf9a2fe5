//! `top`: what domains do, again and again.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use doorward_api::{ALL, Scope, Vcpu};
use serde_json::{Value, json};

use super::show::{counters_of, facts, vcpus_of};
use super::terminal::{self, Output, Terminal};
use crate::Session;
use crate::cli::Top;
use crate::client::DomainInfo;
use crate::fail::{Class, Outcome};
use crate::port::wait_any;
use crate::text::{Align, Table, mib};

/// The state at one moment.
struct Sample {
    /// Microseconds since the machine was started.
    time_us: u64,
    cpus_online: u32,
    memory_free: u64,
    domains: Vec<(DomainInfo, Vec<Vcpu>)>,
    counters: Vec<(String, u64)>,
}

pub fn top(session: &mut Session, options: &Top) -> Outcome {
    let live = !options.batch && !session.json && std::io::stdout().is_terminal();
    let terminal = if live { Terminal::set(Output::Lines)? } else { None };
    let mut before = sample(session)?;
    let mut views = 0;
    // The first view needs two samples; it should not take long.
    let mut pause = options.delay.min(Duration::from_millis(500));
    while options.iterations.is_none_or(|most| views < most) {
        if waits_for_key(pause, terminal.as_ref())? {
            break;
        }
        pause = options.delay;
        let now = sample(session)?;
        let rates = Rates { us: now.time_us.saturating_sub(before.time_us).max(1) };
        if session.json {
            let value = as_json(&before, &now, &rates);
            session.print_json(&value)?;
        } else {
            let text = view(&before, &now, &rates, options.vcpus);
            if live {
                let lines = terminal::height().unwrap_or(usize::MAX).saturating_sub(1);
                let text: String = text.lines().take(lines).map(|line| format!("{line}\x1b[K\n")).collect();
                session.print(&format!("\x1b[H{text}\x1b[J"))?;
            } else {
                let gap = if views > 0 { "\n" } else { "" };
                session.print(&format!("{gap}{text}"))?;
            }
        }
        before = now;
        views += 1;
    }
    Ok(())
}

/// Waits, and returns whether a key was typed meanwhile that ends the program.
fn waits_for_key(pause: Duration, terminal: Option<&Terminal>) -> Outcome<bool> {
    let Some(terminal) = terminal else {
        std::thread::sleep(pause);
        return Ok(false);
    };
    let (stdin, deadline) = (std::io::stdin(), Instant::now() + pause);
    let mut keys = [0; 64];
    loop {
        let mut fds = [terminal::keyboard(&stdin), terminal.signals()];
        if !wait_any(&mut fds, Some(deadline))? {
            return Ok(false);
        }
        if !fds[1].revents().is_empty() {
            return Err(terminal::ended());
        }
        let count = terminal::typed(&mut keys)?;
        // Ctrl-C and Escape, too.
        if count == 0 || keys.iter().take(count).any(|key| b"qQ\x03\x1b".contains(key)) {
            return Ok(true);
        }
    }
}

fn sample(session: &Session) -> Outcome<Sample> {
    let mut client = session.connect()?;
    let (uptime_us, cpus_online, memory_free) =
        facts(&mut client, |info| (info.uptime_us, info.cpus_online, info.memory_free))?;
    // A hypervisor without counters has domains all the same.
    let counters = match counters_of(&mut client, Scope::Machine, 0) {
        Err(failure) if failure.class == Class::Refused => None,
        other => Some(other?),
    };
    let mut domains = Vec::new();
    for domain in client.domains()? {
        match vcpus_of(&mut client, domain.facts.id) {
            Ok(vcpus) => domains.push((domain, vcpus)),
            // It has ended between the two requests.
            Err(failure) if failure.class == Class::Refused => {}
            Err(failure) => return Err(failure),
        }
    }
    let (time_us, counters) = counters.unwrap_or_default();
    // Rates are from the clock of what they are about.
    Ok(Sample { time_us: time_us.max(uptime_us), cpus_online, memory_free, domains, counters })
}

/// How much grew in how long.
struct Rates {
    us: u64,
}

impl Rates {
    fn per_second(&self, before: Option<u64>, now: u64) -> u64 {
        before.map_or(0, |before| now.saturating_sub(before).saturating_mul(1_000_000) / self.us)
    }

    /// Nanoseconds of CPU time as percent of a CPU, in tenths.
    fn percent(&self, before: Option<u64>, now: u64) -> u64 {
        before.map_or(0, |before| now.saturating_sub(before) / self.us)
    }
}

fn tenths(value: u64) -> String {
    format!("{}.{}", value / 10, value % 10)
}

/// The domain of a sample, by id.
fn find(sample: &Sample, id: u32) -> Option<&(DomainInfo, Vec<Vcpu>)> {
    sample.domains.iter().find(|(domain, _)| domain.facts.id == id)
}

/// The counters that have changed, with how much in a second.
fn changes<'a>(before: &Sample, now: &'a Sample, rates: &Rates) -> Vec<(&'a str, u64)> {
    let old: HashMap<&str, u64> = before.counters.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    let all = now.counters.iter().map(|(name, value)| (name.as_str(), *value));
    let changed = all.filter(|(name, value)| old.get(name).is_some_and(|old| old != value));
    changed.map(|(name, value)| (name, rates.per_second(old.get(name).copied(), value))).collect()
}

fn view(before: &Sample, now: &Sample, rates: &Rates, with_vcpus: bool) -> String {
    let seconds = now.time_us / 1_000_000;
    let mut text = format!(
        "dw top: up {}:{:02}:{:02}, {} domains, {} CPUs in service, {} MiB free\n\n",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60,
        now.domains.len(),
        now.cpus_online,
        now.memory_free >> 20
    );
    let mut table = Table::new(&[
        ("Name", Align::Left, 24),
        ("ID", Align::Right, 5),
        ("State", Align::Left, 10),
        ("CPU(%)", Align::Right, 7),
        ("Mem", Align::Right, 6),
        ("VCPUs", Align::Right, 5),
        ("CPU", Align::Right, 4),
        ("Exits/s", Align::Right, 9),
        ("Moves/s", Align::Right, 8),
    ]);
    for (domain, vcpus) in &now.domains {
        let facts = &domain.facts;
        let old = find(before, facts.id);
        let old_vcpu = |number: u32| old.and_then(|(_, vcpus)| vcpus.iter().find(|vcpu| vcpu.vcpu == number));
        let moves = |vcpu: &Vcpu| rates.per_second(old_vcpu(vcpu.vcpu).map(|old| old.moves), vcpu.moves);
        table.row(vec![
            domain.name.clone(),
            facts.id.to_string(),
            facts.state.label().to_owned(),
            tenths(rates.percent(old.map(|(old, _)| old.facts.cpu_time_ns), facts.cpu_time_ns)),
            mib(facts.memory).to_string(),
            facts.vcpus.to_string(),
            String::new(),
            rates.per_second(old.map(|(old, _)| old.facts.exits), facts.exits).to_string(),
            vcpus.iter().map(moves).sum::<u64>().to_string(),
        ]);
        for vcpu in vcpus.iter().filter(|_| with_vcpus) {
            let old = old_vcpu(vcpu.vcpu);
            table.row(vec![
                format!("  vCPU{}", vcpu.vcpu),
                String::new(),
                vcpu.state.label().to_owned(),
                tenths(rates.percent(old.map(|old| old.cpu_time_ns), vcpu.cpu_time_ns)),
                String::new(),
                String::new(),
                if vcpu.cpu == ALL { "-".to_owned() } else { vcpu.cpu.to_string() },
                rates.per_second(old.map(|old| old.exits), vcpu.exits).to_string(),
                moves(vcpu).to_string(),
            ]);
        }
    }
    text += &table.text();
    let changes = changes(before, now, rates);
    if !changes.is_empty() {
        let mut table = Table::new(&[("Counter", Align::Left, 24), ("per second", Align::Right, 12)]);
        changes.iter().for_each(|(name, rate)| table.row(vec![(*name).to_owned(), rate.to_string()]));
        text.push('\n');
        text += &table.text();
    }
    text
}

fn as_json(before: &Sample, now: &Sample, rates: &Rates) -> Value {
    let domains = now.domains.iter().map(|(domain, vcpus)| {
        let old = find(before, domain.facts.id);
        let vcpus = vcpus.iter().map(|vcpu| {
            let old = old.and_then(|(_, vcpus)| vcpus.iter().find(|old| old.vcpu == vcpu.vcpu));
            json!({
                "vcpu": vcpu.vcpu,
                "state": vcpu.state.label(),
                "cpu": if vcpu.cpu == ALL { Value::Null } else { vcpu.cpu.into() },
                "cpu_percent": rates.percent(old.map(|old| old.cpu_time_ns), vcpu.cpu_time_ns) as f64 / 10.0,
                "exits_per_s": rates.per_second(old.map(|old| old.exits), vcpu.exits),
                "moves_per_s": rates.per_second(old.map(|old| old.moves), vcpu.moves),
            })
        });
        json!({
            "name": domain.name,
            "id": domain.facts.id,
            "state": domain.facts.state.label(),
            "memory": domain.facts.memory,
            "cpu_percent":
                rates.percent(old.map(|(old, _)| old.facts.cpu_time_ns), domain.facts.cpu_time_ns) as f64 / 10.0,
            "exits_per_s": rates.per_second(old.map(|(old, _)| old.facts.exits), domain.facts.exits),
            "vcpus": vcpus.collect::<Vec<_>>(),
        })
    });
    let counters = changes(before, now, rates).into_iter().map(|(name, rate)| (name.to_owned(), rate.into()));
    json!({
        "time_us": now.time_us,
        "interval_us": rates.us,
        "cpus_online": now.cpus_online,
        "memory_free": now.memory_free,
        "domains": domains.collect::<Vec<_>>(),
        "counters_per_s": Value::Object(counters.collect()),
    })
}
