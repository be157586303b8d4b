//! Words that several CPUs and user space share, and arithmetic without branches.
//!
//! `core::sync::atomic` has no fetch-and-add and no compare-and-swap on bpfel, and LLVM turns arithmetic selections back into
//! branches, which multiply the states that the verifier has to follow: hence intrinsics and inline assembly.

use core::intrinsics::{AtomicOrdering, atomic_and, atomic_cxchg, atomic_or, atomic_xadd};
use core::ptr;

/// Reads a word that others may change at any time.
///
/// # Safety
///
/// `word` points into a live map element.
#[inline(always)]
pub unsafe fn read<T>(word: *const T) -> T {
    // SAFETY: the caller's.
    unsafe { ptr::read_volatile(word) }
}

/// Writes a word that others may read at any time.
///
/// # Safety
///
/// As [`read`].
#[inline(always)]
pub unsafe fn write<T>(word: *mut T, value: T) {
    // SAFETY: the caller's.
    unsafe { ptr::write_volatile(word, value) }
}

/// Replaces `old` by `new`; false where the word is not `old` any more.
///
/// # Safety
///
/// As [`read`].
#[inline(always)]
pub unsafe fn swap(word: *mut u64, old: u64, new: u64) -> bool {
    // SAFETY: the caller's.
    unsafe { atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(word, old, new).1 }
}

/// As [`swap`], of 32 bits.
///
/// # Safety
///
/// As [`read`].
#[inline(always)]
pub unsafe fn swap32(word: *mut u32, old: u32, new: u32) -> bool {
    // SAFETY: the caller's.
    unsafe { atomic_cxchg::<u32, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(word, old, new).1 }
}

/// Adds `amount`, modulo 2^64; returns what was there before.
///
/// SeqCst, because LLVM 22 drops the result of a relaxed fetch-and-add on BPF.
///
/// # Safety
///
/// As [`read`].
#[inline(always)]
pub unsafe fn add(word: *mut u64, amount: u64) -> u64 {
    // SAFETY: the caller's.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(word, amount) }
}

/// Sets `bits`.
///
/// # Safety
///
/// As [`read`].
#[inline(always)]
pub unsafe fn set(word: *mut u64, bits: u64) {
    // SAFETY: the caller's.
    unsafe { atomic_or::<u64, u64, { AtomicOrdering::SeqCst }>(word, bits) };
}

/// Clears `bits`.
///
/// # Safety
///
/// As [`read`].
#[inline(always)]
pub unsafe fn clear(word: *mut u64, bits: u64) {
    // SAFETY: the caller's.
    unsafe { atomic_and::<u64, u64, { AtomicOrdering::SeqCst }>(word, !bits) };
}

/// 1 if `word` has its highest bit set, else 0.
#[cfg(not(feature = "lru"))]
#[inline(always)]
pub fn is_negative(word: u64) -> u64 {
    let mut word = word;
    // Not `pure`, which would let LLVM read all words of a bucket first, and keep them on the stack.
    // SAFETY: one instruction on one register.
    unsafe { core::arch::asm!("{0} >>= 63", inout(reg) word, options(nostack, preserves_flags)) };
    word
}

/// All ones if `word` has its highest bit set, else 0.
#[inline(always)]
pub fn negative_mask(word: u64) -> u64 {
    let mut word = word;
    // SAFETY: one instruction on one register.
    unsafe { core::arch::asm!("{0} s>>= 63", inout(reg) word, options(pure, nomem, nostack, preserves_flags)) };
    word
}

/// `word` modulo 8. LLVM removes a mask whose need only the verifier of older kernels sees; not this one.
#[inline(always)]
pub fn lane(word: u64) -> usize {
    let mut word = word;
    // SAFETY: one instruction on one register.
    unsafe { core::arch::asm!("{0} &= 7", inout(reg) word, options(pure, nomem, nostack, preserves_flags)) };
    word as usize
}

/// [`lb_common::connection::SLOTS`], as a number that LLVM does not know, so that it leaves a loop over them a loop: unrolled, it
/// keeps so much on the stack that the program does not load on kernels that round frames up to 32 bytes (6.1).
#[cfg(not(feature = "lru"))]
#[inline(always)]
pub fn slots() -> usize {
    let slots: u64;
    // SAFETY: one instruction on one register.
    unsafe { core::arch::asm!("{0} = 8", out(reg) slots, options(pure, nomem, nostack, preserves_flags)) };
    slots as usize
}

/// `word` modulo 128, as [`lane`].
#[inline(always)]
pub fn seven_bits(word: u64) -> usize {
    let mut word = word;
    // SAFETY: one instruction on one register.
    unsafe { core::arch::asm!("{0} &= 127", inout(reg) word, options(pure, nomem, nostack, preserves_flags)) };
    word as usize
}

/// `word` modulo 16,384, as [`lane`].
#[inline(always)]
pub fn fourteen_bits(word: u64) -> usize {
    let mut word = word;
    // SAFETY: one instruction on one register.
    unsafe { core::arch::asm!("{0} &= 16383", inout(reg) word, options(pure, nomem, nostack, preserves_flags)) };
    word as usize
}

/// `word` modulo 32, as [`lane`].
#[inline(always)]
pub fn five_bits(word: u64) -> usize {
    let mut word = word;
    // SAFETY: one instruction on one register.
    unsafe { core::arch::asm!("{0} &= 31", inout(reg) word, options(pure, nomem, nostack, preserves_flags)) };
    word as usize
}
