//! Entry and relocation: from the loader's first instruction to a CPU that runs ordinary Rust.
//!
//! `head` is the assembly. [`boot_cpu`] is the first Rust. Until it has switched stage 1 on there are no atomics
//! (beyond plain loads and stores), no locks and no log, and memory is Device: code is built strict-align. It ends in
//! [`crate::start`] with the machine read, the map that stays, frames, heap and log.
#![allow(unsafe_code, reason = "this room is where there is no ground to stand on yet")]

mod early;
mod efi;
mod head;
mod panic;

use core::ptr;
use doorward::arch::smp::{self, StartError};
use doorward::arch::sysreg::{HCR_EL2, MPIDR_EL1, Readable};
use doorward::arch::{barrier, mmu, percpu, psci, vectors};
use doorward::console::uart::{Kind as UartKind, Uart};
use doorward::console::{self, onpanic};
use doorward::fatal;
use doorward::ids::{CpuId, Mpidr, Pa};
use doorward::mm::el2_map::{self, Stacks};
use doorward::mm::stage1::Kind;
use doorward::mm::{frames, guest_ram, pool};
use doorward::platform::efi::Firmware;
use doorward::platform::{self, Machine, fdt as platform_fdt};
use doorward::sync::Once;
use doorward::util::range::{Range, pages_around};

unsafe extern "C" {
    static early_uart_kind: u64;
    static early_uart_base: u64;
    static __image_start: u8;
    static __text_start: u8;
    static __text_end: u8;
    static __rodata_start: u8;
    static __data_start: u8;
    static __stack_guard: u8;
    static __stack_bottom: u8;
    static __image_end: u8;
}

/// What boot leaves behind: the machine, and what of its memory is not for domains.
pub struct Own {
    /// What machine this is.
    pub machine: &'static Machine,
    /// What described it.
    pub firmware: Firmware,
    /// Its device tree; empty when there is none.
    pub fdt: &'static [u8],
    /// Where the image lies.
    pub image: Range,
    /// Where EL2's frames, heap and stacks come from.
    pub pool: Range,
}

static STACKS: Once<Stacks> = Once::new();
static MACHINE: Once<&'static Machine> = Once::new();

/// The first Rust on the boot CPU.
///
/// `at` is what the loader left in x0 (the device tree), `el` the exception level.
#[unsafe(no_mangle)]
extern "C" fn boot_cpu(at: Pa, el: u64) -> ! {
    // SAFETY: constants in the image. Volatile, as somebody may have patched them after the compiler looked.
    let words = unsafe { ((&raw const early_uart_kind).read_volatile(), (&raw const early_uart_base).read_volatile()) };
    let handover = efi::take();
    let uart = match &handover {
        None => Uart::from_words(words.0, words.1),
        // The machine's own is known already, and at the default's address there may be anything.
        Some(_) => console::uart(),
    };
    console::set_uart(uart);
    if el != 2 {
        console::set_onpanic(early::peek(at));
        fatal!("entered at EL{el}, but a hypervisor has to be entered at EL2 (on QEMU: -M virt,virtualization=on)");
    }
    percpu::init_boot();
    vectors::install();
    early::map_image(uart);
    if HCR_EL2.is_set(HCR_EL2::E2H) {
        fatal!("this CPU cannot leave VHE mode (HCR_EL2.E2H stays 1)");
    }
    let (fdt, firmware) = match handover {
        None => {
            let Some(fdt) = early::map_fdt(at) else {
                fatal!("there is no device tree at {at}, where x0 points");
            };
            console::set_onpanic(onpanic::scan(fdt));
            // SAFETY: this is done once, by the boot CPU alone.
            if let Err(error) = platform_fdt::read_into(unsafe { &mut *ptr::addr_of_mut!(PLACE) }, fdt) {
                fatal!("{error}");
            }
            (fdt, Firmware::Fdt)
        }
        Some(handover) => {
            let fdt = pages_around(range_of(handover.fdt));
            if !handover.fdt.is_empty() {
                early::map(fdt.base, fdt.size, Kind::Rodata);
            }
            (handover.fdt, handover.described)
        }
    };
    let machine = adopt_machine();
    let image = image();
    let pool = take_memory(machine, image, range_of(fdt));
    console::unlock();
    // SAFETY: `take_memory` has mapped all RAM that is not reserved, and all boot modules. EL2 keeps its objects in the image, the pool and
    // the device tree.
    unsafe { guest_ram::init(machine, [image, pool, range_of(fdt)]) };
    crate::start(Own { machine, firmware, fdt, image, pool })
}

/// The machine. It is filled by the application, or else by [`boot_cpu`], and not changed after that.
static mut PLACE: Machine = Machine::new();

fn range_of(bytes: &[u8]) -> Range {
    Range::new(Pa(bytes.as_ptr() as u64), bytes.len() as u64)
}

fn image() -> Range {
    Range::between(Pa(&raw const __image_start as u64), Pa(&raw const __image_end as u64))
}

/// Goes over to the machine as it was read: its console, its PSCI, this CPU's number.
fn adopt_machine() -> &'static Machine {
    // SAFETY: it has been filled, and nobody changes it any more.
    let machine: &'static Machine = unsafe { &*ptr::addr_of!(PLACE) };
    MACHINE.call_once(|| machine);
    let here = Mpidr::from_register(MPIDR_EL1.get());
    match machine.cpus.iter().position(|cpu| cpu.mpidr == here) {
        Some(index) => percpu::set_cpu(CpuId(u16::try_from(index).unwrap_or(u16::MAX))),
        None => fatal!("the firmware's description does not list the CPU it was given to (MPIDR {here})"),
    }
    if let Some(conduit) = machine.psci {
        psci::set_conduit(match conduit {
            platform::Conduit::Smc => psci::Conduit::Smc,
            platform::Conduit::Hvc => psci::Conduit::Hvc,
        });
    }
    if let Some(uart) = &machine.uart {
        let regs = pages_around(uart.regs);
        early::map(regs.base, regs.size, Kind::Device);
    }
    console_of(machine);
    machine
}

/// Makes the machine's UART the console.
fn console_of(machine: &Machine) {
    if let Some(uart) = &machine.uart {
        console::set_uart(Some(Uart { kind: uart_kind(uart.kind), base: uart.regs.base }));
    }
}

fn uart_kind(kind: platform::UartKind) -> UartKind {
    match kind {
        platform::UartKind::Pl011 => UartKind::Pl011,
        platform::UartKind::Ns16550 { reg_shift, io_width } => {
            let shift = u8::try_from(reg_shift).unwrap_or(0);
            if io_width == 1 { UartKind::Ns16550Byte { shift } } else { UartKind::Ns16550Word { shift } }
        }
    }
}

/// Takes EL2's memory, brings frames and heap up, and changes over to the map that stays.
fn take_memory(machine: &Machine, image: Range, fdt: Range) -> Range {
    let mut avoid = [Range::default(); 192];
    let taken = machine.reserved.iter().copied().chain(machine.all_modules().map(|module| module.range));
    let mut count = 0;
    for range in taken.chain([image, fdt]) {
        avoid[count] = range;
        count += 1;
    }
    let stacks = Stacks::size(machine.cpus.len());
    let size = pool::wanted(machine.memory_size()) + stacks.next_multiple_of(pool::GRAIN);
    let Some(pool) = pool::choose(&machine.memory, &avoid[..count], size) else {
        fatal!("there are no {} MiB of free memory in one piece for the hypervisor itself", size >> 20);
    };
    early::map(pool.base, pool.size, Kind::Data);
    // SAFETY: RAM that nobody has, mapped.
    unsafe { frames::init(pool.base, pool.size) };
    let Some(stacks) = Stacks::new(machine.cpus.len()) else { fatal!("there is no memory for stacks") };
    STACKS.call_once(|| stacks);
    match el2_map::build(machine, image, &early::image_sections(), fdt, &stacks) {
        // SAFETY: the map holds the image with this CPU's stack, the device tree and all memory that EL2 has taken.
        // It was written with caches on, through which this CPU's walker looks as well.
        Ok(root) => unsafe { mmu::switch_to(root) },
        Err(error) => fatal!("{error}"),
    }
    pool
}

/// Starts a CPU of the machine in `entry`; returns once it is there. Not for the boot CPU, and once for each.
pub fn start_cpu(cpu: CpuId, entry: extern "C" fn(CpuId) -> !) -> Result<smp::Place, StartError> {
    let unknown = StartError::Firmware(psci::PsciError::InvalidParameters);
    let (Some(machine), Some(stacks)) = (MACHINE.get(), STACKS.get()) else { return Err(unknown) };
    let (Some(listed), Some(stack)) = (machine.cpus.get(cpu.index()), stacks.top(cpu.index())) else {
        return Err(unknown);
    };
    smp::start(cpu, listed.mpidr, stack, entry)
}
