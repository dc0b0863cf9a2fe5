//! Who gets what is typed: three times Ctrl-A moves on to the next.
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

/// The state between keys.
#[derive(Debug)]
pub struct Mux {
    focus: Focus,
    held: u8,
}

impl Mux {
    /// dom0 has the keyboard.
    #[must_use]
    pub const fn new() -> Mux {
        Mux { focus: Focus::Domain(DomId(0)), held: 0 }
    }

    /// Who has the keyboard.
    #[must_use]
    pub fn focus(&self) -> Focus {
        self.focus
    }

    /// Takes a key.
    pub fn key(&mut self, byte: u8) -> Typed {
        if byte == CTRL_A {
            self.held += 1;
            if self.held < TIMES {
                return Typed::Held;
            }
            self.held = 0;
            self.focus = match self.focus {
                Focus::Domain(_) => Focus::Hypervisor,
                Focus::Hypervisor => Focus::Domain(DomId(0)),
            };
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
        let mut mux = Mux { focus: Focus::Hypervisor, held: 0 };
        mux.key(1);
        assert_eq!(mux.key(b'd'), Typed::Debug(b'd'));
    }
}
