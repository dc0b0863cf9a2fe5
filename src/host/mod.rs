//! The machine that all domains share: GIC, scheduler, pools, timers, idle and background work, who owns what.

pub mod background;
pub mod cmdline;
pub mod cpu_features;
pub mod owners;
pub mod rate_limit;
pub mod sleepers;

mod hypervisor;
pub mod timer;

pub use hypervisor::{DOMAINS, DomainRef, Hypervisor, hypervisor, install};
