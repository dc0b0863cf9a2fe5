//! Who gets what is typed: three times Ctrl-A moves on to the next, from dom0 over the other domains that have a console
//! to the hypervisor's debug keys, and round.
//!
//! One or two times Ctrl-A go through to the domain like any other key (three in a row are what nobody types by
//! accident); they are held back only until it is clear that no third one follows.

use crate::ids::DomId;

/// Who has the keyboard, and whose output goes out as it comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Focus {
    /// A domain.
    Domain(DomId),
    /// The hypervisor's debug keys.
    Hypervisor,
}

/// What a key comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Typed {
    /// Nothing yet.
    Held,
    /// `count` Ctrl-A that were held, then `byte`, for a domain.
    Domain {
        /// Whose it is.
        to: DomId,
        /// How many Ctrl-A come before it.
        held: u8,
        /// The key.
        byte: u8,
    },
    /// A debug key.
    Debug(u8),
    /// The focus has moved.
    Moved(Focus),
}

const CTRL_A: u8 = 1;
const TIMES: u8 = 3;

/// Domains that can have a console.
pub const DOMAINS: usize = 16;

/// The state between keys.
#[derive(Debug)]
pub struct Mux {
    focus: Focus,
    held: u8,
    /// A bit for each domain with a console; dom0 always has one.
    present: u16,
}

impl Mux {
    /// dom0 has the keyboard.
    #[must_use]
    pub const fn new() -> Mux {
        Mux { focus: Focus::Domain(DomId(0)), held: 0, present: 1 }
    }

    /// Who has the keyboard.
    #[must_use]
    pub fn focus(&self) -> Focus {
        self.focus
    }

    /// A domain has a console from now on.
    pub fn attach(&mut self, domain: DomId) {
        self.present |= 1u16.checked_shl(u32::from(domain.0)).unwrap_or(0);
    }

    /// A domain's console is gone. If it had the keyboard, dom0 gets that, and the answer is `true`.
    pub fn detach(&mut self, domain: DomId) -> bool {
        self.present &= !1u16.checked_shl(u32::from(domain.0)).unwrap_or(0) | 1;
        let had = self.focus == Focus::Domain(domain) && domain != DomId(0);
        if had {
            self.focus = Focus::Domain(DomId(0));
        }
        had
    }

    fn next(&self) -> Focus {
        let after = match self.focus {
            Focus::Hypervisor => 0,
            Focus::Domain(domain) => domain.0 + 1,
        };
        let left = u32::from(self.present) >> after.min(16) << after.min(16);
        if left == 0 { Focus::Hypervisor } else { Focus::Domain(DomId(left.trailing_zeros() as u16)) }
    }

    /// Takes a key.
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
    fn three_times_ctrl_a_goes_there_and_back() {
        let mut mux = Mux::new();
        assert_eq!([mux.key(1), mux.key(1), mux.key(1)], [Typed::Held, Typed::Held, Typed::Moved(Focus::Hypervisor)]);
        assert_eq!(mux.key(b'h'), Typed::Debug(b'h'));
        mux.key(1);
        mux.key(1);
        assert_eq!(mux.key(1), Typed::Moved(Focus::Domain(DomId(0))));
        assert_eq!(mux.key(b'h'), Typed::Domain { to: DomId(0), held: 0, byte: b'h' });
    }

    #[test]
    fn the_keyboard_goes_from_domain_to_domain_and_comes_back_when_one_is_gone() {
        let three = |mux: &mut Mux| [mux.key(1), mux.key(1), mux.key(1)][2];
        let domain = |id| Typed::Moved(Focus::Domain(DomId(id)));
        let mut mux = Mux::new();
        [1, 3, 15].into_iter().for_each(|id| mux.attach(DomId(id)));
        let round: std::vec::Vec<_> = (0..5).map(|_| three(&mut mux)).collect();
        assert_eq!(round, [domain(1), domain(3), domain(15), Typed::Moved(Focus::Hypervisor), domain(0)]);
        assert!(!mux.detach(DomId(1)) && !mux.detach(DomId(0)));
        assert_eq!(three(&mut mux), domain(3));
        assert!(mux.detach(DomId(3)));
        assert_eq!(mux.focus(), Focus::Domain(DomId(0)));
        assert_eq!(three(&mut mux), domain(15));
        mux.attach(DomId(16));
        assert_eq!(three(&mut mux), Typed::Moved(Focus::Hypervisor));
    }

    #[test]
    fn fewer_reach_the_domain_with_the_key_that_follows() {
        let mut mux = Mux::new();
        mux.key(1);
        mux.key(1);
        assert_eq!(mux.key(b'x'), Typed::Domain { to: DomId(0), held: 2, byte: b'x' });
        mux.key(1);
        mux.key(b'y');
        mux.key(1);
        assert_eq!(mux.key(1), Typed::Held, "counted anew after another key");
    }

    #[test]
    fn the_hypervisor_does_not_see_ctrl_a_as_a_key() {
        let mut mux = Mux { focus: Focus::Hypervisor, ..Mux::new() };
        mux.key(1);
        assert_eq!(mux.key(b'd'), Typed::Debug(b'd'));
    }
}
