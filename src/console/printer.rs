//! What the lock of the console protects: the input focus, the domains' turns, and the state of the UART.

use super::mux::Mux;
use super::turns::{Slots, Turns};
use super::uart::{Filled, Port, Uart};
use crate::ids::DOMAINS;
use crate::sync::atomic::{Ordering, fence};

/// The largest number of bytes that are sent in one visit: a line of a domain without the keyboard, and its mark.
const VISIT: usize = 256;

/// The time in microseconds after which a UART without an interrupt is looked at again, and a lock that was taken.
pub const POLL_US: u64 = 1_000;

/// The time in microseconds after which a UART that takes nothing is considered stuck (a flow control that stays off): what
/// waits for it is dropped, so that domains do not hang.
const STUCK_US: u64 = 1_000_000;

/// When somebody has to [visit](Printer::visit) again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    /// When a domain has printed something.
    Never,
    /// The UART's interrupt will say so.
    Interrupt,
    /// At this time, in microseconds.
    At(u64),
}

/// The state of the console.
pub struct Printer {
    /// The input focus.
    pub mux: Mux,
    /// The output of the domains.
    pub turns: Turns,
    /// Whether the UART's interrupt is used.
    listens: bool,
    /// Whether the UART's transmit interrupt is enabled.
    transmits: bool,
    /// The time since which the UART has taken nothing.
    full_since: Option<u64>,
}

impl Printer {
    /// No domain is attached, and the UART's interrupt is not used.
    #[must_use]
    pub const fn new() -> Printer {
        Printer { mux: Mux::new(), turns: Turns::new(), listens: false, transmits: false, full_since: None }
    }

    /// Enables the UART's receive interrupt; its transmit interrupt will be enabled while output waits.
    pub fn listen<P: Port>(&mut self, uart: &Uart, port: &P) {
        uart.listen(port);
        (self.listens, self.transmits) = (true, false);
    }

    /// Sends what waits, as far as the UART takes it, and at most `VISIT` bytes. `now` is in microseconds. Without a
    /// UART, what waits is dropped.
    pub fn visit<P: Port>(&mut self, uart: Option<&Uart>, port: &P, now: u64) -> Again {
        let Some(uart) = uart else {
            self.turns.discard();
            return Again::Never;
        };
        let (turns, focus, mut sent) = (&mut self.turns, self.mux.domain(), false);
        let filled = uart.fill(port, VISIT, || {
            let byte = turns.next(focus, now);
            sent |= byte.is_some();
            byte
        });
        if sent || filled != Filled::Full {
            self.full_since = None;
        } else if now.saturating_sub(*self.full_since.get_or_insert(now)) > STUCK_US {
            self.turns.discard();
        }
        let more = filled != Filled::Finished;
        if self.listens && self.transmits != more {
            uart.set_transmit_interrupt(port, more);
            self.transmits = more;
        }
        match self.turns.held_until() {
            _ if more && self.listens => Again::Interrupt,
            _ if more => Again::At(now + POLL_US),
            Some(at) => Again::At(at),
            None => Again::Never,
        }
    }

    /// Takes the requests of domains that wait for room and have it now.
    #[must_use]
    pub fn take_requests(&self) -> Slots {
        // One fence for all rings, instead of that of `take_request` for each: nearly all of them have no request.
        fence(Ordering::SeqCst);
        let mut answered = Slots::new();
        let waiting = self.turns.rings().filter(|(_, ring)| ring.has_request() && ring.take_request());
        waiting.for_each(|(domain, _)| answered.add(domain));
        answered
    }

    /// Sends all that waits at this moment, because the machine stops, and waits until it has left the UART; at most until
    /// `deadline`. With `raw`, the domain with the keyboard is printed as it is.
    pub fn flush<P: Port>(&mut self, uart: &Uart, port: &P, raw: bool, deadline: u64, now: impl Fn() -> u64) {
        self.turns.close_all();
        let focus = self.mux.domain().filter(|_| raw);
        let mut ends = [0; DOMAINS];
        for (domain, ring) in self.turns.rings() {
            // A domain that goes on would otherwise have each part of a line printed as a line.
            ring.seal();
            ends[domain] = ring.end();
        }
        let is_done = |turns: &Turns| turns.is_between() && turns.rings().all(|(at, ring)| ring.has_passed(ends[at]));
        while !is_done(&self.turns) && now() < deadline {
            uart.fill(port, VISIT, || self.turns.next(focus, 0));
        }
        while !uart.is_drained(port) && now() < deadline {}
    }
}

impl Default for Printer {
    fn default() -> Self {
        Printer::new()
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
