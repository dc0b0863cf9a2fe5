//! The firmware's services that the application uses: text output, memory, protocols, tables, exit.
//!
//! UEFI 2.10: chapters 4 (system table), 7 (boot services), 12.4 (text output).

use arrayvec::ArrayString;
use core::ffi::c_void;
use core::fmt::{self, Write};
use core::{ptr, slice};
use doorward::ids::Pa;
use doorward::platform::efi::{MemoryMap, to_utf8};
use r_efi::efi::{self, Guid, Handle, Status};
use r_efi::protocols::simple_text_output;

/// Why the application returns to the firmware: a status for the firmware, and a message for the user.
pub struct Refusal {
    pub status: Status,
    pub text: ArrayString<400>,
}

/// The result of a step that may fail.
pub type Outcome<T> = Result<T, Refusal>;

impl Refusal {
    pub fn new(status: Status, text: fmt::Arguments<'_>) -> Refusal {
        let mut refusal = Refusal { status, text: ArrayString::new() };
        // A message that does not fit is truncated.
        let _ = refusal.text.write_fmt(text);
        refusal
    }
}

/// The text of a status code.
pub struct StatusText(pub Status);

impl fmt::Display for StatusText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.description() {
            Some(words) => f.write_str(words),
            None => write!(f, "status {:#x}", self.0.as_usize()),
        }
    }
}

/// The firmware, while boot services are available.
#[derive(Clone, Copy)]
pub struct Firmware {
    /// The handle of this application.
    pub handle: Handle,
    table: *mut efi::SystemTable,
}

impl Firmware {
    /// # Safety
    ///
    /// The arguments are those of `efi_main`, and boot services are available for as long as the result is used.
    pub const unsafe fn new(handle: Handle, table: *mut efi::SystemTable) -> Firmware {
        Firmware { handle, table }
    }

    fn system(&self) -> &efi::SystemTable {
        // SAFETY: the caller of `new` guarantees that the table is valid.
        unsafe { &*self.table }
    }

    pub fn boot(&self) -> &efi::BootServices {
        // SAFETY: the caller of `new` guarantees that boot services are available.
        unsafe { &*self.system().boot_services }
    }

    /// Prints a line with the prefix `doorward: `.
    pub fn say(&self, text: fmt::Arguments<'_>) {
        let mut out = Screen(self.system().con_out);
        let _ = writeln!(out, "doorward: {text}");
    }

    /// Replaces the line that the cursor is on.
    pub fn overwrite(&self, text: fmt::Arguments<'_>) {
        let mut out = Screen(self.system().con_out);
        let _ = write!(out, "\rdoorward: {text}");
    }

    pub fn end_line(&self) {
        let _ = Screen(self.system().con_out).write_str("\n");
    }

    /// Returns the firmware's vendor.
    pub fn vendor(&self) -> ArrayString<64> {
        // SAFETY: the firmware guarantees a string with a terminator, or null.
        unsafe { text_at(self.system().firmware_vendor) }.unwrap_or_default()
    }

    pub fn revision(&self) -> (u32, u32) {
        (self.system().firmware_revision, self.system().hdr.revision)
    }

    /// Disables the watchdog, with which boot managers start applications and which resets the machine after five
    /// minutes.
    pub fn stop_watchdog(&self) {
        // SAFETY: boot services are available. The same holds for all calls below.
        let _ = unsafe { (self.boot().set_watchdog_timer)(0, 0, 0, ptr::null_mut()) };
    }

    /// Allocates zeroed memory of type loader data, which the firmware does not use again and which dom0 may get later.
    pub fn allocate(&self, bytes: usize) -> Outcome<&'static mut [u8]> {
        let pages = bytes.max(1).div_ceil(4096);
        let mut at = 0;
        // SAFETY: boot services are available.
        let status =
            unsafe { (self.boot().allocate_pages)(efi::ALLOCATE_ANY_PAGES, efi::LOADER_DATA, pages, &raw mut at) };
        if status.is_error() {
            return Err(Refusal::new(
                status,
                format_args!("UEFI: allocation of {} KiB failed: {}", pages * 4, StatusText(status)),
            ));
        }
        // SAFETY: the firmware has allocated these pages for this call, and maps them one to one.
        unsafe {
            ptr::write_bytes(at as *mut u8, 0, pages * 4096);
            Ok(slice::from_raw_parts_mut(at as *mut u8, bytes))
        }
    }

    /// Returns a protocol of a handle.
    pub fn protocol<T>(&self, handle: Handle, guid: Guid) -> Result<*mut T, Status> {
        let mut interface: *mut c_void = ptr::null_mut();
        let mut guid = guid;
        // SAFETY: boot services are available.
        let status = unsafe { (self.boot().handle_protocol)(handle, &raw mut guid, &raw mut interface) };
        if status.is_error() || interface.is_null() { Err(status) } else { Ok(interface.cast()) }
    }

    /// Returns the handles with a protocol, or all handles. Their memory is not freed, since this is called once or
    /// twice.
    pub fn handles(&self, guid: Option<Guid>) -> &'static [Handle] {
        let (mut count, mut list) = (0usize, ptr::null_mut());
        let (by, mut guid) = match guid {
            Some(guid) => (efi::BY_PROTOCOL, guid),
            None => (efi::ALL_HANDLES, Guid::from_bytes(&[0; 16])),
        };
        let locate = self.boot().locate_handle_buffer;
        // SAFETY: boot services are available.
        let status = unsafe { locate(by, &raw mut guid, ptr::null_mut(), &raw mut count, &raw mut list) };
        if status.is_error() || list.is_null() {
            return &[];
        }
        // SAFETY: the firmware has allocated the list for this call.
        unsafe { slice::from_raw_parts(list, count) }
    }

    /// Connects drivers to all devices. By itself, the firmware only connects those that it needs to boot its boot
    /// entry.
    pub fn connect_all(&self) {
        for &handle in self.handles(None) {
            // SAFETY: boot services are available. A handle that is not a controller is refused, which is harmless.
            let _ = unsafe { (self.boot().connect_controller)(handle, ptr::null_mut(), ptr::null_mut(), true.into()) };
        }
    }

    /// Returns the address of a configuration table.
    pub fn configuration(&self, guid: &Guid) -> Option<Pa> {
        let system = self.system();
        if system.configuration_table.is_null() {
            return None;
        }
        // SAFETY: the firmware guarantees that number of entries.
        let tables = unsafe { slice::from_raw_parts(system.configuration_table, system.number_of_table_entries) };
        tables.iter().find(|table| table.vendor_guid == *guid).map(|table| Pa(table.vendor_table as u64))
    }

    /// Reads the memory map into `room`. Also returns the map's key, for
    /// [`exit_boot_services`](Self::exit_boot_services).
    pub fn memory_map<'a>(&self, room: &'a mut [u8]) -> Result<(usize, MemoryMap<'a>), Status> {
        let (mut size, mut key, mut step, mut version) = (room.len(), 0, 0, 0);
        let at = room.as_mut_ptr().cast();
        // SAFETY: boot services are available, and the buffer has `size` bytes.
        let status =
            unsafe { (self.boot().get_memory_map)(&raw mut size, at, &raw mut key, &raw mut step, &raw mut version) };
        if status.is_error() {
            return Err(status);
        }
        let bytes = room.get(..size).ok_or(Status::BUFFER_TOO_SMALL)?;
        let map = MemoryMap::new(bytes, step).map_err(|_| Status::UNSUPPORTED)?;
        Ok((key, map))
    }

    /// Exits boot services if `key` is that of the current memory map.
    pub fn exit_boot_services(&self, key: usize) -> Status {
        // SAFETY: boot services are available; after a success the caller does not use them again.
        unsafe { (self.boot().exit_boot_services)(self.handle, key) }
    }

    /// Exits the application.
    pub fn exit(&self, status: Status) {
        // SAFETY: boot services are available.
        let _ = unsafe { (self.boot().exit)(self.handle, status, 0, ptr::null_mut()) };
    }
}

/// Converts UTF-16 text with a terminator.
///
/// # Safety
///
/// `at` is null or the address of such text.
pub unsafe fn text_at<const N: usize>(at: *const u16) -> Option<ArrayString<N>> {
    if at.is_null() {
        return None;
    }
    // SAFETY: the conversion stops at the terminator, or when the result is full.
    to_utf8((0..=N).map(|index| unsafe { at.add(index).read_unaligned() }))
}

/// The firmware's text console.
struct Screen(*mut simple_text_output::Protocol);

impl Write for Screen {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.0.is_null() {
            return Ok(());
        }
        let mut units = [0u16; 82];
        let mut used = 0;
        for unit in text.encode_utf16() {
            if unit == u16::from(b'\n') {
                units[used] = b'\r'.into();
                used += 1;
            }
            units[used] = unit;
            used += 1;
            if used >= units.len() - 2 {
                self.flush(&mut units, &mut used);
            }
        }
        self.flush(&mut units, &mut used);
        Ok(())
    }
}

impl Screen {
    fn flush(&mut self, units: &mut [u16; 82], used: &mut usize) {
        units[*used] = 0;
        // SAFETY: the protocol is that of the system table, and the text has a terminator.
        let _ = unsafe { ((*self.0).output_string)(self.0, units.as_mut_ptr()) };
        *used = 0;
    }
}
