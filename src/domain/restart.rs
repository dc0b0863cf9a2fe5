//! Restart: a domU that has asked for a reset, or has crashed with `on-crash=restart`, begins anew, in steps.
//!
//! Its RAM, stage 2, VMID, vCPUs, vPEs, virtual GIC, virtual ITSs and console stay and are put into the state in which
//! they were built. So nothing is allocated, and no other domain can take meanwhile what the restart needs. The vCPU that
//! went off last does it, as its [`Work`]: in steps of bounded length, between which the run loop takes physical
//! interrupts and asks the scheduler. So a restart costs the time of the domain that is restarted, by its weight and
//! cap, and with `sched=null` that of its own CPU.
//!
//! A domain that is restarted over and over is delayed (`pace.rs`). The steps are:
//!
//! 1. Wait.
//! 2. Stop the devices, and reset the PCI functions.
//! 3. Reset the virtual ITSs: unmap all events and devices.
//! 4. Make the vPEs as new (`gic::v4`), one in a step, so that no interrupt of the former life is pending there.
//! 5. Reset the virtual GIC, one redistributor in a step, and the console; invalidate the guest's TLB entries.
//! 6. Zero the RAM, piece by piece.
//! 7. Load the images, piece by piece; let the devices reach the RAM.
//!
//! Then the first vCPU is powered on as at boot. If the ITSs or the SMMUs do not answer, or an image cannot be loaded, the domain is
//! taken down. The operator can end the domain at any moment; it is then taken down like any other.

use super::Domain;
use super::images::NotLoaded;
use super::lifecycle::End;
use super::msi::{NotRenewed, Renewed};
use super::pci_host::Resets;
use crate::arch::timer;
use crate::console;
use crate::host::cmdline::OnCrash;
use crate::ids::VcpuId;
use crate::log_each_second;
use crate::mm::guest_ram::PIECE;
use crate::util::progress::Progress;
use crate::vcpu::{Loaded, Restart, Start, Vcpu, Work};
use alloc::sync::Arc;
use core::fmt;
use core::sync::atomic::Ordering;
use doorward_api::EventKind;

/// How often a restart waits for the redistributor that a vPE has left, each time up to the limit of the driver.
const WAITS: u16 = 100;

/// Why a domain cannot be restarted.
#[derive(Debug)]
enum NotRestarted {
    Images(NotLoaded),
    Interrupts(NotRenewed),
    /// The redistributor does not write the vPE of this vCPU back.
    Vpe(VcpuId),
    /// A device may still reach the RAM.
    DeviceNotStopped,
    /// A device cannot reach the RAM.
    DeviceNotResumed,
}

impl fmt::Display for NotRestarted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotRestarted::Images(error) => error.fmt(f),
            NotRestarted::Interrupts(error) => error.fmt(f),
            NotRestarted::Vpe(vcpu) => write!(f, "{vcpu}: its vPE is not written back"),
            NotRestarted::DeviceNotStopped => f.write_str("its devices cannot be stopped"),
            NotRestarted::DeviceNotResumed => f.write_str("its devices cannot reach its RAM"),
        }
    }
}

/// What a step leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stepped {
    /// There is more to do.
    More(Restart),
    /// There is more to do when the time of [`Restart::Wait`] or [`Restart::Functions`] has come.
    Later(Restart),
    /// Everything is done, or the domain is not to be restarted any more.
    Finished,
}

/// What [`step`] acts on: a domain, whose vCPUs are all off except the one that performs the steps.
trait Anew {
    /// Whether the domain is still to be restarted.
    fn is_wanted(&self) -> bool;
    /// The time in microseconds.
    fn now_us(&self) -> u64;
    /// Stops the devices, and begins to reset the PCI functions. Returns `false` if a device may go on.
    fn stop_devices(&self) -> bool;
    /// Goes on with the resets of the PCI functions.
    fn reset_functions(&self) -> Resets;
    /// Lets the devices reach the RAM again. Returns `false` if that failed.
    fn resume_devices(&self) -> bool;
    /// Resets the virtual ITSs. Their events and devices are unmapped afterwards.
    fn reset_itss(&self);
    /// Unmaps some events and devices. When all are, disables the vLPIs.
    fn unmap_events(&self) -> Result<Progress, NotRestarted>;
    /// Makes the vPE of a vCPU as new.
    fn renew_vpe(&self, vcpu: VcpuId) -> Result<Renewed, NotRestarted>;
    /// Resets the redistributor of a vCPU. Returns `false` if there is no such vCPU.
    fn reset_redist(&self, vcpu: VcpuId) -> bool;
    /// Resets all other devices, and forgets the guest's translations.
    fn reset_devices(&self);
    /// Zeroes a piece of the RAM, as `GuestRam::wipe`.
    fn wipe(&self, done: u64) -> Option<u64>;
    /// Loads a piece of the images, as `Images::load_piece`.
    fn load(&self, loaded: Loaded) -> Result<Option<Loaded>, NotLoaded>;
    /// The domain cannot be restarted.
    fn give_up(&self, error: NotRestarted);
}

/// Performs one step.
fn step(domain: &impl Anew, restart: Restart) -> Stepped {
    if !domain.is_wanted() {
        return Stepped::Finished;
    }
    match next(domain, restart) {
        Ok(stepped) => stepped,
        Err(error) => {
            domain.give_up(error);
            Stepped::Finished
        }
    }
}

fn next(domain: &impl Anew, restart: Restart) -> Result<Stepped, NotRestarted> {
    let following = |vcpu: VcpuId| VcpuId(vcpu.0.saturating_add(1));
    Ok(Stepped::More(match restart {
        Restart::Wait { until_us } if domain.now_us() < until_us => return Ok(Stepped::Later(restart)),
        Restart::Wait { .. } if domain.stop_devices() => Restart::Functions { until_us: 0 },
        Restart::Wait { .. } => return Err(NotRestarted::DeviceNotStopped),
        Restart::Functions { until_us } if domain.now_us() < until_us => return Ok(Stepped::Later(restart)),
        Restart::Functions { .. } => match domain.reset_functions() {
            Resets::Until(until_us) => Restart::Functions { until_us },
            Resets::Done => {
                domain.reset_itss();
                Restart::Events
            }
        },
        Restart::Events => match domain.unmap_events()? {
            Progress::More => Restart::Events,
            Progress::Done => Restart::Vpes { vcpu: VcpuId(0), waits: 0 },
        },
        Restart::Vpes { vcpu, waits } => match domain.renew_vpe(vcpu)? {
            Renewed::Done => Restart::Vpes { vcpu: following(vcpu), waits: 0 },
            Renewed::Busy if waits == WAITS => return Err(NotRestarted::Vpe(vcpu)),
            Renewed::Busy => Restart::Vpes { vcpu, waits: waits.saturating_add(1) },
            Renewed::NoVcpu => Restart::Devices { vcpu: VcpuId(0) },
        },
        Restart::Devices { vcpu } if domain.reset_redist(vcpu) => Restart::Devices { vcpu: following(vcpu) },
        Restart::Devices { .. } => {
            domain.reset_devices();
            Restart::Wipe { done: 0 }
        }
        Restart::Wipe { done } => match domain.wipe(done) {
            Some(done) => Restart::Wipe { done },
            None => Restart::Load(Loaded::default()),
        },
        Restart::Load(loaded) => match domain.load(loaded).map_err(NotRestarted::Images)? {
            Some(loaded) => Restart::Load(loaded),
            None if domain.resume_devices() => return Ok(Stepped::Finished),
            None => return Err(NotRestarted::DeviceNotResumed),
        },
    }))
}

impl Anew for Domain {
    fn is_wanted(&self) -> bool {
        self.end().is_some_and(|end| self.restarts_after(end))
    }

    fn now_us(&self) -> u64 {
        timer::now_us()
    }

    fn stop_devices(&self) -> bool {
        self.begin_function_resets();
        self.stop_dma()
    }

    fn reset_functions(&self) -> Resets {
        self.step_function_resets()
    }

    fn resume_devices(&self) -> bool {
        self.resume_dma()
    }

    fn reset_itss(&self) {
        Domain::reset_itss(self);
    }

    fn unmap_events(&self) -> Result<Progress, NotRestarted> {
        if self.step_itss() == Progress::More {
            return Ok(Progress::More);
        }
        self.paths.renew_vm(&self.host.gic, self.id).map_err(NotRestarted::Interrupts)?;
        Ok(Progress::Done)
    }

    fn renew_vpe(&self, vcpu: VcpuId) -> Result<Renewed, NotRestarted> {
        self.paths.renew_vpe(&self.host.gic, vcpu).map_err(NotRestarted::Interrupts)
    }

    fn reset_redist(&self, vcpu: VcpuId) -> bool {
        self.vgic.reset_redist(&self.port(), vcpu)
    }

    fn reset_devices(&self) {
        if let Some(console) = &self.console {
            console.uart.lock().reset();
        }
        self.vgic.reset_dist(&self.port());
        self.stage2.lock().invalidate_tlbs();
    }

    fn wipe(&self, done: u64) -> Option<u64> {
        self.ram.wipe(done, PIECE)
    }

    fn load(&self, loaded: Loaded) -> Result<Option<Loaded>, NotLoaded> {
        match &self.images {
            Some(images) => images.load_piece(&self.ram, loaded),
            None => Ok(None),
        }
    }

    fn give_up(&self, error: NotRestarted) {
        let _logged = log_each_second!(Error, self.id; "{}: not restarted: {error}", self.id);
        self.lifecycle.end_for_good();
    }
}

impl Domain {
    /// Whether the domain begins anew after such an end.
    fn restarts_after(&self, end: End) -> bool {
        let wanted = match end {
            End::Off | End::Destroyed => false,
            End::Reset => true,
            End::Crash => self.on_crash() == OnCrash::Restart,
        };
        wanted && self.images.is_some()
    }

    /// Starts the domain, which rests: powers its first vCPU on. Returns `false` if it cannot be started, or has been.
    #[must_use]
    pub fn start(&self) -> bool {
        self.images.as_ref().is_some_and(|images| self.start_at(images.start))
    }

    /// As [`start`](Self::start), for a domain that does not keep its images.
    #[must_use]
    pub fn start_at(&self, start: Start) -> bool {
        self.end().is_none() && self.lifecycle.end_rest() && self.begin(start)
    }

    /// Powers the first vCPU on, at the beginning of each life.
    fn begin(&self, start: Start) -> bool {
        let now_us = timer::now_us();
        self.pace.begin(now_us);
        self.begun_us.store(now_us.max(1), Ordering::Relaxed);
        self.vcpus.first().is_some_and(|vcpu| self.power_on(vcpu, start))
    }

    /// Whether the domain has crashed and is to be kept as it is. It then rests. Called when its last vCPU is off, instead
    /// of announcing its end.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        if self.end() != Some(End::Crash) || self.on_crash() != OnCrash::Preserve {
            return false;
        }
        self.lifecycle.rest();
        // Who has destroyed it before that has found it awake.
        self.end() == Some(End::Crash) || !self.lifecycle.end_rest()
    }

    /// Begins the restart of a domain that has ended. `vcpu` went off last and performs it. Returns `false` if the
    /// domain is not to be restarted; it then has to be taken down.
    #[must_use]
    pub fn begin_restart(&self, vcpu: &Arc<Vcpu>) -> bool {
        if !self.is_wanted() {
            return false;
        }
        let now_us = timer::now_us();
        let delay_us = self.pace.end(now_us, u64::from(self.host.options.restart_delay_ms) * 1000);
        if delay_us > 0 {
            let _logged = log_each_second!(Info, self.id; "{}: restart delayed by {} ms", self.id, delay_us / 1000);
        }
        console::detach(self.id);
        vcpu.power_on_for(Work::Restart(Restart::Wait { until_us: now_us + delay_us }));
        self.host.make_runnable(vcpu);
        true
    }

    /// Performs a step of a restart.
    #[must_use]
    pub fn step_restart(&self, restart: Restart) -> Stepped {
        step(self, restart)
    }

    /// Whether a restart that has begun is to be given up, because the operator has ended the domain.
    #[must_use]
    pub fn gives_up_restart(&self) -> bool {
        !self.is_wanted()
    }

    /// Starts the domain after the last step of its restart, when the vCPU that has performed it is off. Returns `false`
    /// if the domain is not to be restarted any more; it then has to be taken down.
    #[must_use]
    pub fn finish_restart(&self) -> bool {
        let Some(images) = &self.images else { return false };
        loop {
            match self.end() {
                Some(end) if self.restarts_after(end) => {
                    if self.lifecycle.begin_anew(end) {
                        break;
                    }
                }
                _ => return false,
            }
        }
        self.attach_console();
        if log_each_second!(Info, self.id; "{}: restarted", self.id) {
            self.host.log_free_memory();
        }
        self.restarts.fetch_add(1, Ordering::Relaxed);
        self.record(EventKind::Restarted, "");
        self.begin(images.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gic::ItsError;
    use crate::gic::v4::V4Error;
    use crate::ids::{ItsId, VpeId};
    use alloc::vec::Vec;
    use core::cell::{Cell, RefCell};

    /// A domain of three vCPUs, with RAM for two wipes and images of three pieces.
    #[derive(Default)]
    struct Fake {
        now_us: Cell<u64>,
        unwanted: Cell<bool>,
        /// The piece that cannot be loaded.
        bad_piece: Option<u64>,
        /// A device cannot be stopped.
        stuck: bool,
        /// The ITSs do not answer when events are unmapped.
        no_events: bool,
        /// The vCPU whose vPE cannot be made as new.
        bad_vpe: Option<u16>,
        /// How often a redistributor is found to be writing the next vPE back.
        busy: Cell<u16>,
        /// How many steps it takes to unmap the events.
        events: Cell<u32>,
        did: RefCell<Vec<&'static str>>,
    }

    impl Fake {
        fn does(&self, what: &'static str) {
            self.did.borrow_mut().push(what);
        }

        /// Performs all steps, and `before` before each one, with its number. Returns how many there were.
        fn restart(&self, until_us: u64, before: impl Fn(&Fake, usize)) -> usize {
            let mut restart = Restart::Wait { until_us };
            for count in 0.. {
                before(self, count);
                match step(self, restart) {
                    Stepped::More(next) => restart = next,
                    Stepped::Later(next @ Restart::Wait { .. }) => {
                        assert_eq!(next, Restart::Wait { until_us });
                        self.does("wait");
                        restart = next;
                    }
                    Stepped::Later(next) => {
                        let Restart::Functions { until_us } = next else { panic!("{next:?} has no time") };
                        self.now_us.set(until_us);
                        restart = next;
                    }
                    Stepped::Finished => return count + 1,
                }
            }
            unreachable!()
        }
    }

    impl Anew for Fake {
        fn is_wanted(&self) -> bool {
            !self.unwanted.get()
        }

        fn now_us(&self) -> u64 {
            self.now_us.get()
        }

        fn stop_devices(&self) -> bool {
            self.does("stop");
            !self.stuck
        }

        /// The functions are back at the second look, which is due after 100 us.
        fn reset_functions(&self) -> Resets {
            self.does("functions");
            let first = self.did.borrow().iter().filter(|did| **did == "functions").count() == 1;
            if first { Resets::Until(self.now_us.get() + 100) } else { Resets::Done }
        }

        fn resume_devices(&self) -> bool {
            self.does("resume");
            true
        }

        fn reset_itss(&self) {
            self.does("ITSs");
            self.events.set(2);
        }

        fn unmap_events(&self) -> Result<Progress, NotRestarted> {
            if self.no_events {
                return Err(NotRestarted::Interrupts(NotRenewed::Devices(ItsId(0), ItsError::Dead)));
            }
            self.does("events");
            self.events.set(self.events.get() - 1);
            Ok(if self.events.get() == 0 { Progress::Done } else { Progress::More })
        }

        fn renew_vpe(&self, vcpu: VcpuId) -> Result<Renewed, NotRestarted> {
            if self.bad_vpe == Some(vcpu.0) {
                return Err(NotRestarted::Interrupts(NotRenewed::Vpe(VpeId(vcpu.0), V4Error::HasEvents)));
            }
            Ok(match vcpu.0 {
                0..3 if self.busy.get() > 0 => {
                    self.busy.set(self.busy.get() - 1);
                    Renewed::Busy
                }
                0..3 => {
                    self.does("vPE");
                    Renewed::Done
                }
                _ => Renewed::NoVcpu,
            })
        }

        fn reset_redist(&self, vcpu: VcpuId) -> bool {
            let exists = vcpu.0 < 3;
            if exists {
                self.does("redist");
            }
            exists
        }

        fn reset_devices(&self) {
            self.does("devices");
        }

        fn wipe(&self, done: u64) -> Option<u64> {
            (done < 2).then(|| {
                self.does("wipe");
                done + 1
            })
        }

        fn load(&self, Loaded { image, done }: Loaded) -> Result<Option<Loaded>, NotLoaded> {
            if self.bad_piece == Some(done) {
                return Err(NotLoaded::for_tests());
            }
            Ok((done < 3).then(|| {
                self.does("load");
                Loaded { image, done: done + 1 }
            }))
        }

        fn give_up(&self, _: NotRestarted) {
            self.does("give up");
            self.unwanted.set(true);
        }
    }

    const ALL: [&str; 19] = [
        "stop",
        "functions",
        "functions",
        "ITSs",
        "events",
        "events",
        "vPE",
        "vPE",
        "vPE",
        "redist",
        "redist",
        "redist",
        "devices",
        "wipe",
        "wipe",
        "load",
        "load",
        "load",
        "resume",
    ];

    #[test]
    fn the_steps_come_in_order_and_each_does_one_thing() {
        let fake = Fake::default();
        let steps = fake.restart(0, |_, _| ());
        assert_eq!(*fake.did.borrow(), ALL);
        // One each to wait for the functions and to find the end of the vPEs and of the RAM; the ITSs are reset in the
        // same step as the last function.
        assert_eq!(steps, ALL.len() + 2);
    }

    #[test]
    fn a_vcpu_that_is_woken_too_early_waits_on() {
        let fake = Fake::default();
        fake.restart(100, |fake, step| fake.now_us.set(step as u64 * 40));
        assert_eq!(fake.did.borrow()[..3], ["wait"; 3]);
        assert_eq!(fake.did.borrow()[3..], ALL);
    }

    #[test]
    fn a_domain_that_is_ended_before_any_step_is_not_touched_any_more() {
        let all = Fake::default().restart(0, |_, _| ());
        for at in 0..all {
            let fake = Fake::default();
            let steps = fake.restart(0, |fake, step| fake.unwanted.set(step == at));
            assert_eq!(steps, at + 1);
            assert_eq!(*fake.did.borrow(), ALL[..fake.did.borrow().len()]);
            assert!(fake.did.borrow().len() <= at);
        }
    }

    #[test]
    fn a_domain_with_a_device_that_cannot_be_stopped_is_not_touched() {
        let fake = Fake { stuck: true, ..Fake::default() };
        fake.restart(0, |_, _| ());
        assert_eq!(*fake.did.borrow(), ["stop", "give up"]);
    }

    #[test]
    fn an_its_that_does_not_answer_ends_the_domain_before_its_ram_is_touched() {
        let stuck = [Fake { no_events: true, ..Fake::default() }, Fake { bad_vpe: Some(1), ..Fake::default() }];
        for fake in stuck {
            fake.restart(0, |_, _| ());
            assert_eq!(fake.did.borrow().last(), Some(&"give up"));
            assert!(!fake.is_wanted() && !fake.did.borrow().contains(&"wipe"));
        }
    }

    #[test]
    fn a_redistributor_that_writes_a_vpe_back_is_waited_for_but_not_for_ever() {
        let slow = Fake { busy: Cell::new(WAITS), ..Fake::default() };
        slow.restart(0, |_, _| ());
        assert_eq!(*slow.did.borrow(), ALL);
        let stuck = Fake { busy: Cell::new(u16::MAX), ..Fake::default() };
        stuck.restart(0, |_, _| ());
        assert_eq!(stuck.did.borrow().last(), Some(&"give up"));
        assert_eq!(u16::MAX - stuck.busy.get(), WAITS + 1);
    }

    #[test]
    fn an_image_that_cannot_be_loaded_ends_the_domain_whichever_piece_it_is() {
        for piece in 0..=3 {
            let fake = Fake { bad_piece: Some(piece), ..Fake::default() };
            fake.restart(0, |_, _| ());
            assert_eq!(fake.did.borrow().last(), Some(&"give up"));
            assert!(!fake.is_wanted());
        }
    }
}
