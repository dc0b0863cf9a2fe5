//! A domain: its memory, its interrupt controller, its vCPUs, and the devices that EL2 emulates for it.
//!
//! | file | content |
//! |---|---|
//! | [`table`] | all domains |
//! | [`mmio`] | accesses to emulated devices |
//! | [`its_work`] | work of the virtual ITSs, in steps |
//! | [`msi`] | how the virtual ITS reaches the host's ITS: directly injected and software-injected events |
//! | `pci`, [`pci_host`] | the PCI functions that a domU has |
//! | [`port`] | what the virtual GIC needs from the domain |
//! | [`ports`], [`streams`] | dom0's console device: streams of EL2's, and the consoles of other domains |
//! | [`recall`] | vCPUs that have to leave their guests before another one may go on |
//! | [`irq`] | physical interrupts: which domain gets each |
//! | [`lifecycle`] | how the domain ends, and when its last vCPU is off |
//! | [`restart`], `pace` | how it begins anew, in steps; after which delay |
//! | [`images`] | what it starts from, and how that gets into its RAM |

pub mod images;
pub mod irq;
pub mod its_work;
pub mod lifecycle;
pub mod mmio;
pub mod msi;
mod pace;
mod pci;
pub mod pci_host;
pub mod port;
pub mod ports;
pub mod recall;
pub mod restart;
pub mod streams;
pub mod table;

use crate::console;
use crate::console::ring::RING_LEN;
use crate::dev::pl011::Vpl011;
use crate::host::Host;
use crate::host::cmdline::OnCrash;
use crate::host::events;
use crate::ids::{CpuId, DomId, DomainName, Intid, Mpidr, VcpuId};
use crate::mm::guest_ram::GuestRam;
use crate::mm::hw::El2;
use crate::mm::stage2::Stage2;
use crate::mm::tlb::Tlbs;
use crate::pci::bridge::Bridge;
use crate::smmu::iommu::DeviceView;
use crate::sync::{Lock, Rank};
use crate::util::range::Range;
use crate::vcpu::{Start, Vcpu};
use crate::vgic::{Signal, Vgic};
use crate::vits::Vits;
use crate::{log_each_second, log_limited};
use alloc::sync::Arc;
use alloc::vec::Vec;
use arrayvec::ArrayString;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};
use doorward_api::EventKind;
use images::{Images, Rams};
use lifecycle::{End, Lifecycle};
use msi::LpiPaths;
use pace::Pace;
use pci_host::PciHost;
use recall::Recalls;
use streams::{Output, Ports};

/// The console that a domain sees: an emulated PL011.
struct Console {
    regs: Range,
    irq: Intid,
    /// Held until the level of the line has been reported, so that two CPUs report it in the order in which it changes.
    uart: Lock<Vpl011<Arc<Output>>>,
    /// What the port sends.
    output: Arc<Output>,
}

impl Console {
    fn new(regs: Range, irq: Intid) -> Console {
        let output = Arc::new(Output::new(RING_LEN));
        Console { regs, irq, uart: Lock::new(Rank::Domain, Vpl011::new(output.clone())), output }
    }
}

/// The parts that `build` makes a domain of.
pub struct Parts {
    /// The domain's number.
    pub id: DomId,
    /// Its name.
    pub name: DomainName,
    /// The stage 2 address space.
    pub stage2: Stage2<'static, El2, Tlbs>,
    /// What the domain's devices reach by DMA; `None` if no SMMU translates for them.
    pub device_view: Option<DeviceView<El2>>,
    /// The RAM, which `stage2` maps.
    pub ram: GuestRam,
    /// The virtual GIC.
    pub vgic: Vgic,
    /// The guest addresses of the distributor.
    pub dist: Range,
    /// The guest addresses of the redistributors, 128 KiB each.
    pub redists: Range,
    /// The virtual ITSs with their guest addresses, in the order of the host's.
    pub itss: Vec<(Range, Vits)>,
    /// How LPIs reach the vCPUs.
    pub paths: LpiPaths,
    /// The registers and the interrupt of the emulated console.
    pub console: Option<(Range, Intid)>,
    /// The registers and the interrupt of the console device with ports.
    pub ports: Option<(Range, Intid)>,
    /// ECAM pages of PCI functions that the domain does not see.
    pub absent: Vec<Range>,
    /// The bridges above these functions.
    pub bridges: Vec<Bridge>,
    /// The PCI host of a domU that has PCI functions.
    pub pci: Option<PciHost>,
    /// The vCPUs, in the order of their numbers. They are off.
    pub vcpus: Vec<Arc<Vcpu>>,
    /// What the domain is restarted from; `None` if it cannot be restarted.
    pub images: Option<Images>,
    /// What happens if it crashes.
    pub on_crash: OnCrash,
}

/// A domain.
pub struct Domain {
    id: DomId,
    name: DomainName,
    host: &'static Host,
    vttbr: u64,
    vtcr: u64,
    stage2: Lock<Stage2<'static, El2, Tlbs>>,
    device_view: Option<DeviceView<El2>>,
    ram: GuestRam,
    vgic: Vgic,
    dist: Range,
    redists: Range,
    itss: Vec<(Range, Vits)>,
    paths: LpiPaths,
    console: Option<Console>,
    ports: Option<Ports>,
    last_ran: LastRan,
    absent: Vec<Range>,
    bridges: Vec<Bridge>,
    pci: Option<PciHost>,
    vcpus: Vec<Arc<Vcpu>>,
    images: Option<Images>,
    on_crash: AtomicU8,
    /// Whether its vCPUs stay out of their guests.
    paused: AtomicBool,
    /// When its present life began, in microseconds; 0 before the first one.
    begun_us: AtomicU64,
    /// How often it has been restarted.
    restarts: AtomicU32,
    lifecycle: Lifecycle,
    pace: Pace,
    recalls: Recalls,
}

impl Domain {
    /// A domain whose vCPUs are all off.
    #[must_use]
    pub fn new(host: &'static Host, parts: Parts) -> Domain {
        let Parts { id, name, stage2, device_view, ram, vgic, dist, redists, itss, paths, .. } = parts;
        let Parts { console, ports, absent, bridges, pci, vcpus, images, on_crash, .. } = parts;
        Domain {
            id,
            name,
            host,
            vttbr: stage2.vttbr(),
            vtcr: stage2.vtcr(),
            stage2: Lock::new(Rank::Stage2, stage2),
            device_view,
            ram,
            vgic,
            dist,
            redists,
            itss,
            paths,
            console: console.map(|(regs, irq)| Console::new(regs, irq)),
            ports: ports.map(|(regs, irq)| Ports::new(regs, irq)),
            last_ran: LastRan::new(host.cpus.ids().len()),
            absent,
            bridges,
            pci,
            vcpus,
            images,
            on_crash: AtomicU8::new(on_crash as u8),
            paused: AtomicBool::new(false),
            begun_us: AtomicU64::new(0),
            restarts: AtomicU32::new(0),
            lifecycle: Lifecycle::new(),
            pace: Pace::new(),
            recalls: Recalls::new(),
        }
    }

    /// The domain's number.
    #[must_use]
    pub fn id(&self) -> DomId {
        self.id
    }

    /// The domain's name, which no other domain has.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether this is dom0, which has the machine's devices. When dom0 ends, the machine is powered off or reset.
    #[must_use]
    pub fn is_dom0(&self) -> bool {
        self.id == DomId(0)
    }

    /// The domain's RAM.
    #[must_use]
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// The domain's virtual GIC.
    #[must_use]
    pub fn vgic(&self) -> &Vgic {
        &self.vgic
    }

    /// The domain's virtual ITSs, in the order of the host's.
    pub fn itss(&self) -> impl Iterator<Item = &Vits> {
        self.itss.iter().map(|(_, vits)| vits)
    }

    /// The domain's vCPUs, in the order of their numbers.
    #[must_use]
    pub fn vcpus(&self) -> &[Arc<Vcpu>] {
        &self.vcpus
    }

    /// The vCPU with this number.
    #[must_use]
    pub fn vcpu(&self, id: VcpuId) -> Option<&Arc<Vcpu>> {
        self.vcpus.get(id.index())
    }

    /// The vCPU with this affinity.
    #[must_use]
    pub fn vcpu_at(&self, affinity: Mpidr) -> Option<&Arc<Vcpu>> {
        self.vcpus.iter().find(|vcpu| vcpu.affinity == affinity)
    }

    /// Loads the domain's stage 2 on `cpu`, which is this CPU.
    pub fn load_stage2(&self, cpu: CpuId) {
        self.host.load_stage2(cpu, self.vtcr, self.vttbr);
    }

    /// Whether any CPU has the domain's stage 2 loaded.
    #[must_use]
    pub fn is_stage2_loaded(&self) -> bool {
        self.host.is_stage2_loaded(self.vttbr)
    }

    /// Records that `vcpu` runs on `cpu` now. Returns `true` if another vCPU of the domain ran there before: the caller
    /// then has to invalidate the domain's stage 1 TLB entries on that CPU.
    #[must_use]
    pub fn ran_another_vcpu(&self, cpu: CpuId, vcpu: VcpuId) -> bool {
        self.last_ran.changes(cpu, vcpu)
    }

    /// Passes a typed byte to the emulated console. Returns `false` if the console is full, or if there is none.
    pub fn input(&self, byte: u8) -> bool {
        self.with_uart(|uart| uart.push_input(byte)).unwrap_or(false)
    }

    /// Gives the output of the emulated console to EL2's console. Called before the domain is started.
    pub fn attach_console(&self) {
        if let Some(console) = &self.console {
            console::attach(self.id, console.output.ring.clone());
        }
    }

    /// Tells the guest that its console has room again for what it sends.
    pub fn output_has_room(&self) {
        let _ = self.with_uart(Vpl011::update_transmit);
    }

    /// Accesses the emulated console, and reports the level of its interrupt line. `None` if there is no console.
    fn with_uart<R>(&self, access: impl FnOnce(&mut Vpl011<Arc<Output>>) -> R) -> Option<R> {
        let console = self.console.as_ref()?;
        let mut uart = console.uart.lock();
        let result = access(&mut uart);
        self.vgic.inject_spi(&self.port(), console.irq, Signal::Level(uart.irq_level()));
        Some(result)
    }

    /// Whether the domain has ended. Its vCPUs then no longer enter the guest.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        self.lifecycle.end().is_some()
    }

    /// Returns how the domain has ended, or `None` if it has not.
    #[must_use]
    pub fn end(&self) -> Option<End> {
        self.lifecycle.end()
    }

    /// Ends a domU; if it has ended already, does nothing. Each vCPU goes off when its CPU notices the end. The last one
    /// begins the restart, or its CPU announces the domain to `control::teardown`.
    pub fn terminate(&self, end: End) {
        self.terminate_because(end, format_args!(""));
    }

    /// [`terminate`](Self::terminate), with a reason for the tools of dom0.
    pub fn terminate_because(&self, end: End, why: fmt::Arguments<'_>) {
        if self.lifecycle.record_end(end) {
            self.say_end(end, why);
            self.vcpus.iter().for_each(|vcpu| self.kick(vcpu));
        }
    }

    /// Destroys a domU, whatever it does. Returns `true` if the caller has to announce its end, because none of its vCPUs
    /// is on.
    #[must_use]
    pub fn destroy(&self) -> bool {
        if !self.lifecycle.record_destroyed() {
            return false;
        }
        self.say_end(End::Destroyed, format_args!(""));
        self.vcpus.iter().for_each(|vcpu| self.kick(vcpu));
        self.lifecycle.end_rest()
    }

    /// Keeps the vCPUs out of their guests, if they are not to run yet or not any more. Interrupts stay pending meanwhile;
    /// time goes on. [`is_out`](Self::is_out) says when the last one has left. Returns `false` if that was so already.
    #[must_use]
    pub fn pause(&self) -> bool {
        let begins = !self.paused.swap(true, Ordering::SeqCst);
        if begins {
            self.vcpus.iter().for_each(|vcpu| self.kick(vcpu));
        }
        begins
    }

    /// Ends a pause. Returns `false` if there was none.
    #[must_use]
    pub fn unpause(&self) -> bool {
        let ends = self.paused.swap(false, Ordering::SeqCst);
        if ends {
            self.vcpus.iter().for_each(|vcpu| self.kick(vcpu));
        }
        ends
    }

    /// Whether the vCPUs are kept out of their guests. A vCPU says that it enters before it looks.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.paused.load(Ordering::SeqCst)
    }

    /// Whether no vCPU is in its guest.
    #[must_use]
    pub fn is_out(&self) -> bool {
        !self.vcpus.iter().any(|vcpu| vcpu.is_in_guest())
    }

    /// Whether the domain has not been started, or has crashed and is kept.
    #[must_use]
    pub fn rests(&self) -> bool {
        self.lifecycle.rests()
    }

    /// What happens if the domain crashes.
    #[must_use]
    pub fn on_crash(&self) -> OnCrash {
        OnCrash::from_number(self.on_crash.load(Ordering::Relaxed)).unwrap_or(OnCrash::Destroy)
    }

    /// Sets what happens if the domain crashes.
    pub fn set_on_crash(&self, on_crash: OnCrash) {
        self.on_crash.store(on_crash as u8, Ordering::Relaxed);
    }

    /// When the domain's present life began, in microseconds; 0 before the first one.
    #[must_use]
    pub fn begun_us(&self) -> u64 {
        self.begun_us.load(Ordering::Relaxed)
    }

    /// How often the domain has been restarted.
    #[must_use]
    pub fn restarts(&self) -> u32 {
        self.restarts.load(Ordering::Relaxed)
    }

    /// Whether it can be restarted.
    #[must_use]
    pub fn can_restart(&self) -> bool {
        self.images.is_some()
    }

    /// The bytes of RAM for domUs that its images take.
    #[must_use]
    pub fn image_bytes(&self) -> u64 {
        self.images.as_ref().map_or(0, Images::kept_bytes)
    }

    /// The number of its PCI functions, if it is a domU.
    #[must_use]
    pub fn function_count(&self) -> usize {
        self.pci.as_ref().map_or(0, PciHost::function_count)
    }

    /// Whether it has an emulated console.
    #[must_use]
    pub fn has_console(&self) -> bool {
        self.console.is_some()
    }

    /// Tells the tools of dom0 what has become of the domain.
    pub fn record(&self, kind: EventKind, text: &str) {
        self.host.events.record(kind, self.id, &self.name, text);
    }

    /// [`record`](Self::record), with a reason. What does not fit into an event is cut.
    pub fn record_because(&self, kind: EventKind, why: fmt::Arguments<'_>) {
        let mut text = ArrayString::<{ events::TEXT }>::new_const();
        let _ = fmt::write(&mut text, why);
        self.record(kind, &text);
    }

    /// Ends a domU that has been started as if it had crashed, also one that is about to be restarted after a reset.
    pub fn terminate_by_hand(&self) {
        if !self.rests() && self.lifecycle.record_crash_by_hand() {
            self.say_end(End::Crash, format_args!("ended by a debug key"));
            self.vcpus.iter().for_each(|vcpu| self.kick(vcpu));
        }
    }

    fn say_end(&self, end: End, why: fmt::Arguments<'_>) {
        let _logged = match end {
            End::Off => log_each_second!(Info, self.id; "{}: powered off", self.id),
            End::Reset => log_each_second!(Info, self.id; "{}: reset", self.id),
            End::Crash => log_each_second!(Warn, self.id; "{}: crashed", self.id),
            End::Destroyed => log_each_second!(Info, self.id; "{}: destroyed", self.id),
        };
        match end {
            End::Off => self.record(EventKind::Shutdown, ""),
            End::Crash => self.record_because(EventKind::Crashed, why),
            End::Reset | End::Destroyed => {}
        }
    }

    /// Powers a vCPU on and makes it runnable. Returns `false` if it was on already. The caller runs on a vCPU that is
    /// on, or builds the domain.
    #[must_use]
    pub fn power_on(&self, vcpu: &Vcpu, start: Start) -> bool {
        self.lifecycle.count_power_on();
        let changed = vcpu.power_on(start);
        if changed {
            self.host.make_runnable(vcpu);
        } else {
            // The counter does not reach 0: the vCPU that calls is on.
            let _ = self.lifecycle.count_power_off();
        }
        changed
    }

    /// Counts a vCPU that has gone off. Returns `true` if it was the last one of a domU: no vCPU is left that could
    /// power another on, so the domain has ended, and the caller has to restart it or to announce it to
    /// `control::teardown`.
    #[must_use]
    pub fn count_power_off(&self) -> bool {
        let last = self.lifecycle.count_power_off() && !self.is_dom0();
        if last {
            self.terminate_because(End::Crash, format_args!("all its vCPUs are off"));
        }
        last
    }

    /// Makes a vCPU evaluate its pending interrupts: wakes it if it is blocked, and makes it exit if it is in the
    /// guest.
    pub fn kick(&self, vcpu: &Vcpu) {
        let _ = self.host.wake(vcpu);
    }

    /// Makes a vCPU leave its guest if it is in it ([`recall`]).
    fn recall(&self, vcpu: VcpuId) {
        if let Some(vcpu) = self.vcpu(vcpu)
            && vcpu.recall()
        {
            self.recalls.begin();
            self.kick(vcpu);
        }
    }

    /// The number of recalls so far.
    #[must_use]
    pub fn recalls(&self) -> u64 {
        self.recalls.count()
    }

    /// Whether all vCPUs that were recalled have left their guests since.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.recalls.have_ended(|| self.vcpus.iter().any(|vcpu| vcpu.is_recalled()))
    }

    /// Gives back what the domain has of the physical GIC, in steps: its vPEs, and the memory of its devices. Returns
    /// `false` if it has to be called again: there is more, or a vPE is still resident.
    #[must_use]
    pub fn release_gic(&self) -> bool {
        release_gic(self.host, self.id, &self.paths)
    }

    /// The domain has become the owner of SPIs: each is as after a reset of its distributor.
    pub fn take_spis(&self) {
        self.vgic.reset_owned_spis(&self.port());
    }

    /// Releases the interrupts of a domain that has ended: deactivates the physical interrupts that are active for it,
    /// and leaves its SPIs without an owner.
    pub fn release_interrupts(&self) {
        self.vgic.release(&self.port());
        self.host.spis.take_back(self.id, |spi| {
            self.host.gic.spi_disable(spi);
            self.host.gic.spi_set_pending(spi, false);
            self.host.gic.spi_set_active(spi, false);
        });
    }

    /// Stops the domain's devices: when this returns `true`, none of them reaches any memory.
    #[must_use]
    pub fn stop_dma(&self) -> bool {
        let stopped = self.host.iommu.block(self.id);
        if let Err(error) = &stopped {
            log_limited!(Error, self.id; "{}: devices not stopped: {error}: its memory is not used again", self.id);
        }
        stopped.is_ok()
    }

    /// Lets the domain's devices reach its memory again. Returns `false` if that failed.
    #[must_use]
    pub fn resume_dma(&self) -> bool {
        let Some(view) = &self.device_view else { return true };
        let resumed = self.host.iommu.resume(self.id, view);
        if let Err(error) = &resumed {
            log_limited!(Error, self.id; "{}: devices not resumed: {error}", self.id);
        }
        resumed.is_ok()
    }

    /// Frees the address spaces of CPUs and devices and returns the RAM, which still holds the guest's data, and what its
    /// images were kept in. RAM that a device may still reach is not among it.
    #[must_use]
    pub fn into_rams(self) -> Rams {
        if let Some(view) = self.device_view {
            self.host.iommu.remove(self.id, view);
        }
        self.host.free_stage2(self.stage2.into_inner());
        let own = self.host.iommu.is_sound().then_some(self.ram);
        own.into_iter().chain(self.images.into_iter().flat_map(Images::into_kept)).collect()
    }
}

/// Gives back what domain `id` has of the physical GIC, in steps ([`LpiPaths::release`]). Returns `false` if it has to be
/// called again: there is more, or a vPE is still resident.
#[must_use]
pub fn release_gic(host: &Host, id: DomId, paths: &LpiPaths) -> bool {
    paths.vpes().for_each(|vpe| host.vpes.take_back(vpe));
    paths.release(&host.gic, id)
}

/// The vCPU of a domain that each CPU ran last.
///
/// Two vCPUs of a domain share its VMID but may map one virtual address differently. A vCPU must not hit TLB entries of
/// another one that ran on the same CPU before.
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
