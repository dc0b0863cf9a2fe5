//! Violations: what a driver must never do.

use std::fmt;

/// A use of the SMMU or of shared memory that is forbidden, UNPREDICTABLE or CONSTRAINED UNPREDICTABLE.
///
/// The model records the violation and continues in the least helpful way that the architecture allows. Mostly it
/// ignores the write or the command, so that a test fails whether it checks results or the list of violations.
#[derive(Clone, PartialEq, Eq)]
pub struct Violation {
    /// The rule that was broken: a section of IHI 0070 and the register, structure or command that it describes, or
    /// `memory` for the rules of the model's own calls for memory and register accesses.
    pub section: &'static str,
    /// What was done, with the numbers.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.section {
            "memory" => write!(f, "memory: {}", self.what),
            section => write!(f, "{} (IHI 0070, {section})", self.what),
        }
    }
}

impl fmt::Debug for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
