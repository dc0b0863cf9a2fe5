//! The cases that boot a machine, by topic.

mod boot;
mod chaos;
mod console;
mod control;
mod cpus;
mod devices;
mod domains;
pub mod exits;
mod flood;
mod gicv41;
mod guests;
mod instructions;
mod io;
mod manage;
mod placed;
mod quota;
mod refuse;
mod resets;
mod sched;
mod shares;
mod storms;
mod trace;
mod uefi;

use super::Case;
pub use gicv41::again;

/// Whether a case runs only with `--long`.
pub fn is_long(name: &str) -> bool {
    devices::is_long(name) || gicv41::is_long(name) || name == "manage-64"
}

/// All cases in the order in which they run: quick ones that cover much come first.
pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    cases.extend(refuse::cases());
    cases.extend(placed::cases());
    cases.extend(guests::cases());
    cases.extend(chaos::cases());
    cases.extend(quota::cases());
    cases.extend(boot::cases());
    cases.extend(console::cases());
    cases.extend(control::cases());
    cases.extend(io::cases());
    cases.extend(domains::cases());
    cases.extend(manage::cases());
    cases.extend(sched::cases());
    cases.extend(cpus::cases());
    cases.extend(instructions::cases());
    cases.extend(shares::cases());
    cases.extend(flood::cases());
    cases.extend(resets::cases());
    cases.extend(storms::cases());
    cases.extend(trace::cases());
    cases.extend(uefi::cases());
    cases.extend(exits::cases());
    cases.extend(devices::cases());
    let again = gicv41::cases_again(&cases);
    cases.extend(gicv41::cases());
    cases.extend(again);
    cases
}
