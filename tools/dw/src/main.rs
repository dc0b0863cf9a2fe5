//! `dw`: manages a Doorward machine from dom0.
//!
//! | file | contents |
//! |---|---|
//! | `cli` | the command line |
//! | `config` | files that describe a domain |
//! | `port` | ports of the virtio console: open, read, write, each with a deadline |
//! | `client` | requests and answers over the control port |
//! | `verbs` | what each verb does |
//! | `text` | tables, sizes; what may not reach a terminal |
//! | `fail` | errors and exit codes |
//!
//! The control port can be open once at a time. So it is open only while there is something to ask: `top` and `log -f` open
//! it for each view, and others get their turn in between.

mod cli;
mod client;
mod config;
mod fail;
mod port;
mod text;
mod verbs;

use std::io::{StdoutLock, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use crate::cli::Cli;
use crate::client::Client;
use crate::fail::Outcome;
use crate::port::Ports;

/// What all verbs need.
pub struct Session {
    ports: Ports,
    sysfs: PathBuf,
    patience: Duration,
    json: bool,
    out: StdoutLock<'static>,
}

impl Session {
    fn connect(&self) -> Outcome<Client> {
        Client::connect(&self.ports, self.patience)
    }

    /// Prints a text that ends with a line feed.
    fn print(&mut self, text: &str) -> Outcome {
        self.out.write_all(text.as_bytes())?;
        Ok(self.out.flush()?)
    }

    /// Prints JSON on one line.
    fn print_json(&mut self, value: &serde_json::Value) -> Outcome {
        self.print(&format!("{value}\n"))
    }

    /// Prints JSON for people who look at it.
    fn print_pretty(&mut self, value: &serde_json::Value) -> Outcome {
        self.print(&format!("{value:#}\n"))
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut session = Session {
        ports: Ports { folder: cli.ports },
        sysfs: cli.sysfs,
        patience: cli.timeout,
        json: cli.json,
        out: std::io::stdout().lock(),
    };
    match verbs::run(&mut session, cli.verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
