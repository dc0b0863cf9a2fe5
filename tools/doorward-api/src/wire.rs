//! How values are written into a body and read from it.
//!
//! A number is little-endian. A text is its length in bytes (u16) and its bytes, UTF-8. A list is the number of its items
//! (u16) and the items. A [`Body`] is its fields, one after the other.

use core::fmt;
use core::marker::PhantomData;

/// What a body says is not what its kind allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// The buffer is too short for what is written, or a text or list has more than 65535 bytes or items.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom;

/// Bytes that are read from the front.
#[derive(Clone)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader(bytes)
    }

    pub(crate) fn bytes(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Malformed)?;
        self.0 = rest;
        Ok(*taken)
    }

    /// Whether nothing is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn left(&self) -> &'a [u8] {
        self.0
    }
}

/// A buffer that is filled from the front.
pub struct Writer<'b> {
    buffer: &'b mut [u8],
    at: usize,
}

impl<'b> Writer<'b> {
    pub(crate) fn new(buffer: &'b mut [u8]) -> Writer<'b> {
        Writer { buffer, at: 0 }
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> Result<(), NoRoom> {
        let end = self.at.checked_add(bytes.len()).ok_or(NoRoom)?;
        self.buffer.get_mut(self.at..end).ok_or(NoRoom)?.copy_from_slice(bytes);
        self.at = end;
        Ok(())
    }

    /// The number of bytes that have been written.
    pub(crate) fn len(&self) -> usize {
        self.at
    }
}

/// A value that can be a body, or a part of one.
pub trait Body<'a>: Sized {
    /// Appends the value.
    ///
    /// # Errors
    ///
    /// The buffer is full.
    fn put(&self, out: &mut Writer<'_>) -> Result<(), NoRoom>;

    /// Takes the value from the front.
    ///
    /// # Errors
    ///
    /// The bytes end too early, or are no such value.
    fn take(from: &mut Reader<'a>) -> Result<Self, Malformed>;

    /// Reads the body of an answer or event. What follows the known fields is ignored: a later version may append some.
    ///
    /// # Errors
    ///
    /// As [`Body::take`].
    fn read(body: &'a [u8]) -> Result<Self, Malformed> {
        Self::take(&mut Reader::new(body))
    }

    /// Reads the body of a request, which has nothing but the fields.
    ///
    /// # Errors
    ///
    /// As [`Body::take`], or something follows.
    fn read_all(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut from = Reader::new(body);
        let value = Self::take(&mut from)?;
        if from.is_empty() { Ok(value) } else { Err(Malformed) }
    }

    /// Writes the value and returns its length in bytes.
    ///
    /// # Errors
    ///
    /// The buffer is too short.
    fn write(&self, out: &mut [u8]) -> Result<usize, NoRoom> {
        let mut writer = Writer::new(out);
        self.put(&mut writer)?;
        Ok(writer.len())
    }
}

macro_rules! numbers {
    ($($number:ty),*) => {
        $(impl Body<'_> for $number {
            fn put(&self, out: &mut Writer<'_>) -> Result<(), NoRoom> {
                out.bytes(&self.to_le_bytes())
            }

            fn take(from: &mut Reader<'_>) -> Result<$number, Malformed> {
                from.array().map(<$number>::from_le_bytes)
            }
        })*
    };
}

numbers!(u8, u16, u32, u64);

/// One byte: 0 or 1.
impl Body<'_> for bool {
    fn put(&self, out: &mut Writer<'_>) -> Result<(), NoRoom> {
        u8::from(*self).put(out)
    }

    fn take(from: &mut Reader<'_>) -> Result<bool, Malformed> {
        match u8::take(from)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed),
        }
    }
}

impl<'a> Body<'a> for &'a [u8] {
    fn put(&self, out: &mut Writer<'_>) -> Result<(), NoRoom> {
        u16::try_from(self.len()).map_err(|_| NoRoom)?.put(out)?;
        out.bytes(self)
    }

    fn take(from: &mut Reader<'a>) -> Result<&'a [u8], Malformed> {
        let length = u16::take(from)?;
        from.bytes(length.into())
    }
}

impl<'a> Body<'a> for &'a str {
    fn put(&self, out: &mut Writer<'_>) -> Result<(), NoRoom> {
        self.as_bytes().put(out)
    }

    fn take(from: &mut Reader<'a>) -> Result<&'a str, Malformed> {
        str::from_utf8(<&[u8]>::take(from)?).map_err(|_| Malformed)
    }
}

/// No body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Empty;

impl Body<'_> for Empty {
    fn put(&self, _: &mut Writer<'_>) -> Result<(), NoRoom> {
        Ok(())
    }

    fn take(_: &mut Reader<'_>) -> Result<Empty, Malformed> {
        Ok(Empty)
    }
}

/// A list: of items in memory, or of items in a body that has been read. All items of the latter have been checked.
#[derive(Clone, Copy)]
pub struct List<'a, T>(Items<'a, T>);

#[derive(Clone, Copy)]
enum Items<'a, T> {
    Memory(&'a [T]),
    Body { count: u16, bytes: &'a [u8], of: PhantomData<T> },
}

impl<'a, T: Body<'a> + Copy> List<'a, T> {
    /// A list of these items.
    #[must_use]
    pub const fn of(items: &'a [T]) -> List<'a, T> {
        List(Items::Memory(items))
    }

    /// The number of items.
    #[must_use]
    pub fn len(&self) -> usize {
        match self.0 {
            Items::Memory(items) => items.len(),
            Items::Body { count, .. } => count.into(),
        }
    }

    /// Whether there are no items.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The items.
    pub fn iter(&self) -> impl Iterator<Item = T> + use<'a, T> {
        let (memory, count, bytes): (&[T], u16, &[u8]) = match self.0 {
            Items::Memory(items) => (items, 0, &[]),
            Items::Body { count, bytes, .. } => (&[], count, bytes),
        };
        let mut from = Reader::new(bytes);
        memory.iter().copied().chain((0..count).map_while(move |_| T::take(&mut from).ok()))
    }
}

impl<'a, T: Body<'a> + Copy> Body<'a> for List<'a, T> {
    fn put(&self, out: &mut Writer<'_>) -> Result<(), NoRoom> {
        u16::try_from(self.len()).map_err(|_| NoRoom)?.put(out)?;
        self.iter().try_for_each(|item| item.put(out))
    }

    fn take(from: &mut Reader<'a>) -> Result<List<'a, T>, Malformed> {
        let count = u16::take(from)?;
        let all = from.left();
        for _ in 0..count {
            T::take(from)?;
        }
        let length = all.len().saturating_sub(from.left().len());
        let bytes = all.get(..length).ok_or(Malformed)?;
        Ok(List(Items::Body { count, bytes, of: PhantomData }))
    }
}

impl<'a, T: Body<'a> + Copy + PartialEq> PartialEq for List<'a, T> {
    fn eq(&self, other: &List<'a, T>) -> bool {
        self.iter().eq(other.iter())
    }
}

impl<'a, T: Body<'a> + Copy + fmt::Debug> fmt::Debug for List<'a, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// A set of physical CPUs: bit `n % 8` of byte `n / 8` is CPU `n`. At most 128 bytes; bytes that are missing are zero.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CpuSet([u8; CpuSet::BYTES]);

impl CpuSet {
    const BYTES: usize = 128;
    /// CPUs in a set have numbers below this.
    pub const CPUS: u32 = 1024;
    /// No CPU.
    pub const EMPTY: CpuSet = CpuSet([0; CpuSet::BYTES]);
    /// All CPUs that a set can have.
    pub const ALL: CpuSet = CpuSet([0xff; CpuSet::BYTES]);

    /// Adds a CPU. Returns whether a set can have it.
    pub fn insert(&mut self, cpu: u32) -> bool {
        match usize::try_from(cpu >> 3).ok().and_then(|byte| self.0.get_mut(byte)) {
            Some(byte) => {
                *byte |= 1 << (cpu & 7);
                true
            }
            None => false,
        }
    }

    /// Whether the CPU is in the set.
    #[must_use]
    pub fn contains(&self, cpu: u32) -> bool {
        let byte = usize::try_from(cpu >> 3).ok().and_then(|byte| self.0.get(byte));
        byte.is_some_and(|byte| byte >> (cpu & 7) & 1 != 0)
    }

    /// The CPUs of the set, in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        (0..CpuSet::CPUS).filter(|&cpu| self.contains(cpu))
    }

    /// Whether no CPU is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == CpuSet::EMPTY
    }
}

impl fmt::Debug for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

impl Body<'_> for CpuSet {
    fn put(&self, out: &mut Writer<'_>) -> Result<(), NoRoom> {
        let used = self.0.iter().rposition(|&byte| byte != 0).map_or(0, |last| last.saturating_add(1));
        self.0.get(..used).unwrap_or(&self.0).put(out)
    }

    fn take(from: &mut Reader<'_>) -> Result<CpuSet, Malformed> {
        let bytes = <&[u8]>::take(from)?;
        let mut set = CpuSet::EMPTY;
        set.0.get_mut(..bytes.len()).ok_or(Malformed)?.copy_from_slice(bytes);
        Ok(set)
    }
}

/// Defines structures whose bodies are their fields, in this order.
macro_rules! bodies {
    ($($(#[$doc:meta])* $name:ident $(<$life:lifetime>)? { $($(#[$about:meta])* $field:ident: $type:ty,)* })*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, PartialEq)]
            pub struct $name $(<$life>)? {
                $($(#[$about])* pub $field: $type,)*
            }

            $crate::wire::bodies!(@impl $name $(<$life>)? { $($field)* });
        )*
    };
    (@impl $name:ident <$life:lifetime> { $($field:ident)* }) => {
        impl<$life> $crate::wire::Body<$life> for $name<$life> {
            $crate::wire::bodies!(@functions $life $name { $($field)* });
        }
    };
    (@impl $name:ident { $($field:ident)* }) => {
        impl<'a> $crate::wire::Body<'a> for $name {
            $crate::wire::bodies!(@functions 'a $name { $($field)* });
        }
    };
    (@functions $life:lifetime $name:ident { $($field:ident)* }) => {
        fn put(&self, out: &mut $crate::wire::Writer<'_>) -> Result<(), $crate::wire::NoRoom> {
            $($crate::wire::Body::put(&self.$field, out)?;)*
            Ok(())
        }

        fn take(from: &mut $crate::wire::Reader<$life>) -> Result<Self, $crate::wire::Malformed> {
            Ok($name { $($field: $crate::wire::Body::take(from)?,)* })
        }
    };
}

/// Defines values that are one byte.
macro_rules! bytes {
    ($($(#[$doc:meta])* $name:ident { $($(#[$about:meta])* $variant:ident = $value:literal, $label:literal;)* })*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, PartialEq, Eq)]
            #[repr(u8)]
            pub enum $name {
                $($(#[$about])* $variant = $value,)*
            }

            impl $name {
                /// All values.
                pub const EVERY: &'static [$name] = &[$($name::$variant,)*];

                /// The value with this number, if there is one.
                #[must_use]
                pub const fn from_number(number: u8) -> Option<$name> {
                    match number {
                        $($value => Some($name::$variant),)*
                        _ => None,
                    }
                }

                /// The word for it in output and in files.
                #[must_use]
                pub const fn label(self) -> &'static str {
                    match self {
                        $($name::$variant => $label,)*
                    }
                }
            }

            impl $crate::wire::Body<'_> for $name {
                fn put(&self, out: &mut $crate::wire::Writer<'_>) -> Result<(), $crate::wire::NoRoom> {
                    $crate::wire::Body::put(&(*self as u8), out)
                }

                fn take(from: &mut $crate::wire::Reader<'_>) -> Result<$name, $crate::wire::Malformed> {
                    $name::from_number(<u8 as $crate::wire::Body>::take(from)?).ok_or($crate::wire::Malformed)
                }
            }
        )*
    };
}

pub(crate) use {bodies, bytes};
