//! What is left of a domain that has ended, and how it is given back.
//!
//! The last vCPU of a domain to go off announces it. From then on whichever CPU has nothing better to do does a short
//! stretch of the work after the other ([`Duty`](crate::host::background::Duty)):
//!
//! 1. Nobody finds it any more: it leaves its place, the scheduler, the table of SPIs and the console.
//! 2. What the hardware knows of it goes: its devices' events, its vPEs, interrupts that are active for it.
//! 3. When nobody looks at it any more and no CPU has its stage 2 loaded, its tables are freed.
//! 4. Its RAM is zeroed, piece by piece, and given back to the pool.
//!
//! After a reset it is then built anew from the same boot modules.

use crate::arch::{barrier, timer};
use crate::build::domu;
use crate::console;
use crate::domain::Domain;
use crate::domain::lifecycle::End;
use crate::gic::v4::V4Error;
use crate::host::Hypervisor;
use crate::host::background::Stretch;
use crate::host::cmdline::OnCrash;
use crate::ids::{CpuId, DomId, Pa};
use crate::mm::{frames, heap};
use crate::util::range::Range;
use crate::vits::Progress;
use alloc::sync::Arc;
use alloc::vec::Vec;

/// Bytes that are zeroed in one stretch.
const STRETCH: u64 = 256 << 10;

/// Operations of a virtual ITS in one stretch.
const VITS_BUDGET: usize = 64;

/// How long a domain that nobody runs may be looked at by others before that is said.
const PATIENCE_US: u64 = 5_000_000;

/// A domain on its way out.
pub struct Work {
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

/// All vCPUs of a domain are off, and it has ended. Said once for each domain.
pub fn announce(hv: &Hypervisor, id: DomId) {
    hv.ends.announce(id);
    pass_on(hv);
}

/// This CPU has something better to do: if there is work left and nobody is at it, one that sleeps is called.
pub fn pass_on(hv: &Hypervisor) {
    if let Some(cpu) = hv.ends.whom_to_call() {
        hv.send_kick(cpu);
    }
}

/// This CPU has no vCPU: it does a stretch, or sleeps until it is called.
pub fn rest(hv: &'static Hypervisor, cpu: CpuId) {
    hv.ends.lie_down(cpu);
    if !stretch(hv, cpu) {
        hv.unload_stage2(cpu);
        barrier::wfi();
    }
    hv.ends.get_up(cpu);
}

/// This CPU has left a guest because of an interrupt: it does a stretch if nobody has more time.
pub fn lend_a_hand(hv: &'static Hypervisor, cpu: CpuId) {
    if hv.ends.is_quiet() {
        return;
    }
    if hv.ends.whom_to_call().is_some() || stretch(hv, cpu) {
        pass_on(hv);
    }
}

/// Does a short stretch of what there is to do. `false` if there is nothing, or another CPU is at it.
fn stretch(hv: &'static Hypervisor, cpu: CpuId) -> bool {
    match hv.ends.stretch(|id| begin(hv, id), |work| advance(hv, cpu, work)) {
        Stretch::Nothing => return false,
        Stretch::More => {}
        Stretch::Done(Work { id, end, .. }) => {
            report(hv);
            if end == End::Reset || end == End::Crash && hv.options.on_crash == OnCrash::Restart {
                domu::build_or_say(hv, id);
            }
        }
    }
    true
}

/// Prints what is free: after each domain that is gone, the same as before it came.
pub(crate) fn report(hv: &Hypervisor) {
    let (objects, _) = heap::usage();
    let guests = hv.guest_pool.lock().free_bytes();
    let pages = frames::free_bytes() / frames::PAGE as u64;
    log::info!("free: {pages} frames, {} MiB for domains; {objects} bytes of objects", guests >> 20);
}

/// Nobody finds the domain any more.
fn begin(hv: &Hypervisor, id: DomId) -> Option<Work> {
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
