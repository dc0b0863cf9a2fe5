//! What happens to the machine from outside a guest: teardown and restart of domains, CPU hotplug, debug keys.

#[cfg(target_os = "none")]
pub mod debug_keys;
#[cfg(target_os = "none")]
pub mod hotplug;
#[cfg(target_os = "none")]
pub mod teardown;
