//! Boot: from the loader's first instruction to a boot CPU that runs ordinary Rust.
//!
//! | file | content |
//! |---|---|
//! | `head` | the entry code, in assembly |
//! | `efi` | the image as an EFI application |
//! | `entry` | the first Rust code, up to [`crate::start`] |
//! | `early` | the first stage 1 map |
//! | `image` | the linker's symbols |
//! | `machine` | the storage of the machine's description, and its console |
//! | `panic` | the panic handler |
//!
//! Until `entry` has switched stage 1 on, memory is Device: there are no atomics beyond plain loads and stores, no
//! locks and no log, and the code must not access memory unaligned (it is built for that). `entry` calls
//! [`crate::start`] when the machine's description, the second stage 1 map, frames, heap and log are available.
#![allow(unsafe_code, reason = "entry code sets up what the safety of all other code depends on")]

mod early;
mod efi;
mod entry;
mod head;
mod image;
mod machine;
mod panic;

use doorward::arch::psci::PsciError;
use doorward::arch::smp::{self, StartError};
use doorward::ids::CpuId;
use doorward::mm::el2_map::Stacks;
use doorward::platform::Machine;
use doorward::platform::efi::Firmware;
use doorward::sync::Once;
use doorward::util::range::Range;

/// What boot has found and set up: the machine, and the memory that is not for domains.
pub struct BootInfo {
    /// The machine's description.
    pub machine: &'static Machine,
    /// The source of the description.
    pub firmware: Firmware,
    /// The device tree; empty if there is none.
    pub fdt: &'static [u8],
    /// The memory of the image.
    pub image: Range,
    /// The memory of EL2's frames, heap and stacks.
    pub pool: Range,
}

static STACKS: Once<Stacks> = Once::new();
static MACHINE: Once<&'static Machine> = Once::new();

/// Starts a CPU of the machine in `entry`, and returns when it runs. Called once for each CPU except the boot CPU.
///
/// # Errors
///
/// Those of the start, or [`PsciError::InvalidParameters`] if the machine has no such CPU.
pub fn start_cpu(cpu: CpuId, entry: extern "C" fn(CpuId) -> !) -> Result<smp::Secondary, StartError> {
    let unknown = StartError::Firmware(PsciError::InvalidParameters);
    let (Some(machine), Some(stacks)) = (MACHINE.get(), STACKS.get()) else { return Err(unknown) };
    let (Some(listed), Some(stack)) = (machine.cpus.get(cpu.index()), stacks.top(cpu.index())) else {
        return Err(unknown);
    };
    smp::start(cpu, listed.mpidr, stack, entry)
}
