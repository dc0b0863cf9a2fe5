//! How the driver takes an SMMU, and how it leaves it (IHI 0070, 3.11).
#![allow(clippy::arithmetic_side_effects, reason = "what is added are fields of registers, not integers")]

use super::command::Command;
use super::control::{disable, set_cr0, set_gbpa, set_irq_ctrl};
use super::error::SmmuError;
use super::event;
use super::facts::Facts;
use super::faults::{self, Faults};
use super::queue::{self, CommandQueue};
use super::regs::{CR0, CR1, CR2, GBPA, IRQ_CTRL, QUEUE_BASE, STRTAB_BASE, STRTAB_BASE_CFG, smmu};
use super::ring::Ring;
use super::stream_table::{StreamTable, alloc};
use crate::ids::Pa;
use crate::mmio::{Coherence, Hw};
use crate::platform::machine;
use crate::sync::{Lock, Rank};

/// What an SMMU has after [`start`].
pub struct Parts<H> {
    /// What it can do.
    pub facts: Facts,
    /// Its command queue, in which the initial invalidations are complete.
    pub queue: CommandQueue<H>,
    /// Its stream table, in which all streams abort.
    pub table: StreamTable<H>,
    /// Its events and errors.
    pub faults: Lock<Faults<H>>,
}

/// Takes an SMMU: see [`Smmu::start`](super::Smmu::start).
pub fn start<H: Hw + Clone>(hw: &H, at: &machine::Smmu) -> Result<Parts<H>, SmmuError> {
    let base = at.regs.base;
    if at.regs.size < smmu::SIZE {
        return Err(SmmuError::RegistersTooShort);
    }
    // It has no effect while SMMUEN is 1. When that is cleared, transactions abort rather than pass.
    set_gbpa(hw, base, GBPA::ABORT::SET)?;
    disable(hw, base)?;
    let facts = Facts::read(hw, base, at.coherent)?;
    let memory = Memory::new(hw, &facts)?;
    let queue = CommandQueue::new(hw.clone(), base, memory.commands);
    let faults = Lock::new(Rank::SmmuEvents, Faults::new(hw.clone(), base, memory.events));
    let mut parts = Parts { facts, queue, table: memory.table, faults };
    if let Err(error) = enable(hw, base, &memory.commands, &memory.events, &mut parts) {
        // Memory that the SMMU may still use is not given back.
        if disable(hw, base).is_ok() {
            parts.table.free();
            [memory.commands, memory.events].iter().for_each(|ring| free(hw, ring));
        }
        return Err(error);
    }
    Ok(parts)
}

/// The memory that an SMMU uses.
struct Memory<H> {
    commands: Ring,
    events: Ring,
    table: StreamTable<H>,
}

impl<H: Hw + Clone> Memory<H> {
    fn new(hw: &H, facts: &Facts) -> Result<Self, SmmuError> {
        let commands = ring(hw, facts, facts.command_bits.min(queue::MOST_BITS), Command::SIZE)?;
        let events = match ring(hw, facts, facts.event_bits.min(faults::MOST_EVENT_BITS), event::SIZE) {
            Ok(events) => events,
            Err(error) => {
                free(hw, &commands);
                return Err(error);
            }
        };
        match StreamTable::new(hw.clone(), facts) {
            Ok(table) => Ok(Memory { commands, events, table }),
            Err(error) => {
                [commands, events].iter().for_each(|ring| free(hw, ring));
                Err(error)
            }
        }
    }
}

fn ring(hw: &impl Hw, facts: &Facts, bits: u8, entry: u64) -> Result<Ring, SmmuError> {
    let mut ring = Ring { memory: Pa(0), bits, entry, coherence: facts.coherence };
    ring.memory = alloc(hw, ring.size(), facts.address_bits)?;
    // The zeroes; entries are published when they are written.
    hw.publish(ring.memory, ring.size(), ring.coherence);
    Ok(ring)
}

fn free(hw: &impl Hw, ring: &Ring) {
    hw.free(ring.memory, ring.size(), ring.size());
}

/// Sets the registers of an SMMU that is disabled, invalidates what it has cached, and enables it.
fn enable<H: Hw>(hw: &H, base: Pa, commands: &Ring, events: &Ring, parts: &mut Parts<H>) -> Result<(), SmmuError> {
    let facts = parts.facts;
    let write = |register, value| hw.write32(base.add(register), value);
    let write64 = |register, value| hw.write64(base.add(register), value);

    // Write-back and inner shareable, or not cacheable.
    let attributes = match facts.coherence {
        Coherence::Coherent => {
            let table = CR1::TABLE_IC.val(1) + CR1::TABLE_OC.val(1) + CR1::TABLE_SH.val(3);
            table + CR1::QUEUE_IC.val(1) + CR1::QUEUE_OC.val(1) + CR1::QUEUE_SH.val(3)
        }
        Coherence::NonCoherent => CR1::TABLE_SH.val(2) + CR1::QUEUE_SH.val(2),
    };
    write(smmu::CR1, attributes.value);
    // TLBs are maintained by commands alone: whether the CPUs' maintenance reaches the SMMU depends on the machine.
    write(smmu::CR2, (CR2::RECINVSID::SET + CR2::PTM.val(u32::from(facts.broadcast))).value);

    let shape = parts.table.shape();
    let format = if shape.two_levels {
        STRTAB_BASE_CFG::FMT::TwoLevels + STRTAB_BASE_CFG::SPLIT.val(shape.leaf_bits.into())
    } else {
        STRTAB_BASE_CFG::FMT::Linear
    };
    write64(smmu::STRTAB_BASE, (STRTAB_BASE::PA_64.val(parts.table.root().0 >> 6) + STRTAB_BASE::RA::SET).value);
    write(smmu::STRTAB_BASE_CFG, (format + STRTAB_BASE_CFG::LOG2SIZE.val(shape.bits.into())).value);

    let queue_base = |ring: &Ring| {
        let place = QUEUE_BASE::PA_32.val(ring.memory.0 >> 5) + QUEUE_BASE::LOG2SIZE.val(ring.bits.into());
        (place + QUEUE_BASE::ALLOCATE::SET).value
    };
    write64(smmu::CMDQ_BASE, queue_base(commands));
    write(smmu::CMDQ_CONS, 0);
    write(smmu::CMDQ_PROD, 0);
    write64(smmu::EVENTQ_BASE, queue_base(events));
    write(smmu::EVENTQ_PROD, 0);
    write(smmu::EVENTQ_CONS, 0);
    // Whatever was active. An active CMDQ_ERR would stop the queue.
    write(smmu::GERRORN, hw.read32(base.add(smmu::GERROR)));

    // Without ATSCHK, a device could use addresses that it claims to have translated.
    let enabled = CR0::CMDQEN::SET + CR0::ATSCHK.val(u32::from(facts.ats));
    if !set_cr0(hw, base, enabled) {
        return Err(SmmuError::EnableTimeout);
    }
    // Configuration first: from an entry that is cached, TLBs may be filled (4.3.6).
    let hyp = facts.hyp.then(Command::tlbi_el2_all);
    let commands = [Command::cfgi_all()].into_iter().chain(hyp).chain([Command::tlbi_nsnh_all()]);
    parts.queue.run(&parts.faults, commands)?;

    if facts.msi {
        // Address 0: no MSI is sent, so interrupts are wired.
        write64(smmu::GERROR_IRQ_CFG0, 0);
        write64(smmu::EVENTQ_IRQ_CFG0, 0);
    }
    set_irq_ctrl(hw, base, IRQ_CTRL::EVENTQ_IRQEN::SET + IRQ_CTRL::GERROR_IRQEN::SET)?;
    let enabled = enabled + CR0::EVENTQEN::SET;
    if !set_cr0(hw, base, enabled) || !set_cr0(hw, base, enabled + CR0::SMMUEN::SET) {
        return Err(SmmuError::EnableTimeout);
    }
    Ok(())
}
