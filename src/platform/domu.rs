//! The domUs in a machine's description.

use super::machine::{Module, ModuleKind};
use crate::ids::{NotAnSbdf, Sbdf};
use arrayvec::{ArrayString, ArrayVec};
use core::fmt;

/// The largest number of domUs in a machine's description.
pub const DOMAINS: usize = 8;

/// The largest number of PCI functions of a domU. Each has a slot of bus 0 of the domU's host bridge.
pub const FUNCTIONS: usize = 16;

/// A mistake in the description of one domU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigProblem {
    /// A text names no PCI function: its first bytes.
    NoFunction(ArrayString<32>),
    /// It lists more than [`FUNCTIONS`] PCI functions.
    TooManyFunctions,
}

impl ConfigProblem {
    /// The problem that `text` names no PCI function.
    #[must_use]
    pub fn no_function(text: &str) -> ConfigProblem {
        ConfigProblem::NoFunction(start_of(text))
    }
}

impl fmt::Display for ConfigProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConfigProblem::NoFunction(text) => write!(f, "PCI functions: `{text}`: {NotAnSbdf}"),
            ConfigProblem::TooManyFunctions => write!(f, "PCI functions: more than {FUNCTIONS} are not supported"),
        }
    }
}

/// Returns as much of a text as fits.
pub(super) fn start_of<const N: usize>(text: &str) -> ArrayString<N> {
    let mut start = ArrayString::new();
    for letter in text.chars() {
        if start.try_push(letter).is_err() {
            break;
        }
    }
    start
}

/// A domU to create at boot, as `/chosen` describes it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct DomainConfig {
    /// The name of its node.
    pub name: ArrayString<32>,
    /// The number of its vCPUs.
    pub cpus: u16,
    /// The size of its RAM in bytes.
    pub memory: u64,
    /// Whether it has a serial port.
    pub vpl011: bool,
    /// The weight of each of its vCPUs in the sharing of CPU time, where the scheduler has weights.
    pub weight: Option<u32>,
    /// The limit of the CPU time of each of its vCPUs, in percent of a CPU.
    pub cap: Option<u32>,
    /// The PCI functions that it gets.
    pub pci: ArrayVec<Sbdf, FUNCTIONS>,
    /// Whether it may get a function that cannot be reset.
    pub pci_allow_no_reset: bool,
    /// What is wrong with its description. It cannot be built then; the other domains are.
    pub problem: Option<ConfigProblem>,
    /// Its kernel and the files for it.
    pub modules: ArrayVec<Module, 4>,
}

impl DomainConfig {
    /// Adds the PCI function that a text names, or notes why that cannot be done. A function is listed once.
    pub(super) fn add_function(&mut self, text: &str) {
        let Ok(function) = text.parse() else {
            self.problem.get_or_insert(ConfigProblem::no_function(text));
            return;
        };
        if !self.pci.contains(&function) && self.pci.try_push(function).is_err() {
            self.problem.get_or_insert(ConfigProblem::TooManyFunctions);
        }
    }

    /// Returns the first module of a kind.
    #[must_use]
    pub fn module(&self, kind: ModuleKind) -> Option<&Module> {
        self.modules.iter().find(|module| module.kind == kind)
    }
}
