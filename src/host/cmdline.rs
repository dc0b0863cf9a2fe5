//! The hypervisor's command line.
//!
//! Options are separated by blanks; their names are Xen's where Xen has one. Unknown options are logged and ignored, so
//! that a boot entry written for a later version still boots. An invalid value aborts the boot with an error message: a
//! machine that silently runs with a setting other than the requested one is worse than one that does not start.
//! docs/cmdline.md lists all options.

use crate::arch::speculation::{Ssbd, Wanted};
use crate::util::values::{boolean, size};
use core::fmt;
pub use doorward_api::{OnCrash, Vwfi};

/// Names the PCI functions that dom0 does not see; parsed by `build::pci_hide`.
pub const DOM0_PCI_HIDE: &str = "dom0_pci_hide";

/// The scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sched {
    /// Each vCPU has a CPU of its own.
    Null,
    /// vCPUs share CPUs by weight and cap.
    Credit,
}

/// How device interrupts reach a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direct {
    /// As vLPIs, where the GIC supports them.
    On,
    /// As physical LPIs that EL2 acknowledges and injects by list register.
    Off,
}

/// How a machine that ACPI describes is described to dom0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dom0Acpi {
    /// By ACPI tables made for dom0, with the machine's AML.
    On,
    /// By a device tree made for dom0.
    Off,
}

/// What happens after a fatal error or a panic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnPanic {
    /// All CPUs stop; the message stays on the console.
    Park,
    /// The machine is powered off.
    Off,
}

/// The longest delay before a restart, in milliseconds, unless `restart-delay=` gives another.
const RESTART_DELAY_MS: u32 = 5_000;

/// The parsed command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// `direct=on|off`.
    pub direct: Direct,
    /// `iommu=BOOLEAN`: whether the SMMUs limit what devices reach; if not, they are set to bypass.
    pub iommu: bool,
    /// `vwfi=native|trap|auto`.
    pub vwfi: Vwfi,
    /// `sched=null|credit`.
    pub sched: Sched,
    /// `sched_credit_tslice_ms=N`: the time slice in milliseconds, 1 to 1000.
    pub tslice_ms: u32,
    /// `sched-torture=Nms`: a test option; every N milliseconds (1 to 1000) a vCPU is moved to a random CPU.
    pub torture_ms: Option<u32>,
    /// `irq-rate=N`: device interrupts that EL2 takes for one vCPU in a second, 100 to 10,000,000.
    pub irq_rate: u32,
    /// `onpanic=park|off`.
    pub on_panic: OnPanic,
    /// `on-crash=destroy|restart|preserve`.
    pub on_crash: OnCrash,
    /// `restart-delay=N`: the longest delay before a domU that ends over and over is restarted, in milliseconds, 0 to
    /// 60,000.
    pub restart_delay_ms: u32,
    /// `dom0_mem=SIZE`: dom0's memory in bytes, 32 MiB or more; all free memory by default.
    pub dom0_mem: Option<u64>,
    /// `domu_mem=SIZE`: RAM in bytes that is set aside for domains created at run time.
    pub domu_mem: u64,
    /// `dom0_max_vcpus=N`: dom0's vCPUs, 1 or more; one for each CPU by default.
    pub dom0_max_vcpus: Option<u16>,
    /// `dom0_acpi=on|off`; without effect on a machine that a device tree describes.
    pub dom0_acpi: Dom0Acpi,
    /// `dom0_control=on|off`: whether dom0 has the console device through which domains are managed.
    pub dom0_control: bool,
    /// `spec-ctrl=`, a list: what is done against attacks on speculation.
    pub spec_ctrl: Wanted,
    /// `loglvl=error|warn|info|debug|trace`.
    pub loglvl: log::LevelFilter,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            direct: Direct::On,
            iommu: true,
            vwfi: Vwfi::Auto,
            sched: Sched::Null,
            tslice_ms: 10,
            torture_ms: None,
            irq_rate: 100_000,
            on_panic: OnPanic::Park,
            on_crash: OnCrash::Destroy,
            restart_delay_ms: RESTART_DELAY_MS,
            dom0_mem: None,
            domu_mem: 0,
            dom0_max_vcpus: None,
            dom0_acpi: Dom0Acpi::On,
            dom0_control: true,
            spec_ctrl: Wanted::default(),
            loglvl: log::LevelFilter::Info,
        }
    }
}

/// An option with an invalid value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidOption<'a> {
    /// The option as given.
    pub option: &'a str,
    /// The valid values.
    pub valid: &'static str,
}

impl fmt::Display for InvalidOption<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cmdline: invalid option `{}`: valid values are {}", self.option, self.valid)
    }
}

/// Parses `line`. Calls `unknown` with each unknown option.
///
/// # Errors
///
/// [`InvalidOption`] for the first option with an invalid value.
pub fn parse<'a>(line: &'a str, mut unknown: impl FnMut(&'a str)) -> Result<Options, InvalidOption<'a>> {
    let mut options = Options::default();
    for word in line.split_ascii_whitespace() {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        let bad = |valid| InvalidOption { option: word, valid };
        match name {
            "direct" => {
                options.direct = match value {
                    "on" => Direct::On,
                    "off" => Direct::Off,
                    _ => return Err(bad("`on` and `off`")),
                }
            }
            "iommu" => options.iommu = boolean(value).ok_or(bad("`on` and `off`"))?,
            "vwfi" => {
                options.vwfi = match value {
                    "native" => Vwfi::Native,
                    "trap" => Vwfi::Trap,
                    "auto" => Vwfi::Auto,
                    _ => return Err(bad("`native`, `trap` and `auto`")),
                }
            }
            "onpanic" => {
                options.on_panic = match value {
                    "park" => OnPanic::Park,
                    "off" => OnPanic::Off,
                    _ => return Err(bad("`park` and `off`")),
                }
            }
            "on-crash" => {
                options.on_crash = match value {
                    "destroy" => OnCrash::Destroy,
                    "restart" => OnCrash::Restart,
                    "preserve" => OnCrash::Preserve,
                    _ => return Err(bad("`destroy`, `restart` and `preserve`")),
                }
            }
            "restart-delay" => {
                let delay = value.parse().ok().filter(|&ms: &u32| ms <= 60_000);
                options.restart_delay_ms = delay.ok_or(bad("0 to 60000"))?;
            }
            "sched" => {
                options.sched = match value {
                    "null" => Sched::Null,
                    "credit" => Sched::Credit,
                    _ => return Err(bad("`null` and `credit`")),
                }
            }
            "sched_credit_tslice_ms" => {
                options.tslice_ms = milliseconds(value).ok_or(bad("1 to 1000"))?;
            }
            "sched-torture" => {
                let every = value.strip_suffix("ms").and_then(milliseconds);
                options.torture_ms = Some(every.ok_or(bad("`1ms` to `1000ms`"))?);
            }
            "irq-rate" => {
                let rate = value.parse().ok().filter(|rate| (100..=10_000_000).contains(rate));
                options.irq_rate = rate.ok_or(bad("100 to 10000000"))?;
            }
            "dom0_mem" => {
                let size = size(value).filter(|&bytes| bytes >= 32 << 20);
                options.dom0_mem = Some(size.ok_or(bad("sizes of 32M and above, in bytes or with suffix K, M or G"))?);
            }
            "domu_mem" => {
                options.domu_mem = size(value).ok_or(bad("sizes in bytes or with suffix K, M or G"))?;
            }
            "dom0_max_vcpus" => {
                let count = value.parse().ok().filter(|&n: &u16| n > 0);
                options.dom0_max_vcpus = Some(count.ok_or(bad("1 and above"))?);
            }
            "dom0_acpi" => {
                options.dom0_acpi = match value {
                    "on" => Dom0Acpi::On,
                    "off" => Dom0Acpi::Off,
                    _ => return Err(bad("`on` and `off`")),
                }
            }
            "dom0_control" => options.dom0_control = boolean(value).ok_or(bad("`on` and `off`"))?,
            "spec-ctrl" => {
                let valid = "a boolean, `ibpb-entry=BOOLEAN`, `bhb-entry=BOOLEAN` and \
                             `ssbd=force-disable|runtime|force-enable`, separated by commas";
                spec_ctrl(value, &mut options.spec_ctrl).ok_or(bad(valid))?;
            }
            // Parsed elsewhere: `pci_windows` together with the firmware's tables, `dom0_pci_hide` when dom0 is built.
            crate::platform::windows::WORD | DOM0_PCI_HIDE => {}
            "loglvl" => {
                options.loglvl = match value {
                    "error" => log::LevelFilter::Error,
                    "warn" | "warning" => log::LevelFilter::Warn,
                    "info" => log::LevelFilter::Info,
                    "debug" => log::LevelFilter::Debug,
                    "trace" | "all" => log::LevelFilter::Trace,
                    _ => return Err(bad("`error`, `warn`, `info`, `debug` and `trace`")),
                }
            }
            _ => unknown(word),
        }
    }
    Ok(options)
}

/// The list of `spec-ctrl=`. A boolean by itself sets everything; what follows it changes a part. `None` if it is
/// invalid.
fn spec_ctrl(list: &str, wanted: &mut Wanted) -> Option<()> {
    for item in list.split(',') {
        match item.split_once('=') {
            None if boolean(item)? => *wanted = Wanted::default(),
            None => *wanted = Wanted { predictors: false, history: false, ssbd: Ssbd::ForceDisable },
            Some(("ibpb-entry", value)) => wanted.predictors = boolean(value)?,
            Some(("bhb-entry", value)) => wanted.history = boolean(value)?,
            Some(("ssbd", "force-disable")) => wanted.ssbd = Ssbd::ForceDisable,
            Some(("ssbd", "runtime")) => wanted.ssbd = Ssbd::Runtime,
            Some(("ssbd", "force-enable")) => wanted.ssbd = Ssbd::ForceEnable,
            Some(_) => return None,
        }
    }
    Some(())
}

/// A number of milliseconds, 1 to 1000.
fn milliseconds(text: &str) -> Option<u32> {
    text.parse().ok().filter(|ms| (1..=1000).contains(ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Options {
        parse(line, |word| panic!("unknown {word}")).unwrap()
    }

    #[test]
    fn an_empty_line_gives_the_defaults() {
        assert_eq!(read("  "), Options::default());
    }

    #[test]
    fn each_option_is_parsed() {
        let o = read(
            "on-crash=restart restart-delay=0 direct=off vwfi=trap onpanic=off dom0_mem=1536M dom0_max_vcpus=3 loglvl=debug \
             sched=null dom0_acpi=off pci_windows=x",
        );
        assert_eq!((o.on_crash, o.restart_delay_ms), (OnCrash::Restart, 0));
        assert_eq!((o.direct, o.vwfi, o.on_panic), (Direct::Off, Vwfi::Trap, OnPanic::Off));
        assert_eq!((o.dom0_mem, o.dom0_max_vcpus), (Some(1536 << 20), Some(3)));
        assert_eq!((o.domu_mem, read("domu_mem=3G on-crash=preserve").domu_mem), (0, 3 << 30));
        assert_eq!(read("on-crash=preserve").on_crash, OnCrash::Preserve);
        assert_eq!((o.iommu, read("iommu=off").iommu), (true, false));
        assert_eq!(o.dom0_acpi, Dom0Acpi::Off);
        assert_eq!((o.dom0_control, read("dom0_control=off").dom0_control), (true, false));
        assert_eq!(o.loglvl, log::LevelFilter::Debug);
        assert_eq!((o.irq_rate, read("irq-rate=500").irq_rate), (100_000, 500));
        let o = read("sched=credit sched_credit_tslice_ms=5 sched-torture=1ms vwfi=auto");
        assert_eq!((o.sched, o.tslice_ms, o.torture_ms, o.vwfi), (Sched::Credit, 5, Some(1), Vwfi::Auto));
    }

    #[test]
    fn an_invalid_value_is_reported_with_the_valid_ones() {
        for line in [
            "on-crash=",
            "restart-delay=60001",
            "sched-torture=1",
            "sched_credit_tslice_ms=0",
            "irq-rate=99",
            "direct=maybe",
            "iommu=bypass",
            "vwfi=",
            "dom0_mem=1T",
            "dom0_mem=1M",
            "domu_mem=",
            "dom0_max_vcpus=0",
            "dom0_acpi=",
            "dom0_control=",
            "dom0_control=maybe",
            "sched=cfs",
            "loglvl=9",
            "spec-ctrl=",
            "spec-ctrl=maybe",
            "spec-ctrl=no,",
            "spec-ctrl=ssbd",
            "spec-ctrl=ssbd=yes",
            "spec-ctrl=bhb-entry",
            "spec-ctrl=bhb-entry=2",
            "spec-ctrl=ibrs=no",
        ] {
            let bad = parse(line, |_| {}).unwrap_err();
            assert_eq!(bad.option, line);
            assert!(!bad.valid.is_empty());
        }
        assert_eq!(
            std::format!("{}", parse("direct=maybe", |_| {}).unwrap_err()),
            "cmdline: invalid option `direct=maybe`: valid values are `on` and `off`"
        );
    }

    #[test]
    fn a_boolean_of_spec_ctrl_sets_all_and_what_follows_a_part() {
        fn spec_ctrl(line: &str) -> Wanted {
            read(line).spec_ctrl
        }
        let off = Wanted { predictors: false, history: false, ssbd: Ssbd::ForceDisable };
        for no in ["no", "off", "false", "disable", "0"] {
            assert_eq!(spec_ctrl(&std::format!("spec-ctrl={no}")), off);
        }
        assert_eq!(spec_ctrl("spec-ctrl=yes"), Wanted::default());
        assert_eq!(spec_ctrl("spec-ctrl=no spec-ctrl=1"), Wanted::default());
        assert_eq!(spec_ctrl("spec-ctrl=no,bhb-entry=on"), Wanted { history: true, ..off });
        assert_eq!(spec_ctrl("spec-ctrl=ibpb-entry=0"), Wanted { predictors: false, ..Wanted::default() });
        for (value, ssbd) in
            [("force-disable", Ssbd::ForceDisable), ("runtime", Ssbd::Runtime), ("force-enable", Ssbd::ForceEnable)]
        {
            assert_eq!(spec_ctrl(&std::format!("spec-ctrl=ssbd={value}")), Wanted { ssbd, ..Wanted::default() });
        }
    }

    #[test]
    fn a_size_that_overflows_is_invalid() {
        assert_eq!(size("18446744073709551615"), Some(u64::MAX));
        assert_eq!(size("17179869184G"), None);
        assert_eq!(size(""), None);
        assert_eq!(size("M"), None);
    }

    #[test]
    fn an_unknown_option_is_reported_and_ignored() {
        let mut seen = std::vec::Vec::new();
        let o = parse("quiet direct=off x=1", |word| seen.push(word)).unwrap();
        assert_eq!(seen, ["quiet", "x=1"]);
        assert_eq!(o.direct, Direct::Off);
    }
}
