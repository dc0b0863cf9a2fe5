//! The images that a domain starts from, and how they get into its RAM: piece by piece, so that no CPU is busy with them
//! for long.

use crate::arch::cache;
use crate::ids::Ipa;
use crate::mm::guest_ram::{GuestRam, LoadError, NotGuestRam, PIECE};
use crate::util::range::Range;
use crate::vcpu::{Loaded, Start};
use alloc::vec::Vec;
use arrayvec::ArrayVec;
use core::fmt;

/// The largest number of bytes of the description that are copied in one step: it is copied byte by byte.
const DESCRIPTION_PIECE: u64 = 8 << 10;

/// A file that is loaded.
pub struct File {
    /// What it is, for messages.
    pub what: &'static str,
    /// Where it is.
    pub from: From,
    /// The guest addresses that it is copied to. The range may be longer than the file.
    pub to: Range,
}

/// Where a file is.
pub enum From {
    /// It is a boot module. If this is also the range that it is copied to, nothing is copied: a RAM disk may stay where
    /// the boot loader put it.
    Module(Range),
    /// It was sent at run time.
    Kept(Kept),
}

/// A file that was sent at run time. It is kept as long as its domain exists, because a restart needs it, in RAM for domUs
/// that is counted to the domain.
pub struct Kept {
    /// The RAM that holds it.
    pub ram: GuestRam,
    /// Its size in bytes.
    pub size: u64,
}

/// The RAM that a domain has, or has had: its own, and that in which its images are kept.
pub type Rams = ArrayVec<GuestRam, 3>;

impl From {
    fn size(&self) -> u64 {
        match self {
            From::Module(range) => range.size,
            From::Kept(kept) => kept.size,
        }
    }
}

/// What is in a domain's RAM when it starts.
pub struct Images {
    /// Kernel and RAM disk.
    pub files: ArrayVec<File, 2>,
    /// The device tree, or the ACPI tables, that describe the domain.
    pub description: Vec<u8>,
    /// The guest addresses of the description.
    pub description_at: Range,
    /// Where the first vCPU starts.
    pub start: Start,
}

/// An image that could not be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotLoaded {
    what: &'static str,
    error: LoadError,
}

#[cfg(test)]
impl NotLoaded {
    pub(super) const fn for_tests() -> NotLoaded {
        NotLoaded { what: "kernel", error: LoadError::Target(NotGuestRam(Ipa(0))) }
    }
}

impl fmt::Display for NotLoaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.error)
    }
}

/// What a piece is copied from.
#[derive(Clone, Copy)]
enum Source<'a> {
    File(Range),
    /// So many bytes, after the first so many.
    Kept(&'a Kept, u64, u64),
    Bytes(&'a [u8]),
    /// It is there already.
    Nothing,
}

/// A piece of an image.
#[derive(Clone, Copy)]
struct Piece<'a> {
    what: &'static str,
    source: Source<'a>,
    to: Range,
}

impl Images {
    /// Loads the next piece. Returns what is loaded then, or `None` when everything is: the RAM then holds the images,
    /// in memory and not only in caches, because a kernel starts with its caches off.
    ///
    /// # Errors
    ///
    /// [`NotLoaded`].
    pub fn load_piece(&self, ram: &GuestRam, loaded: Loaded) -> Result<Option<Loaded>, NotLoaded> {
        let Some((Piece { what, source, to }, next)) = self.piece(loaded) else {
            cache::invalidate_instructions();
            return Ok(None);
        };
        let at = Ipa(to.base.0);
        let no_ram = |error: NotGuestRam| LoadError::Target(error);
        match source {
            Source::File(from) => ram.load(from, at),
            Source::Kept(kept, done, bytes) => ram.load_from(&kept.ram, done, bytes, at),
            Source::Bytes(bytes) => ram.write(at, bytes).map_err(no_ram),
            Source::Nothing => Ok(()),
        }
        .and_then(|()| ram.for_each_piece(at, to.size, |piece, _| cache::clean(piece.base, piece.size)).map_err(no_ram))
        .map_err(|error| NotLoaded { what, error })?;
        Ok(Some(next))
    }

    /// The piece that follows what is loaded, and what is loaded after it. `None` after the last piece.
    fn piece(&self, loaded: Loaded) -> Option<(Piece<'_>, Loaded)> {
        let mut loaded = loaded;
        loop {
            let Loaded { image, done } = loaded;
            let file = self.files.get(image);
            let whole = match file {
                Some(file) => file.to,
                None if image == self.files.len() => self.description_at,
                None => return None,
            };
            let most = if file.is_some() { PIECE } else { DESCRIPTION_PIECE };
            let to = Range::between(whole.base.add(done), whole.end());
            if to.is_empty() {
                loaded = Loaded { image: image + 1, done: 0 };
                continue;
            }
            let to = Range::new(to.base, to.size.min(most));
            let next = Loaded { image, done: done + to.size };
            return Some((self.source(file, done, to), next));
        }
    }

    /// The piece of an image (the description if `file` is `None`) that begins `done` bytes after its start.
    fn source<'a>(&'a self, file: Option<&'a File>, done: u64, to: Range) -> Piece<'a> {
        let Some(File { what, from, to: whole }) = file else {
            let rest = self.description.get(done as usize..).unwrap_or_default();
            let bytes = rest.get(..to.size as usize).unwrap_or(rest);
            return Piece { what: "description", source: Source::Bytes(bytes), to };
        };
        let left = from.size().saturating_sub(done).min(to.size);
        let source = match from {
            _ if left == 0 => Source::Nothing,
            From::Module(module) if module == whole => Source::Nothing,
            From::Module(module) => Source::File(Range::new(module.base.add(done), left)),
            From::Kept(kept) => Source::Kept(kept, done, left),
        };
        Piece { what, source, to }
    }

    /// The bytes of RAM for domUs that files are kept in.
    #[must_use]
    pub fn kept_bytes(&self) -> u64 {
        let kept = |file: &File| match &file.from {
            From::Module(_) => 0,
            From::Kept(kept) => kept.ram.size(),
        };
        self.files.iter().map(kept).sum()
    }

    /// The RAM for domUs that files are kept in.
    pub fn into_kept(self) -> impl Iterator<Item = GuestRam> {
        self.files.into_iter().filter_map(|file| match file.from {
            From::Module(_) => None,
            From::Kept(kept) => Some(kept.ram),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Pa;

    const M: u64 = 1 << 20;

    fn images() -> Images {
        let file = |what, from, size, to, room| File {
            what,
            from: From::Module(Range::new(Pa(from), size)),
            to: Range::new(Pa(to), room),
        };
        Images {
            files: [file("kernel", 16 * M, M + 5, 64 * M, 3 * M), file("RAM disk", 32 * M, 300_001, 96 * M, 300_001)]
                .into_iter()
                .collect(),
            description: (0..20_000u32).map(|byte| byte as u8).collect(),
            description_at: Range::new(Pa(80 * M), 2 * M),
            start: Start { entry: Ipa(64 * M), context: 80 * M },
        }
    }

    /// All pieces in their order.
    fn pieces(images: &Images) -> Vec<Piece<'_>> {
        let mut loaded = Loaded::default();
        core::iter::from_fn(|| {
            let (piece, next) = images.piece(loaded)?;
            loaded = next;
            Some(piece)
        })
        .collect()
    }

    #[test]
    fn the_pieces_are_short_and_cover_each_image_once_in_order() {
        let images = images();
        let pieces = pieces(&images);
        for (what, from, to) in [("kernel", 16 * M, images.files[0].to), ("RAM disk", 32 * M, images.files[1].to)] {
            let (mut at, mut copied) = (to.base, 0);
            for piece in pieces.iter().filter(|piece| piece.what == what) {
                assert_eq!(piece.to.base, at);
                at = piece.to.end();
                if let Source::File(range) = piece.source {
                    assert_eq!(range.base, Pa(from + copied));
                    assert!(range.size <= PIECE.min(piece.to.size));
                    copied += range.size;
                }
            }
            assert_eq!(at, to.end(), "all of it is cleaned, with the BSS");
            assert_eq!(copied, images.files.iter().find(|file| file.what == what).unwrap().from.size());
        }
        let mut bytes = Vec::new();
        let description = pieces.iter().filter(|piece| piece.what == "description");
        for piece in description.clone() {
            assert!(piece.to.size <= DESCRIPTION_PIECE);
            if let Source::Bytes(some) = piece.source {
                bytes.extend_from_slice(some);
            }
        }
        assert_eq!(bytes, images.description);
        assert_eq!(description.map(|piece| piece.to.size).sum::<u64>(), 2 * M);
    }

    #[test]
    fn an_image_that_is_in_its_place_is_cleaned_and_not_copied() {
        let mut images = images();
        images.files[1].to = Range::new(Pa(32 * M), 300_001);
        let pieces = pieces(&images);
        let ramdisk: Vec<_> = pieces.iter().filter(|piece| piece.what == "RAM disk").collect();
        assert_eq!(ramdisk.len(), 3);
        assert!(ramdisk.iter().all(|piece| matches!(piece.source, Source::Nothing)));
    }

    #[test]
    fn an_image_that_is_kept_is_copied_once_in_order_and_its_ram_given_back() {
        let mut images = images();
        let ram = GuestRam::new(ArrayVec::new()).unwrap();
        images.files[0].from = From::Kept(Kept { ram, size: M + 5 });
        let mut copied = 0;
        for piece in pieces(&images).iter().filter(|piece| piece.what == "kernel") {
            match piece.source {
                Source::Kept(_, done, bytes) => {
                    assert_eq!((done, piece.to.base), (copied, Pa(64 * M + copied)));
                    copied += bytes;
                }
                Source::Nothing => assert_eq!(copied, M + 5),
                _ => panic!("not kept"),
            }
        }
        assert_eq!((copied, images.into_kept().count()), (M + 5, 1));
    }

    #[test]
    fn an_image_that_is_no_boot_module_or_outside_the_ram_is_an_error() {
        // The host has no boot modules and no RAM for guests.
        let ram = GuestRam::new(ArrayVec::new()).unwrap();
        let error = images().load_piece(&ram, Loaded::default()).unwrap_err();
        assert_eq!(error.what, "kernel");
        let error = images().load_piece(&ram, Loaded { image: 2, done: 0 }).unwrap_err();
        assert_eq!((error.what, error.error), ("description", LoadError::Target(NotGuestRam(Ipa(80 * M)))));
    }
}
