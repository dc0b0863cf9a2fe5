//! The hypervisor's command line.
//!
//! Words are separated by blanks; names are Xen's where Xen has one. A value that makes no sense stops the
//! boot with a sentence: a machine that quietly runs with another setting than the one asked for is worse
//! than one that does not start. A word that nobody knows is reported and skipped, so that a boot entry
//! written for a later version still boots.

use core::fmt;

/// What to do with a guest's WFI and WFE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vwfi {
    /// They run natively: the CPU waits in the guest.
    Native,
    /// WFI blocks the vCPU, WFE yields.
    Trap,
    /// They trap while another vCPU could use the CPU.
    Auto,
}

/// Which vCPU runs where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sched {
    /// Each CPU has one vCPU, for ever.
    Null,
    /// CPUs are shared by weight.
    Credit,
}

/// Whether device interrupts go to the guest directly where the hardware can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direct {
    /// As vLPIs.
    On,
    /// As physical LPIs that EL2 takes and injects by list register.
    Off,
}

/// How dom0 learns about a machine that ACPI describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dom0Acpi {
    /// From ACPI tables of its own, with the machine's AML.
    On,
    /// From a device tree that is made for it.
    Off,
}

/// What happens after a fatal error or a panic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnPanic {
    /// All CPUs stop; the message stays on the screen.
    Park,
    /// The machine is powered off.
    Off,
}

/// What becomes of a domain beside dom0 that cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnCrash {
    /// It is taken down.
    Destroy,
    /// It is taken down and built anew, from the same boot modules.
    Restart,
}

/// The words, read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// `direct=on|off`.
    pub direct: Direct,
    /// `vwfi=native|trap|auto`.
    pub vwfi: Vwfi,
    /// `sched=null|credit`.
    pub sched: Sched,
    /// `sched_credit_tslice_ms=N`: how long a vCPU runs while another waits.
    pub tslice_ms: u32,
    /// `sched-torture=Nms`: a vCPU is moved to a random CPU this often. For tests.
    pub torture_ms: Option<u32>,
    /// `irq-rate=N`: interrupts of devices that EL2 takes for one vCPU in a second.
    pub irq_rate: u32,
    /// `onpanic=park|off`.
    pub on_panic: OnPanic,
    /// `on-crash=destroy|restart`.
    pub on_crash: OnCrash,
    /// `dom0_mem=SIZE`, in bytes; all that is free without the word.
    pub dom0_mem: Option<u64>,
    /// `dom0_max_vcpus=N`; one for each CPU without the word.
    pub dom0_max_vcpus: Option<u16>,
    /// `dom0_acpi=on|off`; means nothing on a machine that a device tree describes.
    pub dom0_acpi: Dom0Acpi,
    /// `loglvl=error|warn|info|debug|trace`.
    pub loglvl: log::LevelFilter,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            direct: Direct::On,
            vwfi: Vwfi::Auto,
            sched: Sched::Null,
            tslice_ms: 10,
            torture_ms: None,
            irq_rate: 100_000,
            on_panic: OnPanic::Park,
            on_crash: OnCrash::Destroy,
            dom0_mem: None,
            dom0_max_vcpus: None,
            dom0_acpi: Dom0Acpi::On,
            loglvl: log::LevelFilter::Info,
        }
    }
}

/// A word whose value makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadWord<'a> {
    /// The word as it was given.
    pub word: &'a str,
    /// What it takes.
    pub takes: &'static str,
}

impl fmt::Display for BadWord<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the command line word `{}` is not understood: it takes {}", self.word, self.takes)
    }
}

/// Reads `line`. Words that nobody knows are handed to `unknown`.
pub fn parse<'a>(line: &'a str, mut unknown: impl FnMut(&'a str)) -> Result<Options, BadWord<'a>> {
    let mut options = Options::default();
    for word in line.split_ascii_whitespace() {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        let bad = |takes| BadWord { word, takes };
        match name {
            "direct" => {
                options.direct = match value {
                    "on" => Direct::On,
                    "off" => Direct::Off,
                    _ => return Err(bad("`on` or `off`")),
                }
            }
            "vwfi" => {
                options.vwfi = match value {
                    "native" => Vwfi::Native,
                    "trap" => Vwfi::Trap,
                    "auto" => Vwfi::Auto,
                    _ => return Err(bad("`native`, `trap` or `auto`")),
                }
            }
            "onpanic" => {
                options.on_panic = match value {
                    "park" => OnPanic::Park,
                    "off" => OnPanic::Off,
                    _ => return Err(bad("`park` or `off`")),
                }
            }
            "on-crash" => {
                options.on_crash = match value {
                    "destroy" => OnCrash::Destroy,
                    "restart" => OnCrash::Restart,
                    _ => return Err(bad("`destroy` or `restart`")),
                }
            }
            "sched" => {
                options.sched = match value {
                    "null" => Sched::Null,
                    "credit" => Sched::Credit,
                    _ => return Err(bad("`null` or `credit`")),
                }
            }
            "sched_credit_tslice_ms" => {
                options.tslice_ms = milliseconds(value).ok_or(bad("a number from 1 to 1000"))?;
            }
            "sched-torture" => {
                let every = value.strip_suffix("ms").and_then(milliseconds);
                options.torture_ms = Some(every.ok_or(bad("`1ms` to `1000ms`"))?);
            }
            "irq-rate" => {
                let rate = value.parse().ok().filter(|rate| (100..=10_000_000).contains(rate));
                options.irq_rate = rate.ok_or(bad("a number from 100 to 10000000"))?;
            }
            "dom0_mem" => {
                let size = size(value).filter(|&bytes| bytes >= 32 << 20);
                options.dom0_mem = Some(size.ok_or(bad("a size of 32M or more, in bytes or with K, M or G"))?);
            }
            "dom0_max_vcpus" => {
                let count = value.parse().ok().filter(|&n: &u16| n > 0);
                options.dom0_max_vcpus = Some(count.ok_or(bad("a number from 1 on"))?);
            }
            "dom0_acpi" => {
                options.dom0_acpi = match value {
                    "on" => Dom0Acpi::On,
                    "off" => Dom0Acpi::Off,
                    _ => return Err(bad("`on` or `off`")),
                }
            }
            // Read by others, the first of them together with the firmware's tables.
            crate::platform::windows::WORD | crate::build::pci_hide::WORD => {}
            "loglvl" => {
                options.loglvl = match value {
                    "error" => log::LevelFilter::Error,
                    "warn" | "warning" => log::LevelFilter::Warn,
                    "info" => log::LevelFilter::Info,
                    "debug" => log::LevelFilter::Debug,
                    "trace" | "all" => log::LevelFilter::Trace,
                    _ => return Err(bad("`error`, `warn`, `info`, `debug` or `trace`")),
                }
            }
            _ => unknown(word),
        }
    }
    Ok(options)
}

/// Whether `line` asks for power off after a fatal error; usable before anything else works.
#[must_use]
pub fn powers_off_on_panic(line: &str) -> bool {
    line.split_ascii_whitespace().any(|word| word == "onpanic=off")
}

/// A number of milliseconds up to a second.
fn milliseconds(text: &str) -> Option<u32> {
    text.parse().ok().filter(|ms| (1..=1000).contains(ms))
}

/// A size in bytes, or with one of the suffixes K, M and G.
fn size(text: &str) -> Option<u64> {
    let (digits, shift) = match text.char_indices().next_back()? {
        (at, 'k' | 'K') => (&text[..at], 10),
        (at, 'm' | 'M') => (&text[..at], 20),
        (at, 'g' | 'G') => (&text[..at], 30),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Options {
        parse(line, |word| panic!("unknown {word}")).unwrap()
    }

    #[test]
    fn no_words_mean_the_defaults() {
        assert_eq!(read("  "), Options::default());
    }

    #[test]
    fn each_word_sets_its_option() {
        let o = read(
            "on-crash=restart direct=off vwfi=trap onpanic=off dom0_mem=1536M dom0_max_vcpus=3 loglvl=debug sched=null dom0_acpi=off pci_windows=x",
        );
        assert_eq!(o.on_crash, OnCrash::Restart);
        assert_eq!((o.direct, o.vwfi, o.on_panic), (Direct::Off, Vwfi::Trap, OnPanic::Off));
        assert_eq!((o.dom0_mem, o.dom0_max_vcpus), (Some(1536 << 20), Some(3)));
        assert_eq!(o.dom0_acpi, Dom0Acpi::Off);
        assert_eq!(o.loglvl, log::LevelFilter::Debug);
        assert_eq!((o.irq_rate, read("irq-rate=500").irq_rate), (100_000, 500));
        let o = read("sched=credit sched_credit_tslice_ms=5 sched-torture=1ms vwfi=auto");
        assert_eq!((o.sched, o.tslice_ms, o.torture_ms, o.vwfi), (Sched::Credit, 5, Some(1), Vwfi::Auto));
    }

    #[test]
    fn a_value_that_makes_no_sense_is_named_with_what_the_word_takes() {
        for line in [
            "on-crash=",
            "sched-torture=1",
            "sched_credit_tslice_ms=0",
            "irq-rate=99",
            "direct=maybe",
            "vwfi=",
            "dom0_mem=1T",
            "dom0_mem=1M",
            "dom0_max_vcpus=0",
            "dom0_acpi=",
            "sched=cfs",
            "loglvl=9",
        ] {
            let bad = parse(line, |_| {}).unwrap_err();
            assert_eq!(bad.word, line);
            assert!(!bad.takes.is_empty());
        }
        assert_eq!(
            std::format!("{}", parse("direct=maybe", |_| {}).unwrap_err()),
            "the command line word `direct=maybe` is not understood: it takes `on` or `off`"
        );
    }

    #[test]
    fn a_size_that_overflows_is_refused() {
        assert_eq!(size("18446744073709551615"), Some(u64::MAX));
        assert_eq!(size("17179869184G"), None);
        assert_eq!(size(""), None);
        assert_eq!(size("M"), None);
    }

    #[test]
    fn an_unknown_word_is_reported_and_skipped() {
        let mut seen = std::vec::Vec::new();
        let o = parse("quiet direct=off x=1", |word| seen.push(word)).unwrap();
        assert_eq!(seen, ["quiet", "x=1"]);
        assert_eq!(o.direct, Direct::Off);
    }
}
