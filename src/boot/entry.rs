//! The first Rust code on the boot CPU.

use super::machine::{self, set_console};
use super::{BootInfo, MACHINE, STACKS, early, efi, image};
use arrayvec::ArrayVec;
use core::ptr;
use doorward::arch::sysreg::{HCR_EL2, MPIDR_EL1, Readable};
use doorward::arch::{mmu, percpu, psci, vectors};
use doorward::console::{self, onpanic};
use doorward::fatal;
use doorward::gic::{self, errata};
use doorward::ids::{CpuId, Mpidr, Pa};
use doorward::mm::el2_map::{self, Stacks};
use doorward::mm::hw::El2;
use doorward::mm::stage1::Kind;
use doorward::mm::{frames, guest_ram, pool};
use doorward::platform::efi::Firmware;
use doorward::platform::{self, Machine, fdt as platform_fdt};
use doorward::util::range::{Range, pages_around};

/// The entry point of the Rust code, which `head` calls on the boot CPU.
///
/// `at` is the value of x0 from the loader (the address of the device tree), `el` the exception level.
#[unsafe(no_mangle)]
extern "C" fn boot_cpu(at: Pa, el: u64) -> ! {
    let handover = efi::take();
    let uart = match &handover {
        None => image::early_uart(),
        // The application has set the machine's UART, and the default early UART may not exist.
        Some(_) => console::uart(),
    };
    console::set_uart(uart);
    if el != 2 {
        console::set_onpanic(early::peek(at));
        fatal!("boot: entered at EL{el}: EL2 is required (on QEMU: -M virt,virtualization=on)");
    }
    percpu::init_boot();
    vectors::install();
    early::map_image(uart);
    if HCR_EL2.is_set(HCR_EL2::E2H) {
        fatal!("boot: the CPU cannot leave VHE mode: HCR_EL2.E2H stays 1");
    }
    let (fdt, firmware) = match handover {
        None => {
            let Some(fdt) = early::map_fdt(at) else {
                fatal!("device tree: not found at {at}, the address in x0");
            };
            console::set_onpanic(onpanic::scan(fdt));
            // SAFETY: only the boot CPU runs, and this is executed once.
            if let Err(error) = platform_fdt::read_into(unsafe { &mut *ptr::addr_of_mut!(machine::STORAGE) }, fdt) {
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
    size_redistributors();
    let machine = adopt_machine();
    let image = image::range();
    let pool = take_memory(machine, image, fdt);
    console::unlock();
    // SAFETY: `take_memory` has mapped all RAM that is not reserved, and all boot modules. EL2 keeps its objects in the
    // image, the pool and the device tree.
    unsafe { guest_ram::init(machine, [image, pool, range_of(fdt)]) };
    crate::start(BootInfo { machine, firmware, fdt, image, pool })
}

fn range_of(bytes: &[u8]) -> Range {
    Range::new(Pa(bytes.as_ptr() as u64), bytes.len() as u64)
}

/// Sets the sizes of the redistributors if the firmware does not state them: they follow from the distributor's version.
fn size_redistributors() {
    // SAFETY: only the boot CPU runs, and there is no other reference to the description yet.
    let machine = unsafe { &mut *ptr::addr_of_mut!(machine::STORAGE) };
    if !machine.gic.redists_listed {
        return;
    }
    let dist = machine.gic.dist;
    early::map(dist.base, dist.size, Kind::Device);
    machine.gic.size_redists(gic::arch_rev(&El2, dist.base));
    if let Err(error) = machine.check() {
        fatal!("{error}");
    }
}

/// Sets what depends on the machine's description: the boot CPU's number, the PSCI conduit, the console.
fn adopt_machine() -> &'static Machine {
    // SAFETY: the description has been filled, and is not changed from here on.
    let machine: &'static Machine = unsafe { &*ptr::addr_of!(machine::STORAGE) };
    MACHINE.call_once(|| machine);
    let here = Mpidr::from_register(MPIDR_EL1.get());
    match machine.cpus.iter().position(|cpu| cpu.mpidr == here) {
        Some(index) => percpu::set_cpu(CpuId(u16::try_from(index).unwrap_or(u16::MAX))),
        None => fatal!("boot: the firmware does not describe the boot CPU (MPIDR {here})"),
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
    set_console(machine);
    machine
}

/// Takes memory for EL2, initializes frames and heap, and switches to the second stage 1 map. Returns the memory.
fn take_memory(machine: &Machine, image: Range, tree: &[u8]) -> Range {
    let fdt = range_of(tree);
    // Reservations, modules of all domains, image and tree.
    let mut avoid = [Range::default(); platform::RESERVATIONS + 64];
    let taken = machine.reserved.iter().copied().chain(machine.all_modules().map(|module| module.range));
    let mut count = 0;
    for range in taken.chain([image, fdt]) {
        avoid[count] = range;
        count += 1;
    }
    let stacks = Stacks::size(machine.cpus.len());
    let size = pool::wanted(machine.memory_size()) + stacks.next_multiple_of(pool::GRAIN);
    // A GIC that does not reach all memory has its tables in the pool, too.
    let end = errata::memory_end(|word| platform_fdt::is_compatible(tree, word)).unwrap_or(Pa(u64::MAX));
    let reached = |bank: &Range| Range::between(bank.base.min(end), bank.end().min(end));
    let banks: ArrayVec<Range, 64> = machine.memory.iter().map(reached).filter(|bank| !bank.is_empty()).collect();
    let Some(pool) = pool::choose(&banks, &avoid[..count], size) else {
        fatal!("memory: no free range of {} MiB for the hypervisor", size >> 20);
    };
    early::map(pool.base, pool.size, Kind::Data);
    // SAFETY: the pool is mapped RAM that overlaps neither the image, the device tree, the modules nor a reservation.
    unsafe { frames::init(pool.base, pool.size) };
    let Some(stacks) = Stacks::new(machine.cpus.len()) else { fatal!("memory: not enough for the stacks of all CPUs") };
    STACKS.call_once(|| stacks);
    match el2_map::build(machine, image, &image::sections(), fdt, &stacks) {
        // SAFETY: the map covers the image including this CPU's stack, the device tree, and all memory that EL2 has
        // taken. It was written with caches on, and this CPU's table walks read through the same caches.
        Ok(root) => unsafe { mmu::switch_to(root) },
        Err(error) => fatal!("{error}"),
    }
    pool
}
