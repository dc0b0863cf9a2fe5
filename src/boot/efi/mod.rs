//! The image as an EFI application: it finds out what to boot and what machine this is, loads it, and leaves.
//!
//! Up to ExitBootServices everything that can go wrong is said on the firmware's console and ends the application, so
//! that a boot manager goes on with its next entry. That is why the machine's description is read here, on the
//! firmware's own page tables, and not after them. Nothing of EL2's own is up: no lock, no log, no heap, no per-CPU
//! data (TPIDR_EL2 is the firmware's).
//!
//! After ExitBootServices there is no way back. `efi_leave` (in `head`) turns stage 1 and the caches off and joins the
//! way that a kernel image takes; [`take`] is how `boot_cpu` learns that it came by this one.
#![allow(clippy::result_large_err, reason = "a refusal carries its sentence: there is no heap to put it in")]

mod files;
mod firmware;

use crate::boot::{PLACE, image};
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
use doorward::platform::efi::{Config, Firmware as Described, LoadOptions, MemoryMap};
use doorward::platform::{self, Machine, Module, ModuleKind, fdt as platform_fdt, windows};
use doorward::util::range::Range;
use files::{Loaded, Path, Volume, folder_of, offered_ramdisk, resolve};
use firmware::{Firmware, Outcome, Refusal, Why};
use r_efi::efi::{self, Handle, Status};

unsafe extern "C" {
    fn efi_leave() -> !;
}

/// The configuration file, beside the application.
const CONFIG: &str = "doorward.cfg";
/// Where it may be on other volumes, for an application that was not loaded from one.
const ELSEWHERE: [&str; 3] = ["\\EFI\\doorward\\doorward.cfg", "\\EFI\\BOOT\\doorward.cfg", "\\doorward.cfg"];

/// Room for the memory map: it must not be allocated between asking for the map and leaving by it.
const MAP_ROOM: usize = 64 << 10;

#[repr(C, align(16))]
struct MapRoom([u8; MAP_ROOM]);

static mut MAP: MapRoom = MapRoom([0; MAP_ROOM]);

/// What is handed over from the application to the hypervisor.
pub struct Handover {
    /// The device tree; empty when there is none.
    pub fdt: &'static [u8],
    /// What described the machine.
    pub described: Described,
}

static mut HANDOVER: Option<Handover> = None;

/// For a panic while the firmware is still there.
static HANDLE: AtomicPtr<core::ffi::c_void> = AtomicPtr::new(ptr::null_mut());
static TABLE: AtomicPtr<efi::SystemTable> = AtomicPtr::new(ptr::null_mut());

/// What the application left, if the image was started as one.
pub fn take() -> Option<Handover> {
    // SAFETY: only the boot CPU runs, and it asks once.
    unsafe { (*ptr::addr_of_mut!(HANDOVER)).take() }
}

/// The last words of an application that panics: back to the firmware. Returns when there is none (any more).
pub fn panicked(info: &PanicInfo<'_>) {
    let table = TABLE.load(Ordering::Relaxed);
    if !table.is_null() {
        // SAFETY: set for as long as boot services last.
        let firmware = unsafe { Firmware::new(HANDLE.load(Ordering::Relaxed), table) };
        firmware.end_line();
        firmware.say(format_args!("panic: {info} (image base {})", image().base));
        firmware.exit(Status::ABORTED);
    }
}

/// What the firmware calls.
#[unsafe(no_mangle)]
extern "efiapi" fn efi_main(handle: Handle, table: *mut efi::SystemTable) -> Status {
    // SAFETY: this is what the firmware calls it with.
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
    // SAFETY: reads a register that every exception level has.
    unsafe { asm!("mrs {}, CurrentEL", out(reg) level, options(nomem, nostack, preserves_flags)) };
    level >> 2 & 3
}

/// What was loaded for dom0.
struct Payload {
    kernel: Range,
    kernel_words: ArrayString<1024>,
    ramdisk: Option<Range>,
    dtb: Option<&'static [u8]>,
    hypervisor_words: ArrayString<2048>,
}

fn run(firmware: &Firmware) -> Outcome<core::convert::Infallible> {
    let (revision, uefi) = firmware.revision();
    firmware.say(format_args!("Doorward {} at {}", env!("CARGO_PKG_VERSION"), image().base));
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
                "the firmware runs at EL{level}, but a hypervisor has to be started at EL2: on a virtual machine, \
                 switch nested virtualization on (on QEMU: -M virt,virtualization=on)"
            ),
        ));
    }
    firmware.stop_watchdog();
    let payload = load(firmware)?;

    // SAFETY: only this CPU runs, and this function once.
    let machine = unsafe { &mut *ptr::addr_of_mut!(PLACE) };
    let (handover, kept) = describe(firmware, &payload, machine)?;
    firmware.say(format_args!("leaving the firmware"));
    leave(firmware, machine, kept, handover)
}

/// Finds the configuration and loads what it names.
fn load(firmware: &Firmware) -> Outcome<Payload> {
    let loaded = Loaded::find(firmware)?;
    let words = LoadOptions::parse(&loaded.words, &loaded.path);
    if let Some(word) = words.unknown {
        firmware.say(format_args!("nobody knows the load option `{word}`"));
    }
    let (volume, path) = find_config(firmware, &loaded, words.config)?;
    let text = volume.read(firmware, &path)?;
    let config = Config::parse(text, words.section)
        .map_err(|error| Refusal::new(Status::LOAD_ERROR, format_args!("{path}: {error}")))?;
    firmware.say(format_args!("booting [{}] of {path}", config.section));
    let folder = folder_of(&path);
    let read = |name: &str| volume.read(firmware, &resolve(&folder, name)?);

    let kernel = read(config.kernel.path)?;
    Image::parse(kernel)
        .map_err(|error| Refusal::new(Status::LOAD_ERROR, format_args!("{}: {error}", config.kernel.path)))?;
    let ramdisk = match config.ramdisk {
        Some(name) => Some(read(name)?),
        None => offered_ramdisk(firmware)?,
    };
    let dtb = config.dtb.map(read).transpose()?;
    let too_long = |what| Refusal::new(Status::LOAD_ERROR, format_args!("{path}: the {what} command line is too long"));
    let mut hypervisor_words = ArrayString::new();
    for part in [config.options[0], " ", config.options[1], " ", words.hypervisor] {
        hypervisor_words.try_push_str(part).map_err(|_| too_long("hypervisor's"))?;
    }
    Ok(Payload {
        kernel: range_of(kernel),
        kernel_words: ArrayString::from(config.kernel.words).map_err(|_| too_long("kernel's"))?,
        ramdisk: ramdisk.map(|bytes| range_of(bytes)),
        dtb: dtb.map(|bytes| &*bytes),
        hypervisor_words,
    })
}

fn range_of(bytes: &[u8]) -> Range {
    Range::new(Pa(bytes.as_ptr() as u64), bytes.len() as u64)
}

/// The volume and path of the configuration: as asked for, beside the application, or at a known place elsewhere.
fn find_config(firmware: &Firmware, loaded: &Loaded, asked: Option<&str>) -> Outcome<(Volume, Path)> {
    let path = resolve(&loaded.folder(), asked.unwrap_or(CONFIG))?;
    if let Ok(volume) = Volume::open(firmware, loaded.device)
        && (asked.is_some() || volume.has(&path))
    {
        return Ok((volume, path));
    }
    for volume in Volume::others(firmware, loaded.device) {
        let places = ELSEWHERE.iter().copied().filter(|_| asked.is_none()).chain(asked.map(|_| path.as_str()));
        for place in places {
            if volume.has(place) {
                firmware.say(format_args!("no {path} where this image is from; taking {place} of another volume"));
                let place = Path::from(place).unwrap_or_default();
                return Ok((volume, place));
            }
        }
    }
    let sentence = match asked {
        Some(_) => Refusal::new(Status::NOT_FOUND, format_args!("there is no configuration file {path}")),
        None => Refusal::new(
            Status::NOT_FOUND,
            format_args!(
                "there is no configuration file {path}, and no {}, {} or {} on any other volume",
                ELSEWHERE[0], ELSEWHERE[1], ELSEWHERE[2]
            ),
        ),
    };
    Err(sentence)
}

/// Reads what machine this is: from the device tree that the configuration names or the firmware has, or from ACPI.
///
/// Beside what goes to the hypervisor, says how many reservations the description itself made.
fn describe(firmware: &Firmware, payload: &Payload, machine: &mut Machine) -> Outcome<(Handover, usize)> {
    let refused = |error: &dyn fmt::Display| Refusal::new(Status::LOAD_ERROR, format_args!("{error}"));
    // SAFETY: only this CPU runs, and the room is used nowhere else at this time.
    let room = unsafe { &mut (*ptr::addr_of_mut!(MAP)).0 };
    let handover = if let Some(blob) = device_tree(firmware, payload) {
        // A copy: where the firmware's lies is not ours to keep.
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
        let sentence =
            format_args!("the firmware has neither a device tree nor ACPI tables, and there is no dtb= line");
        return Err(Refusal::new(Status::UNSUPPORTED, sentence));
    };
    let kept = machine.reserved.len();
    add_payload(machine, payload);
    let map = memory_map(firmware, room)?;
    fill_memory(machine, kept, map).map_err(|error| refused(&error))?;
    windows::apply(machine).map_err(|error| refused(&error))?;
    machine.check().map_err(|error| refused(&error))?;
    firmware.say(format_args!(
        "{} MiB of memory, {} CPUs, described by {}",
        machine.memory_size() >> 20,
        machine.enabled_cpus(),
        handover.described
    ));
    Ok((handover, kept))
}

fn memory_map<'a>(firmware: &Firmware, room: &'a mut [u8]) -> Outcome<MemoryMap<'a>> {
    firmware
        .memory_map(room)
        .map(|(_, map)| map)
        .map_err(|status| Refusal::new(status, format_args!("the firmware's memory map: {}", Why(status))))
}

/// Memory as the firmware's own page tables show it: one to one, all that its map lists.
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
        // SAFETY: memory, mapped, and written by nobody while its tables are read.
        Some(unsafe { slice::from_raw_parts(at.0 as *const u8, length) })
    }
}

/// The device tree in the firmware's configuration table, or the one that was loaded instead.
fn device_tree(firmware: &Firmware, payload: &Payload) -> Option<&'static [u8]> {
    if payload.dtb.is_some() {
        return payload.dtb;
    }
    let at = firmware.configuration(&efi::DTB_TABLE_GUID)?;
    // SAFETY: the firmware says that there is a device tree, whose header says how long it is.
    let size = console::onpanic::size_of(unsafe { slice::from_raw_parts(at.0 as *const u8, 8) })?;
    // SAFETY: as above.
    Some(unsafe { slice::from_raw_parts(at.0 as *const u8, size) })
}

/// Puts what was loaded into the machine's description; a device tree's own modules and words are no longer asked.
fn add_payload(machine: &mut Machine, payload: &Payload) {
    machine.modules.clear();
    machine.bootargs = payload.hypervisor_words;
    let kernel = Module { kind: ModuleKind::Kernel, range: payload.kernel, bootargs: payload.kernel_words };
    let ramdisk =
        payload.ramdisk.map(|range| Module { kind: ModuleKind::Ramdisk, range, bootargs: ArrayString::new() });
    let modules: ArrayVec<Module, 2> = [Some(kernel), ramdisk].into_iter().flatten().collect();
    machine.modules.extend(modules);
}

/// Makes the machine's memory what the firmware's map says, behind the `kept` reservations of its description.
fn fill_memory(machine: &mut Machine, kept: usize, map: MemoryMap<'_>) -> Result<(), platform::MachineError> {
    machine.reserved.truncate(kept);
    map.fill(machine)
}

/// Ends boot services and goes on as the hypervisor.
fn leave(
    firmware: &Firmware,
    machine: &mut Machine,
    kept: usize,
    handover: Handover,
) -> Outcome<core::convert::Infallible> {
    // From the first attempt on, the firmware may be half gone: nothing is called but these two services.
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
            // The map has changed in the meantime (a timer's event, say): once more.
            continue;
        }
        TABLE.store(ptr::null_mut(), Ordering::Relaxed);
        super::console_of(machine);
        if let Err(error) = fill_memory(machine, kept, map) {
            console::fatal(format_args!("{error}"));
        }
        // SAFETY: only this CPU runs; `take` is called behind `efi_leave`, which needs nothing but that the firmware
        // has handed this CPU over at EL2.
        unsafe {
            *ptr::addr_of_mut!(HANDOVER) = Some(handover);
            efi_leave()
        }
    }
    TABLE.store(ptr::null_mut(), Ordering::Relaxed);
    super::console_of(machine);
    console::fatal(format_args!("the firmware does not let go: {}", Why(status)))
}
