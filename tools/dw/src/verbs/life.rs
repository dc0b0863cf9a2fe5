//! Starting, stopping, ending and changing domains that exist.

use std::time::{Duration, Instant};

use doorward_api::{ALL, Kind, Name, Request, Set as SetRequest, Setting, Start as StartRequest, Status, Watchdog};

use crate::Session;
use crate::cli::{One, Pin, Rename, Set, Shutdown, Start};
use crate::client::Client;
use crate::fail::{Class, Failure, Outcome};

/// How often to look whether a domain is gone.
const LOOK: Duration = Duration::from_millis(200);

/// A request about one domain and nothing else.
pub fn simple(session: &mut Session, one: &One, request: fn(u32) -> Request<'static>) -> Outcome {
    let mut client = session.connect()?;
    let domain = client.domain(&one.domain)?;
    client.run(&request(domain.facts.id))
}

pub fn start(session: &mut Session, options: &Start) -> Outcome {
    let mut client = session.connect()?;
    let domain = client.domain(&options.domain)?.facts.id;
    client.run(&Request::Start(StartRequest { domain, paused: options.paused }))
}

pub fn rename(session: &mut Session, options: &Rename) -> Outcome {
    let mut client = session.connect()?;
    let domain = client.domain(&options.domain)?.facts.id;
    let name = Name::new(&options.name).map_err(Failure::usage)?;
    client.run(&Request::Set(SetRequest { domain, vcpu: ALL, setting: Setting::Name(name) }))
}

pub fn pin(session: &mut Session, pin: &Pin) -> Outcome {
    let mut client = session.connect()?;
    let domain = client.domain(&pin.domain)?.facts.id;
    client.run(&Request::Set(SetRequest { domain, vcpu: pin.vcpu, setting: Setting::Affinity(pin.cpus) }))
}

pub fn set(session: &mut Session, options: &Set) -> Outcome {
    let mut client = session.connect()?;
    let domain = client.domain(&options.domain)?.facts.id;
    let settings = [
        options.weight.map(Setting::Weight),
        options.cap.map(Setting::Cap),
        options.cpus.map(Setting::Affinity),
        options.vwfi.map(Setting::Vwfi),
        options.direct.map(Setting::Direct),
        options.on_crash.map(Setting::OnCrash),
    ];
    for setting in settings.into_iter().flatten() {
        client.run(&Request::Set(SetRequest { domain, vcpu: options.vcpu.unwrap_or(ALL), setting }))?;
    }
    match options.watchdog {
        Some(seconds) => client.run(&Request::Watchdog(Watchdog { domain, seconds })),
        None => Ok(()),
    }
}

pub fn shutdown(session: &mut Session, options: &Shutdown) -> Outcome {
    let mut client = session.connect()?;
    let domains = match &options.domain {
        Some(text) => vec![client.domain(text)?],
        None => client.domains()?.into_iter().filter(|domain| domain.facts.id != 0).collect(),
    };
    let mut first = None;
    let mut asked = Vec::new();
    // With --all, one that cannot be asked does not keep the others.
    for domain in domains {
        match client.ask(&Request::Shutdown(domain.facts.id))? {
            Ok(_) => asked.push((domain.facts.id, domain.name)),
            // It has ended by itself meanwhile.
            Err(refusal) if options.all && refusal.status == Status::NoSuchDomain => {}
            Err(refusal) => {
                let failure = refusal.failure(Kind::Shutdown);
                let failure = Failure { text: format!("{}: {}", domain.name, failure.text), ..failure };
                first =
                    first.or(Some(failure.hint(format_args!("`dw destroy {}` ends it without asking", domain.name))));
            }
        }
    }
    drop(client);
    if let Some(seconds) = options.wait {
        wait_until_gone(session, asked, Instant::now() + Duration::from_secs(seconds.into()))?;
    }
    first.map_or(Ok(()), Err)
}

/// Waits until none of these domains is there any more.
fn wait_until_gone(session: &mut Session, mut domains: Vec<(u32, String)>, deadline: Instant) -> Outcome {
    loop {
        let there = {
            let mut client: Client = session.connect()?;
            client.domains()?.into_iter().map(|domain| domain.facts.id).collect::<Vec<_>>()
        };
        domains.retain(|(id, _)| there.contains(id));
        let Some((_, name)) = domains.first() else { return Ok(()) };
        if Instant::now() >= deadline {
            return Err(Failure::new(Class::NoAnswer, format_args!("{name} has not powered itself off yet"))
                .hint(format_args!("`dw destroy {name}` ends it at once")));
        }
        std::thread::sleep(LOOK);
    }
}
