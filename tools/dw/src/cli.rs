//! The command line.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Parser, Subcommand};
use clap_complete::Shell;
use doorward_api::{CpuSet, OnCrash, Sbdf, Vwfi};

use crate::config::{self, Given};
use crate::text;

/// Manage a Doorward machine from dom0
#[derive(Parser)]
#[command(
    name = "dw",
    version,
    max_term_width = 100,
    disable_help_subcommand = true,
    after_help = "A DOMAIN is a name or an id, as `dw list` shows them.\n\n\
Exit codes: 0 done, 1 the hypervisor refused, 2 the command line or a file is wrong, 3 there is no way to the hypervisor, \
4 the hypervisor did not answer, 5 something of dom0 failed."
)]
pub struct Cli {
    /// Print JSON: one object, one array, or one object a line for what goes on
    #[arg(long, global = true)]
    pub json: bool,
    /// How long an answer may take; twelve times as long where memory is cleared or a guest has to end
    #[arg(long, global = true, value_name = "SECONDS", default_value = "10", value_parser = patience)]
    pub timeout: std::time::Duration,
    /// Where the ports are; without it, and without udev, they are looked up in /sys
    #[arg(long, global = true, value_name = "FOLDER", env = "DW_PORTS", default_value = "/dev/virtio-ports")]
    pub ports: PathBuf,
    /// Where sysfs is
    #[arg(long, global = true, hide = true, env = "DW_SYSFS", default_value = "/sys")]
    pub sysfs: PathBuf,
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Subcommand)]
pub enum Verb {
    /// List domains
    List(List),
    /// Create a domain and start it
    Create(Create),
    /// Start a domain that was created with --no-start
    Start(Start),
    /// Stop the vCPUs of a domain until `unpause`
    Pause(One),
    /// End a pause
    Unpause(One),
    /// Ask a domain to power itself off
    Shutdown(Shutdown),
    /// Make a domain anew from its kernel, as after a reset
    #[command(visible_alias = "reboot")]
    Reset(One),
    /// End a domain at once
    Destroy(One),
    /// Give a domain another name
    Rename(Rename),
    /// Connect this terminal to the console of a domain; Ctrl-] leaves
    Console(One),
    /// Show what domains do, live; q ends it
    Top(Top),
    /// List vCPUs
    VcpuList(Some1),
    /// Set on which CPUs a vCPU may run
    VcpuPin(Pin),
    /// Change settings of a domain or of one of its vCPUs
    Set(Set),
    /// PCI functions: list them, give them to domains, take them back
    Pci(Pci),
    /// Physical CPUs: list them, take them out of service and back
    Cpu(Cpu),
    /// Print the hypervisor's log
    #[command(visible_alias = "dmesg")]
    Log(Log),
    /// Print what happens to domains, as it happens
    Events(Events),
    /// Print facts about the machine and what is free
    Info,
    /// Print counters
    Counters(Counters),
    /// Print the script that completes command lines in a shell
    #[command(hide = true)]
    Completion {
        /// The shell
        shell: Shell,
    },
    /// Print the manual page
    #[command(hide = true)]
    Man,
}

#[derive(Args)]
pub struct One {
    /// The domain
    pub domain: String,
}

#[derive(Args)]
pub struct Some1 {
    /// The domains; all if none is given
    pub domains: Vec<String>,
}

#[derive(Args)]
pub struct List {
    /// The domains; all if none is given
    pub domains: Vec<String>,
    /// More columns
    #[arg(short, long)]
    pub verbose: bool,
}

#[derive(Args)]
pub struct Create {
    /// A file with the keys below (TOML); options come before what it says
    pub file: Option<PathBuf>,
    /// The name
    #[arg(long, value_parser = config::check_name)]
    pub name: Option<String>,
    /// The number of vCPUs [default: 1]
    #[arg(long, value_name = "N", value_parser = vcpus)]
    pub vcpus: Option<u32>,
    /// Memory in MiB, or with K, M or G; rounded up to 2 MiB
    #[arg(long, value_name = "SIZE", value_parser = memory)]
    pub memory: Option<u64>,
    /// The kernel: an uncompressed arm64 Image
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// The initramfs
    #[arg(long, value_name = "FILE")]
    pub ramdisk: Option<PathBuf>,
    /// The kernel's command line
    #[arg(long, value_name = "WORDS", allow_hyphen_values = true, value_parser = config::check_cmdline)]
    pub cmdline: Option<String>,
    /// The scheduler's weight for each vCPU, 1 to 65535 [default: 256]
    #[arg(long, value_name = "N", value_parser = weight)]
    pub cpu_weight: Option<u32>,
    /// The most CPU time of each vCPU in percent of a CPU; 0 for no limit
    #[arg(long, value_name = "PERCENT")]
    pub cap: Option<u32>,
    /// The CPUs on which it may run, such as 0-3,5
    #[arg(long, value_name = "CPUS", value_parser = text::parse_cpus)]
    pub cpus: Option<CpuSet>,
    /// What its WFI and WFE do: auto, native or trap
    #[arg(long, value_parser = vwfi)]
    pub vwfi: Option<Vwfi>,
    /// Whether device interrupts go to it directly [default: true]
    #[arg(long, value_name = "BOOL")]
    pub direct: Option<bool>,
    /// What happens if it crashes: destroy, restart or preserve [default: destroy]
    #[arg(long, value_parser = on_crash)]
    pub on_crash: Option<OnCrash>,
    /// Handle it as crashed after so many seconds without a timer interrupt
    #[arg(long, value_name = "SECONDS")]
    pub watchdog: Option<u32>,
    /// A PCI function that it gets, such as 0000:01:00.0; may be given more than once
    #[arg(long, value_name = "FUNCTION", value_parser = config::check_pci)]
    pub pci: Vec<Sbdf>,
    /// It may get functions that cannot be reset
    #[arg(long)]
    pub pci_allow_no_reset: bool,
    /// Start it paused
    #[arg(short, long, conflicts_with = "no_start")]
    pub paused: bool,
    /// Build it, and leave the start to `dw start`
    #[arg(long)]
    pub no_start: bool,
    /// Connect to its console at once
    #[arg(short = 'c', long, conflicts_with_all = ["no_start", "json"])]
    pub console: bool,
    /// Check the file and the options, and create nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    /// Show no progress
    #[arg(short, long)]
    pub quiet: bool,
}

impl Create {
    pub fn given(&self) -> Given {
        Given {
            name: self.name.clone(),
            vcpus: self.vcpus,
            memory: self.memory,
            kernel: self.kernel.clone(),
            ramdisk: self.ramdisk.clone(),
            cmdline: self.cmdline.clone(),
            weight: self.cpu_weight,
            cap: self.cap,
            cpus: self.cpus,
            vwfi: self.vwfi,
            direct: self.direct,
            console: None,
            on_crash: self.on_crash,
            watchdog_s: self.watchdog,
            pci: Some(self.pci.clone()).filter(|pci| !pci.is_empty()),
            pci_allow_no_reset: self.pci_allow_no_reset.then_some(true),
        }
    }
}

#[derive(Args)]
pub struct Start {
    /// The domain
    pub domain: String,
    /// Start it paused
    #[arg(short, long)]
    pub paused: bool,
}

#[derive(Args)]
pub struct Shutdown {
    /// The domain
    #[arg(required_unless_present = "all")]
    pub domain: Option<String>,
    /// All domains but dom0
    #[arg(short, long, conflicts_with = "domain")]
    pub all: bool,
    /// Wait until it is gone
    #[arg(short, long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "60")]
    pub wait: Option<u32>,
}

#[derive(Args)]
pub struct Rename {
    /// The domain
    pub domain: String,
    /// Its new name
    #[arg(value_parser = config::check_name)]
    pub name: String,
}

#[derive(Args)]
pub struct Top {
    /// Seconds between two views
    #[arg(short, long, value_name = "SECONDS", default_value = "2", value_parser = patience)]
    pub delay: std::time::Duration,
    /// End after so many views
    #[arg(short = 'n', long, value_name = "N")]
    pub iterations: Option<u32>,
    /// Print one view after the other, for files and pipes
    #[arg(short, long)]
    pub batch: bool,
    /// Show each vCPU
    #[arg(short, long)]
    pub vcpus: bool,
}

#[derive(Args)]
pub struct Pin {
    /// The domain
    pub domain: String,
    /// The vCPU, or `all`
    #[arg(value_parser = vcpu)]
    pub vcpu: u32,
    /// CPUs, such as 0-3,5, or `all`
    #[arg(value_parser = text::parse_cpus)]
    pub cpus: CpuSet,
}

/// The options of `set` of which at least one is needed.
const SETTINGS: [&str; 7] = ["weight", "cap", "cpus", "vwfi", "direct", "on_crash", "watchdog"];

#[derive(Args)]
#[command(group(ArgGroup::new("settings").required(true).multiple(true).args(SETTINGS)))]
pub struct Set {
    /// The domain
    pub domain: String,
    /// One vCPU only
    #[arg(long, value_name = "N", conflicts_with_all = ["on_crash", "watchdog"])]
    pub vcpu: Option<u32>,
    /// The scheduler's weight for each vCPU, 1 to 65535
    #[arg(long, value_name = "N", value_parser = weight)]
    pub weight: Option<u32>,
    /// The most CPU time of each vCPU in percent of a CPU; 0 for no limit
    #[arg(long, value_name = "PERCENT")]
    pub cap: Option<u32>,
    /// The CPUs on which it may run, such as 0-3,5, or `all`
    #[arg(long, value_parser = text::parse_cpus)]
    pub cpus: Option<CpuSet>,
    /// What its WFI and WFE do: auto, native or trap
    #[arg(long, value_parser = vwfi)]
    pub vwfi: Option<Vwfi>,
    /// Whether device interrupts go to it directly
    #[arg(long, value_name = "BOOL")]
    pub direct: Option<bool>,
    /// What happens if it crashes: destroy, restart or preserve
    #[arg(long, value_parser = on_crash)]
    pub on_crash: Option<OnCrash>,
    /// Handle it as crashed after so many seconds without a timer interrupt; 0 for never
    #[arg(long, value_name = "SECONDS")]
    pub watchdog: Option<u32>,
}

#[derive(Args)]
pub struct Pci {
    #[command(subcommand)]
    pub verb: PciVerb,
}

#[derive(Subcommand)]
pub enum PciVerb {
    /// List PCI functions, who has them, and why some cannot be given to domains
    List,
    /// Give a function to a domain; dom0's driver is unbound from it first
    #[command(visible_alias = "attach")]
    Assign {
        /// The domain
        domain: String,
        /// The function, such as 0000:01:00.0
        #[arg(value_parser = config::check_pci)]
        function: Sbdf,
        /// Also if the function cannot be reset
        #[arg(long)]
        allow_no_reset: bool,
    },
    /// Take a function back to dom0, whose driver is bound to it again
    #[command(visible_alias = "detach")]
    Release {
        /// The function, such as 0000:01:00.0
        #[arg(value_parser = config::check_pci)]
        function: Sbdf,
    },
}

#[derive(Args)]
pub struct Cpu {
    #[command(subcommand)]
    pub verb: CpuVerb,
}

#[derive(Subcommand)]
pub enum CpuVerb {
    /// List CPUs and what they run
    List,
    /// Take a CPU out of service
    Offline {
        /// The CPU
        cpu: u32,
    },
    /// Take a CPU back into service
    Online {
        /// The CPU
        cpu: u32,
    },
}

#[derive(Args)]
pub struct Log {
    /// Go on with what is logged from now on
    #[arg(short, long)]
    pub follow: bool,
}

#[derive(Args)]
pub struct Events {
    /// End after so many events
    #[arg(short = 'n', long, value_name = "N")]
    pub count: Option<u32>,
}

#[derive(Args)]
pub struct Counters {
    /// Those of a domain
    #[arg(long, conflicts_with = "cpu")]
    pub domain: Option<String>,
    /// Those of a CPU
    #[arg(long, value_name = "N")]
    pub cpu: Option<u32>,
    /// Also those that are zero
    #[arg(short, long)]
    pub all: bool,
}

/// Seconds, at least a tenth and at most a day.
fn patience(text: &str) -> Result<std::time::Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "this is no number of seconds".to_owned())?;
    if (0.1..=86400.0).contains(&seconds) {
        Ok(std::time::Duration::from_secs_f64(seconds))
    } else {
        Err("this is 0.1 to 86400 seconds".to_owned())
    }
}

fn number(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| "this is no number".to_owned())
}

fn vcpus(text: &str) -> Result<u32, String> {
    config::check_vcpus(number(text)?)
}

fn weight(text: &str) -> Result<u32, String> {
    config::check_weight(number(text)?)
}

fn vcpu(text: &str) -> Result<u32, String> {
    if text == "all" { Ok(doorward_api::ALL) } else { number(text) }
}

fn memory(text: &str) -> Result<u64, String> {
    let size = text::parse_size(text).ok_or("this is no size, such as 512M or 2G")?;
    config::check_memory(size)
}

fn vwfi(text: &str) -> Result<Vwfi, String> {
    config::word(Vwfi::EVERY, Vwfi::label, text)
}

fn on_crash(text: &str) -> Result<OnCrash, String> {
    config::word(OnCrash::EVERY, OnCrash::label, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
