//! Which byte goes to the UART next: the domains' turns.
//!
//! A turn is a line. Between two lines of other domains, the domain with the keyboard has a turn.
//!
//! * The domain with the keyboard is printed as it comes: each byte, with its control characters, and so a prompt or an
//!   echo at once. If a line of another domain waits while such a line is unfinished, it waits for [`HOLD_US`]. Then the
//!   unfinished line is cut.
//! * Any other domain is printed by the line, with a mark, once the line is complete or has [`LENGTH`] bytes, and control
//!   characters are [shown](super::escape). Its incomplete line waits until it is complete, or until the domain gets the
//!   keyboard or ends.
//! * The hypervisor's own lines do not wait: they cut whatever line is unfinished.
//!
//! A line that is cut ends with three carriage returns instead of one, and its rest starts with a carriage return when
//! its turn comes. A terminal shows neither, but a program that reads the console can join the parts.

use super::escape::{self, CHAR_LEN};
use super::ring::Ring;
use crate::ids::{DOMAINS, DomId};
use crate::util::bit_set::BitSet;
use alloc::sync::Arc;
use arrayvec::ArrayVec;
use core::fmt::Write;

/// A set of domains, each by its [`DomId::slot`].
pub type Slots = BitSet<{ DOMAINS / 64 }>;

/// The number of bytes after which the line of a domain without the keyboard is split.
pub const LENGTH: usize = 160;

/// The time in microseconds for which a line waits for the end of the line that the domain with the keyboard has begun.
pub const HOLD_US: u64 = 50_000;

/// The number of bytes of the domain with the keyboard after which it is looked again whether a line of another domain
/// waits. With hundreds of domains, that costs more than to print a byte.
const LOOK_AFTER: u32 = 16;

/// Ends a line that goes on later.
const CUT: &[u8] = b"\r\r\r\n";

/// Bytes that precede all others: a mark, or the visible form of a character.
#[derive(Default)]
struct Staged {
    bytes: ArrayVec<u8, 32>,
    next: usize,
}

impl Staged {
    fn add(&mut self, bytes: &[u8]) {
        // What one step adds fits: a cut, a carriage return and a mark, or one character.
        let _ = self.bytes.try_extend_from_slice(bytes);
    }

    fn take(&mut self) -> Option<u8> {
        let byte = self.bytes.get(self.next).copied();
        self.next += 1;
        if byte.is_none() {
            self.bytes.clear();
            self.next = 0;
        }
        byte
    }
}

/// The output of all domains. A domain is named by its [`DomId::slot`].
pub struct Turns {
    rings: [Option<(DomId, Arc<Ring>)>; DOMAINS],
    /// The domains that have a ring.
    present: Slots,
    /// Those whose incomplete line does not wait: the domain has ended.
    closing: Slots,
    /// No incomplete line waits: the machine stops.
    all_closing: bool,
    /// The domain whose line is on the terminal and has not ended.
    unfinished: Option<usize>,
    /// The domains whose line was cut and has not been continued.
    cut: Slots,
    staged: Staged,
    /// The domain without the keyboard whose turn it is, and the number of bytes after which its line is split.
    turn: Option<(usize, usize)>,
    /// The domain without the keyboard that had the last turn.
    last: usize,
    /// Whether the domain with the keyboard has had its turn since.
    focus_had_turn: bool,
    /// The time since which a line has waited for the end of the line of the domain with the keyboard.
    holds_since: Option<u64>,
    /// The domain without the keyboard that was found to be the next.
    found: Option<usize>,
    /// How many bytes of the domain with the keyboard are printed before another one is looked for, as none was found.
    look_after: u32,
}

impl Turns {
    /// No domain has a ring.
    #[must_use]
    pub const fn new() -> Turns {
        Turns {
            rings: [const { None }; DOMAINS],
            present: Slots::new(),
            closing: Slots::new(),
            all_closing: false,
            unfinished: None,
            cut: Slots::new(),
            staged: Staged { bytes: ArrayVec::new_const(), next: 0 },
            turn: None,
            last: 0,
            focus_had_turn: false,
            holds_since: None,
            found: None,
            look_after: 0,
        }
    }

    /// The ring of a domain.
    #[must_use]
    pub fn ring(&self, domain: usize) -> Option<&Arc<Ring>> {
        self.rings.get(domain)?.as_ref().map(|(_, ring)| ring)
    }

    /// The domains that have a ring, with their rings.
    pub fn rings(&self) -> impl Iterator<Item = (usize, &Ring)> {
        self.present.iter().filter_map(|domain| Some((domain, &**self.ring(domain)?)))
    }

    /// Adds the ring of a domain.
    pub fn add(&mut self, domain: DomId, ring: Arc<Ring>) {
        if let Some(place) = self.rings.get_mut(domain.slot()) {
            *place = Some((domain, ring));
            self.present.add(domain.slot());
            self.closing.remove(domain.slot());
        }
    }

    /// Lets a domain's incomplete line be printed: it will not be completed.
    pub fn close(&mut self, domain: usize) {
        self.closing.add(domain);
        self.look_after = 0;
    }

    /// The machine stops: the domains are printed one after the other, dom0 first, with their incomplete lines.
    pub fn close_all(&mut self) {
        self.all_closing = true;
    }

    /// Drops all that waits. At most a ring is dropped for each domain, even if the domain goes on.
    pub fn discard(&mut self) {
        for (_, ring) in self.rings() {
            (0..ring.len()).for_each(|_| _ = ring.pop());
        }
        (self.turn, self.staged, self.holds_since) = (None, Staged::default(), None);
    }

    /// Removes the ring of a domain.
    pub fn remove(&mut self, domain: usize) {
        if let Some(slot) = self.rings.get_mut(domain)
            && slot.take().is_some()
        {
            if self.turn.is_some_and(|(turn, _)| turn == domain) {
                self.end_line();
            }
            self.present.remove(domain);
            self.closing.remove(domain);
            self.cut.remove(domain);
        }
    }

    /// Ends a line that is unfinished, by cutting it. The caller then prints what [`staged`](Turns::staged) returns.
    pub fn start_line(&mut self) {
        if let Some(domain) = self.unfinished.take() {
            self.staged.add(CUT);
            self.cut.add(domain);
        }
        self.turn = None;
    }

    /// Takes a byte that has to be printed before the hypervisor prints, because a character or a mark has begun.
    pub fn staged(&mut self) -> Option<u8> {
        self.staged.take()
    }

    /// Takes the next byte. `focus` is the domain with the keyboard, and `now` the time in microseconds. If there is
    /// none, [`held_until`](Turns::held_until) tells whether there will be one later.
    pub fn next(&mut self, focus: Option<usize>, now: u64) -> Option<u8> {
        loop {
            if let Some(byte) = self.staged.take() {
                return Some(byte);
            }
            if let Some((domain, left)) = self.turn {
                self.step(domain, left);
                continue;
            }
            let domain = self.choose(focus, now)?;
            if self.unfinished != Some(domain) {
                self.start_line();
            }
            if self.cut.has(domain) {
                self.cut.remove(domain);
                self.staged.add(b"\r");
                self.unfinished = Some(domain);
            }
            if focus != Some(domain) {
                self.begin(domain);
            } else if self.staged.bytes.is_empty() {
                return self.take_raw(domain);
            }
        }
    }

    /// Whether nothing is left of the lines whose turn has begun.
    #[must_use]
    pub fn is_between(&self) -> bool {
        self.turn.is_none() && self.staged.bytes.is_empty()
    }

    /// The time at which a line that waits now will be printed at the latest.
    #[must_use]
    pub fn held_until(&self) -> Option<u64> {
        Some(self.holds_since? + HOLD_US)
    }

    /// Whether a line of a domain without the keyboard can be printed.
    fn is_ready(&self, domain: usize) -> bool {
        self.ring(domain).is_some_and(|ring| {
            // A character that begins within the line is complete.
            let has_length = ring.len() >= LENGTH + CHAR_LEN;
            ring.has_line() || has_length || (self.closing.has(domain) || self.all_closing) && !ring.is_empty()
        })
    }

    fn choose(&mut self, focus: Option<usize>, now: u64) -> Option<usize> {
        if self.all_closing {
            return self.rings().find(|(_, ring)| !ring.is_empty()).map(|(domain, _)| domain);
        }
        let other = self.other(focus);
        let mine = focus.filter(|&domain| self.ring(domain).is_some_and(|ring| !ring.is_empty()));
        let Some(other) = other else {
            self.holds_since = None;
            return mine;
        };
        if focus.is_some() && self.unfinished == focus {
            if now.saturating_sub(*self.holds_since.get_or_insert(now)) < HOLD_US {
                return mine;
            }
        } else if mine.is_some() && !self.focus_had_turn {
            return mine;
        }
        self.holds_since = None;
        Some(other)
    }

    /// The domain without the keyboard whose turn is the next.
    fn other(&mut self, focus: Option<usize>) -> Option<usize> {
        let is_ready = |domain: usize| focus != Some(domain) && self.is_ready(domain);
        if let Some(found) = self.found.filter(|&found| is_ready(found)) {
            return Some(found);
        }
        if self.look_after > 0 && focus.is_some_and(|focus| self.unfinished == Some(focus)) {
            self.look_after -= 1;
            return None;
        }
        self.found = self.present.iter_from(self.last + 1).find(|&domain| is_ready(domain));
        self.look_after = if self.found.is_none() { LOOK_AFTER } else { 0 };
        self.found
    }

    /// Begins a turn of a domain without the keyboard.
    fn begin(&mut self, domain: usize) {
        let Some(Some((id, _))) = self.rings.get(domain) else { return };
        let mut mark = arrayvec::ArrayString::<16>::new();
        let _ = write!(mark, "(d{}) ", id.0);
        self.staged.add(mark.as_bytes());
        self.unfinished = Some(domain);
        self.turn = Some((domain, LENGTH));
        (self.last, self.focus_had_turn, self.found) = (domain, false, None);
    }

    fn take_raw(&mut self, domain: usize) -> Option<u8> {
        let byte = self.ring(domain)?.pop()?;
        self.unfinished = (byte != b'\n').then_some(domain);
        if byte == b'\n' {
            self.focus_had_turn = true;
            self.holds_since = None;
        }
        Some(byte)
    }

    fn end_line(&mut self) {
        self.staged.add(b"\r\n");
        (self.turn, self.unfinished) = (None, None);
    }

    /// Stages the next character of a line, or its end.
    fn step(&mut self, domain: usize, left: usize) {
        let Some(Some((_, ring))) = self.rings.get(domain) else { return self.end_line() };
        let window: ArrayVec<u8, CHAR_LEN> = (0..CHAR_LEN).map_while(|at| ring.peek(at)).collect();
        let taken = match window.first() {
            None => return self.end_line(),
            Some(b'\n') => {
                ring.pop();
                return self.end_line();
            }
            Some(_) if left == 0 => return self.start_line(),
            Some(b'\r') if ends_line(ring) => 1,
            Some(0) => 1,
            Some(_) => {
                let (length, form) = escape::visible(&window);
                self.staged.add(form.as_bytes());
                length
            }
        };
        (0..taken).for_each(|_| _ = ring.pop());
        self.turn = Some((domain, left.saturating_sub(taken)));
    }
}

impl Default for Turns {
    fn default() -> Self {
        Turns::new()
    }
}

/// Whether the carriage return at the front of `ring` belongs to the end of a line: only others stand between it and the
/// line feed or the end.
fn ends_line(ring: &Ring) -> bool {
    let mut next = (1..LENGTH).map(|at| ring.peek(at)).skip_while(|&byte| byte == Some(b'\r'));
    matches!(next.next(), Some(None | Some(b'\n')))
}

#[cfg(all(test, not(loom)))]
mod tests;
