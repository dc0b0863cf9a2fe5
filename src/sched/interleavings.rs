//! Loom models of how a vCPU goes to sleep and is woken: every interleaving is explored.
//!
//! The functions under test are the production ones. The models add what these need: a redistributor with one vPE
//! (pending bit, residency, doorbell, PendingLast), an interrupt that EL2 injects by software, and a thread for each
//! CPU that takes part. A doorbell is handled as in `domain::irq`: it wakes the vCPU and does nothing else. Each model
//! ends with the check that no vCPU sleeps while it has an interrupt pending.
//!
//! Run them with `RUSTFLAGS="--cfg loom" cargo test --lib interleavings`.

use super::inbox::Inbox;
use super::{Found, RunState, State, Woken};
use loom::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use loom::sync::{Arc, Mutex};
use loom::thread;

/// A redistributor and its vPE, as in GICv4.0: a vLPI that arrives while the vPE is not resident sends a doorbell.
#[derive(Default)]
struct Redistributor {
    resident: bool,
    pending: bool,
}

struct Vcpu {
    run: RunState,
    redist: Mutex<Redistributor>,
    /// An interrupt is pending in the virtual GIC.
    soft: AtomicBool,
    /// The number of SGIs sent to wake the CPU from its idle loop.
    kicks: AtomicU8,
}

impl Vcpu {
    /// A vCPU that runs, with its vPE resident.
    fn running() -> Arc<Vcpu> {
        let run = RunState::new();
        assert!(run.power_on() && run.start_running());
        Arc::new(Vcpu {
            run,
            redist: Mutex::new(Redistributor { resident: true, pending: false }),
            soft: AtomicBool::new(false),
            kicks: AtomicU8::new(0),
        })
    }

    /// `Domain::kick`: the caller has made visible what it wakes the vCPU for.
    fn wake(&self) {
        if self.run.wake() == Woken::WasBlocked {
            self.kicks.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// An MSI of a device: sets the pending bit and, if the vPE is not resident, sends a doorbell, which EL2 handles.
    fn msi(&self) {
        let doorbell = {
            let mut redist = self.redist.lock().unwrap();
            redist.pending = true;
            !redist.resident
        };
        if doorbell {
            self.wake();
        }
    }

    /// EL2 makes something pending by software.
    fn inject(&self) {
        self.soft.store(true, Ordering::SeqCst);
        self.wake();
    }

    fn enter(&self) {
        self.redist.lock().unwrap().resident = true;
    }

    /// Leaves residency: PendingLast.
    fn leave(&self) -> bool {
        let mut redist = self.redist.lock().unwrap();
        redist.resident = false;
        redist.pending
    }

    /// The guest acknowledges what is pending.
    fn acknowledge(&self) {
        self.redist.lock().unwrap().pending = false;
        self.soft.store(false, Ordering::SeqCst);
    }

    /// `switch_out` of the run loop, for a vCPU that waits for an interrupt.
    fn switch_out(&self) -> Found {
        let last = self.leave();
        if last || self.soft.load(Ordering::SeqCst) { Found::Pending } else { Found::Nothing }
    }

    /// A guest executes WFI.
    fn wfi(&self) -> bool {
        self.run.block(|| self.switch_out())
    }

    /// Whether it sleeps with an interrupt pending. This is the failure that the models look for.
    fn is_forgotten(&self) -> bool {
        let pending = self.redist.lock().unwrap().pending || self.soft.load(Ordering::SeqCst);
        pending && self.run.get() == State::Blocked
    }

    /// Checks that a CPU was kicked for a vCPU that slept and was woken.
    fn assert_kicked(&self, slept: bool) {
        if slept && self.run.get() == State::Runnable {
            assert!(self.kicks.load(Ordering::SeqCst) > 0, "runnable, but no CPU was kicked");
        }
    }
}

#[test]
fn a_vcpu_does_not_sleep_with_a_vlpi_pending_whenever_that_arrives() {
    loom::model(|| {
        let vcpu = Vcpu::running();
        let device = thread::spawn({
            let vcpu = vcpu.clone();
            move || vcpu.msi()
        });
        let slept = vcpu.wfi();
        device.join().unwrap();
        assert!(!vcpu.is_forgotten());
        vcpu.assert_kicked(slept);
    });
}

#[test]
fn a_software_interrupt_and_a_vlpi_at_once_wake_a_vcpu() {
    loom::model(|| {
        let vcpu = Vcpu::running();
        let others = [
            thread::spawn({
                let vcpu = vcpu.clone();
                move || vcpu.msi()
            }),
            thread::spawn({
                let vcpu = vcpu.clone();
                move || vcpu.inject()
            }),
        ];
        let slept = vcpu.wfi();
        others.into_iter().for_each(|other| other.join().unwrap());
        assert!(!vcpu.is_forgotten());
        vcpu.assert_kicked(slept);
    });
}

/// The vCPU runs again and blocks again while interrupts keep coming.
#[test]
fn a_vcpu_that_blocks_again_right_after_a_wake_misses_no_interrupt() {
    loom::model(|| {
        let vcpu = Vcpu::running();
        let device = thread::spawn({
            let vcpu = vcpu.clone();
            move || {
                vcpu.msi();
                vcpu.msi();
            }
        });
        for _ in 0..2 {
            vcpu.wfi();
            // As the idle loop does: it runs again only if it is runnable.
            if !vcpu.run.start_running() {
                break;
            }
            vcpu.enter();
            vcpu.acknowledge();
        }
        device.join().unwrap();
        assert!(!vcpu.is_forgotten());
    });
}

/// A vCPU is preempted, runs on another CPU and blocks there, while a device sends an MSI.
#[test]
fn a_vcpu_that_is_preempted_and_blocks_on_another_cpu_misses_no_vlpi() {
    loom::model(|| {
        let vcpu = Vcpu::running();
        let device = thread::spawn({
            let vcpu = vcpu.clone();
            move || vcpu.msi()
        });
        // The first CPU preempts it: a pending bit stays in the table, and a doorbell may come for a runnable vCPU.
        let _ = vcpu.leave();
        vcpu.run.preempted();
        let elsewhere = thread::spawn({
            let vcpu = vcpu.clone();
            move || {
                if vcpu.run.start_running() {
                    vcpu.enter();
                    vcpu.wfi();
                }
            }
        });
        elsewhere.join().unwrap();
        device.join().unwrap();
        assert!(!vcpu.is_forgotten());
    });
}

/// A doorbell comes for a vCPU that powers itself off: it stays off, and can be powered on again.
#[test]
fn a_doorbell_does_not_wake_a_vcpu_that_is_off() {
    loom::model(|| {
        let vcpu = Vcpu::running();
        let device = thread::spawn({
            let vcpu = vcpu.clone();
            move || vcpu.msi()
        });
        let _ = vcpu.leave();
        vcpu.run.power_off();
        device.join().unwrap();
        assert_eq!(vcpu.run.get(), State::Off);
        assert!(vcpu.run.power_on());
    });
}

/// Two CPUs power the same vCPU on.
#[test]
fn of_two_cpus_that_power_a_vcpu_on_one_succeeds() {
    loom::model(|| {
        let run = Arc::new(RunState::new());
        let other = thread::spawn({
            let run = run.clone();
            move || run.power_on()
        });
        let mine = run.power_on();
        assert!(mine != other.join().unwrap());
    });
}

/// Shows that the models find the failure: if PendingLast is ignored, a vCPU can sleep with a vLPI pending.
#[test]
#[should_panic(expected = "sleeps with a vLPI pending")]
fn ignoring_pending_last_loses_a_wake_up() {
    loom::model(|| {
        let vcpu = Vcpu::running();
        let device = thread::spawn({
            let vcpu = vcpu.clone();
            move || vcpu.msi()
        });
        vcpu.run.block(|| {
            let _ignored = vcpu.leave();
            Found::Nothing
        });
        device.join().unwrap();
        assert!(!vcpu.is_forgotten(), "sleeps with a vLPI pending");
    });
}

/// The same if the vCPU becomes `Blocking` only after it was switched out: the doorbell finds it awake.
#[test]
#[should_panic(expected = "sleeps with a vLPI pending")]
fn becoming_blocking_after_the_switch_loses_a_wake_up() {
    loom::model(|| {
        let vcpu = Vcpu::running();
        let device = thread::spawn({
            let vcpu = vcpu.clone();
            move || vcpu.msi()
        });
        let found = vcpu.switch_out();
        vcpu.run.begin_block();
        let _ = vcpu.run.commit_block(found);
        device.join().unwrap();
        assert!(!vcpu.is_forgotten(), "sleeps with a vLPI pending");
    });
}

/// A CPU goes offline while two vCPUs are posted to it: each is either handed back, or found by that CPU.
#[test]
fn a_vcpu_that_is_posted_to_a_cpu_that_goes_offline_is_in_one_place() {
    loom::model(|| {
        let inbox = Arc::new(Inbox::new(64));
        inbox.open();
        let posters = [1, 2].map(|slot| {
            let inbox = inbox.clone();
            thread::spawn(move || !inbox.post(slot))
        });
        inbox.close();
        let mut found = [0, 0, 0];
        inbox.empty(|slot| found[slot] += 1);
        for (slot, poster) in (1..).zip(posters) {
            let handed_back = u8::from(poster.join().unwrap());
            assert_eq!(found[slot] + handed_back, 1, "vCPU {slot}");
        }
    });
}

/// Shows that the model finds the failure: if the check comes before the post, a vCPU can be lost.
#[test]
#[should_panic(expected = "lost")]
fn checking_that_the_inbox_is_open_before_posting_loses_a_vcpu() {
    loom::model(|| {
        let inbox = Arc::new(Inbox::new(64));
        inbox.open();
        let poster = thread::spawn({
            let inbox = inbox.clone();
            move || inbox.is_open().then(|| inbox.post_unchecked(1)).is_none()
        });
        inbox.close();
        let mut found = false;
        inbox.empty(|_| found = true);
        assert!(poster.join().unwrap() || found, "lost");
    });
}
