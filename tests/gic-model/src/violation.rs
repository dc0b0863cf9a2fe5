//! What a driver must never do, and what was seen.

use std::fmt;

/// One forbidden, UNPREDICTABLE or CONSTRAINED UNPREDICTABLE act.
///
/// The model records it and goes on in the least helpful way the architecture allows (the write or the command
/// is mostly ignored), so that a test that looks at results fails as well as one that looks at the list.
#[derive(Clone, PartialEq, Eq)]
pub struct Violation {
    /// Where the rule stands: a section of IHI 0069 with the register or command that it is told under,
    /// or `memory` for the contract of the shared-memory calls themselves.
    pub section: &'static str,
    /// What was done, with the numbers.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] {}", self.section, self.what)
    }
}

impl fmt::Debug for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
