//! What each verb does.

mod console;
mod create;
mod life;
mod passthrough;
mod show;
mod streams;
mod terminal;
mod top;

use clap::CommandFactory;

use crate::Session;
use crate::cli::{Cli, CpuVerb, PciVerb, Verb};
use crate::fail::Outcome;
use doorward_api::Request;

/// Carries out a verb.
pub fn run(session: &mut Session, verb: Verb) -> Outcome {
    match verb {
        Verb::List(options) => show::list(session, &options),
        Verb::Create(options) => create::create(session, &options),
        Verb::Start(options) => life::start(session, &options),
        Verb::Pause(one) => life::simple(session, &one, Request::Pause),
        Verb::Unpause(one) => life::simple(session, &one, Request::Unpause),
        Verb::Shutdown(options) => life::shutdown(session, &options),
        Verb::Reset(one) => life::simple(session, &one, Request::Reset),
        Verb::Destroy(one) => life::simple(session, &one, Request::Destroy),
        Verb::Rename(options) => life::rename(session, &options),
        Verb::Console(one) => console::console(session, &one),
        Verb::Top(options) => top::top(session, &options),
        Verb::VcpuList(domains) => show::vcpus(session, &domains.domains),
        Verb::VcpuPin(pin) => life::pin(session, &pin),
        Verb::Set(set) => life::set(session, &set),
        Verb::Pci(pci) => match pci.verb {
            PciVerb::List => show::functions(session),
            PciVerb::Assign { domain, function, allow_no_reset } => {
                passthrough::assign(session, &domain, function, allow_no_reset)
            }
            PciVerb::Release { function } => passthrough::release(session, function),
        },
        Verb::Cpu(cpu) => match cpu.verb {
            CpuVerb::List => show::cpus(session),
            CpuVerb::Offline { cpu } => session.connect()?.run(&Request::CpuOffline(cpu)),
            CpuVerb::Online { cpu } => session.connect()?.run(&Request::CpuOnline(cpu)),
        },
        Verb::Log(log) => streams::log(session, log.follow),
        Verb::Events(events) => streams::events(session, events.count),
        Verb::Info => show::info(session),
        Verb::Counters(counters) => show::counters(session, &counters),
        Verb::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "dw", &mut script);
            session.print(&String::from_utf8_lossy(&script))
        }
        Verb::Man => manual(session),
    }
}

/// One page with all verbs.
fn manual(session: &mut Session) -> Outcome {
    let mut command = Cli::command();
    command.build();
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut page)?;
    let mut open: Vec<_> = command.get_subcommands().collect();
    open.reverse();
    while let Some(verb) = open.pop() {
        if verb.is_hide_set() {
            continue;
        }
        if verb.has_subcommands() {
            let mut below: Vec<_> = verb.get_subcommands().collect();
            below.reverse();
            open.extend(below);
            continue;
        }
        let name = verb.get_bin_name().unwrap_or_else(|| verb.get_name()).to_owned();
        page.extend(format!(".SH \"{}\"\n", name.to_uppercase()).into_bytes());
        // Options of all verbs stand in the page's first part.
        let hidden = ["json", "timeout", "ports", "sysfs", "help"];
        let verb = hidden.iter().fold(verb.clone(), |verb, id| {
            if verb.get_arguments().any(|option| option.get_id() == *id) {
                verb.mut_arg(id, |option| option.hide(true))
            } else {
                verb
            }
        });
        let man = clap_mangen::Man::new(verb);
        man.render_description_section(&mut page)?;
        man.render_synopsis_section(&mut page)?;
        man.render_options_section(&mut page)?;
    }
    session.print(&String::from_utf8_lossy(&page))
}
