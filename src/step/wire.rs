//! The wire format between the parent and init, compiled into both: the encoding of values. The operations are in
//! `ops.rs`, the program that init runs in `program.rs`, the records that init sends back in `record.rs`.
//!
//! A value is encoded as its fields in order, little-endian. An operation is a one-byte code and its fields. Strings
//! and lists carry their length. Every string is followed by a NUL that is not part of it. So init passes pointers into
//! the program to the kernel, and needs no allocator. The decoder accepts any bytes, and returns a value or
//! [`Malformed`].
//!
//! This module makes no decisions: `compile` has made them.

#[path = "log.rs"]
mod log;
#[path = "ops.rs"]
mod ops;
#[path = "program.rs"]
mod program;
#[path = "record.rs"]
mod record;

pub use log::{LOG_ENTRY, LOG_HEAD, LOG_HEADER, LogHead, LogHeader};
pub use ops::{DECLARATIONS, Op, OpCode};
pub use program::{Program, ProgramStep};
pub use record::{EXIT_RECORD, EXIT_RECORD_AT, End, ExitRecord, FNV, NO_STEP, RECORD, Record, fnv};

/// Exit status of init when a step was refused or the plan is malformed. The parent reads the record instead; this value
/// shows in `ps`.
pub const FAILED: i32 = 125;

/// The name of a thread that has not executed the command yet: [`Op::Name`].
pub const UNEXECUTED: &[u8] = b"/init";

/// The bytes are not an encoded value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// Destination of encoded bytes: a vector in the parent. Init only decodes.
pub trait Sink {
    /// Appends `bytes`.
    fn put(&mut self, bytes: &[u8]);
}

/// A value with an encoding in the wire format.
pub trait Field<'a>: Sized {
    /// Appends the value to `sink`.
    fn encode<S: Sink>(&self, sink: &mut S);
    /// Removes the value from the front of `input`.
    fn decode(input: &mut &'a [u8]) -> Result<Self, Malformed>;
}

fn take<'a>(input: &mut &'a [u8], n: usize) -> Result<&'a [u8], Malformed> {
    let (head, tail) = input.split_at_checked(n).ok_or(Malformed)?;
    *input = tail;
    Ok(head)
}

macro_rules! int_field {
    ($($t:ty),*) => {$(
        impl Field<'_> for $t {
            fn encode<S: Sink>(&self, sink: &mut S) {
                sink.put(&self.to_le_bytes());
            }
            fn decode(input: &mut &[u8]) -> Result<Self, Malformed> {
                let bytes = take(input, size_of::<$t>())?;
                bytes.try_into().map(<$t>::from_le_bytes).map_err(|_| Malformed)
            }
        }
    )*};
}
int_field!(u8, u32, u64, i32);

impl Field<'_> for bool {
    fn encode<S: Sink>(&self, sink: &mut S) {
        sink.put(&[*self as u8]);
    }
    fn decode(input: &mut &[u8]) -> Result<Self, Malformed> {
        match u8::decode(input)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed),
        }
    }
}

/// Type of the source and target of a bind mount. The kernel binds directories only on directories, and other files
/// only on other files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileType {
    /// A directory.
    Dir,
    /// Any file other than a directory.
    File,
}

impl Field<'_> for FileType {
    fn encode<S: Sink>(&self, sink: &mut S) {
        (*self == FileType::File).encode(sink);
    }
    fn decode(input: &mut &[u8]) -> Result<Self, Malformed> {
        Ok(if bool::decode(input)? { FileType::File } else { FileType::Dir })
    }
}

/// A string without NUL bytes. A decoded string is followed by a NUL in memory.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Str<'a>(&'a [u8]);

impl<'a> Str<'a> {
    /// The bytes, without the NUL.
    pub fn bytes(&self) -> &'a [u8] {
        self.0
    }

    /// Wraps `bytes`. `None` if they contain a NUL.
    pub fn new(bytes: &'a [u8]) -> Option<Self> {
        if bytes.contains(&0) { None } else { Some(Str(bytes)) }
    }
}

impl core::fmt::Debug for Str<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

impl<'a> Field<'a> for Str<'a> {
    fn encode<S: Sink>(&self, sink: &mut S) {
        (self.0.len() as u32).encode(sink);
        sink.put(self.0);
        sink.put(&[0]);
    }
    fn decode(input: &mut &'a [u8]) -> Result<Self, Malformed> {
        let len = u32::decode(input)? as usize;
        let bytes = take(input, len)?;
        if take(input, 1)? != [0] {
            return Err(Malformed);
        }
        Str::new(bytes).ok_or(Malformed)
    }
}

/// Bytes with any values: content of a file, or a seccomp filter. The `Debug` output shows only the length, since a
/// file's content may be a secret.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Blob<'a>(pub &'a [u8]);

impl core::fmt::Debug for Blob<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl<'a> Field<'a> for Blob<'a> {
    fn encode<S: Sink>(&self, sink: &mut S) {
        (self.0.len() as u32).encode(sink);
        sink.put(self.0);
    }
    fn decode(input: &mut &'a [u8]) -> Result<Self, Malformed> {
        let len = u32::decode(input)? as usize;
        take(input, len).map(Blob)
    }
}

/// A list of encoded values of one type. Items are decoded during iteration.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct List<'a, T> {
    count: u32,
    bytes: &'a [u8],
    items: core::marker::PhantomData<T>,
}

impl<'a, T: Field<'a>> List<'a, T> {
    /// A list over `bytes` that hold `count` encoded items. Iteration ends at the first malformed item.
    pub fn from_encoded(count: u32, bytes: &'a [u8]) -> Self {
        List { count, bytes, items: core::marker::PhantomData }
    }

    /// Number of items.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether the list has no items.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The items, in order.
    pub fn iter(&self) -> impl Iterator<Item = T> + use<'a, T> {
        let mut rest = self.bytes;
        (0..self.count).map_while(move |_| T::decode(&mut rest).ok())
    }
}

impl<'a, T: Field<'a> + core::fmt::Debug> core::fmt::Debug for List<'a, T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl<'a, T: Field<'a>> Field<'a> for List<'a, T> {
    fn encode<S: Sink>(&self, sink: &mut S) {
        self.count.encode(sink);
        (self.bytes.len() as u32).encode(sink);
        sink.put(self.bytes);
    }
    fn decode(input: &mut &'a [u8]) -> Result<Self, Malformed> {
        let count = u32::decode(input)?;
        let len = u32::decode(input)? as usize;
        let bytes = take(input, len)?;
        let mut rest = bytes;
        for _ in 0..count {
            T::decode(&mut rest)?;
        }
        if !rest.is_empty() {
            return Err(Malformed);
        }
        Ok(List::from_encoded(count, bytes))
    }
}

/// A descriptor to duplicate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dup {
    /// Index into the table of descriptors that the parent hands over.
    pub from: u32,
    /// Number of the descriptor in the task.
    pub to: u32,
}

impl Field<'_> for Dup {
    fn encode<S: Sink>(&self, sink: &mut S) {
        self.from.encode(sink);
        self.to.encode(sink);
    }
    fn decode(input: &mut &[u8]) -> Result<Self, Malformed> {
        Ok(Dup { from: u32::decode(input)?, to: u32::decode(input)? })
    }
}

/// Maximum number of descriptors that the parent hands over.
pub const FDS: u32 = 512;
