//! Registers: their layout, what a driver may write when, and the delayed acknowledgements (IHI 0070, chapter 6).

use crate::machine::State;
use crate::memory::{Snoop, Use};

/// SMMU_CR0.
pub(crate) const SMMUEN: u32 = 1;
pub(crate) const EVENTQEN: u32 = 1 << 2;
pub(crate) const CMDQEN: u32 = 1 << 3;
/// SMMU_CR2.
pub(crate) const RECINVSID: u32 = 1 << 1;
/// SMMU_GBPA.
pub(crate) const ABORT: u32 = 1 << 20;
const UPDATE: u32 = 1 << 31;
/// SMMU_IRQ_CTRL.
pub(crate) const GERROR_IRQEN: u32 = 1;
pub(crate) const EVENTQ_IRQEN: u32 = 1 << 2;
/// SMMU_GERROR.
pub(crate) const CMDQ_ERR: u32 = 1;
pub(crate) const EVENTQ_ABT_ERR: u32 = 1 << 2;
pub(crate) const SFM_ERR: u32 = 1 << 8;
/// SMMU_EVENTQ_PROD.OVFLG and SMMU_EVENTQ_CONS.OVACKFLG.
pub(crate) const OVFLG: u32 = 1 << 31;

/// The fields of an address register that hold the address: bits 55 to 5.
pub(crate) const ADDRESS: u64 = 0x00ff_ffff_ffff_ffe0;

const PAGE1: u64 = 0x1_0000;

/// Where and how an interrupt is sent as a message: `SMMU_*_IRQ_CFG0` to 2.
#[derive(Clone, Copy, Default)]
pub(crate) struct Message {
    pub(crate) address: u64,
    pub(crate) data: u32,
    attributes: u32,
}

/// The registers.
#[derive(Default)]
pub(crate) struct Regs {
    pub(crate) cr0: u32,
    pub(crate) cr0ack: u32,
    pub(crate) cr0_due: u64,
    pub(crate) cr1: u32,
    pub(crate) cr2: u32,
    /// The value in effect, without Update.
    pub(crate) gbpa: u32,
    /// The value that is to take effect, and when.
    pub(crate) gbpa_update: Option<(u64, u32)>,
    pub(crate) irq_ctrl: u32,
    pub(crate) irq_ack: u32,
    pub(crate) irq_due: u64,
    pub(crate) gerror: u32,
    pub(crate) gerrorn: u32,
    pub(crate) gerror_message: Message,
    pub(crate) eventq_message: Message,
    pub(crate) strtab_base: u64,
    pub(crate) strtab_cfg: u32,
    pub(crate) cmdq_base: u64,
    pub(crate) cmdq_prod: u32,
    pub(crate) cmdq_cons: u32,
    pub(crate) cmdq_err: u32,
    pub(crate) eventq_base: u64,
    pub(crate) eventq_prod: u32,
    pub(crate) eventq_cons: u32,
}

/// The geometry of a queue.
#[derive(Clone, Copy)]
pub(crate) struct Ring {
    /// Address of the first entry.
    pub(crate) base: u64,
    /// log2 of the number of entries.
    pub(crate) bits: u32,
}

impl Message {
    pub(crate) fn new(address: u64, data: u32) -> Message {
        Message { address, data, attributes: 0 }
    }
}

impl Ring {
    pub(crate) fn new(base: u64, limit: u32, entry: u64) -> Ring {
        let bits = (base as u32 & 0x1f).min(limit);
        let size = (entry << bits).max(32);
        Ring { base: base & ADDRESS & !(size - 1), bits }
    }

    /// Index and wrap flag.
    pub(crate) fn mask(self) -> u32 {
        (2 << self.bits) - 1
    }

    /// Address of the entry at an index.
    pub(crate) fn entry(self, index: u32, size: u64) -> u64 {
        self.base + u64::from(index & (self.mask() >> 1)) * size
    }

    /// Number of entries between the consumer's and the producer's index.
    pub(crate) fn used(self, prod: u32, cons: u32) -> u32 {
        prod.wrapping_sub(cons) & self.mask()
    }

    pub(crate) fn entries(self) -> u32 {
        1 << self.bits
    }
}

impl State {
    pub(crate) fn commands_ring(&self) -> Ring {
        Ring::new(self.regs.cmdq_base, self.cfg.command_bits, 16)
    }

    pub(crate) fn events_ring(&self) -> Ring {
        Ring::new(self.regs.eventq_base, self.cfg.event_bits, 32)
    }

    /// Whether a field of SMMU_CR0 is set, or is not yet known to be cleared.
    fn guarded(&self, bit: u32) -> bool {
        (self.regs.cr0 | self.regs.cr0ack) & bit != 0
    }

    /// How accesses with the attributes of SMMU_CR1 relate to caches. `at`: the bit of the inner cacheability.
    fn snoop(&self, at: u32) -> Snoop {
        let field = |n: u32| (self.regs.cr1 >> (at + n)) & 3;
        // Cacheability 3 is reserved here and treated as 0.
        self.attributes(field(0) % 3, field(2) % 3, field(4))
    }

    /// How accesses with inner and outer cacheability and shareability relate to caches. Only shareable cacheable accesses
    /// of a coherent SMMU snoop.
    pub(crate) fn attributes(&self, inner: u32, outer: u32, shareable: u32) -> Snoop {
        if self.cfg.coherent && inner != 0 && outer != 0 && shareable >= 2 { Snoop::Yes } else { Snoop::No }
    }

    pub(crate) fn queue_snoop(&self) -> Snoop {
        self.snoop(0)
    }

    pub(crate) fn table_snoop(&self) -> Snoop {
        self.snoop(6)
    }

    /// Activates a global error.
    pub(crate) fn raise(&mut self, error: u32) {
        if (self.regs.gerror ^ self.regs.gerrorn) & error == 0 {
            self.regs.gerror ^= error;
            if self.regs.irq_ctrl & GERROR_IRQEN != 0 {
                let message = self.regs.gerror_message;
                self.interrupt(crate::Interrupt::Error, message);
            }
        }
    }

    pub(crate) fn active(&self, error: u32) -> bool {
        (self.regs.gerror ^ self.regs.gerrorn) & error != 0
    }

    /// Whether the SMMU has stopped for good.
    pub(crate) fn failed(&self) -> bool {
        self.regs.gerror & SFM_ERR != 0
    }

    /// Sends an interrupt: as a message if it is configured and supported, and on its line otherwise.
    pub(crate) fn interrupt(&mut self, line: crate::Interrupt, message: Message) {
        if self.cfg.msi && message.address != 0 {
            let _ = self.mem.device_write(message.address, &message.data.to_le_bytes(), self.device_snoop());
            self.interrupts.push(crate::Interrupt::Message { address: message.address, data: message.data });
        } else {
            self.interrupts.push(line);
        }
    }

    /// Whether a register has 64 bits.
    fn is_wide(offset: u64) -> bool {
        matches!(offset & !4, 0x68 | 0x80 | 0x90 | 0xa0 | 0xb0 | 0xc0 | 0xd0)
    }

    pub(crate) fn register_read(&mut self, offset: u64, wide: bool) -> u64 {
        if wide && !State::is_wide(offset) {
            self.flag("6.2", format!("64-bit read of the 32-bit register at offset {offset:#x}"));
            return 0;
        }
        let r = &self.regs;
        let value = match offset & !4 {
            0x68 => Some(r.gerror_message.address),
            0x80 => Some(r.strtab_base),
            0x90 => Some(r.cmdq_base),
            0xa0 => Some(r.eventq_base),
            0xb0 => Some(r.eventq_message.address),
            _ => None,
        };
        if let Some(value) = value {
            return if offset & 4 == 0 { value } else { value >> 32 };
        }
        let value = match offset {
            0x0 => self.cfg.idr0(),
            0x4 => self.cfg.idr1(),
            0xc => self.cfg.idr3(),
            0x14 => self.cfg.idr5(),
            0x18 => self.cfg.iidr,
            0x1c => self.cfg.minor,
            0x20 => r.cr0,
            0x24 => r.cr0ack,
            0x28 => r.cr1,
            0x2c => r.cr2,
            0x44 => r.gbpa_update.map_or(r.gbpa, |(_, value)| value | UPDATE),
            0x50 => r.irq_ctrl,
            0x54 => r.irq_ack,
            0x60 => r.gerror,
            0x64 => r.gerrorn,
            0x70 => r.gerror_message.data,
            0x74 => r.gerror_message.attributes,
            0x88 => r.strtab_cfg,
            0x98 => r.cmdq_prod,
            0x9c => r.cmdq_cons | r.cmdq_err << 24,
            0xb8 => r.eventq_message.data,
            0xbc => r.eventq_message.attributes,
            0xa8 | 0xac | 0xc8 | 0xcc => {
                self.flag("6.2", format!("read of offset {offset:#x}, whose register is in page 1"));
                0
            }
            o if o == PAGE1 + 0xa8 => r.eventq_prod,
            o if o == PAGE1 + 0xac => r.eventq_cons,
            o if o >= PAGE1 => {
                self.flag("6.2", format!("read of the undefined offset {:#x} in page 1", offset - PAGE1));
                0
            }
            _ => 0,
        };
        value.into()
    }

    pub(crate) fn register_write(&mut self, offset: u64, value: u64, wide: bool) {
        if wide && !State::is_wide(offset) {
            return self.flag("6.2", format!("64-bit write to the 32-bit register at offset {offset:#x}"));
        }
        let narrow = value as u32;
        match offset {
            0x20 => self.write_cr0(narrow),
            0x28 => self.write_cr1(narrow),
            0x2c => self.write_cr2(narrow),
            0x44 => self.write_gbpa(narrow),
            0x50 => self.write_irq_ctrl(narrow),
            0x64 => self.write_gerrorn(narrow),
            0x68 | 0x6c | 0x70 | 0x74 => self.write_message(offset, 0x68, value, wide),
            0xb0 | 0xb4 | 0xb8 | 0xbc => self.write_message(offset, 0xb0, value, wide),
            0x80 | 0x84 => {
                let new = State::merge(self.regs.strtab_base, offset, value, wide);
                if self.may_write("6.3 SMMU_STRTAB_BASE", SMMUEN, new, 0x40ff_ffff_ffff_ffc0) {
                    self.regs.strtab_base = new;
                }
            }
            0x88 => {
                let known = if self.cfg.two_level { 0x3_07ff } else { 0x3f };
                if self.may_write("6.3 SMMU_STRTAB_BASE_CFG", SMMUEN, value, known) {
                    self.regs.strtab_cfg = narrow;
                }
            }
            0x90 | 0x94 => {
                let new = State::merge(self.regs.cmdq_base, offset, value, wide);
                if self.may_write("6.3 SMMU_CMDQ_BASE", CMDQEN, new, 0x40ff_ffff_ffff_ffff) {
                    self.regs.cmdq_base = new;
                }
            }
            0x98 => self.write_cmdq_prod(narrow),
            0x9c => {
                if self.may_write("6.3 SMMU_CMDQ_CONS", CMDQEN, value, 0x7f0f_ffff) {
                    self.regs.cmdq_cons = narrow & 0xf_ffff;
                }
            }
            0xa0 | 0xa4 => {
                let new = State::merge(self.regs.eventq_base, offset, value, wide);
                if self.may_write("6.3 SMMU_EVENTQ_BASE", EVENTQEN, new, 0x40ff_ffff_ffff_ffff) {
                    self.regs.eventq_base = new;
                }
            }
            0xa8 | 0xac | 0xc8 | 0xcc => {
                self.flag("6.2", format!("write of {value:#x} to offset {offset:#x}, whose register is in page 1"));
            }
            o if o == PAGE1 + 0xa8 => {
                if self.may_write("6.3 SMMU_EVENTQ_PROD", EVENTQEN, value, 0x800f_ffff) {
                    self.regs.eventq_prod = narrow;
                }
            }
            o if o == PAGE1 + 0xac => self.write_eventq_cons(narrow),
            _ => self.flag("6.2", format!("write of {value:#x} to offset {offset:#x}, which is read-only or reserved")),
        }
    }

    /// Whether a register guarded by a field of SMMU_CR0 may be written, and has no reserved bits set.
    fn may_write(&mut self, section: &'static str, guard: u32, value: u64, known: u64) -> bool {
        let beyond = if known > u64::from(u32::MAX) { !0 << self.cfg.output_bits & 0x00ff_ffff_ffff_ffff } else { 0 };
        if value & (!known | beyond) != 0 {
            self.flag(section, format!("reserved bits set in {value:#x}"));
        }
        if self.guarded(guard) {
            self.flag(
                section,
                format!("write of {value:#x} while its guard in SMMU_CR0 is not 0, or not acknowledged"),
            );
            return false;
        }
        true
    }

    fn write_cr0(&mut self, value: u32) {
        const SECTION: &str = "6.3 SMMU_CR0";
        if value & !(SMMUEN | EVENTQEN | CMDQEN) != 0 {
            self.flag(SECTION, format!("fields set that are reserved or not implemented: {value:#x}"));
        }
        let value = value & (SMMUEN | EVENTQEN | CMDQEN);
        let old = self.regs.cr0;
        let changed = old ^ value;
        let pending = old ^ self.regs.cr0ack;
        if changed & pending != 0 {
            self.flag(SECTION, format!("{:#x} changed again before its acknowledgement", changed & pending));
        }
        // A change that is under way completes with its first value.
        let changed = changed & !pending;
        if changed == 0 {
            return;
        }
        let value = old ^ changed;
        self.regs.cr0 = value;
        self.regs.cr0_due = self.now + self.cfg.timing.acknowledge;
        if changed & value & CMDQEN != 0 {
            self.open_commands();
        }
        if changed & value & EVENTQEN != 0 {
            self.open_events();
        }
        if changed & value & SMMUEN != 0 {
            self.open_streams();
        }
    }

    fn write_cr1(&mut self, value: u32) {
        const SECTION: &str = "6.3 SMMU_CR1";
        if value & !0xfff != 0 {
            self.flag(SECTION, format!("reserved bits set in {value:#x}"));
        }
        let changed = self.regs.cr1 ^ value;
        let mut keep = 0;
        if self.guarded(CMDQEN | EVENTQEN) && changed & 0x3f != 0 {
            self.flag(SECTION, "attributes of the queues changed while a queue is enabled");
            keep |= 0x3f;
        }
        if self.guarded(SMMUEN) && changed & 0xfc0 != 0 {
            self.flag(SECTION, "attributes of tables changed while SMMUEN is 1");
            keep |= 0xfc0;
        }
        self.regs.cr1 = (self.regs.cr1 & keep) | (value & 0xfff & !keep);
    }

    fn write_cr2(&mut self, value: u32) {
        let known = RECINVSID | u32::from(self.cfg.hyp);
        if self.may_write("6.3 SMMU_CR2", SMMUEN, value.into(), known.into()) {
            self.regs.cr2 = value & known;
        }
    }

    fn write_gbpa(&mut self, value: u32) {
        const SECTION: &str = "6.3 SMMU_GBPA";
        if self.regs.gbpa_update.is_some() {
            return self.flag(SECTION, format!("write of {value:#x} while Update is 1"));
        }
        if value & UPDATE == 0 {
            return self.flag(SECTION, format!("write of {value:#x} without Update"));
        }
        let known = UPDATE | ABORT | 0xf_3f1f;
        if value & !known != 0 {
            self.flag(SECTION, format!("reserved bits set in {value:#x}"));
        }
        self.regs.gbpa_update = Some((self.now + self.cfg.timing.update, value & known & !UPDATE));
    }

    /// GBPA as a transaction may see it: the value in effect, and the value that is on its way.
    pub(crate) fn gbpa(&self) -> (u32, Option<u32>) {
        (self.regs.gbpa, self.regs.gbpa_update.map(|(_, value)| value))
    }

    fn write_irq_ctrl(&mut self, value: u32) {
        const SECTION: &str = "6.3 SMMU_IRQ_CTRL";
        let known = GERROR_IRQEN | EVENTQ_IRQEN;
        if value & !known != 0 {
            self.flag(SECTION, format!("fields set that are reserved or not implemented: {value:#x}"));
        }
        let (value, old) = (value & known, self.regs.irq_ctrl);
        if (value ^ old) & (old ^ self.regs.irq_ack) != 0 {
            return self.flag(SECTION, "a field changed again before its acknowledgement");
        }
        self.regs.irq_ctrl = value;
        self.regs.irq_due = self.now + self.cfg.timing.acknowledge;
    }

    fn write_gerrorn(&mut self, value: u32) {
        const SECTION: &str = "6.3 SMMU_GERRORN";
        let (toggled, active) = (value ^ self.regs.gerrorn, self.regs.gerror ^ self.regs.gerrorn);
        if toggled & !active != 0 {
            self.flag(SECTION, format!("{:#x} toggled, which are not active errors", toggled & !active));
        }
        self.regs.gerrorn ^= toggled & active;
        if toggled & active & CMDQ_ERR != 0 {
            self.resume_commands();
        }
    }

    fn write_message(&mut self, offset: u64, base: u64, value: u64, wide: bool) {
        let (section, enable) = match base {
            0x68 => ("6.3 SMMU_GERROR_IRQ_CFG", GERROR_IRQEN),
            _ => ("6.3 SMMU_EVENTQ_IRQ_CFG", EVENTQ_IRQEN),
        };
        if !self.cfg.msi {
            return self.flag(section, format!("write of {value:#x} without SMMU_IDR0.MSI"));
        }
        if (self.regs.irq_ctrl | self.regs.irq_ack) & enable != 0 {
            return self.flag(section, format!("write of {value:#x} while the interrupt is enabled"));
        }
        let r = &mut self.regs;
        let message = if base == 0x68 { &mut r.gerror_message } else { &mut r.eventq_message };
        match offset - base {
            0 | 4 => message.address = State::merge(message.address, offset, value, wide) & 0x00ff_ffff_ffff_fffc,
            8 => message.data = value as u32,
            _ => message.attributes = value as u32 & 0x3f,
        }
    }

    /// Carries out what is acknowledged by now.
    pub(crate) fn settle_registers(&mut self) {
        if let Some((due, value)) = self.regs.gbpa_update
            && self.now >= due
            && !self.faults.gbpa_stuck
        {
            self.regs.gbpa = value;
            self.regs.gbpa_update = None;
        }
        if self.regs.irq_ack != self.regs.irq_ctrl && self.now >= self.regs.irq_due && !self.faults.irq_stuck {
            self.regs.irq_ack = self.regs.irq_ctrl;
        }
        let done = (self.regs.cr0 ^ self.regs.cr0ack) & !self.faults.cr0_stuck;
        if done == 0 || self.now < self.regs.cr0_due {
            return;
        }
        self.regs.cr0ack ^= done;
        let cleared = done & !self.regs.cr0;
        if done & CMDQEN & self.regs.cr0 != 0 {
            self.start_commands();
        }
        if cleared & CMDQEN != 0 {
            self.mem.detach_all(|u| u == Use::Commands);
        }
        if cleared & EVENTQEN != 0 {
            self.mem.detach_all(|u| u == Use::Events);
        }
        if cleared & SMMUEN != 0 {
            self.close_streams();
        }
    }
}
