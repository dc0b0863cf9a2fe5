//! The console device with several ports (virtio 1.2, 5.3).
//!
//! Each port has a receive queue, to the driver, and a transmit queue, from it; the control queues announce ports. A
//! port's transmit queue is not read while the port has no room, so the driver waits in its own memory. Control messages
//! of the driver are always taken: Linux's waits for that with interrupts off. Messages to the driver are not queued but
//! follow from the state of each port (`slot`), so they need no memory, however slowly the driver takes them.
//!
//! Emergency writes, sizes of terminals and the resize message are not offered, and no port is a console of the guest's
//! (`PORT_CONSOLE`): programs open the ports by their names.

use super::Guest;
use super::port::{Open, Port};
use super::queue::{Broken, Chain, Queue};
use super::set::{PORTS, PortSet};
use super::slot::{MESSAGE, Message, Phase, Slot, event};
use crate::ids::PortId;
use crate::util::progress::Progress;
use alloc::boxed::Box;
use alloc::sync::Arc;

/// The number of queues: two for each port, and two for control messages.
pub const QUEUES: usize = 2 * (PORTS as usize + 1);

/// The control queues (5.3.2).
const CONTROL_RX: usize = 2;
const CONTROL_TX: usize = 3;

/// What a step may cost, in bytes that are copied; the rest has a price in bytes.
pub const BUDGET: u32 = 16 << 10;

/// The price of a chain, and of each of its descriptors.
const CHAIN: u32 = 256;
const DESCRIPTOR: u32 = 128;
/// The price of looking at a port, or at a control message.
const LOOK: u32 = 64;

/// The number of bytes that are worth a buffer even if the driver has not read all that it got.
const MANY: usize = 2 << 10;

/// The number of bytes that are copied at once.
const PIECE: usize = 512;

/// What is left of a step.
struct Budget(u32);

impl Budget {
    fn spend(&mut self, price: u32) {
        self.0 = self.0.saturating_sub(price);
    }

    fn spend_on(&mut self, chain: &Chain) {
        let descriptors = u32::try_from(chain.descriptors()).unwrap_or(u32::MAX);
        self.spend(CHAIN.saturating_add(DESCRIPTOR.saturating_mul(descriptors)));
    }

    const fn is_spent(&self) -> bool {
        self.0 == 0
    }
}

/// What a queue is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    ControlRx,
    ControlTx,
    /// A queue of this port.
    Of(PortId),
}

fn purpose(queue: usize) -> Option<Purpose> {
    let port = match queue {
        CONTROL_RX => return Some(Purpose::ControlRx),
        CONTROL_TX => return Some(Purpose::ControlTx),
        0 | 1 => 0,
        _ => (queue / 2).saturating_sub(1),
    };
    u16::try_from(port).ok().filter(|&port| port < PORTS).map(|port| Purpose::Of(PortId(port)))
}

/// The receive queue and the transmit queue of a port.
const fn queues_of(port: PortId) -> (usize, usize) {
    let first = match port.0 {
        0 => 0,
        n => (n as usize).saturating_add(1).saturating_mul(2),
    };
    (first, first.saturating_add(1))
}

/// Why a port is not added: all are in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoPort;

/// The console device, without its registers.
pub struct Console {
    queues: Box<[Queue]>,
    slots: Box<[Slot]>,
    /// The driver has said that it is there.
    ready: bool,
    /// There may be a control message of the driver.
    hears: bool,
    /// The ports with a control message for the driver: PORT_REMOVE, and any other.
    removes: PortSet,
    tells: PortSet,
    /// The ports whose queues have to be looked at, and the one that is next.
    serves: PortSet,
    next: PortId,
    /// The ports for whose other side something has come: bytes, room, the begin of a session, or its end.
    arrived: PortSet,
    /// The driver wants to know what was completed.
    interrupts: bool,
}

impl Console {
    /// A device without ports, in its reset state.
    #[must_use]
    pub fn new() -> Console {
        Console {
            queues: (0..QUEUES).map(|_| Queue::default()).collect(),
            slots: (0..PORTS).map(|_| Slot::default()).collect(),
            ready: false,
            hears: false,
            removes: PortSet::default(),
            tells: PortSet::default(),
            serves: PortSet::default(),
            next: PortId(0),
            arrived: PortSet::default(),
            interrupts: false,
        }
    }

    /// A queue, for the registers.
    pub fn queue_mut(&mut self, queue: u32) -> Option<&mut Queue> {
        self.queues.get_mut(usize::try_from(queue).ok()?)
    }

    /// Puts the device into its reset state. The ports stay, and the driver learns of them anew.
    pub fn reset(&mut self) {
        self.queues.fill(Queue::default());
        for (id, slot) in (0..).map(PortId).zip(&mut self.slots) {
            if slot.port.as_ref().is_some_and(|port| port.is_open()) {
                self.arrived.insert(id);
            }
            slot.reset();
            self.tells.insert(id);
        }
        self.ready = false;
        self.hears = false;
        self.removes = PortSet::default();
        self.serves = PortSet::default();
        self.interrupts = false;
    }

    /// Adds a port.
    ///
    /// # Errors
    ///
    /// [`NoPort`].
    pub fn add(&mut self, port: Arc<Port>) -> Result<PortId, NoPort> {
        let numbered = || (0..).map(PortId).skip(1);
        let ends = |slot: &Slot| matches!(slot.phase, Phase::Ending | Phase::Ended);
        let has_name = |slot: &Slot| slot.port.as_ref().is_some_and(|old| old.name() == port.name());
        let free = numbered().zip(self.slots.iter().skip(1)).find(|(_, slot)| slot.phase == Phase::Free);
        let free = free.map(|(id, _)| id);
        // One that a program holds open although it has ended must not be found by the name, nor take the place.
        let old = numbered().zip(self.slots.iter_mut().skip(1));
        if let Some((id, slot)) = old.into_iter().find(|(_, slot)| ends(slot) && (free.is_none() || has_name(slot))) {
            slot.leave();
            self.removes.insert(id);
        }
        let id = free.ok_or(NoPort)?;
        if let Some(slot) = self.slots.get_mut(usize::from(id.0)) {
            *slot = Slot { phase: Phase::New, port: Some(port) };
        }
        self.tells.insert(id);
        Ok(id)
    }

    /// Takes a port away, after the driver has got what it can take of its bytes.
    pub fn remove(&mut self, id: PortId) {
        if let Some(slot) = self.slots.get_mut(usize::from(id.0)) {
            slot.withdraw();
            self.mark(id);
            self.serves.insert(id);
        }
    }

    /// A port.
    #[must_use]
    pub fn port(&self, id: PortId) -> Option<&Arc<Port>> {
        self.slots.get(usize::from(id.0))?.port.as_ref()
    }

    /// The driver has something for a queue, or room in it.
    pub fn notify(&mut self, queue: u32) {
        match usize::try_from(queue).ok().and_then(purpose) {
            Some(Purpose::ControlTx) => self.hears = true,
            Some(Purpose::Of(port)) => self.serves.insert(port),
            // Messages that wait are sent in each step.
            Some(Purpose::ControlRx) | None => {}
        }
    }

    /// The other sides of these ports have sent or received bytes.
    pub fn serve(&mut self, ports: PortSet) {
        self.serves.join(ports);
    }

    /// Takes a port for whose other side something has come since the last call.
    pub fn take_arrived(&mut self) -> Option<PortId> {
        let id = self.arrived.next(PortId(0))?;
        self.arrived.remove(id);
        Some(id)
    }

    /// Whether [`take_arrived`](Console::take_arrived) has one.
    #[must_use]
    pub fn has_arrived(&self) -> bool {
        !self.arrived.is_empty()
    }

    /// Whether something was completed of which the driver wants to know; it is told by this.
    pub fn take_interrupt(&mut self) -> bool {
        core::mem::take(&mut self.interrupts)
    }

    /// Does what there is to do, as far as [`BUDGET`] goes.
    ///
    /// # Errors
    ///
    /// [`Broken`]; the device may not be used before it is reset.
    pub fn step(&mut self, guest: &dyn Guest) -> Result<Progress, Broken> {
        let mut budget = Budget(BUDGET);
        while self.hears {
            if budget.is_spent() {
                return Ok(Progress::More);
            }
            self.hear(guest, &mut budget)?;
        }
        while let Some(id) = self.serves.next(self.next) {
            // The queues of all ports have their turns, even if one of them always has something.
            self.next = PortId(id.0.saturating_add(1));
            if budget.is_spent() || self.serve_port(guest, id, &mut budget)? == Progress::More {
                return Ok(Progress::More);
            }
            self.serves.remove(id);
        }
        self.tell(guest, &mut budget)
    }

    /// Takes a control message of the driver.
    fn hear(&mut self, guest: &dyn Guest, budget: &mut Budget) -> Result<(), Broken> {
        let mut bytes = [0; MESSAGE];
        let Some(chain) = self.front(guest, CONTROL_TX)? else {
            self.hears = false;
            return Ok(());
        };
        budget.spend_on(&chain);
        let length = chain.read(guest, 0, &mut bytes)?;
        self.complete(guest, CONTROL_TX, &chain, 0)?;
        if length == MESSAGE {
            let word = u64::from_le_bytes(bytes);
            self.heard(guest, (word as u32, (word >> 32) as u16, (word >> 48) as u16), budget)?;
        }
        Ok(())
    }

    fn heard(
        &mut self,
        guest: &dyn Guest,
        (port, event, value): (u32, u16, u16),
        budget: &mut Budget,
    ) -> Result<(), Broken> {
        if event == event::DEVICE_READY {
            self.ready = value == 1;
            return Ok(());
        }
        let Some(id) = u16::try_from(port).ok().map(PortId) else { return Ok(()) };
        let Some(slot) = self.slots.get_mut(usize::from(id.0)) else { return Ok(()) };
        match event {
            event::PORT_READY => slot.answered(value),
            event::PORT_OPEN => {
                let open = if value == 1 { Open::Yes } else { Open::No };
                if slot.opened(open) {
                    self.arrived.insert(id);
                    if open == Open::Yes {
                        // What an earlier session has left.
                        self.discard(guest, id, budget)?;
                    }
                }
                self.serves.insert(id);
            }
            _ => {}
        }
        self.mark(id);
        Ok(())
    }

    /// Gives back what waits in the transmit queue of a port: at most a whole queue.
    fn discard(&mut self, guest: &dyn Guest, id: PortId, budget: &mut Budget) -> Result<(), Broken> {
        let (_, tx) = queues_of(id);
        for _ in 0..super::queue::SIZE {
            let Some(chain) = self.front(guest, tx)? else { break };
            budget.spend_on(&chain);
            self.complete(guest, tx, &chain, 0)?;
        }
        Ok(())
    }

    /// Moves bytes between a port and its queues.
    fn serve_port(&mut self, guest: &dyn Guest, id: PortId, budget: &mut Budget) -> Result<Progress, Broken> {
        budget.spend(LOOK);
        let port = self.slots.get(usize::from(id.0)).and_then(Slot::active).cloned();
        let (rx, tx) = queues_of(id);
        let port = match port {
            Some(port) => port,
            None => {
                // The driver gets its buffers back, so that it can free them.
                self.discard(guest, id, budget)?;
                return Ok(Progress::Done);
            }
        };
        while port.to_fetch() > 0 && (self.is_read(guest, rx)? || port.to_fetch() >= MANY || self.ends(id)) {
            let Some(chain) = self.front(guest, rx)? else { break };
            if budget.is_spent() {
                return Ok(Progress::More);
            }
            budget.spend_on(&chain);
            let mut written = 0u32;
            while !budget.is_spent() {
                let mut piece = [0; PIECE];
                let room = chain.writable().saturating_sub(u64::from(written));
                let room = usize::try_from(room).unwrap_or(usize::MAX).min(PIECE);
                let (piece, _) = piece.split_at_mut(room);
                let (count, awaited) = port.fetch(piece);
                if awaited {
                    self.arrived.insert(id);
                }
                let Some(bytes) = piece.get(..count).filter(|bytes| !bytes.is_empty()) else { break };
                chain.write(guest, u64::from(written), bytes)?;
                written = written.saturating_add(count as u32);
                budget.spend(count as u32);
            }
            self.complete(guest, rx, &chain, written)?;
        }
        while let Some(chain) = self.front(guest, tx)? {
            if budget.is_spent() {
                return Ok(Progress::More);
            }
            budget.spend_on(&chain);
            let (mut done, length) = (self.queues.get(tx).map_or(0, |queue| queue.done), chain.readable());
            while done < length && !budget.is_spent() {
                let room = port.room();
                if room == 0 {
                    break;
                }
                let mut piece = [0; PIECE];
                let (piece, _) = piece.split_at_mut(room.min(PIECE));
                let count = chain.read(guest, done, piece)?;
                port.pass(piece.get(..count).unwrap_or_default());
                self.arrived.insert(id);
                done = done.saturating_add(count as u64);
                budget.spend(count as u32);
            }
            if done >= length {
                self.complete(guest, tx, &chain, 0)?;
                continue;
            }
            if let Some(queue) = self.queues.get_mut(tx) {
                queue.done = done;
            }
            if port.room() == 0 {
                // The other side has the port served when it has received something.
                break;
            }
        }
        if self.ends(id) {
            self.mark(id);
        }
        Ok(Progress::Done)
    }

    /// Whether the driver has read all that it got in a receive queue. While it has not, bytes are collected, so that many
    /// fill a buffer and not each one its own; it notifies when it gives a buffer back.
    fn is_read(&mut self, guest: &dyn Guest, rx: usize) -> Result<bool, Broken> {
        self.queues.get_mut(rx).map_or(Ok(false), |queue| queue.has_all(guest))
    }

    /// Whether a port is about to end.
    fn ends(&self, id: PortId) -> bool {
        self.slots.get(usize::from(id.0)).is_some_and(|slot| slot.phase == Phase::Ending)
    }

    /// Sends control messages, those that remove a port first: its name may be that of another one.
    fn tell(&mut self, guest: &dyn Guest, budget: &mut Budget) -> Result<Progress, Broken> {
        if !self.ready {
            return Ok(Progress::Done);
        }
        while let Some(id) = self.removes.next(PortId(0)).or_else(|| self.tells.next(PortId(0))) {
            let Some(message) = self.slots.get(usize::from(id.0)).and_then(|slot| slot.message(id)) else {
                self.removes.remove(id);
                self.tells.remove(id);
                continue;
            };
            if budget.is_spent() {
                return Ok(Progress::More);
            }
            if !self.send(guest, &message, budget)? {
                // The driver notifies when it has given a buffer.
                break;
            }
            if let Some(slot) = self.slots.get_mut(usize::from(id.0)) {
                slot.sent();
            }
        }
        Ok(Progress::Done)
    }

    /// A port may have a control message for the driver.
    fn mark(&mut self, id: PortId) {
        let leaves = self.slots.get(usize::from(id.0)).is_some_and(|slot| slot.phase == Phase::Leaving);
        if leaves { self.removes.insert(id) } else { self.tells.insert(id) }
    }

    /// Sends a control message. Returns `false` if the driver has no buffer for it.
    fn send(&mut self, guest: &dyn Guest, message: &Message, budget: &mut Budget) -> Result<bool, Broken> {
        let Some(chain) = self.front(guest, CONTROL_RX)? else { return Ok(false) };
        budget.spend_on(&chain);
        chain.write(guest, 0, message)?;
        let written = chain.writable().min(message.len() as u64);
        self.complete(guest, CONTROL_RX, &chain, written as u32)?;
        Ok(true)
    }

    fn front(&self, guest: &dyn Guest, queue: usize) -> Result<Option<Chain>, Broken> {
        self.queues.get(queue).map_or(Ok(None), |queue| queue.front(guest))
    }

    fn complete(&mut self, guest: &dyn Guest, queue: usize, chain: &Chain, written: u32) -> Result<(), Broken> {
        let Some(queue) = self.queues.get_mut(queue) else { return Ok(()) };
        queue.complete(guest, chain, written)?;
        // Once it has asked for an interrupt, it gets one.
        self.interrupts = self.interrupts || queue.wants_interrupt(guest)?;
        Ok(())
    }
}

impl Default for Console {
    fn default() -> Self {
        Console::new()
    }
}
