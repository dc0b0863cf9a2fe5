//! The image: says the order in which the machine comes up, and fills the tables that join rooms.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod boot;

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("doorward runs at EL2: build it with `cargo xtask build`");
}

/// The boot CPU: the machine has been read, and its memory is in order.
#[cfg(target_os = "none")]
fn start(own: boot::Own) -> ! {
    use doorward::arch::{barrier, percpu};
    use doorward::ids::CpuId;

    let machine = own.machine;
    log::info!("Doorward {} at {}, its memory at {}", env!("CARGO_PKG_VERSION"), own.image, own.pool);
    log::debug!("device tree of {} bytes", own.fdt.len());
    log::info!("{} MiB of memory, {} CPUs", machine.memory_size() >> 20, machine.enabled_cpus());
    for (index, cpu) in machine.cpus.iter().enumerate().filter(|(_, cpu)| cpu.enabled) {
        let id = CpuId(u16::try_from(index).unwrap_or(u16::MAX));
        if id != percpu::cpu()
            && let Err(error) = boot::start_cpu(id, secondary)
        {
            log::warn!("{id} (MPIDR {}) stays off: {error}", cpu.mpidr);
        }
    }
    barrier::park()
}

/// Every other CPU, on its own stack.
#[cfg(target_os = "none")]
extern "C" fn secondary(cpu: doorward::ids::CpuId) -> ! {
    log::info!("{cpu} is up");
    doorward::arch::barrier::park()
}
