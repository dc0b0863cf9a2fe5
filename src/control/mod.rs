//! What happens to the machine from outside a guest: teardown and restart of domains, CPU hotplug, debug keys.

pub mod debug_keys;
pub mod hotplug;
pub mod teardown;
