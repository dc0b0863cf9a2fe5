//! Going to sleep and being woken, under every interleaving.
//!
//! The functions are the real ones. What stands around them is the least that they need: a redistributor with one vPE
//! (pending bit, residency, doorbell, PendingLast), something that EL2 injects by software, and one thread for each
//! CPU that has a part in it. A doorbell is handled as in `domain::irq`: it wakes the vCPU and does nothing else. Each model ends
//! with the one question that matters: does the vCPU sleep although it has an interrupt?
//!
//! Run by `RUSTFLAGS="--cfg loom" cargo test --lib interleavings`.

use super::inbox::Inbox;
use super::{Found, RunState, State, Woken};
use loom::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use loom::sync::{Arc, Mutex};
use loom::thread;

/// A redistributor and the vPE on it, as GICv4.0 has them: a doorbell rings for what arrives while not resident.
#[derive(Default)]
struct Redistributor {
    resident: bool,
    pending: bool,
}

struct Vcpu {
    run: RunState,
    redist: Mutex<Redistributor>,
    /// Pending in software, as `vgic` holds it.
    soft: AtomicBool,
    /// SGIs sent to wake the CPU from its idle loop.
    kicks: AtomicU8,
}

impl Vcpu {
    /// One that runs, with its vPE resident.
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

    /// `Domain::kick`: what it is woken for is visible before.
    fn wake(&self) {
        if self.run.wake() == Woken::WasBlocked {
            self.kicks.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// A device's MSI: into the pending table; and a doorbell, which EL2 takes on some CPU.
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

    /// The guest takes what it has.
    fn take(&self) {
        self.redist.lock().unwrap().pending = false;
        self.soft.store(false, Ordering::SeqCst);
    }

    /// `Stay::switch_out` for a vCPU that waits for an interrupt.
    fn switch_out(&self) -> Found {
        let last = self.leave();
        if last || self.soft.load(Ordering::SeqCst) { Found::Pending } else { Found::Nothing }
    }

    /// `WFI` of a guest that saw nothing to do.
    fn wfi(&self) -> bool {
        self.run.block(|| self.switch_out())
    }

    /// Whether it sleeps with an interrupt pending: the failure that all of this is about.
    fn is_forgotten(&self) -> bool {
        let pending = self.redist.lock().unwrap().pending || self.soft.load(Ordering::SeqCst);
        pending && self.run.get() == State::Blocked
    }

    /// A sleeper that was woken has a CPU that was told so.
    fn assert_told(&self, slept: bool) {
        if slept && self.run.get() == State::Runnable {
            assert!(self.kicks.load(Ordering::SeqCst) > 0, "runnable, and nobody was told");
        }
    }
}

#[test]
fn a_vlpi_that_arrives_at_any_moment_of_a_block_is_not_slept_through() {
    loom::model(|| {
        let vcpu = Vcpu::running();
        let device = thread::spawn({
            let vcpu = vcpu.clone();
            move || vcpu.msi()
        });
        let slept = vcpu.wfi();
        device.join().unwrap();
        assert!(!vcpu.is_forgotten());
        vcpu.assert_told(slept);
    });
}

#[test]
fn a_software_interrupt_and_a_vlpi_together_wake_it_once_and_for_all() {
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
        vcpu.assert_told(slept);
    });
}

/// The vCPU runs again and blocks again while interrupts keep coming.
#[test]
fn blocking_again_right_after_a_wake_loses_nothing() {
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
            // As the idle loop: taken up again only if it is runnable.
            if !vcpu.run.start_running() {
                break;
            }
            vcpu.enter();
            vcpu.take();
        }
        device.join().unwrap();
        assert!(!vcpu.is_forgotten());
    });
}

/// Preempted, taken up by another CPU, and blocked there, while a device and EL2 both have something for it.
#[test]
fn a_vcpu_that_is_preempted_and_moves_is_still_found() {
    loom::model(|| {
        let vcpu = Vcpu::running();
        let device = thread::spawn({
            let vcpu = vcpu.clone();
            move || vcpu.msi()
        });
        // The old CPU puts it down: what is pending stays in the table, a doorbell may ring for a runnable vCPU.
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

/// A doorbell for a vCPU that powers itself off: nobody wakes what is off, and it can be powered on again.
#[test]
fn a_doorbell_does_not_bring_back_a_vcpu_that_is_off() {
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

/// Two CPUs power the same vCPU on: one wins.
#[test]
fn a_vcpu_is_powered_on_by_one() {
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

/// The test of the test: without the look at PendingLast there is an interleaving that sleeps for ever.
#[test]
#[should_panic(expected = "slept through")]
fn without_the_look_at_pending_last_a_wake_up_is_lost() {
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
        assert!(!vcpu.is_forgotten(), "slept through");
    });
}

/// And without declaring the block before the state is given up, the doorbell finds a vCPU that is awake.
#[test]
#[should_panic(expected = "slept through")]
fn declaring_the_block_last_loses_a_wake_up() {
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
        assert!(!vcpu.is_forgotten(), "slept through");
    });
}

/// A CPU is taken out while two vCPUs are woken for it: each is either handed back to who woke it, or found by the CPU.
#[test]
fn one_that_is_posted_to_a_cpu_that_goes_is_in_one_place() {
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

/// The test of the test: with a look before the post, one is lost.
#[test]
#[should_panic(expected = "lost")]
fn looking_whether_the_inbox_is_open_before_posting_loses_one() {
    loom::model(|| {
        let inbox = Arc::new(Inbox::new(64));
        inbox.open();
        let poster = thread::spawn({
            let inbox = inbox.clone();
            move || inbox.is_open().then(|| inbox.post_unseen(1)).is_none()
        });
        inbox.close();
        let mut found = false;
        inbox.empty(|_| found = true);
        assert!(poster.join().unwrap() || found, "lost");
    });
}
