//! Teardown: removes a domU that has ended for good and frees its resources.
//!
//! The run loop announces a domain when its last vCPU has gone off, unless it is restarted (`domain/restart.rs`). From
//! then on, CPUs that have nothing else to run perform the work, one short step at a time ([`Background`]); if there are
//! none, a CPU that runs a vCPU gives it a tenth of its time, whether its vCPU takes interrupts or not:
//!
//! 1. The domain is taken out of the table of domains, the scheduler and the console.
//! 2. Its devices are stopped: none of them reaches its memory any more.
//! 3. It is removed from the hardware: events of its devices are unmapped, its vPEs and their tables and the memory of
//!    its devices are freed, and interrupts that are active for it are deactivated.
//! 4. When no reference to it is left and no CPU has its stage 2 loaded, its stage 2 tables are freed.
//! 5. Its RAM, and that in which its images were kept, is zeroed, piece by piece, and given back to the pool. If a device
//!    could not be stopped, its own RAM is not.
//!
//! A domain that was not built, and one whose images were not all sent, leaves RAM behind that goes through the last step.

use crate::arch::{barrier, timer};
use crate::console;
use crate::domain::Domain;
use crate::domain::images::Rams;
use crate::domain::pci_host::Resets;
use crate::domain::table::Domains;
use crate::host::Host;
use crate::host::background::{Background, Step};
use crate::ids::{CpuId, DomId, DomainName};
use crate::mm::guest_ram::PIECE;
use crate::util::progress::Progress;
use alloc::sync::Arc;
use doorward_api::EventKind;

/// The time after which a teardown that makes no progress is logged, in microseconds from its start.
const DELAY_LIMIT_US: u64 = 5_000_000;

/// How long a CPU that has a vCPU to run works for teardowns at a time, and how often, in microseconds.
const ASSIST_US: u64 = 100;
const ASSIST_PERIOD_US: u64 = 1_000;

/// The time after which what a domain has printed and the UART has not taken is dropped, in microseconds from the start.
const OUTPUT_LIMIT_US: u64 = 2_000_000;

/// The teardown of one domain.
struct Work {
    id: DomId,
    /// Its name, unless it was not built.
    name: Option<DomainName>,
    /// The time of its start, in microseconds.
    since: u64,
    /// Whether a delay has been logged.
    reported: bool,
    stage: Stage,
}

/// What has to be done next.
#[allow(clippy::large_enum_variant, reason = "there is one at a time, and a teardown should find no heap full")]
enum Stage {
    /// Reset the domain's PCI functions, and stop its devices.
    Devices(Arc<Domain>),
    /// Remove the domain's events, vPEs and interrupts from the hardware.
    Interrupts(Arc<Domain>),
    /// Wait until no reference to the domain is left and no CPU has its stage 2 loaded.
    References(Arc<Domain>),
    /// Zero its RAM, the last of these first.
    Wipe {
        rams: Rams,
        /// The number of bytes of it that are zeroed already.
        done: u64,
    },
    /// Nothing: all resources are freed.
    Done,
}

/// The teardown of all domains that have ended.
pub struct Teardown {
    domains: &'static Domains,
    background: Background<Work>,
}

impl Teardown {
    /// No teardown is in progress.
    #[must_use]
    pub fn new(domains: &'static Domains) -> Teardown {
        Teardown { domains, background: Background::new(domains.host.cpus.ids().len()) }
    }

    /// Announces that a domain has ended and that all its vCPUs are off. Called once for each domain that is built.
    pub fn announce(&self, cpu: CpuId, id: DomId) {
        self.background.announce(id);
        self.hand_over(cpu);
    }

    /// Kicks an idle CPU if there is work that no CPU performs; if no CPU is idle, sets the timer of `cpu`, which is this
    /// CPU, for its next share of the work. Called by a CPU that performs no more steps for now.
    #[inline]
    pub fn hand_over(&self, cpu: CpuId) {
        if !self.background.is_empty() {
            self.hand_over_now(cpu);
        }
    }

    #[cold]
    fn hand_over_now(&self, cpu: CpuId) {
        let host = self.domains.host;
        match self.background.idle_cpu_to_kick() {
            Some(idle) => host.send_kick(idle),
            None => host.cpu(cpu).timer.set_assist(timer::now() + timer::us_to_ticks(ASSIST_PERIOD_US)),
        }
    }

    /// Passes the work on to another CPU, because this CPU, `cpu`, leaves service.
    pub fn leave(&self, cpu: CpuId) {
        let host = self.domains.host;
        if !self.background.is_empty()
            && let Some(other) = host.cpus.ids().find(|&other| other != cpu && host.cpu(other).is_online())
        {
            host.send_kick(other);
        }
    }

    /// Performs a step, or sleeps until an interrupt. Called by a CPU that has no vCPU to run.
    pub fn idle(&self, cpu: CpuId) {
        self.background.mark_idle(cpu);
        // Nearly always there is no work, which is seen without a call.
        if self.background.is_empty() || !self.step(cpu) {
            self.domains.host.unload_stage2(cpu);
            barrier::wfi();
        }
        self.background.mark_busy(cpu);
    }

    /// Performs steps for `ASSIST_US` if no CPU is idle. Called by a CPU that runs a vCPU: after an exit because of an
    /// interrupt, and between steps of a vCPU's work. The vCPU is not charged for the time.
    pub fn assist(&self, cpu: CpuId) {
        if !self.background.is_empty() {
            self.assist_now(cpu);
        }
    }

    #[cold]
    fn assist_now(&self, cpu: CpuId) {
        let (host, from) = (self.domains.host, timer::now());
        if self.background.idle_cpu_to_kick().is_none() && host.cpu(cpu).timer.may_assist(from) {
            while self.step(cpu) && timer::now() - from < timer::us_to_ticks(ASSIST_US) {}
            host.sched.exclude(cpu, timer::now() - from);
        }
        self.hand_over(cpu);
    }

    /// Performs one step. Returns `false` if there is no work or if another CPU performs it.
    fn step(&self, cpu: CpuId) -> bool {
        let host = self.domains.host;
        match self.background.step(|id| start(self.domains, id), |work| advance(host, cpu, work)) {
            Step::Nothing => return false,
            Step::More => {}
            Step::Done(work) => {
                self.domains.give_back(work.id);
                if let Some(name) = &work.name {
                    host.events.record(EventKind::Destroyed, work.id, name, "");
                }
                // An answer may wait for this.
                host.events.announce();
                host.log_free_memory();
            }
        }
        true
    }
}

/// Starts a teardown: takes the domain out of all tables, so that it can no longer be looked up. Returns `None` if it
/// is not in the table of domains.
fn start(domains: &Domains, id: DomId) -> Option<Work> {
    let since = timer::now_us();
    let Some(domain) = domains.take(id) else {
        let rams = domains.take_leftover(id)?;
        return Some(Work { id, name: None, since, reported: false, stage: Stage::Wipe { rams, done: 0 } });
    };
    console::detach(id);
    domain.withdraw_console();
    for vcpu in domain.vcpus() {
        domains.host.remove_vcpu(vcpu);
    }
    domain.reset_itss();
    // A device that does not respond to its reset is stopped by the SMMU all the same.
    domain.begin_function_resets();
    let _ = domain.stop_dma();
    let name = DomainName::from(domain.name()).ok();
    Some(Work { id, name, since, reported: false, stage: Stage::Devices(domain) })
}

/// Performs one step of the work.
fn advance(host: &Host, cpu: CpuId, work: &mut Work) -> Progress {
    work.stage = match core::mem::replace(&mut work.stage, Stage::Done) {
        Stage::Devices(domain) => match domain.step_function_resets() {
            Resets::Until(_) => Stage::Devices(domain),
            Resets::Done => Stage::Interrupts(domain),
        },
        Stage::Interrupts(domain) => {
            if domain.step_itss() == Progress::More {
                Stage::Interrupts(domain)
            } else if !domain.release_gic() {
                report_delay(work, "a vPE is still resident, or a device mapped");
                Stage::Interrupts(domain)
            } else {
                domain.release_interrupts();
                Stage::References(domain)
            }
        }
        Stage::References(domain) => {
            if host.sched.current(cpu).is_none() {
                host.unload_stage2(cpu);
            }
            if domain.is_stage2_loaded() {
                // That CPU is about to switch to a vCPU of another domain, or to sleep.
                report_delay(work, "a CPU still has its stage 2 loaded");
                Stage::References(domain)
            } else if !console::release(domain.id(), timer::now_us() - work.since > OUTPUT_LIMIT_US) {
                // Its last lines wait for the UART.
                Stage::References(domain)
            } else if domain.vcpus().iter().any(|vcpu| Arc::strong_count(vcpu) > 1) {
                report_delay(work, "a vCPU is still referenced");
                Stage::References(domain)
            } else {
                match Arc::try_unwrap(domain) {
                    Ok(domain) => Stage::Wipe { rams: domain.into_rams(), done: 0 },
                    Err(domain) => {
                        report_delay(work, "the domain is still referenced");
                        Stage::References(domain)
                    }
                }
            }
        }
        Stage::Wipe { mut rams, done } => match rams.last().map(|ram| ram.wipe(done, PIECE)) {
            None => Stage::Done,
            Some(Some(done)) => Stage::Wipe { rams, done },
            Some(None) => {
                if let Some(ram) = rams.pop() {
                    host.guest_pool.lock().give_back(ram);
                }
                Stage::Wipe { rams, done: 0 }
            }
        },
        Stage::Done => Stage::Done,
    };
    if matches!(work.stage, Stage::Done) { Progress::Done } else { Progress::More }
}

/// Logs, once for each teardown, what it waits for.
fn report_delay(work: &mut Work, why: &str) {
    if !work.reported && timer::now_us() - work.since > DELAY_LIMIT_US {
        work.reported = true;
        log::warn!("{}: teardown delayed: {why}", work.id);
    }
}
