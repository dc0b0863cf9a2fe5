//! The header of an arm64 kernel Image (Linux, Documentation/arch/arm64/booting.rst, "Call the kernel image").
//!
//! Boot loaders pass on whatever file they were given. The usual mistakes (a compressed kernel, an ELF file) are
//! recognised by their magic numbers, so that the error message can name them.

use core::fmt;

/// Size of the header in bytes.
pub const HEADER_LEN: usize = 64;

/// The fields of the header that matter for placing the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Image {
    /// Distance in bytes from a 2 MiB boundary to the start of the image.
    pub text_offset: u64,
    /// Size in bytes of the memory that the kernel uses from its start on. With the BSS, it is larger than the file.
    pub image_size: u64,
}

/// Why a file cannot be started as a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageError {
    /// The file is shorter than a header.
    Short,
    /// The file is compressed or in another format. The text names the format.
    Format(&'static str),
    /// The file is in no known format and has no Image header.
    NoMagic,
    /// The kernel is big-endian.
    BigEndian,
    /// The kernel is from before Linux 3.17, whose header does not give the image's size.
    Old,
    /// The offset is 2 MiB or more, or the size is more than 4 GiB.
    Invalid,
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the kernel module is not an arm64 Image: ")?;
        match self {
            ImageError::Short => f.write_str("it is too short"),
            ImageError::Format(format) => write!(f, "it is {format}"),
            ImageError::NoMagic => f.write_str("its header has no magic number"),
            ImageError::BigEndian => f.write_str("it is for big-endian CPUs"),
            ImageError::Old => f.write_str("it is from before Linux 3.17 and does not give its size"),
            ImageError::Invalid => f.write_str("its header has an invalid offset or size"),
        }
    }
}

impl core::error::Error for ImageError {}

/// First bytes and descriptions of other files that users pass as kernels.
const FORMATS: [(&[u8], &str); 7] = [
    (b"\x1f\x8b", "compressed with gzip; decompress it first"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd; decompress it first"),
    (b"\xfd7zXZ\0", "compressed with xz; decompress it first"),
    (b"\x02\x21\x4c\x18", "compressed with lz4; decompress it first"),
    (b"BZh", "compressed with bzip2; decompress it first"),
    (b"\x7fELF", "an ELF file; use the Image made from it"),
    (b"\xd0\x0d\xfe\xed", "a device tree or a FIT image"),
];

impl Image {
    /// Reads the header at the start of `file`.
    ///
    /// # Errors
    ///
    /// [`ImageError`].
    pub fn parse(file: &[u8]) -> Result<Image, ImageError> {
        if let Some((_, format)) = FORMATS.iter().find(|(magic, _)| file.starts_with(magic)) {
            return Err(ImageError::Format(format));
        }
        if file.starts_with(b"MZ") && file.get(4..8) == Some(b"zimg") {
            return Err(ImageError::Format("an EFI zboot image, which is compressed; decompress it first"));
        }
        let header = file.get(..HEADER_LEN).ok_or(ImageError::Short)?;
        let word = |at: usize| {
            header.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes).unwrap_or(0)
        };
        if header.get(56..60) != Some(b"ARM\x64") {
            return Err(ImageError::NoMagic);
        }
        let (text_offset, image_size, flags) = (word(8), word(16), word(24));
        if image_size == 0 {
            return Err(ImageError::Old);
        }
        if flags & 1 != 0 {
            return Err(ImageError::BigEndian);
        }
        if text_offset >= 2 << 20 || image_size > 1 << 32 {
            return Err(ImageError::Invalid);
        }
        Ok(Image { text_offset, image_size })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    fn header(text_offset: u64, image_size: u64, flags: u64) -> [u8; 64] {
        let mut header = [0; 64];
        header[..2].copy_from_slice(b"MZ");
        header[8..16].copy_from_slice(&text_offset.to_le_bytes());
        header[16..24].copy_from_slice(&image_size.to_le_bytes());
        header[24..32].copy_from_slice(&flags.to_le_bytes());
        header[56..60].copy_from_slice(b"ARM\x64");
        header
    }

    #[test]
    fn the_header_of_a_kernel_is_read() {
        let image = Image::parse(&header(0, 0x1f0_0000, 0b1010)).unwrap();
        assert_eq!(image, Image { text_offset: 0, image_size: 0x1f0_0000 });
        assert_eq!(Image::parse(&header(0x8_0000, 0x100_0000, 0)).unwrap().text_offset, 0x8_0000);
    }

    #[test]
    fn a_file_that_is_no_image_is_refused_with_its_format() {
        let mut gzip = [0; 64];
        gzip[..3].copy_from_slice(b"\x1f\x8b\x08");
        assert_eq!(
            Image::parse(&gzip).unwrap_err().to_string(),
            "the kernel module is not an arm64 Image: it is compressed with gzip; decompress it first"
        );
        let mut zboot = header(0, 1, 0);
        zboot[4..8].copy_from_slice(b"zimg");
        assert!(Image::parse(&zboot).unwrap_err().to_string().contains("zboot"));
        assert!(Image::parse(b"\x7fELF\x02\x01").unwrap_err().to_string().contains("ELF"));
        assert_eq!(Image::parse(&header(0, 1, 0)[..63]), Err(ImageError::Short));
        assert_eq!(Image::parse(&[]), Err(ImageError::Short));
        assert_eq!(Image::parse(&[0; 64]), Err(ImageError::NoMagic));
        assert_eq!(Image::parse(&header(0x8_0000, 0, 0)), Err(ImageError::Old));
        assert_eq!(Image::parse(&header(0, 0x1000, 1)), Err(ImageError::BigEndian));
        assert_eq!(Image::parse(&header(2 << 20, 0x1000, 0)), Err(ImageError::Invalid));
        assert_eq!(Image::parse(&header(0, u64::MAX, 0)), Err(ImageError::Invalid));
    }
}
