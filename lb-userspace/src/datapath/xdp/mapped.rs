//! An array map as memory that the packet path changes at the same time.
//!
//! Every access is an atomic load or store of an aligned word of 64 bits, so nothing is half old and half new within a word;
//! what spans words is the writer's care. Which element means what is not known here.

#![expect(unsafe_code, reason = "memory that the kernel shares with us has no safe interface")]

use std::io;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Release};

use aya::Pod;
use aya::maps::MapError;

use crate::datapath::DatapathError;

/// A map of `BPF_MAP_TYPE_ARRAY` with `BPF_F_MMAPABLE` and values of type `T`, mapped until it is dropped.
pub struct Mapped<T> {
    name: &'static str,
    start: NonNull<AtomicU64>,
    length: u32,
    value: PhantomData<fn() -> T>,
}

impl<T: Pod> Mapped<T> {
    /// Words of an element.
    const WORDS: usize = {
        // The kernel rounds elements up to eight bytes.
        assert!(size_of::<T>().is_multiple_of(8) && size_of::<T>() != 0);
        size_of::<T>() / 8
    };

    /// Maps the `length` elements of the map called `name` behind `fd`.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`] where the map cannot be mapped or is shorter than that.
    pub fn new(name: &'static str, fd: BorrowedFd<'_>, length: u32) -> Result<Self, DatapathError> {
        let failed = |source| DatapathError::Map { action: "map", map: name, source: MapError::IoError(source) };
        let bytes = Self::bytes(length).filter(|bytes| *bytes != 0);
        let bytes = bytes.ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that is there.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(failed(io::Error::last_os_error()));
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| failed(io::ErrorKind::InvalidData.into()))?;
        Ok(Self { name, start, length, value: PhantomData })
    }

    /// Number of elements, at least one.
    pub fn length(&self) -> u32 {
        self.length
    }

    /// The whole map.
    pub fn words(&self) -> &[AtomicU64] {
        let words = Self::bytes(self.length).unwrap_or(0) / 8;
        // SAFETY: the mapping is that long, aligned to a page, and lives as long as `self`; it is accessed here by atomic
        // operations only, and by the kernel's programs.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), words) }
    }

    /// Word `number` of the map, counted from its first.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`] past the last.
    pub fn word(&self, number: usize) -> Result<&AtomicU64, DatapathError> {
        let index = u32::try_from(number / Self::WORDS).unwrap_or(u32::MAX);
        self.words().get(number).ok_or_else(|| self.out_of_bounds(index))
    }

    /// The words of an element.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`] past the last.
    pub fn element(&self, index: u32) -> Result<&[AtomicU64], DatapathError> {
        let start = usize::try_from(index).ok().and_then(|index| index.checked_mul(Self::WORDS));
        let words = start.and_then(|start| self.words().get(start..)?.get(..Self::WORDS));
        words.ok_or_else(|| self.out_of_bounds(index))
    }

    /// The number of 32 bits at `offset`, a multiple of four, in an element.
    ///
    /// # Errors
    ///
    /// As [`Mapped::element`].
    pub fn number(&self, index: u32, offset: usize) -> Result<u32, DatapathError> {
        let word = self.element(index)?.get(offset / 8).map_or(0, |word| word.load(Acquire));
        let [a, b, c, d, e, f, g, h] = word.to_ne_bytes();
        Ok(u32::from_ne_bytes(if offset.is_multiple_of(8) { [a, b, c, d] } else { [e, f, g, h] }))
    }

    /// A copy of an element, which must have been written as a `T`, or be one when all its bytes are zero.
    ///
    /// # Errors
    ///
    /// As [`Mapped::element`].
    pub fn get(&self, index: u32) -> Result<T, DatapathError> {
        let mut value = MaybeUninit::<T>::uninit();
        for (offset, word) in self.element(index)?.iter().enumerate() {
            // SAFETY: `element` has as many words as `T` has room for.
            unsafe { value.as_mut_ptr().cast::<u64>().add(offset).write_unaligned(word.load(Acquire)) };
        }
        // SAFETY: all bytes are written, and `Pod` types are made of bytes.
        Ok(unsafe { value.assume_init() })
    }

    /// Writes an element, its last word first. So a first word that tells whether the rest is valid may be written with it.
    ///
    /// # Errors
    ///
    /// As [`Mapped::element`].
    pub fn set(&self, index: u32, value: &T) -> Result<(), DatapathError> {
        for (offset, word) in self.element(index)?.iter().enumerate().rev() {
            // SAFETY: `element` has as many words as `T`, and `Pod` types have no padding.
            let new = unsafe { std::ptr::from_ref(value).cast::<u64>().add(offset).read_unaligned() };
            word.store(new, Release);
        }
        Ok(())
    }

    fn out_of_bounds(&self, index: u32) -> DatapathError {
        let source = MapError::OutOfBounds { index, max_entries: self.length };
        DatapathError::Map { action: "access", map: self.name, source }
    }

    fn bytes(length: u32) -> Option<usize> {
        usize::try_from(length).ok()?.checked_mul(Self::WORDS * 8)
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        let bytes = usize::try_from(self.length).unwrap_or(0) * size_of::<T>();
        // SAFETY: the mapping is ours, was made with this length, and nothing borrows from it any more.
        let result = unsafe { libc::munmap(self.start.as_ptr().cast(), bytes) };
        debug_assert_eq!(result, 0, "a mapping of ours can be unmapped");
    }
}

// SAFETY: the mapping belongs to the process, not to a thread, and is accessed by atomic operations only.
unsafe impl<T> Send for Mapped<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Mapped<T> {}

#[cfg(test)]
pub(super) mod tests {
    use std::fs::File;
    use std::os::fd::AsFd as _;
    use std::os::unix::fs::FileExt as _;

    use lb_common::service::{IndexBucket, IndexEntry};

    use super::*;

    /// A file in the place of a map: zeroed, and mapped in the same way.
    pub fn file_of<T: Pod>(length: u32) -> (File, Mapped<T>) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(u64::from(length) * size_of::<T>() as u64).unwrap();
        let mapped = Mapped::new("file", file.as_fd(), length).unwrap();
        (file, mapped)
    }

    fn bucket(key: u64) -> IndexBucket {
        let mut bucket = IndexBucket::default();
        bucket.entries[1] = IndexEntry { key, index: 2, flags: 3 };
        bucket
    }

    #[test]
    fn what_is_written_lies_in_the_map_and_is_read_back() {
        let (file, mapped) = file_of::<IndexBucket>(3);
        mapped.set(1, &bucket(0x1122)).unwrap();
        assert_eq!(mapped.get(1).unwrap(), bucket(0x1122));
        assert_eq!(mapped.get(0).unwrap(), IndexBucket::default());
        // Element 1 of 64 bytes, entry 1 of 16: the key, then index and flags.
        let mut bytes = [0; 16];
        file.read_exact_at(&mut bytes, 80).unwrap();
        assert_eq!(bytes, [0x22, 0x11, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0]);
        assert_eq!([16, 20, 24, 28].map(|offset| mapped.number(1, offset).unwrap()), [0x1122, 0, 2, 3]);
    }

    #[test]
    fn what_others_write_is_seen() {
        let (file, mapped) = file_of::<u64>(8);
        file.write_all_at(&7_u64.to_ne_bytes(), 24).unwrap();
        assert_eq!(mapped.get(3).unwrap(), 7);
        assert_eq!(mapped.words().len(), 8);
        assert_eq!(mapped.word(3).unwrap().load(Acquire), 7);
    }

    #[test]
    fn past_the_end_is_an_error() {
        let (_file, mapped) = file_of::<IndexBucket>(3);
        assert!(mapped.get(2).is_ok());
        assert!(mapped.get(3).is_err());
        assert!(mapped.set(u32::MAX, &bucket(1)).is_err());
        assert!(mapped.word(23).is_ok() && mapped.word(24).is_err());
    }
}
