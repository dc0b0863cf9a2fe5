//! What is left of a domain that has ended, and how it is given back.
//!
//! The last vCPU of a domain to go off announces it. From then on whichever CPU has nothing better to do, or leaves a
//! guest because of an interrupt, does a short stretch of the work, one CPU at a time:
//!
//! 1. Nobody finds it any more: it leaves its place, the scheduler, the table of SPIs and the console.
//! 2. What the hardware knows of it goes: its devices' events, its vPEs, interrupts that are active for it.
//! 3. When nobody looks at it any more and no CPU has its stage 2 loaded, its tables are freed.
//! 4. Its RAM is zeroed, piece by piece, and given back to the pool.
//!
//! After a reset it is then built anew from the same boot modules.

use super::domain::{Domain, End};
use super::domu;
use super::hypervisor;
use super::hypervisor::Hypervisor;
use super::options::OnCrash;
use crate::arch::timer;
use crate::console;
use crate::gic::v4::V4Error;
use crate::ids::{CpuId, DomId, Pa};
use crate::mm::{frames, heap};
use crate::platform::Range;
use crate::sync::Owned;
use crate::vits::Progress;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};

/// Bytes that are zeroed in one stretch.
const STRETCH: u64 = 256 << 10;

/// Operations of a virtual ITS in one stretch.
const VITS_BUDGET: usize = 64;

/// How long a domain that nobody runs may be looked at by others before that is said.
const PATIENCE_US: u64 = 5_000_000;

/// The domains that have ended, and the one that is being taken down.
pub struct Ends {
    announced: AtomicU32,
    /// 1 while there is something to do.
    busy: AtomicU32,
    work: Owned<Option<Work>>,
}

impl Ends {
    /// No domain has ended.
    #[allow(clippy::new_without_default, reason = "it belongs to the hypervisor")]
    #[must_use]
    pub fn new() -> Ends {
        Ends { announced: AtomicU32::new(0), busy: AtomicU32::new(0), work: Owned::new(None) }
    }

    /// All vCPUs of a domain are off, and it has ended. May be said more than once.
    pub fn announce(&self, id: DomId) {
        self.announced.fetch_or(1 << (id.0 % 32), Ordering::SeqCst);
        self.busy.store(1, Ordering::SeqCst);
    }

    fn next(&self) -> Option<DomId> {
        let announced = self.announced.load(Ordering::SeqCst);
        (announced != 0).then(|| DomId(announced.trailing_zeros() as u16))
    }
}

/// A domain on its way out.
struct Work {
    id: DomId,
    end: End,
    since: u64,
    said: bool,
    step: Step,
}

enum Step {
    /// Its devices' events are taken down.
    Events(Arc<Domain>),
    /// Others may still look at it.
    Alone(Arc<Domain>),
    /// Its RAM is zeroed: what is left of it, and how much of the last stretch is done.
    Wipe(Vec<Range>, u64),
    /// All is given back.
    Done,
}

/// Does a short stretch of what there is to do. `false` if there is nothing, or another CPU is at it.
pub fn chore(cpu: CpuId) -> bool {
    let hv = hypervisor();
    if hv.ends.busy.load(Ordering::Relaxed) == 0 {
        return false;
    }
    let Some(mut work) = hv.ends.work.take() else { return false };
    if work.is_none() {
        *work = hv.ends.next().and_then(|id| begin(hv, id));
    }
    let Some(current) = work.as_mut() else {
        if hv.ends.next().is_none() {
            hv.ends.busy.store(0, Ordering::SeqCst);
            // One may have been announced between the two.
            if hv.ends.next().is_some() {
                hv.ends.busy.store(1, Ordering::SeqCst);
            }
        }
        return false;
    };
    if advance(hv, cpu, current) == Progress::Done {
        let (id, end) = (current.id, current.end);
        *work = None;
        drop(work);
        report(hv);
        if end == End::Reset || end == End::Crash && hv.options.on_crash == OnCrash::Restart {
            domu::build_or_say(hv, id);
        }
    }
    true
}

/// Prints what is free: after each domain that is gone, the same as before it came.
pub(super) fn report(hv: &Hypervisor) {
    let (objects, _) = heap::usage();
    let guests = hv.guest_pool.lock().free_bytes();
    let pages = frames::free_bytes() / frames::PAGE as u64;
    log::info!("free: {pages} frames, {} MiB for domains; {objects} bytes of objects", guests >> 20);
}

/// Nobody finds the domain any more.
fn begin(hv: &Hypervisor, id: DomId) -> Option<Work> {
    hv.ends.announced.fetch_and(!(1 << id.0), Ordering::SeqCst);
    let domain = hv.take_domain(id)?;
    console::detach(id);
    for vcpu in domain.vcpus() {
        hv.remove_vcpu(vcpu);
    }
    for (_, vits) in &domain.vitss {
        let _ = vits.reset();
    }
    let end = domain.life.end().unwrap_or(End::Crash);
    Some(Work { id, end, since: timer::now_us(), said: false, step: Step::Events(domain) })
}

/// One stretch.
fn advance(hv: &Hypervisor, cpu: CpuId, work: &mut Work) -> Progress {
    work.step = match core::mem::replace(&mut work.step, Step::Done) {
        Step::Events(domain) => {
            if take_events_down(&domain) == Progress::More {
                Step::Events(domain)
            } else if !take_vpes_down(hv, &domain) {
                patience(work, "a vPE of it is still in use");
                Step::Events(domain)
            } else {
                domain.vgic.release(&domain.port());
                hv.spis.take_back(domain.id, |spi| {
                    hv.gic.spi_disable(spi);
                    hv.gic.spi_set_pending(spi, false);
                    hv.gic.spi_set_active(spi, false);
                });
                Step::Alone(domain)
            }
        }
        Step::Alone(domain) => {
            if hv.vcpu_of(cpu).is_none() {
                hv.unload_stage2(cpu);
            }
            if hv.is_loaded(domain.vttbr) {
                // That CPU is on its way from it to another vCPU, or to its sleep.
                patience(work, "a CPU still has its stage 2");
                Step::Alone(domain)
            } else if domain.vcpus().iter().any(|vcpu| Arc::strong_count(vcpu) > 1) {
                patience(work, "somebody still looks at a vCPU of it");
                Step::Alone(domain)
            } else {
                match Arc::try_unwrap(domain) {
                    Ok(domain) => {
                        domu::give_address_space_back(hv, &domain);
                        Step::Wipe(domain.ram.banks().iter().map(|bank| Range::new(bank.pa, bank.size)).collect(), 0)
                    }
                    Err(domain) => {
                        patience(work, "somebody still looks at it");
                        Step::Alone(domain)
                    }
                }
            }
        }
        Step::Wipe(mut banks, done) => match banks.last() {
            Some(bank) if done < bank.size => {
                let size = (bank.size - done).min(STRETCH);
                domu::wipe(Range::new(Pa(bank.base.0 + done), size));
                Step::Wipe(banks, done + size)
            }
            Some(&bank) => {
                banks.pop();
                hv.guest_pool.lock().give(bank);
                Step::Wipe(banks, 0)
            }
            None => Step::Done,
        },
        Step::Done => Step::Done,
    };
    if matches!(work.step, Step::Done) { Progress::Done } else { Progress::More }
}

/// Says once that taking a domain down takes long.
fn patience(work: &mut Work, why: &str) {
    if !work.said && timer::now_us() - work.since > PATIENCE_US {
        work.said = true;
        log::warn!("{} cannot be taken down: {why}", work.id);
    }
}

fn take_events_down(domain: &Domain) -> Progress {
    let port = domain.port();
    let backend = domain.lpi_backend(&port);
    for (_, vits) in &domain.vitss {
        if vits.run(&backend, VITS_BUDGET) == Progress::More {
            return Progress::More;
        }
    }
    Progress::Done
}

/// `false` if one is still in use.
fn take_vpes_down(hv: &Hypervisor, domain: &Domain) -> bool {
    let (Some(v4), Some(vm)) = (hv.gic.v4(), domain.paths.vm) else { return true };
    for vpe in domain.paths.vcpus.iter().filter_map(|&(_, vpe)| vpe) {
        hv.vpes.set(vpe, None);
        match v4.remove_vpe(vpe) {
            Err(V4Error::Resident(_)) => return false,
            Err(V4Error::NoSuchVpe(_)) | Ok(()) => {}
            Err(error) => log::error!("{} of {}: {error}", vpe, domain.id),
        }
    }
    if let Err(error) = v4.destroy_vm(vm) {
        log::error!("the interrupt tables of {}: {error}", domain.id);
    }
    true
}
