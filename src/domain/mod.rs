//! A domain: its memory, its interrupt controller, its vCPUs, and the devices that EL2 emulates for it.
//!
//! | file | content |
//! |---|---|
//! | [`table`] | all domains |
//! | [`mmio`] | accesses to emulated devices |
//! | [`its_work`] | work of the virtual ITSs, in steps |
//! | [`msi`] | how the virtual ITS reaches the host's ITS: directly injected and software-injected events |
//! | [`port`] | what the virtual GIC needs of the domain |
//! | [`irq`] | physical interrupts: which domain gets each |
//! | [`lifecycle`] | whether the domain runs, and how it ends |

pub mod irq;
pub mod its_work;
pub mod lifecycle;
pub mod mmio;
pub mod msi;
pub mod port;
pub mod table;

use crate::dev::pl011::Vpl011;
use crate::gic::v4::V4Error;
use crate::host::Host;
use crate::ids::{CpuId, DomId, Intid, Mpidr, VcpuId};
use crate::mm::guest_ram::GuestRam;
use crate::mm::hw::El2;
use crate::mm::stage2::Stage2;
use crate::mm::tlb::Tlbs;
use crate::sync::{Lock, Rank};
use crate::util::range::Range;
use crate::vcpu::{Start, Vcpu};
use crate::vgic::{Signal, Vgic};
use crate::vits::Vits;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU16, Ordering};
use lifecycle::{End, Life};
use msi::LpiPaths;

/// The console that a domain sees: an emulated PL011.
struct Console {
    regs: Range,
    irq: Intid,
    uart: Lock<Vpl011>,
}

/// What a domain is made of. `build` collects it.
pub struct Parts {
    /// The domain's number.
    pub id: DomId,
    /// Its address space.
    pub stage2: Stage2<'static, El2, Tlbs>,
    /// Its RAM.
    pub ram: GuestRam,
    /// Its GIC.
    pub vgic: Vgic,
    /// The addresses of its distributor.
    pub dist: Range,
    /// The addresses of its redistributors, 128 KiB each.
    pub redists: Range,
    /// Its ITSs with their addresses.
    pub itss: Vec<(Range, Vits)>,
    /// How LPIs reach its vCPUs.
    pub paths: LpiPaths,
    /// The registers and the interrupt of its console.
    pub console: Option<(Range, Intid)>,
    /// ECAM pages of PCI functions that it does not see.
    pub absent: Vec<Range>,
    /// Its vCPUs, in the order of their numbers. They are off.
    pub vcpus: Vec<Arc<Vcpu>>,
}

/// A domain.
pub struct Domain {
    id: DomId,
    host: &'static Host,
    vttbr: u64,
    vtcr: u64,
    /// `None` once the domain's tables have been freed.
    stage2: Lock<Option<Stage2<'static, El2, Tlbs>>>,
    ram: GuestRam,
    vgic: Vgic,
    dist: Range,
    redists: Range,
    itss: Vec<(Range, Vits)>,
    paths: LpiPaths,
    console: Option<Console>,
    last_ran: LastRan,
    absent: Vec<Range>,
    vcpus: Vec<Arc<Vcpu>>,
    life: Life,
}

impl Domain {
    /// A domain whose vCPUs are all off.
    #[must_use]
    pub fn new(host: &'static Host, parts: Parts) -> Domain {
        let Parts { id, stage2, ram, vgic, dist, redists, itss, paths, console, absent, vcpus } = parts;
        Domain {
            id,
            host,
            vttbr: stage2.vttbr(),
            vtcr: stage2.vtcr(),
            stage2: Lock::new(Rank::Domain, Some(stage2)),
            ram,
            vgic,
            dist,
            redists,
            itss,
            paths,
            console: console.map(|(regs, irq)| Console { regs, irq, uart: Lock::new(Rank::Domain, Vpl011::new()) }),
            last_ran: LastRan::new(host.cpus.ids().len()),
            absent,
            vcpus,
            life: Life::new(),
        }
    }

    /// The domain's number.
    #[must_use]
    pub fn id(&self) -> DomId {
        self.id
    }

    /// Whether this is dom0, which has the machine's devices and does not end.
    #[must_use]
    pub fn is_dom0(&self) -> bool {
        self.id == DomId(0)
    }

    /// Its RAM.
    #[must_use]
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// Its GIC.
    #[must_use]
    pub fn vgic(&self) -> &Vgic {
        &self.vgic
    }

    /// Its ITSs, in the order of the host's.
    pub fn itss(&self) -> impl Iterator<Item = &Vits> {
        self.itss.iter().map(|(_, vits)| vits)
    }

    /// Its vCPUs.
    #[must_use]
    pub fn vcpus(&self) -> &[Arc<Vcpu>] {
        &self.vcpus
    }

    /// One of its vCPUs.
    #[must_use]
    pub fn vcpu(&self, id: VcpuId) -> Option<&Arc<Vcpu>> {
        self.vcpus.get(id.index())
    }

    /// The vCPU with this affinity.
    #[must_use]
    pub fn vcpu_at(&self, affinity: Mpidr) -> Option<&Arc<Vcpu>> {
        self.vcpus.iter().find(|vcpu| vcpu.affinity == affinity)
    }

    /// Loads its stage 2 on this CPU, `cpu`.
    pub fn load_stage2(&self, cpu: CpuId) {
        self.host.load_stage2(cpu, self.vtcr, self.vttbr);
    }

    /// Whether a CPU still has its stage 2 loaded.
    #[must_use]
    pub fn is_stage2_loaded(&self) -> bool {
        self.host.is_stage2_loaded(self.vttbr)
    }

    /// Records that `vcpu` runs on `cpu` now. Returns `true` if another vCPU of the domain ran there before: its stage 1 TLB
    /// entries have to be invalidated.
    #[must_use]
    pub fn ran_another_vcpu(&self, cpu: CpuId, vcpu: VcpuId) -> bool {
        self.last_ran.changes(cpu, vcpu)
    }

    /// Passes a typed byte to its console. Returns `false` if the console has no room.
    pub fn input(&self, byte: u8) -> bool {
        let Some(console) = &self.console else { return false };
        let mut uart = console.uart.lock();
        let taken = uart.push_input(byte);
        let level = uart.irq_level();
        drop(uart);
        self.vgic.inject_spi(&self.port(), console.irq, Signal::Level(level));
        taken
    }

    /// Whether the domain has ended: none of its vCPUs enters the guest any more.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        self.life.end().is_some()
    }

    /// How the domain has ended, if it has.
    #[must_use]
    pub fn end(&self) -> Option<End> {
        self.life.end()
    }

    /// Ends a domU. The first reason that is given counts. Each vCPU goes off when its CPU notices the end; the last one has the
    /// domain taken down.
    pub fn finish(&self, end: End) {
        if self.life.finish(end) {
            match end {
                End::Off => log::info!("{}: powered off", self.id),
                End::Reset => log::info!("{}: reset", self.id),
                End::Crash => log::warn!("{}: crashed", self.id),
            }
            self.vcpus.iter().for_each(|vcpu| self.kick(vcpu));
        }
    }

    /// Powers a vCPU on and makes it runnable. Returns `false` if it was on already. The caller is a vCPU that is on, or the
    /// builder of the domain.
    #[must_use]
    pub fn power_on(&self, vcpu: &Vcpu, start: Start) -> bool {
        self.life.one_comes_on();
        let changed = vcpu.power_on(start);
        if changed {
            self.host.make_runnable(vcpu);
        } else {
            // It cannot be the last one: the vCPU that calls is on.
            let _ = self.life.one_goes_off();
        }
        changed
    }

    /// A vCPU went off and its CPU is about to release the domain. Returns `true` if it was the last vCPU of a domU: no vCPU is left
    /// that could power one on, so the domain has ended and has to be taken down.
    #[must_use]
    pub fn vcpu_went_off(&self) -> bool {
        let last = self.life.one_goes_off() && !self.is_dom0();
        if last {
            self.finish(End::Crash);
        }
        last
    }

    /// Makes a vCPU look at its pending interrupts, wherever it is.
    pub fn kick(&self, vcpu: &Vcpu) {
        let _ = self.host.wake(vcpu);
    }

    /// Removes its vPEs and their tables from the GIC. Returns `false` if a vPE is still resident: then it has to be called again.
    #[must_use]
    pub fn remove_vpes(&self) -> bool {
        let (Some(v4), Some(vm)) = (self.host.gic.v4(), self.paths.vm) else { return true };
        for vpe in self.paths.vcpus.iter().filter_map(|&(_, vpe)| vpe) {
            self.host.vpes.take_back(vpe);
            match v4.remove_vpe(vpe) {
                Err(V4Error::Resident(_)) => return false,
                Err(V4Error::NoSuchVpe(_)) | Ok(()) => {}
                Err(error) => log::error!("{}: {vpe}: cannot be removed: {error}", self.id),
            }
        }
        if let Err(error) = v4.destroy_vm(vm) {
            log::error!("{}: vLPI tables cannot be freed: {error}", self.id);
        }
        true
    }

    /// Releases the interrupts of a domain that has ended: what is active for it is deactivated, and its SPIs have no owner any more.
    pub fn release_interrupts(&self) {
        self.vgic.release(&self.port());
        self.host.spis.take_back(self.id, |spi| {
            self.host.gic.spi_disable(spi);
            self.host.gic.spi_set_pending(spi, false);
            self.host.gic.spi_set_active(spi, false);
        });
    }

    /// Frees its stage 2 tables and its VMID. No CPU has them loaded.
    pub fn free_address_space(&self) {
        let stage2 = self.stage2.lock().take();
        if let Some(stage2) = stage2 {
            let vmid = stage2.vmid();
            stage2.destroy();
            self.host.vmids.give_back(vmid);
        }
    }

    /// The RAM of a domain that is gone.
    #[must_use]
    pub fn into_ram(self) -> GuestRam {
        self.free_address_space();
        self.ram
    }
}

/// Which vCPU of a domain each CPU ran last.
///
/// Two vCPUs of a domain may map one address differently, each for itself, under one VMID. A vCPU must not find the TLB entries
/// of another one that ran on the same CPU before.
struct LastRan(Vec<AtomicU16>);

impl LastRan {
    /// No vCPU has run on any of `cpus` CPUs.
    fn new(cpus: usize) -> LastRan {
        LastRan((0..cpus).map(|_| AtomicU16::new(u16::MAX)).collect())
    }

    fn changes(&self, cpu: CpuId, vcpu: VcpuId) -> bool {
        let Some(last) = self.0.get(cpu.index()) else { return true };
        let before = last.load(Ordering::Relaxed);
        last.store(vcpu.0, Ordering::Relaxed);
        before != vcpu.0 && before != u16::MAX
    }
}
