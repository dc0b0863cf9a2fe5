//! The reset of a function, before a domain gets it and after it has had it.
//!
//! What a domain has left in a function must not reach the next one: state that names memory (queues, rings), a DMA that
//! is still under way, interrupts. A Function Level Reset (6.6.2) ends all of that. Where it is missing, the way from
//! D3hot to D0 does, if the function says so (No_Soft_Reset, 7.5.2.2). A function with neither is not given to a domain,
//! unless the operator has allowed it.
//!
//! A reset takes 100 ms and up to a minute. [`Reset`] is a cursor: [`step`](Reset::step) does what can be done now, and
//! says when to come again. It never waits.
//!
//! Afterwards the function is where it was (its BARs), silent (no decoding, no bus mastering, no MSIs, no INTx, no error
//! messages), and in D0. What the firmware has set for the path to the memory (Max_Payload_Size, Extended Tags, Device
//! Control 2) is put back.

use super::ConfigSpace;
use super::function::{Facts, bar_at};
use super::regs::*;
use crate::ids::Pa;

/// Requests of the function get this time to complete before it is reset; then it is reset all the same (6.6.2).
const PENDING_US: u64 = 1_000_000;
/// The time between two looks at a function.
const LOOK_US: u64 = 10_000;
/// A function is not accessed for this time after a Function Level Reset was begun (6.6.2).
const RESET_US: u64 = 100_000;
/// A function is not accessed for this time after it was put into D3hot or D0 (5.9, table 5-13).
const POWER_US: u64 = 10_000;
/// A function that does not answer by this time after its reset has failed. It is the limit that operating systems use;
/// the specification has one second (6.6.1), which devices exceed.
const RETURN_US: u64 = 60_000_000;

/// How a function is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Function Level Reset.
    FunctionLevel,
    /// From D3hot to D0.
    Power,
}

impl Method {
    /// The best one that a function has.
    #[must_use]
    pub fn of(facts: &Facts) -> Option<Method> {
        if facts.express.is_some_and(|express| express.resets) {
            Some(Method::FunctionLevel)
        } else {
            facts.power.filter(|power| power.resets).map(|_| Method::Power)
        }
    }
}

/// What a step has reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Progress {
    /// Nothing can be done before this time, in microseconds.
    Wait(u64),
    /// The function may be used.
    Done,
    /// The function must not be used again, by anybody.
    Quarantined(Why),
}

/// Why a function has not come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It does not answer.
    Silent,
    /// Another function answers in its place. The number is its Device ID and Vendor ID.
    Other(u32),
    /// Its registers do not keep what is written to them.
    Stuck,
}

impl core::fmt::Display for Why {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Why::Silent => write!(f, "it does not answer"),
            Why::Other(id) => write!(f, "another function answers: {:04x}:{:04x}", id & 0xffff, id >> 16),
            Why::Stuck => write!(f, "its registers do not keep their values"),
        }
    }
}

/// A reset that is under way.
#[derive(Clone, Debug)]
pub struct Reset {
    facts: Facts,
    method: Option<Method>,
    /// Device Control and Device Control 2, as the firmware has set them.
    controls: (u32, u32),
    state: State,
}

/// What comes next. Times are in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Begin,
    /// The function wakes from D3hot, in which it may have been left.
    Wakes {
        until: u64,
    },
    /// Requests are outstanding.
    Pending {
        until: u64,
    },
    /// In D3hot.
    Sleeps {
        until: u64,
    },
    /// No access may be made.
    Settles {
        until: u64,
    },
    /// It may answer or not.
    Returns {
        until: u64,
    },
    End(Progress),
}

impl Reset {
    /// A reset of a function whose BARs are placed. `None` if it has no way to be reset.
    #[must_use]
    pub fn new(facts: &Facts) -> Option<Reset> {
        Some(Reset::by(facts, Some(Method::of(facts)?)))
    }

    /// Silences a function that cannot be reset, and resets it if it can. Its state remains.
    #[must_use]
    pub fn or_silence(facts: &Facts) -> Reset {
        Reset::by(facts, Method::of(facts))
    }

    fn by(facts: &Facts, method: Option<Method>) -> Reset {
        Reset { facts: facts.clone(), method, controls: (0, 0), state: State::Begin }
    }

    /// How the function is reset; `None` if it is silenced only.
    #[must_use]
    pub fn method(&self) -> Option<Method> {
        self.method
    }

    /// Goes on, at the time `now_us`. It makes some thirty accesses at most. It may be called early, and again after the
    /// end.
    pub fn step(&mut self, config: &impl ConfigSpace, now_us: u64) -> Progress {
        // Each turn of the loop enters a later state.
        loop {
            let next = match self.state {
                State::Begin => self.begin(config, now_us),
                State::Wakes { until } | State::Sleeps { until } | State::Settles { until } if now_us < until => {
                    return Progress::Wait(until);
                }
                State::Wakes { .. } => self.silenced(config, now_us),
                State::Pending { until } => {
                    if now_us < until && self.has_requests(config) {
                        return Progress::Wait(now_us.saturating_add(LOOK_US));
                    }
                    self.initiate(config, now_us)
                }
                State::Sleeps { .. } => {
                    self.set_power(config, 0);
                    State::Settles { until: now_us.saturating_add(POWER_US) }
                }
                State::Settles { .. } => State::Returns { until: now_us.saturating_add(RETURN_US) },
                State::Returns { until } => match self.answer(config) {
                    Ok(()) => State::End(self.restore(config)),
                    Err(Why::Silent) if now_us < until => return Progress::Wait(now_us.saturating_add(LOOK_US)),
                    Err(why) => State::End(Progress::Quarantined(why)),
                },
                State::End(progress) => return progress,
            };
            self.state = next;
        }
    }

    fn begin(&mut self, config: &impl ConfigSpace, now: u64) -> State {
        if let Err(why) = self.answer(config) {
            return State::End(Progress::Quarantined(why));
        }
        silence(&self.facts, config);
        if let Some(express) = self.facts.express {
            let at = self.facts.page.add(express.at);
            self.controls.0 = config.read(at.add(DEVICE_CONTROL), 2);
            if express.version >= 2 {
                self.controls.1 = config.read(at.add(DEVICE_CONTROL2), 2);
            }
        }
        if self.power_state(config) == 0 {
            return self.silenced(config, now);
        }
        self.set_power(config, 0);
        State::Wakes { until: now.saturating_add(POWER_US) }
    }

    /// The function begins no new requests.
    fn silenced(&self, config: &impl ConfigSpace, now: u64) -> State {
        // The BARs may have been lost on the way from D3hot, and MSIs are enabled by nothing else.
        silence(&self.facts, config);
        State::Pending { until: now.saturating_add(PENDING_US) }
    }

    fn has_requests(&self, config: &impl ConfigSpace) -> bool {
        self.facts.express.is_some_and(|express| {
            config.read(self.facts.page.add(express.at).add(DEVICE_STATUS), 2) & TRANSACTIONS_PENDING != 0
        })
    }

    fn initiate(&self, config: &impl ConfigSpace, now: u64) -> State {
        match (self.method, self.facts.express) {
            (Some(Method::FunctionLevel), Some(express)) => {
                let at = self.facts.page.add(express.at).add(DEVICE_CONTROL);
                config.write(at, 2, self.controls.0 | FUNCTION_RESET);
                State::Settles { until: now.saturating_add(RESET_US) }
            }
            (Some(Method::Power), _) => {
                self.set_power(config, POWER_STATE);
                State::Sleeps { until: now.saturating_add(POWER_US) }
            }
            _ => State::Returns { until: now.saturating_add(RETURN_US) },
        }
    }

    fn power_at(&self) -> Option<Pa> {
        Some(self.facts.page.add(self.facts.power?.at).add(POWER_CONTROL))
    }

    fn power_state(&self, config: &impl ConfigSpace) -> u32 {
        self.power_at().map_or(0, |at| config.read(at, 2) & POWER_STATE)
    }

    /// Sets the power state, and disables PME. PME_Status is cleared by writing 1.
    fn set_power(&self, config: &impl ConfigSpace, state: u32) {
        if let Some(at) = self.power_at() {
            config.write(at, 2, state);
        }
    }

    /// Whether the function answers. One that is not ready reads as ones, or as Vendor ID 0001 while the root port sees
    /// Request Retry Status (2.3.2).
    fn answer(&self, config: &impl ConfigSpace) -> Result<(), Why> {
        match config.read32(self.facts.page.add(ID)) {
            id if id == self.facts.id => Ok(()),
            NONE => Err(Why::Silent),
            id if id & 0xffff == NOT_READY => Err(Why::Silent),
            id => Err(Why::Other(id)),
        }
    }

    fn restore(&self, config: &impl ConfigSpace) -> Progress {
        let page = self.facts.page;
        silence(&self.facts, config);
        let mut kept = true;
        for (index, bar) in self.facts.memory_bars() {
            let at = page.add(bar_at(index));
            let mut put = |at: Pa, value: u32, ignored: u32| {
                config.write(at, 4, value);
                kept &= config.read32(at) & !ignored == value & !ignored;
            };
            put(at, bar.base as u32, BAR_FLAGS);
            if bar.space == super::function::Space::Memory64 {
                put(at.add(4), (bar.base >> 32) as u32, 0);
            }
        }
        if let Some(express) = self.facts.express {
            let at = page.add(express.at);
            let fresh = config.read(at.add(DEVICE_CONTROL), 2) & !(OF_THE_PATH | ERROR_MESSAGES | FUNCTION_RESET);
            config.write(at.add(DEVICE_CONTROL), 2, fresh | self.controls.0 & OF_THE_PATH);
            if express.version >= 2 {
                config.write(at.add(DEVICE_CONTROL2), 2, self.controls.1);
            }
        }
        if kept && self.power_state(config) == 0 { Progress::Done } else { Progress::Quarantined(Why::Stuck) }
    }
}

/// Makes a function send nothing and decode nothing: no bus mastering, no decoding, no interrupts, no expansion ROM. This
/// is what has to happen first to a function whose domain has ended.
pub fn silence(facts: &Facts, config: &impl ConfigSpace) {
    let page = facts.page;
    config.write(page.add(COMMAND), 2, INTERRUPT_DISABLE);
    config.write(page.add(ROM), 4, 0);
    for at in [facts.msi.map(|msi| msi.at), facts.msix.map(|msix| msix.at)].into_iter().flatten() {
        config.write(page.add(at).add(MESSAGE_CONTROL), 2, 0);
    }
}

#[cfg(test)]
mod tests;
