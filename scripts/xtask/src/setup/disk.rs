//! The NVMe disks of known content, one for dom0 and one for domUs. The content of each block follows from its number and the
//! disk, so a misplaced, stale or torn block is noticed, and one of the other's disk. The guest compares pieces of 16 MiB with the
//! checksums in [`manifest`].

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::{Stamp, hex};
use crate::fail::{Doing, Outcome};
use crate::{paths, sh};

/// Has to be changed with the content.
const RECIPE: &[u8] = b"256 MiB of splitmix64, seeded by block number";

const BLOCK: usize = 4096;
const PIECE: usize = 16 << 20;
const PIECES: usize = 16;

/// The disks: the file, and what is added to the block's number.
fn disks() -> [(PathBuf, u64); 2] {
    [(paths::disk(), 0), (paths::domu_disk(), 1 << 32)]
}

/// The file with the checksums of a disk: a line `MiB-offset sha256` for each piece.
pub fn manifest(disk: &Path) -> PathBuf {
    disk.with_extension("sha256")
}

/// Makes the disks and their checksums if they are missing.
pub fn ensure() -> Outcome {
    disks().iter().try_for_each(|(disk, first)| ensure_one(disk, *first))
}

fn ensure_one(disk: &Path, first: u64) -> Outcome {
    let stamp = Stamp::new(disk, &[RECIPE]);
    let size = std::fs::metadata(disk).map_or(0, |meta| meta.len());
    if stamp.fresh() && size == (PIECE * PIECES) as u64 && manifest(disk).is_file() {
        return Ok(());
    }
    sh::say(format_args!("making the 256 MiB image {}", disk.display()));
    let partial = disk.with_extension("partial");
    let file = std::fs::File::create(&partial).doing(format_args!("creating {}", partial.display()))?;
    let mut file = BufWriter::with_capacity(1 << 20, file);
    let mut lines = String::new();
    for piece in 0..PIECES {
        let mut hash = Sha256::new();
        for block in 0..PIECE / BLOCK {
            let bytes = content(first + (piece * (PIECE / BLOCK) + block) as u64);
            hash.update(bytes);
            file.write_all(&bytes).doing("writing the NVMe image")?;
        }
        lines += &format!("{} {}\n", piece * (PIECE >> 20), hex(&hash.finalize()));
    }
    file.flush().doing("writing the NVMe image")?;
    std::fs::rename(&partial, disk).doing("placing the NVMe image")?;
    std::fs::write(manifest(disk), lines).doing("writing the NVMe image's checksums")?;
    stamp.set()
}

/// The bytes of one block.
fn content(block: u64) -> [u8; BLOCK] {
    let mut state = block.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut bytes = [0; BLOCK];
    for word in bytes.chunks_exact_mut(8) {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word.copy_from_slice(&(mixed ^ (mixed >> 31)).to_le_bytes());
    }
    // The block's number, to find it in a hex dump.
    bytes[..8].copy_from_slice(&block.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_blocks_share_no_word_at_the_same_place() {
        let (a, b) = (content(7), content(8));
        assert!(a.chunks(8).zip(b.chunks(8)).all(|(a, b)| a != b));
        assert_eq!(a[..8], 7u64.to_le_bytes());
    }
}
