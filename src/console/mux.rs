//! The input focus: which domain receives the keys that are typed, or whether they are debug keys.
//!
//! Typing Ctrl-A three times moves the focus to the next in this order: dom0, the domUs with a console, the
//! hypervisor's debug keys, and dom0 again. When the domain with the focus ends, nobody has it until the user moves it: what
//! is typed for a domain must not reach another one. One or two Ctrl-A are passed to the domain like any other key, but only
//! when the key after them shows that no third one follows.

use crate::ids::{DOMAINS, DomId};

/// The owner of the input focus. The output of a domain with the focus is printed as it comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Focus {
    /// A domain.
    Domain(DomId),
    /// The hypervisor's debug keys.
    Hypervisor,
    /// Nobody: the domain that had it has ended.
    Nobody,
}

/// The effect of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Typed {
    /// None yet: it may be one of three Ctrl-A.
    Held,
    /// A domain receives `held` Ctrl-A, then `byte`.
    Domain {
        /// The domain.
        to: DomId,
        /// The number of Ctrl-A before the key.
        held: u8,
        /// The key.
        byte: u8,
    },
    /// A debug key is typed.
    Debug(u8),
    /// Nobody receives the key.
    Dropped,
    /// The focus has moved to this owner.
    Moved(Focus),
}

const CTRL_A: u8 = 1;
const TIMES: u8 = 3;

/// The state of the input focus.
pub struct Mux {
    focus: Focus,
    held: u8,
    /// The domains with a console, each at its slot. dom0 is always there.
    present: [Option<DomId>; DOMAINS],
}

impl Mux {
    /// The initial state: dom0 has the focus.
    #[must_use]
    pub const fn new() -> Mux {
        let mut present = [None; DOMAINS];
        present[0] = Some(DomId::DOM0);
        Mux { focus: Focus::Domain(DomId::DOM0), held: 0, present }
    }

    /// Returns the owner of the focus.
    #[must_use]
    pub fn focus(&self) -> Focus {
        self.focus
    }

    /// Adds a domain with a console.
    pub fn attach(&mut self, domain: DomId) {
        self.present[domain.slot()] = Some(domain);
    }

    /// Removes a domain. If it had the focus, nobody has it now. Returns whether it had the focus.
    pub fn detach(&mut self, domain: DomId) -> bool {
        if domain == DomId::DOM0 {
            return false;
        }
        if self.present[domain.slot()] == Some(domain) {
            self.present[domain.slot()] = None;
        }
        let had = self.focus == Focus::Domain(domain);
        if had {
            self.focus = Focus::Nobody;
        }
        had
    }

    /// The domain with the focus, by its [`DomId::slot`].
    #[must_use]
    pub fn domain(&self) -> Option<usize> {
        match self.focus {
            Focus::Domain(domain) => Some(domain.slot()),
            Focus::Hypervisor | Focus::Nobody => None,
        }
    }

    fn next(&self) -> Focus {
        let after = match self.focus {
            Focus::Hypervisor | Focus::Nobody => 0,
            Focus::Domain(domain) => domain.slot() + 1,
        };
        self.present.iter().skip(after).flatten().next().map_or(Focus::Hypervisor, |&domain| Focus::Domain(domain))
    }

    /// Processes a key.
    pub fn key(&mut self, byte: u8) -> Typed {
        if byte == CTRL_A {
            self.held += 1;
            if self.held < TIMES {
                return Typed::Held;
            }
            self.held = 0;
            self.focus = self.next();
            return Typed::Moved(self.focus);
        }
        let held = core::mem::take(&mut self.held);
        match self.focus {
            Focus::Domain(to) => Typed::Domain { to, held, byte },
            Focus::Hypervisor => Typed::Debug(byte),
            Focus::Nobody => Typed::Dropped,
        }
    }
}

impl Default for Mux {
    fn default() -> Self {
        Mux::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_ctrl_a_move_the_focus_to_the_debug_keys_and_back() {
        let mut mux = Mux::new();
        assert_eq!([mux.key(1), mux.key(1), mux.key(1)], [Typed::Held, Typed::Held, Typed::Moved(Focus::Hypervisor)]);
        assert_eq!(mux.key(b'h'), Typed::Debug(b'h'));
        mux.key(1);
        mux.key(1);
        assert_eq!(mux.key(1), Typed::Moved(Focus::Domain(DomId(0))));
        assert_eq!(mux.key(b'h'), Typed::Domain { to: DomId(0), held: 0, byte: b'h' });
    }

    #[test]
    fn the_focus_moves_over_all_domains_and_to_nobody_if_its_owner_is_removed() {
        let three = |mux: &mut Mux| [mux.key(1), mux.key(1), mux.key(1)][2];
        let domain = |id| Typed::Moved(Focus::Domain(DomId(id)));
        let mut mux = Mux::new();
        [1, 3, 15].into_iter().for_each(|id| mux.attach(DomId(id)));
        let round: std::vec::Vec<_> = (0..5).map(|_| three(&mut mux)).collect();
        assert_eq!(round, [domain(1), domain(3), domain(15), Typed::Moved(Focus::Hypervisor), domain(0)]);
        assert!(!mux.detach(DomId(1)) && !mux.detach(DomId(0)));
        assert_eq!(three(&mut mux), domain(3));
        assert!(mux.detach(DomId(3)));
        assert_eq!(mux.focus(), Focus::Nobody);
        assert_eq!(mux.key(b'x'), Typed::Dropped);
        mux.attach(DomId(3));
        assert_eq!(mux.key(b'x'), Typed::Dropped, "a domain that is built again does not get it by itself");
        mux.detach(DomId(3));
        assert_eq!([three(&mut mux), three(&mut mux)], [domain(0), domain(15)]);
        assert_eq!(three(&mut mux), Typed::Moved(Focus::Hypervisor));
        // One that has the place of an earlier domain, and the last place.
        [3 + 256, 255].into_iter().for_each(|id| mux.attach(DomId(id)));
        assert!(!mux.detach(DomId(3)));
        let round: std::vec::Vec<_> = (0..4).map(|_| three(&mut mux)).collect();
        assert_eq!(round, [domain(0), domain(3 + 256), domain(15), domain(255)]);
    }

    #[test]
    fn fewer_than_three_ctrl_a_are_passed_on_with_the_next_key() {
        let mut mux = Mux::new();
        mux.key(1);
        mux.key(1);
        assert_eq!(mux.key(b'x'), Typed::Domain { to: DomId(0), held: 2, byte: b'x' });
        mux.key(1);
        mux.key(b'y');
        mux.key(1);
        assert_eq!(mux.key(1), Typed::Held, "another key resets the count");
    }

    #[test]
    fn ctrl_a_is_not_a_debug_key() {
        let mut mux = Mux { focus: Focus::Hypervisor, ..Mux::new() };
        mux.key(1);
        assert_eq!(mux.key(b'd'), Typed::Debug(b'd'));
    }
}
