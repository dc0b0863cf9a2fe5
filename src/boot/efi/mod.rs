//! The EFI application: it reads the configuration and the machine's description, loads the files, and leaves the
//! firmware.
//!
//! Until ExitBootServices, every error is reported on the firmware's console and ends the application, so that a boot
//! manager continues with its next entry. For this reason the machine's description is read here, while the firmware's
//! page tables are in use, and not later. EL2's own services are not available: no locks, no log, no heap, no per-CPU
//! data (TPIDR_EL2 belongs to the firmware).
//!
//! After ExitBootServices there is no way back. `efi_leave` (in `head`) switches stage 1 and the caches off and
//! continues with the entry code of a raw image. `boot_cpu` calls [`take`] to get what the application has found.
#![allow(clippy::result_large_err, reason = "a refusal contains its message, since there is no heap")]

mod files;
mod firmware;

use super::image;
use super::machine::{STORAGE, onpanic, set_console};
use arrayvec::{ArrayString, ArrayVec};
use core::arch::asm;
use core::fmt;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicPtr, Ordering};
use core::{ptr, slice};
use doorward::build::image::Image;
use doorward::console;
use doorward::ids::Pa;
use doorward::platform::acpi;
use doorward::platform::efi::{
    Config, DomainSection, Firmware as Described, LINUX_EFI_MEMRESERVE_TABLE, LoadOptions, MemoryMap, add_memreserve,
};
use doorward::platform::{self, DOMAINS, Machine, Module, ModuleKind, fdt as platform_fdt, windows};
use doorward::util::range::Range;
use files::{Loaded, Path, Volume, folder_of, offered_ramdisk, resolve};
use firmware::{Firmware, Outcome, Refusal, StatusText};
use r_efi::efi::{self, Handle, Status};

unsafe extern "C" {
    fn efi_leave() -> !;
}

/// The name of the configuration file in the application's folder.
const CONFIG: &str = "doorward.cfg";
/// The paths of the configuration file on other volumes, for an application that was not loaded from a volume.
const ELSEWHERE: [&str; 3] = ["\\EFI\\doorward\\doorward.cfg", "\\EFI\\BOOT\\doorward.cfg", "\\doorward.cfg"];

/// The size of the buffer for the memory map. The buffer is static, because memory must not be allocated between
/// GetMemoryMap and ExitBootServices.
const MAP_ROOM: usize = 64 << 10;

#[repr(C, align(16))]
struct MapRoom([u8; MAP_ROOM]);

static mut MAP: MapRoom = MapRoom([0; MAP_ROOM]);

/// What the application passes to the entry code, beside the machine's description.
pub struct Handover {
    /// The device tree; empty if there is none.
    pub fdt: &'static [u8],
    /// The source of the machine's description.
    pub described: Described,
}

static mut HANDOVER: Option<Handover> = None;

/// The arguments of `efi_main`, for a panic before ExitBootServices; the table is null after it.
static HANDLE: AtomicPtr<core::ffi::c_void> = AtomicPtr::new(ptr::null_mut());
static TABLE: AtomicPtr<efi::SystemTable> = AtomicPtr::new(ptr::null_mut());

/// Returns what the application has found, if the image was started as one.
pub fn take() -> Option<Handover> {
    // SAFETY: only the boot CPU runs, and calls this once.
    unsafe { (*ptr::addr_of_mut!(HANDOVER)).take() }
}

/// Reports a panic on the firmware's console and exits to the firmware. Returns if boot services are not available.
pub fn panicked(info: &PanicInfo<'_>) {
    let table = TABLE.load(Ordering::Relaxed);
    if !table.is_null() {
        // SAFETY: the table is not null only while boot services are available.
        let firmware = unsafe { Firmware::new(HANDLE.load(Ordering::Relaxed), table) };
        firmware.end_line();
        firmware.say(format_args!("panic: {info} (image base {})", image::range().base));
        firmware.exit(Status::ABORTED);
    }
}

/// The entry point, which the firmware calls.
#[unsafe(no_mangle)]
extern "efiapi" fn efi_main(handle: Handle, table: *mut efi::SystemTable) -> Status {
    // SAFETY: these are the arguments from the firmware, and boot services are available until `leave` exits them.
    let firmware = unsafe { Firmware::new(handle, table) };
    HANDLE.store(handle, Ordering::Relaxed);
    TABLE.store(table, Ordering::Relaxed);
    let Err(refusal) = run(&firmware);
    TABLE.store(ptr::null_mut(), Ordering::Relaxed);
    firmware.say(format_args!("{}", refusal.text));
    firmware.say(format_args!("nothing was started; back to the firmware"));
    refusal.status
}

fn exception_level() -> u64 {
    let level: u64;
    // SAFETY: the instruction only reads a register that exists at this exception level.
    unsafe { asm!("mrs {}, CurrentEL", out(reg) level, options(nomem, nostack, preserves_flags)) };
    level >> 2 & 3
}

/// The files and command lines that were loaded.
struct Payload {
    kernel: Range,
    kernel_words: ArrayString<2048>,
    ramdisk: Option<Range>,
    dtb: Option<&'static [u8]>,
    hypervisor_words: ArrayString<2048>,
    domains: ArrayVec<DomainFiles, DOMAINS>,
}

/// A domU, with the places of its files.
struct DomainFiles {
    section: DomainSection<'static>,
    kernel: Range,
    ramdisk: Option<Range>,
}

fn run(firmware: &Firmware) -> Outcome<core::convert::Infallible> {
    let (revision, uefi) = firmware.revision();
    firmware.say(format_args!("Doorward {} at {}", env!("CARGO_PKG_VERSION"), image::range().base));
    firmware.say(format_args!(
        "UEFI {}.{} by {} (revision {revision:#x})",
        uefi >> 16,
        (uefi & 0xffff) / 10,
        firmware.vendor()
    ));
    let level = exception_level();
    if level != 2 {
        return Err(Refusal::new(
            Status::UNSUPPORTED,
            format_args!(
                "boot: the firmware runs at EL{level}: EL2 is required; on a virtual machine, enable nested \
                 virtualization (on QEMU: -M virt,virtualization=on)"
            ),
        ));
    }
    firmware.stop_watchdog();
    let payload = load(firmware)?;

    // SAFETY: only this CPU runs, and this is executed once.
    let machine = unsafe { &mut *ptr::addr_of_mut!(STORAGE) };
    let (handover, reservations) = describe(firmware, &payload, machine)?;
    firmware.say(format_args!("leaving the firmware"));
    leave(firmware, machine, reservations, handover)
}

/// Finds the configuration and loads the files that it names.
fn load(firmware: &Firmware) -> Outcome<Payload> {
    let loaded = Loaded::find(firmware)?;
    let words = LoadOptions::parse(&loaded.words, &loaded.path);
    if let Some(word) = words.unknown {
        firmware.say(format_args!("load options: unknown option `{word}`, ignored"));
    }
    let (volume, path) = find_config(firmware, &loaded, words.config)?;
    let text: &'static [u8] = volume.read(firmware, &path)?;
    let config = Config::parse(text, words.section)
        .map_err(|error| Refusal::new(Status::LOAD_ERROR, format_args!("{path}: {error}")))?;
    firmware.say(format_args!("booting [{}] of {path}", config.section));
    let folder = folder_of(&path);
    let read = |name: &str| volume.read(firmware, &resolve(&folder, name)?);

    let read_kernel = |name: &str| {
        let kernel = read(name)?;
        Image::parse(kernel).map_err(|error| Refusal::new(Status::LOAD_ERROR, format_args!("{name}: {error}")))?;
        Ok(kernel)
    };

    let kernel = read_kernel(config.kernel.path)?;
    let ramdisk = match config.ramdisk {
        Some(name) => Some(read(name)?),
        None => offered_ramdisk(firmware)?,
    };
    let dtb = config.dtb.map(read).transpose()?;
    let mut domains = ArrayVec::new();
    for section in config.domains {
        let files = load_domain(section, &domains, read_kernel, read)?;
        domains.push(files);
    }
    let too_long =
        |what| Refusal::new(Status::LOAD_ERROR, format_args!("{path}: the command line of the {what} is too long"));
    let mut hypervisor_words = ArrayString::new();
    for part in [config.options[0], " ", config.options[1], " ", words.hypervisor] {
        hypervisor_words.try_push_str(part).map_err(|_| too_long("hypervisor"))?;
    }
    Ok(Payload {
        kernel: range_of(kernel),
        kernel_words: ArrayString::from(config.kernel.words).map_err(|_| too_long("kernel"))?,
        ramdisk: ramdisk.map(|bytes| range_of(bytes)),
        dtb: dtb.map(|bytes| &*bytes),
        hypervisor_words,
        domains,
    })
}

/// Loads the files of a domU. Those that an earlier one has are shared: they are only read.
fn load_domain(
    section: DomainSection<'static>,
    earlier: &[DomainFiles],
    read_kernel: impl Fn(&str) -> Outcome<&'static mut [u8]>,
    read: impl Fn(&str) -> Outcome<&'static mut [u8]>,
) -> Outcome<DomainFiles> {
    let kernel = match earlier.iter().find(|other| other.section.kernel.path == section.kernel.path) {
        Some(other) => other.kernel,
        None => range_of(read_kernel(section.kernel.path)?),
    };
    let shared = earlier.iter().find(|other| other.section.ramdisk == section.ramdisk).map(|other| other.ramdisk);
    let ramdisk = match (shared, section.ramdisk) {
        (Some(shared), _) => shared,
        (None, Some(name)) => Some(range_of(read(name)?)),
        (None, None) => None,
    };
    Ok(DomainFiles { section, kernel, ramdisk })
}

fn range_of(bytes: &[u8]) -> Range {
    Range::new(Pa(bytes.as_ptr() as u64), bytes.len() as u64)
}

/// Finds the volume and the path of the configuration: the requested path, or [`CONFIG`] in the application's folder,
/// or one of [`ELSEWHERE`] on another volume.
fn find_config(firmware: &Firmware, loaded: &Loaded, requested: Option<&str>) -> Outcome<(Volume, Path)> {
    let path = resolve(&loaded.folder(), requested.unwrap_or(CONFIG))?;
    if let Ok(volume) = Volume::open(firmware, loaded.device)
        && (requested.is_some() || volume.has(&path))
    {
        return Ok((volume, path));
    }
    for volume in Volume::others(firmware, loaded.device) {
        let places = ELSEWHERE.iter().copied().filter(|_| requested.is_none()).chain(requested.map(|_| path.as_str()));
        for place in places {
            if volume.has(place) {
                firmware.say(format_args!("{path}: not on the volume of this image; using {place} of another volume"));
                let place = Path::from(place).unwrap_or_default();
                return Ok((volume, place));
            }
        }
    }
    let refusal = match requested {
        Some(_) => Refusal::new(Status::NOT_FOUND, format_args!("{path}: the configuration file was not found")),
        None => Refusal::new(
            Status::NOT_FOUND,
            format_args!(
                "{path}: the configuration file was not found, nor {}, {} or {} on any other volume",
                ELSEWHERE[0], ELSEWHERE[1], ELSEWHERE[2]
            ),
        ),
    };
    Err(refusal)
}

/// Reads the machine's description: from the device tree that the configuration names, from that of the firmware, or
/// from ACPI tables. Also returns where its reservations come from.
fn describe(firmware: &Firmware, payload: &Payload, machine: &mut Machine) -> Outcome<(Handover, Reservations)> {
    let refused = |error: &dyn fmt::Display| Refusal::new(Status::LOAD_ERROR, format_args!("{error}"));
    // SAFETY: only this CPU runs, and no other reference to the buffer exists at this time.
    let room = unsafe { &mut (*ptr::addr_of_mut!(MAP)).0 };
    let handover = if let Some(blob) = device_tree(firmware, payload) {
        // A copy, because the memory of the firmware's tree may not be kept.
        let tree = platform_fdt::trim(blob).map_err(|error| refused(&error))?;
        let copy = firmware.allocate(tree.len())?;
        copy.copy_from_slice(tree);
        platform_fdt::read_into(machine, copy).map_err(|error| refused(&error))?;
        Handover { fdt: copy, described: Described::Fdt }
    } else if let Some(rsdp) = firmware.configuration(&efi::ACPI_20_TABLE_GUID) {
        let map = memory_map(firmware, room)?;
        acpi::read_into(machine, rsdp, &Mapped(map)).map_err(|error| refused(&error))?;
        Handover { fdt: &[], described: Described::Acpi }
    } else {
        let text = format_args!("UEFI: the firmware has neither a device tree nor ACPI tables, and dtb= is not set");
        return Err(Refusal::new(Status::UNSUPPORTED, text));
    };
    let reservations =
        Reservations { described: machine.reserved.len(), linux: firmware.configuration(&LINUX_EFI_MEMRESERVE_TABLE) };
    add_payload(machine, payload)?;
    let map = memory_map(firmware, room)?;
    fill_memory(machine, reservations, map).map_err(|error| refused(&error))?;
    windows::apply(machine).map_err(|error| refused(&error))?;
    machine.check().map_err(|error| refused(&error))?;
    firmware.say(format_args!(
        "{} MiB of memory, {} CPUs, described by {}",
        machine.memory_size() >> 20,
        machine.enabled_cpus(),
        handover.described
    ));
    Ok((handover, reservations))
}

fn memory_map<'a>(firmware: &Firmware, room: &'a mut [u8]) -> Outcome<MemoryMap<'a>> {
    firmware
        .memory_map(room)
        .map(|(_, map)| map)
        .map_err(|status| Refusal::new(status, format_args!("UEFI: GetMemoryMap failed: {}", StatusText(status))))
}

/// Physical memory through the firmware's page tables, which map one to one all that is in the memory map.
struct Mapped<'a>(MemoryMap<'a>);

impl acpi::PhysicalMemory for Mapped<'_> {
    fn bytes(&self, at: Pa, length: usize) -> Option<&[u8]> {
        let last = at.0.checked_add((length as u64).checked_sub(1)?)?;
        let is_memory = |at| {
            self.0
                .find(at)
                .is_some_and(|found| !matches!(found.kind, efi::MEMORY_MAPPED_IO | efi::MEMORY_MAPPED_IO_PORT_SPACE))
        };
        if !is_memory(at) || !is_memory(Pa(last)) {
            return None;
        }
        // SAFETY: the firmware maps this memory, and nothing writes to it while the tables are read.
        Some(unsafe { slice::from_raw_parts(at.0 as *const u8, length) })
    }
}

/// Returns the device tree that was loaded, or else the one in the firmware's configuration table.
fn device_tree(firmware: &Firmware, payload: &Payload) -> Option<&'static [u8]> {
    if payload.dtb.is_some() {
        return payload.dtb;
    }
    let at = firmware.configuration(&efi::DTB_TABLE_GUID)?;
    // SAFETY: the firmware guarantees a device tree, whose header has its size.
    let size = console::onpanic::size_of(unsafe { slice::from_raw_parts(at.0 as *const u8, 8) })?;
    // SAFETY: as above.
    Some(unsafe { slice::from_raw_parts(at.0 as *const u8, size) })
}

/// Replaces the modules and the command line in the machine's description by those that were loaded, and adds the domUs
/// of the configuration to those that a device tree describes.
fn add_payload(machine: &mut Machine, payload: &Payload) -> Outcome<()> {
    machine.modules.clear();
    machine.bootargs = payload.hypervisor_words;
    let kernel = Module { kind: ModuleKind::Kernel, range: payload.kernel, bootargs: payload.kernel_words };
    let ramdisk =
        payload.ramdisk.map(|range| Module { kind: ModuleKind::Ramdisk, range, bootargs: ArrayString::new() });
    let modules: ArrayVec<Module, 2> = [Some(kernel), ramdisk].into_iter().flatten().collect();
    machine.modules.extend(modules);
    for DomainFiles { section, kernel, ramdisk } in &payload.domains {
        machine.domains.try_push(section.config(*kernel, *ramdisk)).map_err(|_| {
            let text =
                format_args!("domain `{}`: more than {DOMAINS} domUs, with those of the device tree", section.name);
            Refusal::new(Status::LOAD_ERROR, text)
        })?;
    }
    Ok(())
}

/// Where the machine's reservations come from, beside the memory map.
#[derive(Clone, Copy)]
struct Reservations {
    /// The number of those in the machine's description itself, which come first.
    described: usize,
    /// Those that a Linux has left.
    linux: Option<Pa>,
}

/// Sets the machine's memory from the memory map, and its reservations to those of `from` and of the map.
fn fill_memory(machine: &mut Machine, from: Reservations, map: MemoryMap<'_>) -> Result<(), platform::MachineError> {
    machine.reserved.truncate(from.described);
    map.fill(machine)?;
    match from.linux {
        Some(at) => add_memreserve(machine, from.described, at, &Mapped(map)),
        None => Ok(()),
    }
}

/// Exits boot services and continues as the hypervisor.
fn leave(
    firmware: &Firmware,
    machine: &mut Machine,
    reservations: Reservations,
    handover: Handover,
) -> Outcome<core::convert::Infallible> {
    // After the first attempt the firmware may have shut down in part, so only these two services are called.
    let mut status = Status::ABORTED;
    for _ in 0..8 {
        // SAFETY: only this CPU runs.
        let room = unsafe { &mut (*ptr::addr_of_mut!(MAP)).0 };
        let (key, map) = match firmware.memory_map(room) {
            Ok(answer) => answer,
            Err(error) => {
                status = error;
                break;
            }
        };
        status = firmware.exit_boot_services(key);
        if status.is_error() {
            // The map has changed in the meantime, for example by a timer event: try again.
            continue;
        }
        TABLE.store(ptr::null_mut(), Ordering::Relaxed);
        set_console(machine);
        console::set_onpanic(onpanic(machine));
        if let Err(error) = fill_memory(machine, reservations, map) {
            console::fatal(format_args!("{error}"));
        }
        // SAFETY: only this CPU runs, and `take` is called after `efi_leave`, which only requires that boot services
        // have been exited on a CPU at EL2.
        unsafe {
            *ptr::addr_of_mut!(HANDOVER) = Some(handover);
            efi_leave()
        }
    }
    TABLE.store(ptr::null_mut(), Ordering::Relaxed);
    set_console(machine);
    console::fatal(format_args!("UEFI: ExitBootServices failed: {}", StatusText(status)))
}
