//! The image as UEFI firmware reads it: a PE file whose sections have the same layout in the file as in memory.
//!
//! The header is written by hand in `linker.ld`. This parses it with the `object` crate and checks what firmware relies on
//! (Microsoft PE Format; UEFI 2.10, 2.1.1).

use object::LittleEndian as LE;
use object::pe;
use object::read::pe::{ImageOptionalHeader, PeFile64};

const PAGE: u32 = 0x1000;

/// Checks `image`; the error says what is wrong with it.
pub fn check(image: &[u8]) -> Result<(), String> {
    let file = PeFile64::parse(image).map_err(|error| format!("not a PE file: {error}"))?;
    let header = file.nt_headers();
    let optional = &header.optional_header;
    let expect = |what: &str, is: u64, wanted: u64| {
        if is == wanted { Ok(()) } else { Err(format!("its {what} is {is:#x}, not {wanted:#x}")) }
    };
    let memory = u64::from_le_bytes(image[16..24].try_into().expect("eight bytes"));
    expect("machine", header.file_header.machine.get(LE).into(), pe::IMAGE_FILE_MACHINE_ARM64.into())?;
    expect("subsystem", optional.subsystem().into(), pe::IMAGE_SUBSYSTEM_EFI_APPLICATION.into())?;
    expect("section alignment", optional.section_alignment().into(), PAGE.into())?;
    expect("file alignment", optional.file_alignment().into(), PAGE.into())?;
    expect("base", optional.image_base(), 0)?;
    expect("size of headers", optional.size_of_headers().into(), PAGE.into())?;
    expect("size in memory", optional.size_of_image().into(), memory)?;

    let entry = optional.address_of_entry_point();
    let mut next = PAGE;
    let mut entered = false;
    for section in file.section_table().iter() {
        let name = String::from_utf8_lossy(section.raw_name()).into_owned();
        let (at, size) = (section.virtual_address.get(LE), section.virtual_size.get(LE));
        let (file_at, file_size) = (section.pointer_to_raw_data.get(LE), section.size_of_raw_data.get(LE));
        let flags = section.characteristics.get(LE);
        let (writable, executable) = (flags & pe::IMAGE_SCN_MEM_WRITE != 0, flags & pe::IMAGE_SCN_MEM_EXECUTE != 0);
        if at != next || file_at != at {
            return Err(format!("{name} is at {at:#x} ({file_at:#x} in the file), not at {next:#x}"));
        }
        if u64::from(file_at) + u64::from(file_size) > image.len() as u64 {
            return Err(format!("{name} ends after the end of the file"));
        }
        if writable && executable {
            return Err(format!("{name} is both writable and executable"));
        }
        entered |= executable && (at..at + size).contains(&entry);
        next = (at + size.max(file_size)).next_multiple_of(PAGE);
    }
    expect("last section's end", next.into(), memory)?;
    if !entered {
        return Err(format!("its entry point {entry:#x} is in no section of code"));
    }
    let directories = file.data_directories();
    let relocations = directories.relocation_blocks(image, &file.section_table());
    let mut blocks = relocations.map_err(|error| error.to_string())?.ok_or("it has no relocation directory")?;
    while let Some(block) = blocks.next().map_err(|error| format!("its relocations: {error}"))? {
        if block.into_iter().any(|relocation| relocation.typ != pe::IMAGE_REL_BASED_ABSOLUTE) {
            return Err("it has relocations, but applies them by itself".into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_not_pe_is_refused() {
        assert!(check(&[0; 4096]).unwrap_err().starts_with("not a PE file"));
    }
}
