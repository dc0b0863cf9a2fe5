//! Access to files on the volume of the application and on others, and to the RAM disk from a boot loader.
//!
//! UEFI 2.10: 9.1 (loaded image), 10.3 (device paths), 13.2 (LoadFile2), 13.4 and 13.5 (file systems).

use super::firmware::{Firmware, Outcome, Refusal, StatusText};
use arrayvec::{ArrayString, ArrayVec};
use core::{mem, ptr};
use r_efi::efi::{self, Guid, Handle, Status};
use r_efi::protocols::{device_path, file, load_file2, loaded_image, simple_file_system};

/// A path with the firmware's separators.
pub type Path = ArrayString<256>;

/// The number of bytes that are read between two updates of the progress display.
const PIECE: usize = 4 << 20;

/// The media GUID under which boot loaders provide the RAM disk (LINUX_EFI_INITRD_MEDIA_GUID).
const INITRD: Guid = Guid::from_fields(0x5568_e427, 0x68fc, 0x4f3d, 0xac, 0x74, &[0xca, 0x55, 0x52, 0x31, 0xcc, 0x68]);

/// This application, as it was loaded.
pub struct Loaded {
    /// The volume it came from.
    pub device: Handle,
    /// The path on that volume; empty if it is unknown.
    pub path: Path,
    /// The load options.
    pub words: ArrayString<1024>,
}

impl Loaded {
    pub fn find(firmware: &Firmware) -> Outcome<Loaded> {
        let image: *mut loaded_image::Protocol =
            firmware.protocol(firmware.handle, loaded_image::PROTOCOL_GUID).map_err(|status| {
                Refusal::new(
                    status,
                    format_args!("UEFI: no LoadedImage protocol for this image: {}", StatusText(status)),
                )
            })?;
        // SAFETY: the firmware returned this protocol.
        let image = unsafe { &*image };
        let units = image.load_options_size as usize / 2;
        let options = image.load_options.cast::<u16>().cast_const();
        let words = if options.is_null() {
            Some(ArrayString::new())
        } else {
            // SAFETY: the firmware guarantees that many bytes of load options.
            doorward::platform::efi::to_utf8((0..units).map(|at| unsafe { options.add(at).read_unaligned() }))
        };
        let words = words.unwrap_or_else(|| {
            firmware.say(format_args!("load options: invalid UTF-16 or too long, ignored"));
            ArrayString::new()
        });
        // SAFETY: the firmware guarantees a device path or null.
        let path = unsafe { file_path(image.file_path) };
        Ok(Loaded { device: image.device_handle, path, words })
    }

    /// Returns the folder of the application, with a separator at the end.
    pub fn folder(&self) -> Path {
        folder_of(&self.path)
    }
}

/// Returns the folder of a file, with a separator at the end.
pub fn folder_of(path: &str) -> Path {
    let end = path.rfind('\\').map_or(0, |at| at + 1);
    Path::from(&path[..end]).unwrap_or_default()
}

/// Returns the path in the file path nodes of a device path.
///
/// # Safety
///
/// `at` is null or a device path.
unsafe fn file_path(mut at: *mut device_path::Protocol) -> Path {
    let mut path = Path::new();
    while !at.is_null() {
        // SAFETY: `at` is a node of the device path; the loop ends at the end node.
        let (kind, sub, length) = unsafe { ((*at).r#type, (*at).sub_type, u16::from_le_bytes((*at).length)) };
        if kind == device_path::TYPE_END || length < 4 {
            break;
        }
        if (kind, sub) == (device_path::TYPE_MEDIA, device_path::Media::SUBTYPE_FILE_PATH) {
            let units = usize::from(length - 4) / 2;
            // SAFETY: the offset is less than the length of the node.
            let text = |index| unsafe { at.cast::<u8>().add(4 + 2 * index).cast::<u16>().read_unaligned() };
            let part: Path = doorward::platform::efi::to_utf8((0..units).map(text)).unwrap_or_default();
            if !path.ends_with('\\') && !part.starts_with('\\') {
                let _ = path.try_push('\\');
            }
            let _ = path.try_push_str(&part);
        }
        // SAFETY: this node is not the end node, so another one follows it.
        at = unsafe { at.cast::<u8>().add(length.into()).cast() };
    }
    path
}

/// Converts `name` to a path with the firmware's separators, relative to `folder` unless it starts with a separator.
pub fn resolve(folder: &str, name: &str) -> Outcome<Path> {
    let mut path = Path::new();
    let base = if name.starts_with(['\\', '/']) { "" } else { folder };
    let spelt = base.chars().chain(name.chars().map(|c| if c == '/' { '\\' } else { c }));
    for c in spelt {
        path.try_push(c).map_err(|_| {
            Refusal::new(Status::INVALID_PARAMETER, format_args!("{folder}{name}: the path is too long"))
        })?;
    }
    Ok(path)
}

/// A file system volume.
pub struct Volume(*mut file::Protocol);

/// An open file.
struct File(*mut file::Protocol);

impl Volume {
    pub fn open(firmware: &Firmware, device: Handle) -> Result<Volume, Status> {
        let system: *mut simple_file_system::Protocol = firmware.protocol(device, simple_file_system::PROTOCOL_GUID)?;
        let mut root = ptr::null_mut();
        // SAFETY: the firmware returned this protocol.
        let status = unsafe { ((*system).open_volume)(system, &raw mut root) };
        if status.is_error() || root.is_null() { Err(status) } else { Ok(Volume(root)) }
    }

    /// Returns all volumes of the machine except that on `but`, after connecting drivers to all devices.
    pub fn others(firmware: &Firmware, but: Handle) -> impl Iterator<Item = Volume> {
        let firmware = *firmware;
        firmware.connect_all();
        let handles = firmware.handles(Some(simple_file_system::PROTOCOL_GUID));
        handles
            .iter()
            .filter(move |&&handle| handle != but)
            .filter_map(move |&handle| Self::open(&firmware, handle).ok())
    }

    pub fn has(&self, path: &str) -> bool {
        self.file(path).is_ok()
    }

    fn file(&self, path: &str) -> Result<File, Status> {
        let mut name: ArrayVec<u16, 257> = path.encode_utf16().take(256).collect();
        name.push(0);
        let mut file = ptr::null_mut();
        // SAFETY: the file is the root of the volume, and the name has a terminator.
        let status = unsafe { ((*self.0).open)(self.0, &raw mut file, name.as_mut_ptr(), file::MODE_READ, 0) };
        if status.is_error() || file.is_null() { Err(status) } else { Ok(File(file)) }
    }

    /// Reads a file into memory that it allocates, and displays the progress.
    pub fn read(&self, firmware: &Firmware, path: &str) -> Outcome<&'static mut [u8]> {
        let failed = |status| Refusal::new(status, format_args!("{path}: cannot be read: {}", StatusText(status)));
        let file = self.file(path).map_err(|status| match status {
            Status::NOT_FOUND => Refusal::new(status, format_args!("{path}: not found")),
            _ => failed(status),
        })?;
        let size = file.size().map_err(failed)?;
        if size == 0 {
            return Err(Refusal::new(Status::LOAD_ERROR, format_args!("{path}: the file is empty")));
        }
        let bytes = firmware.allocate(size)?;
        let progress = |done: usize| match size >> 20 {
            0 => firmware.overwrite(format_args!("{path}: {} KiB", done.div_ceil(1024))),
            all => firmware.overwrite(format_args!("{path}: {} of {all} MiB", done >> 20)),
        };
        let mut done = 0;
        while done < size {
            if done != 0 || size > PIECE {
                progress(done);
            }
            let mut count = (size - done).min(PIECE);
            let status = file.read(&mut bytes[done..], &mut count);
            if status.is_error() || count == 0 {
                firmware.end_line();
                return Err(failed(if status.is_error() { status } else { Status::END_OF_FILE }));
            }
            done += count;
        }
        progress(done);
        firmware.end_line();
        Ok(bytes)
    }
}

impl File {
    fn size(&self) -> Result<usize, Status> {
        // The file name follows the fixed part of the structure.
        let mut info = mem::MaybeUninit::<file::Info<260>>::zeroed();
        let mut length = mem::size_of_val(&info);
        let mut guid = file::INFO_ID;
        // SAFETY: the file is open, and the buffer has `length` bytes.
        let status = unsafe { ((*self.0).get_info)(self.0, &raw mut guid, &raw mut length, info.as_mut_ptr().cast()) };
        if status.is_error() {
            return Err(status);
        }
        // SAFETY: the bytes are zero or written by the firmware, and either is a valid value.
        let info = unsafe { info.assume_init() };
        if info.attribute & file::DIRECTORY != 0 {
            return Err(Status::NOT_FOUND);
        }
        usize::try_from(info.file_size).map_err(|_| Status::UNSUPPORTED)
    }

    /// Reads up to `count` bytes, and sets `count` to the number of bytes read.
    fn read(&self, into: &mut [u8], count: &mut usize) -> Status {
        *count = (*count).min(into.len());
        // SAFETY: the file is open, and the buffer has `count` bytes.
        unsafe { ((*self.0).read)(self.0, &raw mut *count, into.as_mut_ptr().cast()) }
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // SAFETY: the file is open, and is not used after this.
        let _ = unsafe { ((*self.0).close)(self.0) };
    }
}

/// A device path with a vendor media node and the end node.
#[repr(C)]
struct VendorMedia {
    header: device_path::Protocol,
    guid: Guid,
    end: device_path::Protocol,
}

const _: () = assert!(size_of::<VendorMedia>() == 24);

/// Loads the RAM disk that the boot loader provides by LoadFile2. Returns `None` if it does not provide one.
pub fn offered_ramdisk(firmware: &Firmware) -> Outcome<Option<&'static mut [u8]>> {
    let mut path = VendorMedia {
        header: device_path::Protocol {
            r#type: device_path::TYPE_MEDIA,
            sub_type: device_path::Media::SUBTYPE_VENDOR,
            length: [20, 0],
        },
        guid: INITRD,
        end: device_path::Protocol {
            r#type: device_path::TYPE_END,
            sub_type: device_path::End::SUBTYPE_ENTIRE,
            length: [4, 0],
        },
    };
    let mut at: *mut device_path::Protocol = (&raw mut path).cast();
    let mut guid: Guid = load_file2::PROTOCOL_GUID;
    let mut handle = ptr::null_mut();
    // SAFETY: this calls a boot service with a complete device path.
    let status = unsafe { (firmware.boot().locate_device_path)(&raw mut guid, &raw mut at, &raw mut handle) };
    if status.is_error() {
        return Ok(None);
    }
    let failed = |status| {
        Refusal::new(status, format_args!("RAM disk from the boot loader: cannot be read: {}", StatusText(status)))
    };
    let loader: *mut load_file2::Protocol = firmware.protocol(handle, load_file2::PROTOCOL_GUID).map_err(failed)?;
    let mut size = 0;
    // SAFETY: the firmware returned this protocol; `at` is the rest of the path. Without a buffer the call returns the
    // size.
    let status = unsafe { ((*loader).load_file)(loader, at, efi::Boolean::FALSE, &raw mut size, ptr::null_mut()) };
    if status != Status::BUFFER_TOO_SMALL {
        return if size == 0 && !status.is_error() { Ok(None) } else { Err(failed(status)) };
    }
    let bytes = firmware.allocate(size)?;
    // SAFETY: as above, with a buffer of the size that it returned.
    let status =
        unsafe { ((*loader).load_file)(loader, at, efi::Boolean::FALSE, &raw mut size, bytes.as_mut_ptr().cast()) };
    if status.is_error() {
        return Err(failed(status));
    }
    firmware.say(format_args!("RAM disk from the boot loader: {} KiB", size.div_ceil(1024)));
    let size = size.min(bytes.len());
    Ok(Some(&mut bytes[..size]))
}
