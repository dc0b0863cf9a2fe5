//! Frames: a header of 16 bytes and a body. Finding them in a stream of bytes, also after garbage.

use crate::status::Status;
use crate::wire::{Body, NoRoom};

/// How each frame begins. The first byte is no ASCII and cannot begin a character of UTF-8 text that is typed.
pub const MAGIC: [u8; 3] = [0xd7, b'D', b'W'];

/// The length of a header in bytes.
pub const HEADER_LEN: usize = 16;

/// The longest body in bytes.
pub const MAX_BODY: usize = 16 << 10;

/// The longest frame in bytes.
pub const FRAME_MAX: usize = HEADER_LEN + MAX_BODY;

/// What precedes a body.
///
/// | bytes | contents |
/// |---|---|
/// | 0 to 2 | [`MAGIC`] |
/// | 3 | version |
/// | 4, 5 | kind |
/// | 6, 7 | status; 0 in a request |
/// | 8 to 11 | tag |
/// | 12 to 15 | length of the body in bytes, at most [`MAX_BODY`] |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The version of the protocol to which the body belongs.
    pub version: u8,
    /// What is asked, or what was asked.
    pub kind: u16,
    /// In an answer, how it ended: [`Status`] as a number.
    pub status: u16,
    /// A number that the client chooses and the answer repeats.
    pub tag: u32,
    /// The length of the body in bytes.
    pub length: u32,
}

impl Header {
    /// The bytes of the header.
    #[must_use]
    pub const fn bytes(&self) -> [u8; HEADER_LEN] {
        let [m0, m1, m2] = MAGIC;
        let ([k0, k1], [s0, s1]) = (self.kind.to_le_bytes(), self.status.to_le_bytes());
        let ([t0, t1, t2, t3], [l0, l1, l2, l3]) = (self.tag.to_le_bytes(), self.length.to_le_bytes());
        [m0, m1, m2, self.version, k0, k1, s0, s1, t0, t1, t2, t3, l0, l1, l2, l3]
    }

    /// Reads a header. `None` if these bytes are none: no magic, or a body longer than [`MAX_BODY`].
    #[must_use]
    pub const fn read(bytes: &[u8; HEADER_LEN]) -> Option<Header> {
        let [m0, m1, m2, version, k0, k1, s0, s1, t0, t1, t2, t3, l0, l1, l2, l3] = *bytes;
        let length = u32::from_le_bytes([l0, l1, l2, l3]);
        if m0 != MAGIC[0] || m1 != MAGIC[1] || m2 != MAGIC[2] || length as usize > MAX_BODY {
            return None;
        }
        Some(Header {
            version,
            kind: u16::from_le_bytes([k0, k1]),
            status: u16::from_le_bytes([s0, s1]),
            tag: u32::from_le_bytes([t0, t1, t2, t3]),
            length,
        })
    }
}

/// A frame that has been received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The header.
    pub header: Header,
    /// As many bytes as the header says.
    pub body: &'a [u8],
}

impl Frame<'_> {
    /// Writes the answer to this request, and returns its length in bytes.
    ///
    /// # Errors
    ///
    /// `out` is too short. [`FRAME_MAX`] bytes suffice for all whose texts and lists are short enough for a body.
    pub fn answer<'b>(&self, status: Status, body: &impl Body<'b>, out: &mut [u8]) -> Result<usize, NoRoom> {
        encode(Header { status: status as u16, ..self.header }, body, out)
    }
}

/// Writes a frame; the header's length is that of the body. Returns the frame's length in bytes.
pub(crate) fn encode<'b>(header: Header, body: &impl Body<'b>, out: &mut [u8]) -> Result<usize, NoRoom> {
    let (head, rest) = out.split_first_chunk_mut::<HEADER_LEN>().ok_or(NoRoom)?;
    let room = rest.len().min(MAX_BODY);
    let length = body.write(rest.get_mut(..room).ok_or(NoRoom)?)?;
    *head = Header { length: u32::try_from(length).map_err(|_| NoRoom)?, ..header }.bytes();
    HEADER_LEN.checked_add(length).ok_or(NoRoom)
}

/// Finds frames in a stream of bytes.
///
/// Its user fills [`Parser::space`], and says by [`Parser::advance`] how much came. Each call of `advance` is bounded by the
/// length of a header, whatever came. After garbage the parser is in step again with the next frame: bytes that are no
/// header are skipped one by one. A frame of which only a part came is a different matter: what comes next is taken for
/// its body. So [`Parser::reset`] is called when the other side closes or opens its end of the stream.
pub struct Parser<B> {
    buffer: B,
    /// The bytes of the present frame that are in the buffer.
    have: usize,
    /// The header, if it has come.
    header: Option<Header>,
    /// Bytes that have been skipped.
    skipped: u64,
}

impl<B: AsRef<[u8]> + AsMut<[u8]>> Parser<B> {
    /// A parser with this buffer. Frames that do not fit into it are garbage: it should have [`FRAME_MAX`] bytes, and has
    /// to have [`HEADER_LEN`].
    #[must_use]
    pub fn new(buffer: B) -> Parser<B> {
        Parser { buffer, have: 0, header: None, skipped: 0 }
    }

    /// Where the next bytes of the stream go. Empty only if the buffer has no place for a header.
    pub fn space(&mut self) -> &mut [u8] {
        let end = self.end();
        self.buffer.as_mut().get_mut(self.have..end).unwrap_or_default()
    }

    /// Takes note that the first `count` bytes of [`Parser::space`] have been filled. Returns the frame that is complete
    /// by them; it is valid until more space is asked for.
    pub fn advance(&mut self, count: usize) -> Option<Frame<'_>> {
        self.have = self.have.saturating_add(count).min(self.end());
        if self.header.is_none() {
            self.find_header();
        }
        let header = self.header?;
        if self.have < self.end() {
            return None;
        }
        let end = core::mem::take(&mut self.have);
        self.header = None;
        self.buffer.as_ref().get(HEADER_LEN..end).map(|body| Frame { header, body })
    }

    /// Forgets what has come of the present frame: what comes next begins a frame.
    pub fn reset(&mut self) {
        self.have = 0;
        self.header = None;
    }

    /// How many bytes have been skipped because they were no frame, in all.
    #[must_use]
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Where the present frame ends in the buffer, as far as that is known.
    fn end(&self) -> usize {
        let body = self.header.map_or(0, |header| header.length as usize);
        HEADER_LEN.saturating_add(body)
    }

    /// Looks at what came, which is at most a header long, and skips what cannot begin a header.
    fn find_header(&mut self) {
        let (capacity, have) = (self.buffer.as_ref().len(), self.have);
        let Some(came) = self.buffer.as_mut().get_mut(..have) else { return };
        let begins = |bytes: &[u8]| match <&[u8; HEADER_LEN]>::try_from(bytes) {
            Ok(whole) => {
                Header::read(whole).is_some_and(|header| capacity.saturating_sub(HEADER_LEN) >= header.length as usize)
            }
            Err(_) => bytes.iter().zip(MAGIC).all(|(&byte, magic)| byte == magic),
        };
        let skip = (0..have).find(|&at| came.get(at..).is_some_and(begins)).unwrap_or(have);
        came.copy_within(skip.., 0);
        self.have = have.saturating_sub(skip);
        self.skipped = self.skipped.saturating_add(skip as u64);
        self.header = self.buffer.as_ref().first_chunk().filter(|_| self.have == HEADER_LEN).and_then(Header::read);
    }
}
