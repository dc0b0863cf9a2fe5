//! Tables: domains, vCPUs, CPUs, PCI functions, counters, facts.

use doorward_api::{
    ALL, CounterPage, CountersFrom, CpuPage, CpuState, Domain, DomainState, Info, Kind, PciPage, Request, Scope, Vcpu,
    VcpuPage, VcpuState, VcpusFrom,
};
use serde_json::{Value, json};

use crate::Session;
use crate::cli::{Counters, List};
use crate::client::{Client, DomainInfo, read};
use crate::fail::Outcome;
use crate::text::{self, Align, Table, mib, seconds, shown};

/// The domains with these names or ids, or all.
fn chosen(client: &mut Client, names: &[String]) -> Outcome<Vec<DomainInfo>> {
    if names.is_empty() { client.domains() } else { names.iter().map(|name| client.domain(name)).collect() }
}

/// The state as `xl list` shows it: running, blocked, paused, shut down, crashed, dying.
fn flags(state: DomainState) -> &'static str {
    match state {
        DomainState::Building | DomainState::Built => "------",
        DomainState::Running => "r-----",
        DomainState::Blocked => "-b----",
        DomainState::Paused => "--p---",
        DomainState::Shutdown | DomainState::Restarting => "---s--",
        DomainState::Crashed => "----c-",
        DomainState::Dying => "-----d",
    }
}

pub fn list(session: &mut Session, options: &List) -> Outcome {
    let mut client = session.connect()?;
    let domains = chosen(&mut client, &options.domains)?;
    drop(client);
    if session.json {
        return session.print_pretty(&Value::Array(domains.iter().map(domain_json).collect()));
    }
    let mut columns = vec![
        ("Name", Align::Left, 24),
        ("ID", Align::Right, 5),
        ("Mem", Align::Right, 5),
        ("VCPUs", Align::Right, 5),
        ("State", Align::Left, 10),
        ("Time(s)", Align::Right, 9),
    ];
    if options.verbose {
        columns.extend([
            ("Weight", Align::Right, 0),
            ("Cap", Align::Right, 0),
            ("Direct", Align::Left, 0),
            ("PCI", Align::Right, 0),
            ("Restarts", Align::Right, 0),
            ("Exits", Align::Right, 0),
        ]);
    }
    let mut table = Table::new(&columns);
    for DomainInfo { name, facts } in &domains {
        let state = if options.verbose { facts.state.label() } else { flags(facts.state) };
        let mut row = vec![
            name.clone(),
            facts.id.to_string(),
            mib(facts.memory).to_string(),
            facts.vcpus.to_string(),
            state.to_owned(),
            seconds(facts.cpu_time_ns),
        ];
        if options.verbose {
            row.extend([
                facts.weight.to_string(),
                cap(facts.cap),
                yes(facts.direct).to_owned(),
                facts.functions.to_string(),
                facts.restarts.to_string(),
                facts.exits.to_string(),
            ]);
        }
        table.row(row);
    }
    session.print(&table.text())
}

fn cap(cap: u32) -> String {
    if cap == 0 { "-".to_owned() } else { cap.to_string() }
}

fn yes(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}

/// A number that stands for "none".
fn some(number: u32) -> Value {
    if number == ALL { Value::Null } else { number.into() }
}

pub fn domain_json(domain: &DomainInfo) -> Value {
    let Domain {
        id,
        state,
        vcpus,
        vcpus_on,
        memory,
        memory_images,
        cpu_time_ns,
        age_us,
        exits,
        weight,
        cap,
        direct,
        console,
        on_crash,
        watchdog_s,
        restarts,
        functions,
        name: _,
    } = domain.facts;
    json!({
        "name": domain.name,
        "id": id,
        "state": state.label(),
        "vcpus": vcpus,
        "vcpus_on": vcpus_on,
        "memory": memory,
        "memory_images": memory_images,
        "cpu_time_ns": cpu_time_ns,
        "age_us": age_us,
        "exits": exits,
        "cpu_weight": weight,
        "cap": cap,
        "direct": direct,
        "console": console,
        "on_crash": on_crash.label(),
        "watchdog": watchdog_s,
        "restarts": restarts,
        "pci": functions,
    })
}

/// All vCPUs of a domain.
pub fn vcpus_of(client: &mut Client, domain: u32) -> Outcome<Vec<Vcpu>> {
    let mut all = Vec::new();
    client.pages(|from| Request::Vcpus(VcpusFrom { domain, from }), &mut |body| {
        let page = read::<VcpuPage>(body, Kind::Vcpus)?;
        all.extend(page.vcpus.iter());
        Ok(page.next)
    })?;
    Ok(all)
}

pub fn vcpus(session: &mut Session, names: &[String]) -> Outcome {
    let mut client = session.connect()?;
    let cpus = facts(&mut client, |info| info.cpus)?;
    let mut all = Vec::new();
    for domain in chosen(&mut client, names)? {
        let vcpus = vcpus_of(&mut client, domain.facts.id)?;
        all.extend(vcpus.into_iter().map(|vcpu| (domain.clone(), vcpu)));
    }
    drop(client);
    if session.json {
        let vcpu_json = |(domain, vcpu): &(DomainInfo, Vcpu)| {
            json!({
                "domain": domain.name,
                "id": domain.facts.id,
                "vcpu": vcpu.vcpu,
                "state": vcpu.state.label(),
                "cpu": some(vcpu.cpu),
                "cpu_time_ns": vcpu.cpu_time_ns,
                "exits": vcpu.exits,
                "moves": vcpu.moves,
                "cpu_weight": vcpu.weight,
                "cap": vcpu.cap,
                "direct": vcpu.direct,
                "vwfi": vcpu.vwfi.label(),
                "cpus": text::cpus(&vcpu.affinity, cpus),
            })
        };
        return session.print_pretty(&Value::Array(all.iter().map(vcpu_json).collect()));
    }
    let mut table = Table::new(&[
        ("Name", Align::Left, 24),
        ("ID", Align::Right, 5),
        ("VCPU", Align::Right, 5),
        ("CPU", Align::Right, 5),
        ("State", Align::Left, 5),
        ("Time(s)", Align::Right, 9),
        ("Direct", Align::Left, 0),
        ("Affinity", Align::Left, 0),
    ]);
    for (domain, vcpu) in all {
        table.row(vec![
            domain.name,
            domain.facts.id.to_string(),
            vcpu.vcpu.to_string(),
            if vcpu.cpu == ALL { "-".to_owned() } else { vcpu.cpu.to_string() },
            match vcpu.state {
                VcpuState::Running => "r--",
                VcpuState::Waiting => "---",
                VcpuState::Blocked => "-b-",
                VcpuState::Paused | VcpuState::Off => "--p",
            }
            .to_owned(),
            seconds(vcpu.cpu_time_ns),
            yes(vcpu.direct).to_owned(),
            text::cpus(&vcpu.affinity, cpus),
        ]);
    }
    session.print(&table.text())
}

/// Something of the answer to `info`.
pub fn facts<T>(client: &mut Client, take: impl FnOnce(&Info<'_>) -> T) -> Outcome<T> {
    let body = client.get(&Request::Info)?;
    Ok(take(&read::<Info>(&body, Kind::Info)?))
}

pub fn info(session: &mut Session) -> Outcome {
    let body = session.connect()?.get(&Request::Info)?;
    let info = read::<Info>(&body, Kind::Info)?;
    if session.json {
        return session.print_pretty(&json!({
            "machine": shown(info.machine),
            "uptime_us": info.uptime_us,
            "cpus": info.cpus,
            "cpus_online": info.cpus_online,
            "timer_hz": info.timer_hz,
            "memory": info.memory,
            "memory_free": info.memory_free,
            "heap_free": info.heap_free,
            "memory_quarantined": info.memory_quarantined,
            "domains": info.domains,
            "domains_max": info.domains_max,
            "vcpus": info.vcpus,
            "gic": f64::from(info.gic) / 10.0,
            "itss": info.itss,
            "vpes": info.vpes,
            "vpes_max": info.vpes_max,
            "direct": info.direct,
            "vwfi": info.vwfi.label(),
            "smmus": info.smmus,
            "sched": shown(info.scheduler),
            "cmdline": shown(info.cmdline),
        }));
    }
    let gic = match (info.gic / 10, info.gic % 10) {
        (major, 0) => format!("GICv{major}"),
        (major, minor) => format!("GICv{major}.{minor}"),
    };
    let delivery = if info.direct { "device interrupts go to guests directly" } else { "no direct device interrupts" };
    let vpes =
        if info.vpes_max > 0 { format!(", {} of {} vPEs in use", info.vpes, info.vpes_max) } else { String::new() };
    let lines = [
        ("machine", shown(info.machine)),
        ("uptime", format!("{} s", info.uptime_us / 1_000_000)),
        ("CPUs", format!("{}, {} in service", info.cpus, info.cpus_online)),
        ("timer", format!("{} Hz", info.timer_hz)),
        ("memory", format!("{} MiB", mib(info.memory))),
        ("free for domains", format!("{} MiB", info.memory_free >> 20)),
        ("free heap", text::size(info.heap_free)),
        ("quarantined", text::size(info.memory_quarantined)),
        ("domains", format!("{} of {}, with {} vCPUs", info.domains, info.domains_max, info.vcpus)),
        ("interrupts", format!("{gic} with {} ITSs{vpes}; {delivery}", info.itss)),
        ("SMMUs", info.smmus.to_string()),
        ("scheduler", format!("{}, vwfi={}", shown(info.scheduler), info.vwfi.label())),
        ("command line", shown(info.cmdline)),
    ];
    let line =
        |(what, text): &(&str, String)| format!("{:<18}{}", format!("{what}:"), text).trim_end().to_owned() + "\n";
    session.print(&lines.iter().map(line).collect::<String>())
}

/// A name for a domain's id.
fn owner(domains: &[DomainInfo], id: u32) -> String {
    match domains.iter().find(|domain| domain.facts.id == id) {
        _ if id == ALL => "-".to_owned(),
        Some(domain) => domain.name.clone(),
        None => id.to_string(),
    }
}

pub fn functions(session: &mut Session) -> Outcome {
    let mut client = session.connect()?;
    let domains = client.domains()?;
    let mut table = Table::new(&[
        ("Function", Align::Left, 12),
        ("Domain", Align::Left, 12),
        ("Vendor:Device", Align::Left, 0),
        ("Class", Align::Left, 6),
        ("Can be given away", Align::Left, 0),
    ]);
    let mut values = Vec::new();
    client.pages(Request::PciList, &mut |body| {
        let page = read::<PciPage>(body, Kind::PciList)?;
        for function in page.functions.iter() {
            let can = if function.assignable { "yes".to_owned() } else { format!("no: {}", shown(function.why)) };
            table.row(vec![
                function.sbdf.to_string(),
                owner(&domains, function.domain),
                format!("{:04x}:{:04x}", function.vendor, function.device),
                format!("{:06x}", function.class),
                can,
            ]);
            values.push(json!({
                "function": function.sbdf.to_string(),
                "domain": some(function.domain),
                "vendor": function.vendor,
                "device": function.device,
                "class": function.class,
                "assignable": function.assignable,
                "why": shown(function.why),
            }));
        }
        Ok(page.next)
    })?;
    drop(client);
    if session.json { session.print_pretty(&Value::Array(values)) } else { session.print(&table.text()) }
}

pub fn cpus(session: &mut Session) -> Outcome {
    let mut client = session.connect()?;
    let domains = client.domains()?;
    let mut table = Table::new(&[
        ("CPU", Align::Right, 4),
        ("MPIDR", Align::Left, 10),
        ("State", Align::Left, 7),
        ("Runs", Align::Left, 0),
    ]);
    let mut values = Vec::new();
    client.pages(Request::Cpus, &mut |body| {
        let page = read::<CpuPage>(body, Kind::Cpus)?;
        for cpu in page.cpus.iter() {
            let runs = match (cpu.state, cpu.domain) {
                (CpuState::Online, ALL) => "idle".to_owned(),
                (CpuState::Online, domain) => format!("{} vCPU{}", owner(&domains, domain), cpu.vcpu),
                _ => "-".to_owned(),
            };
            table.row(vec![cpu.cpu.to_string(), format!("{:#x}", cpu.mpidr), cpu.state.label().to_owned(), runs]);
            values.push(json!({
                "cpu": cpu.cpu,
                "mpidr": cpu.mpidr,
                "state": cpu.state.label(),
                "domain": some(cpu.domain),
                "vcpu": some(cpu.vcpu),
            }));
        }
        Ok(page.next)
    })?;
    drop(client);
    if session.json { session.print_pretty(&Value::Array(values)) } else { session.print(&table.text()) }
}

/// All counters of a scope, and when they were read in microseconds.
pub fn counters_of(client: &mut Client, scope: Scope, id: u32) -> Outcome<(u64, Vec<(String, u64)>)> {
    let (mut all, mut time) = (Vec::new(), 0);
    client.pages(|from| Request::Counters(CountersFrom { scope, id, from }), &mut |body| {
        let page = read::<CounterPage>(body, Kind::Counters)?;
        time = page.time_us;
        all.extend(page.counters.iter().map(|counter| (shown(counter.name), counter.value)));
        Ok(page.next)
    })?;
    Ok((time, all))
}

pub fn counters(session: &mut Session, options: &Counters) -> Outcome {
    let mut client = session.connect()?;
    let (scope, id) = match (&options.domain, options.cpu) {
        (Some(domain), _) => (Scope::Domain, client.domain(domain)?.facts.id),
        (None, Some(cpu)) => (Scope::Cpu, cpu),
        (None, None) => (Scope::Machine, 0),
    };
    let (_, counters) = counters_of(&mut client, scope, id)?;
    drop(client);
    let counters = counters.into_iter().filter(|(_, value)| options.all || *value > 0);
    if session.json {
        return session.print_pretty(&Value::Object(counters.map(|(name, value)| (name, value.into())).collect()));
    }
    let mut table = Table::new(&[("Counter", Align::Left, 24), ("Count", Align::Right, 12)]);
    counters.for_each(|(name, value)| table.row(vec![name, value.to_string()]));
    session.print(&table.text())
}
