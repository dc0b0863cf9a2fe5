//! A domain: its memory, its interrupt controller, its vCPUs, and the devices EL2 emulates for it.

use crate::arch::percpu;
use crate::control::teardown;
use crate::dev::pl011::Vpl011;
use crate::domain::lifecycle::{End, Life};
use crate::domain::msi::{LpiBackend, LpiPaths};
use crate::host::Hypervisor;
use crate::host::hypervisor;
use crate::ids::{CpuId, DomId, Intid, Ipa, ItsId, Mpidr, VcpuId};
use crate::mm::guest_ram::GuestRam;
use crate::mm::hw::El2;
use crate::mm::stage2::Stage2;
use crate::mm::tlb::Tlbs;
use crate::mmio::Hw;
use crate::sched::Woken;
use crate::sync::{Lock, Once};
use crate::trace::{Event, count};
use crate::util::range::Range;
use crate::vcpu::{Start, Vcpu};
use crate::vgic::{Port, Signal, Trigger, VGICR_SIZE, Vgic};
use crate::vits::{Progress, Vits};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU16, Ordering};

/// How long a CPU waits for another to leave its guest.
const LEAVE_LIMIT_US: u64 = 1_000;

/// How many host operations a virtual ITS does before its CPU looks at what else there is.
const VITS_BUDGET: usize = 64;

/// Which device EL2 emulates at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Emulated {
    /// The distributor.
    Dist(u64),
    /// A redistributor.
    Redist(VcpuId, u64),
    /// An ITS, by its place in the list.
    Its(usize, u64),
    /// The console.
    Uart(u64),
    /// A PCI function that it is not to see.
    Absent,
}

/// The console that a domain sees.
pub struct Console {
    /// Its registers.
    pub regs: Range,
    /// Its interrupt.
    pub irq: Intid,
    /// Its state.
    pub uart: Lock<Vpl011>,
}

/// A domain.
pub struct Domain {
    /// Its number.
    pub id: DomId,
    /// VTTBR_EL2 and VTCR_EL2.
    pub vttbr: u64,
    /// See `vttbr`.
    pub vtcr: u64,
    /// Its address space; gone when the domain is.
    pub stage2: Lock<Option<Stage2<'static, El2, Tlbs>>>,
    /// Its RAM.
    pub ram: GuestRam,
    /// Its GIC.
    pub vgic: Vgic,
    /// Where its distributor is.
    pub dist: Range,
    /// Where its redistributors are, 128 KiB each.
    pub redists: Range,
    /// Its ITSs, and where they are.
    pub vitss: Vec<(Range, Vits)>,
    /// How LPIs reach it.
    pub paths: LpiPaths,
    /// Its console.
    pub console: Option<Console>,
    /// Which of its vCPUs each CPU ran last.
    pub last_ran: LastRan,
    /// Configuration space of PCI functions that are not there for it.
    pub absent: Vec<Range>,
    /// Its vCPUs.
    pub vcpus: Once<Vec<Arc<Vcpu>>>,
    /// Whether it lives.
    pub life: Life,
}

impl Domain {
    /// Its vCPUs; none before it is built.
    #[must_use]
    pub fn vcpus(&self) -> &[Arc<Vcpu>] {
        self.vcpus.get().map_or(&[], |vcpus| vcpus)
    }

    /// One of its vCPUs.
    #[must_use]
    pub fn vcpu(&self, id: VcpuId) -> Option<&Arc<Vcpu>> {
        self.vcpus().get(id.index())
    }

    /// The vCPU with this affinity.
    #[must_use]
    pub fn vcpu_at(&self, affinity: Mpidr) -> Option<&Arc<Vcpu>> {
        self.vcpus().iter().find(|vcpu| vcpu.affinity == affinity)
    }

    /// What EL2 emulates at `at`.
    #[must_use]
    pub fn emulated(&self, at: Ipa) -> Option<Emulated> {
        let at = crate::ids::Pa(at.0);
        if self.redists.contains(at) {
            let offset = at.0 - self.redists.base.0;
            let vcpu = u16::try_from(offset / VGICR_SIZE).ok()?;
            return (usize::from(vcpu) < self.vcpus().len())
                .then_some(Emulated::Redist(VcpuId(vcpu), offset % VGICR_SIZE));
        }
        if self.dist.contains(at) {
            return Some(Emulated::Dist(at.0 - self.dist.base.0));
        }
        if let Some(console) = self.console.as_ref().filter(|console| console.regs.contains(at)) {
            return Some(Emulated::Uart(at.0 - console.regs.base.0));
        }
        if self.absent.iter().any(|page| page.contains(at)) {
            return Some(Emulated::Absent);
        }
        let its = self.vitss.iter().position(|(range, _)| range.contains(at))?;
        Some(Emulated::Its(its, at.0 - self.vitss.get(its)?.0.base.0))
    }

    /// The domain as its GIC and its ITSs see it, from the CPU this runs on.
    #[must_use]
    pub fn port(&self) -> DomainPort<'_> {
        DomainPort { domain: self, hv: hypervisor() }
    }

    /// The way of its ITSs to the hardware.
    #[must_use]
    pub fn lpi_backend<'a>(&'a self, port: &'a DomainPort<'a>) -> LpiBackend<'a, El2> {
        LpiBackend {
            gic: &port.hv.gic,
            vgic: &self.vgic,
            port,
            domain: self.id,
            paths: &self.paths,
            routes: &port.hv.routes,
        }
    }

    /// A load from an emulated device.
    pub fn mmio_read(&self, from: VcpuId, device: Emulated, bytes: u8) -> u64 {
        let port = self.port();
        match device {
            Emulated::Dist(offset) => self.vgic.dist_read(&port, from, offset, bytes),
            Emulated::Redist(frame, offset) => self.vgic.redist_read(&port, from, frame, offset, bytes),
            Emulated::Its(its, offset) => self.vitss.get(its).map_or(0, |(_, vits)| vits.read(offset, bytes)),
            Emulated::Absent => u64::MAX >> (64 - 8 * u32::from(bytes.clamp(1, 8))),
            Emulated::Uart(offset) => {
                let Some(console) = &self.console else { return 0 };
                let mut uart = console.uart.lock();
                let value = uart.read(offset, bytes);
                let level = uart.irq_level();
                drop(uart);
                self.vgic.inject_spi(&port, console.irq, Signal::Level(level));
                value
            }
        }
    }

    /// A store to an emulated device.
    pub fn mmio_write(&self, from: VcpuId, device: Emulated, bytes: u8, value: u64) {
        let port = self.port();
        match device {
            Emulated::Dist(offset) => self.vgic.dist_write(&port, from, offset, bytes, value),
            Emulated::Redist(frame, offset) => {
                let was_on = self.vgic.lpis_on(frame);
                self.vgic.redist_write(&port, from, frame, offset, bytes, value);
                if !was_on && self.vgic.lpis_on(frame) {
                    self.lpis_came_on(&port, frame);
                }
            }
            Emulated::Its(its, offset) => {
                if its_is_translater(offset) {
                    count(percpu::cpu(), Event::TranslaterStore);
                }
                if let Some((_, vits)) = self.vitss.get(its) {
                    let backend = self.lpi_backend(&port);
                    if vits.write(&backend, offset, bytes, value) == Progress::More {
                        self.finish_vits(vits, &port);
                    }
                }
            }
            Emulated::Absent => {}
            Emulated::Uart(offset) => {
                let Some(console) = &self.console else { return };
                let mut uart = console.uart.lock();
                let sent = uart.write(offset, bytes, value);
                let level = uart.irq_level();
                drop(uart);
                if let Some(byte) = sent {
                    crate::console::guest_write(self.id, byte);
                }
                self.vgic.inject_spi(&port, console.irq, Signal::Level(level));
            }
        }
    }

    /// A vCPU's LPIs were switched on: its configuration has been read; the hardware is to look again, and
    /// what its pending table held of direct LPIs becomes pending there.
    fn lpis_came_on(&self, port: &DomainPort<'_>, vcpu: VcpuId) {
        for (_, vits) in &self.vitss {
            if vits.lpis_enabled(vcpu) == Progress::More {
                self.finish_vits(vits, port);
            }
        }
        let mut pending: Vec<_> = core::iter::from_fn(|| self.vgic.take_direct_pending(vcpu)).collect();
        if pending.is_empty() {
            return;
        }
        pending.sort_unstable();
        for (index, (_, vits)) in (0..).map(ItsId).zip(&self.vitss) {
            let mut events = Vec::new();
            vits.for_each_event(&mut |device, event, vintid, _, _| {
                if pending.binary_search(&vintid).is_ok() {
                    events.push((device, event));
                }
            });
            for (device, event) in events {
                let _ = port.hv.gic.set_pending(index, device, event);
            }
        }
    }

    /// Runs a virtual ITS until it has nothing left to do. Physical interrupts are taken between stretches,
    /// so that a guest's command that means thousands at the host delays nobody else on this CPU.
    fn finish_vits(&self, vits: &Vits, port: &DomainPort<'_>) {
        let backend = self.lpi_backend(port);
        while vits.run(&backend, VITS_BUDGET) == Progress::More {
            crate::domain::irq::take_all(percpu::cpu());
        }
    }

    /// Something was typed for this domain. `false` when its console is full.
    pub fn input(&self, byte: u8) -> bool {
        let Some(console) = &self.console else { return false };
        let mut uart = console.uart.lock();
        let taken = uart.push_input(byte);
        let level = uart.irq_level();
        drop(uart);
        self.vgic.inject_spi(&self.port(), console.irq, Signal::Level(level));
        taken
    }

    /// Whether it has ended: none of its vCPUs enters it any more.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        self.life.end().is_some()
    }

    /// Ends the domain, for the first reason that is given. Each of its vCPUs goes off as soon as its CPU sees it; the
    /// last one to do so has the domain taken down. Not for dom0.
    pub fn finish(&self, end: End) {
        if self.life.finish(end) {
            match end {
                End::Off => log::info!("{} powered off", self.id),
                End::Reset => log::info!("{} reset", self.id),
                End::Crash => log::warn!("{} crashed", self.id),
            }
            self.vcpus().iter().for_each(|vcpu| self.kick(vcpu));
        }
    }

    /// Powers a vCPU on and has it run. `false` if it was on. Called by a vCPU that is on, or by who builds the domain.
    #[must_use]
    pub fn power_on(&self, vcpu: &Vcpu, start: Start) -> bool {
        self.life.one_comes_on();
        let comes = vcpu.power_on(start);
        if comes {
            hypervisor().make_runnable(vcpu);
        } else {
            // Not the last: whoever asked is on.
            let _ = self.life.one_goes_off();
        }
        comes
    }

    /// A vCPU went off and its CPU is about to let go of the domain. Without a vCPU that could power one on, a domain
    /// has no future.
    pub fn vcpu_went_off(&self) {
        if self.life.one_goes_off() && self.id != DomId(0) {
            self.finish(End::Crash);
            teardown::announce(hypervisor(), self.id);
        }
    }

    /// Makes a vCPU look at its interrupts again, wherever it is.
    pub fn kick(&self, vcpu: &Vcpu) {
        if vcpu.run.wake() == Woken::WasBlocked {
            count(percpu::cpu(), Event::Wake);
            hypervisor().make_runnable(vcpu);
        } else if vcpu.is_in_guest() {
            // If it has moved since, it has looked since.
            let cpu = vcpu.cpu();
            if cpu != percpu::cpu() {
                hypervisor().send_kick(cpu);
            }
        }
    }
}

/// Which vCPU of a domain each CPU ran last.
///
/// Two vCPUs of a domain may have different mappings of one address, for their own use, under one VMID: where one ran,
/// the other must not find the first's in the TLB.
pub struct LastRan(Vec<AtomicU16>);

impl LastRan {
    /// None on any of `cpus` CPUs.
    #[must_use]
    pub fn new(cpus: usize) -> LastRan {
        LastRan((0..cpus).map(|_| AtomicU16::new(u16::MAX)).collect())
    }

    /// `vcpu` runs on `cpu` now. `true` if another did before.
    #[must_use]
    pub fn changes(&self, cpu: CpuId, vcpu: VcpuId) -> bool {
        let Some(last) = self.0.get(cpu.index()) else { return true };
        let before = last.load(Ordering::Relaxed);
        last.store(vcpu.0, Ordering::Relaxed);
        before != vcpu.0 && before != u16::MAX
    }
}

/// Offsets of an ITS's second frame, where GITS_TRANSLATER is.
const fn its_is_translater(offset: u64) -> bool {
    offset >= 0x1_0000
}

/// A domain as its GIC reaches it.
pub struct DomainPort<'a> {
    domain: &'a Domain,
    /// The machine.
    pub hv: &'static Hypervisor,
}

impl DomainPort<'_> {
    fn cpu_of(&self, vcpu: VcpuId) -> Option<CpuId> {
        Some(self.domain.vcpu(vcpu)?.cpu())
    }

    /// Makes every vCPU but the current one leave the guest and look again before it goes on, and waits for it.
    fn settle(&self, which: impl Fn(&Vcpu) -> bool) {
        for vcpu in self.domain.vcpus().iter().filter(|vcpu| which(vcpu) && vcpu.cpu() != percpu::cpu()) {
            self.domain.kick(vcpu);
            if !El2.wait(LEAVE_LIMIT_US, || !vcpu.is_in_guest()) {
                log::warn!("{} of {} did not leave its guest within 1 ms", vcpu.id, self.domain.id);
            }
        }
    }
}

impl Port for DomainPort<'_> {
    fn kick(&self, vcpu: VcpuId) {
        if let Some(vcpu) = self.domain.vcpu(vcpu) {
            self.domain.kick(vcpu);
        }
    }

    fn read_guest(&self, ipa: Ipa, buf: &mut [u8]) -> bool {
        self.domain.ram.read(ipa, buf).is_ok()
    }

    fn owns_spi(&self, intid: Intid) -> bool {
        self.hv.spis.get(intid) == Some(self.domain.id)
    }

    fn spi_set_enabled(&self, intid: Intid, on: bool) {
        if on { self.hv.gic.spi_enable(intid) } else { self.hv.gic.spi_disable(intid) }
    }

    fn spi_set_trigger(&self, intid: Intid, trigger: Trigger) {
        self.hv.gic.spi_set_trigger(
            intid,
            match trigger {
                Trigger::Level => crate::gic::Trigger::Level,
                Trigger::Edge => crate::gic::Trigger::Edge,
            },
        );
    }

    fn spi_route(&self, intid: Intid, vcpu: VcpuId) {
        if let Some(cpu) = self.cpu_of(vcpu) {
            self.hv.route_spi(intid, cpu);
        }
    }

    fn spi_set_pending(&self, intid: Intid, on: bool) {
        self.hv.gic.spi_set_pending(intid, on);
    }

    fn spi_deactivate(&self, intid: Intid) {
        self.hv.gic.spi_set_active(intid, false);
    }

    fn ppi_deactivate(&self, vcpu: VcpuId, intid: Intid) {
        let Some(vcpu) = self.domain.vcpu(vcpu) else { return };
        match vcpu.live_on() {
            Some(cpu) if cpu == percpu::cpu() || !self.hv.sched.shares_cpus() => {
                self.hv.gic.ppi_set_active(cpu, intid, false);
            }
            // Another vCPU may be there before the write is: its own CPU does it.
            Some(cpu) => {
                vcpu.ask_to_deactivate(intid);
                self.domain.kick(vcpu);
                if vcpu.live_on() != Some(cpu) {
                    // It may have left before it was asked. One more level interrupt there does no harm, none would.
                    self.hv.gic.ppi_set_active(cpu, intid, false);
                }
            }
            // Nothing of it is in a CPU, and nothing will be made active for it.
            None => {}
        }
    }

    fn group1_enabled(&self, _: bool) {
        // On GICv4.0 residency follows this bit: each vCPU looks at it before it enters, and the current one
        // does so when this trap returns.
        self.settle(|_| true);
    }

    fn lpis_enabled(&self, vcpu: VcpuId, _: bool, _: u64, _: u64) {
        self.settle(|other| other.id == vcpu);
    }

    fn wait(&self, done: &dyn Fn() -> bool) -> bool {
        El2.wait(LEAVE_LIMIT_US, done)
    }
}
