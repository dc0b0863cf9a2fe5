//! Accesses of a domain to the devices that EL2 emulates.

use super::Domain;
use super::pci_host::PciHost;
use crate::arch::{nospec, percpu};
use crate::console;
use crate::ids::{Ipa, Pa, VcpuId};
use crate::pci::Ecam;
use crate::trace::{Event, count};
use crate::util::progress::Progress;
use crate::vcpu::{ItsWork, Work};
use crate::vgic::VGICR_SIZE;

/// The offset of an ITS's second frame, which holds GITS_TRANSLATER (IHI 0069, 12.18).
pub const TRANSLATION_FRAME: u64 = 0x1_0000;

/// An emulated device, with the offset of an access in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Emulated {
    /// The distributor.
    Dist(u64),
    /// The redistributor of a vCPU.
    Redist(VcpuId, u64),
    /// An ITS, by its index.
    Its(usize, u64),
    /// The console.
    Uart(u64),
    /// The console device with ports.
    Ports(u64),
    /// A PCI function that the domain does not see.
    Absent,
    /// A PCI bridge above such a function, by its index.
    Bridge(usize, u64),
    /// The configuration space of a domU's PCI host.
    Pci(u64),
}

impl Domain {
    /// The device that EL2 emulates at `at`.
    #[must_use]
    pub fn emulated(&self, at: Ipa) -> Option<Emulated> {
        let at = Pa(at.0);
        if self.redists.contains(at) {
            let offset = at.0 - self.redists.base.0;
            let vcpu = nospec::below(offset / VGICR_SIZE, self.vcpus.len() as u64)?;
            return Some(Emulated::Redist(VcpuId(vcpu as u16), offset % VGICR_SIZE));
        }
        if self.dist.contains(at) {
            return Some(Emulated::Dist(at.0 - self.dist.base.0));
        }
        if let Some(console) = self.console.as_ref().filter(|console| console.regs.contains(at)) {
            return Some(Emulated::Uart(at.0 - console.regs.base.0));
        }
        if let Some(ports) = self.ports.as_ref().filter(|ports| ports.regs.contains(at)) {
            return Some(Emulated::Ports(at.0 - ports.regs.base.0));
        }
        if let Some(ecam) = self.pci.as_ref().map(PciHost::ecam).filter(|ecam| ecam.contains(at)) {
            return Some(Emulated::Pci(at.0 - ecam.base.0));
        }
        if self.absent.iter().any(|page| page.contains(at)) {
            return Some(Emulated::Absent);
        }
        if let Some((index, bridge)) = self.bridges.iter().enumerate().find(|(_, bridge)| bridge.page().contains(at)) {
            return Some(Emulated::Bridge(index, at.0 - bridge.page().base.0));
        }
        let its = self.itss.iter().position(|(range, _)| range.contains(at))?;
        Some(Emulated::Its(its, at.0 - self.itss.get(its)?.0.base.0))
    }

    /// Performs a load of `bytes` bytes from an emulated device and returns the value. If [`recalls`](Domain::recalls)
    /// rises, the state of interrupts in the list registers of other vCPUs is missing; the load is then to be performed
    /// again after [`is_settled`](Domain::is_settled).
    pub fn mmio_read(&self, from: VcpuId, device: Emulated, bytes: u8) -> u64 {
        let port = self.port();
        match device {
            Emulated::Dist(offset) => self.vgic.dist_read(&port, from, offset, bytes),
            Emulated::Redist(frame, offset) => self.vgic.redist_read(&port, from, frame, offset, bytes),
            Emulated::Its(its, offset) => self.itss.get(its).map_or(0, |(_, vits)| vits.read(offset, bytes)),
            // An empty slot answers a configuration read with ones (PCI Express 6.0, 2.3.2).
            Emulated::Absent => u64::MAX >> (64 - 8 * u32::from(bytes.clamp(1, 8))),
            Emulated::Bridge(index, offset) => {
                self.bridges.get(index).map_or(u64::MAX, |bridge| bridge.read(&Ecam, offset, bytes))
            }
            Emulated::Pci(offset) => self.pci_read(offset, bytes),
            Emulated::Uart(offset) => {
                self.drain_if_full();
                let value = self.with_uart(|uart| uart.read(offset, bytes)).unwrap_or(0);
                self.take_input();
                value
            }
            Emulated::Ports(offset) => self.ports_read(offset, bytes),
        }
    }

    /// Performs a store of `bytes` bytes to an emulated device. Returns the work that the store has started: the vCPU may
    /// not enter the guest before it has finished it, by [`step_its_work`](Domain::step_its_work) or
    /// [`ports::step`](super::ports::step). Nor may it before [`is_settled`](Domain::is_settled).
    #[must_use]
    pub fn mmio_write(&self, from: VcpuId, device: Emulated, bytes: u8, value: u64) -> Option<Work> {
        let port = self.port();
        match device {
            Emulated::Dist(offset) => self.vgic.dist_write(&port, from, offset, bytes, value),
            Emulated::Redist(frame, offset) => {
                let cursor = self.vgic.redist_write(&port, from, frame, offset, bytes, value)?;
                return Some(Work::Its(ItsWork::LpiTables { vcpu: frame, cursor }));
            }
            Emulated::Its(its, offset) => {
                if offset >= TRANSLATION_FRAME {
                    count(percpu::cpu(), Event::TranslaterStore);
                }
                if let Some((_, vits)) = self.itss.get(its) {
                    let backend = self.lpi_backend(&port);
                    let more = vits.write(&backend, offset, bytes, value) == Progress::More;
                    return more.then_some(Work::Its(ItsWork::Commands));
                }
            }
            Emulated::Absent => {}
            Emulated::Bridge(index, offset) => {
                if let Some(bridge) = self.bridges.get(index) {
                    bridge.write(&Ecam, offset, bytes, value);
                }
            }
            Emulated::Pci(offset) => self.pci_write(offset, bytes, value),
            Emulated::Uart(offset) => {
                let _ = self.with_uart(|uart| uart.write(offset, bytes, value));
                self.announce_output();
                self.drain_output();
            }
            Emulated::Ports(offset) => {
                return (self.ports_write(offset, bytes, value) == Progress::More).then_some(Work::Ports);
            }
        }
        None
    }

    /// Moves what the domain has printed to the UART, as far as that takes it without waiting. A domain that waits for
    /// room in its console does so by itself, whenever it looks whether there is room.
    fn drain_output(&self) {
        if self.console.as_ref().is_some_and(|console| !console.output.ring.is_empty()) {
            console::announce();
            self.host.drain_console(&mut |slot| {
                let is_this = slot == self.id.slot();
                if is_this {
                    self.output_has_room();
                }
                is_this
            });
        }
    }

    fn drain_if_full(&self) {
        if self.console.as_ref().is_some_and(|console| console.output.ring.room() == 0) {
            self.drain_output();
        }
    }
}
