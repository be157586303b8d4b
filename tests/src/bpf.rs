//! bpf(2) by hand: programs of a few instructions, their attachment, and runs of a program on a frame of the caller's.
//!
//! The lab and the packet tests need no eBPF compiler and no loader for these. What Evenkeel itself loads goes by its own loader.
#![expect(unsafe_code, reason = "bpf(2) has no wrapper in the standard library or nix")]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_TEST_RUN: libc::c_int = 10;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_MAP_TYPE_PROG_ARRAY: u32 = 3;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
const BPF_F_TEST_XDP_LIVE_FRAMES: u32 = 1 << 1;
/// The program takes packets that lie in several buffers (Linux 5.18).
const BPF_F_XDP_HAS_FRAGS: u32 = 1 << 5;
/// In the source register of a 64-bit load: the immediate is the descriptor of a map.
const BPF_PSEUDO_MAP_FD: u8 = 1;

static LICENSE: &CStr = c"Dual MIT/GPL";

/// One instruction word, as `struct bpf_insn` lies in the memory of a little-endian machine.
///
/// Registers are 0..=10: 0 is the result of a call, 1 to 5 are its arguments, 6 to 9 survive it, 10 is the stack's end.
#[derive(Clone, Copy, Debug)]
pub struct Instruction(u64);

impl Instruction {
    /// Ends the program with the verdict in register 0.
    pub const EXIT: Self = Self::new(0x95, 0, 0, 0, 0);

    /// `register = value`.
    pub const fn set(register: u8, value: i32) -> Self {
        Self::new(0xb7, register, 0, 0, value)
    }

    /// `to = from`.
    pub const fn copy(to: u8, from: u8) -> Self {
        Self::new(0xbf, to, from, 0, 0)
    }

    /// `register += other`.
    pub const fn add_register(register: u8, other: u8) -> Self {
        Self::new(0x0f, register, other, 0, 0)
    }

    /// `register &= value`, which is extended by its sign to 64 bits.
    pub const fn mask(register: u8, value: i32) -> Self {
        Self::new(0x57, register, 0, 0, value)
    }

    /// `register >>= bits`, filled with zeros.
    pub const fn shift_right(register: u8, bits: i32) -> Self {
        Self::new(0x77, register, 0, 0, bits)
    }

    /// `to = *(from + offset)`, so many bytes.
    pub const fn load(size: Size, to: u8, from: u8, offset: i16) -> Self {
        Self::new(0x61 | size as u8, to, from, offset, 0)
    }

    /// `*(to + offset) = from`, the lower bytes of it.
    pub const fn store(size: Size, to: u8, offset: i16, from: u8) -> Self {
        Self::new(0x63 | size as u8, to, from, offset, 0)
    }

    /// `*(to + offset) = value`.
    pub const fn store_value(size: Size, to: u8, offset: i16, value: i32) -> Self {
        Self::new(0x62 | size as u8, to, 0, offset, value)
    }

    /// Leaves out `count` instructions if `register > other`, without sign.
    pub const fn skip_if_greater(register: u8, other: u8, count: i16) -> Self {
        Self::new(0x2d, register, other, count, 0)
    }

    /// Leaves out `count` instructions if `register` is `value`.
    pub const fn skip_if(register: u8, value: i32, count: i16) -> Self {
        Self::new(0x15, register, 0, count, value)
    }

    /// Leaves out `count` instructions.
    pub const fn skip(count: i16) -> Self {
        Self::new(0x05, 0, 0, count, 0)
    }

    /// `register += value`.
    pub const fn add(register: u8, value: i32) -> Self {
        Self::new(0x07, register, 0, 0, value)
    }

    /// Calls the helper function with this number (linux/bpf.h).
    pub const fn call(helper: i32) -> Self {
        Self::new(0x85, 0, 0, 0, helper)
    }

    /// Goes on with the next instruction only if `register` is zero, else leaves out `count` of them.
    pub const fn skip_unless_zero(register: u8, count: i16) -> Self {
        Self::new(0x55, register, 0, count, 0)
    }

    /// `register = table`; two words.
    pub fn load_table(register: u8, table: &ProgramTable) -> [Self; 2] {
        let descriptor = table.0.as_raw_fd();
        [Self::new(0x18, register, BPF_PSEUDO_MAP_FD, 0, descriptor), Self::new(0, 0, 0, 0, 0)]
    }

    const fn new(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Self {
        let registers = (to | from << 4) as u64;
        let (offset, immediate) = (offset.cast_unsigned() as u64, immediate.cast_unsigned() as u64);
        Self(code as u64 | registers << 8 | offset << 16 | immediate << 32)
    }
}

/// How many bytes an instruction moves.
#[derive(Clone, Copy, Debug)]
pub enum Size {
    /// One.
    Byte = 0x10,
    /// Two.
    Half = 0x08,
    /// Four.
    Word = 0x00,
    /// Eight.
    Double = 0x18,
}

/// A loaded XDP program.
#[derive(Debug)]
pub struct Program(OwnedFd);

impl Program {
    /// Loads `instructions`; `name` is what `bpftool prog` shows, of at most 15 bytes.
    ///
    /// # Errors
    /// The kernel's refusal; the verifier's reasons are not kept.
    pub fn load(name: &str, instructions: &[Instruction]) -> io::Result<Self> {
        let mut prog_name = [0; 16];
        prog_name.iter_mut().take(15).zip(name.bytes()).for_each(|(to, byte)| *to = byte);
        let words: Vec<u64> = instructions.iter().map(|instruction| instruction.0).collect();
        let mut attribute = ProgramLoad {
            prog_type: BPF_PROG_TYPE_XDP,
            insn_cnt: u32::try_from(words.len()).map_err(io::Error::other)?,
            insns: words.as_ptr().addr() as u64,
            license: LICENSE.as_ptr().addr() as u64,
            log_level: 0,
            log_size: 0,
            log_buf: 0,
            kern_version: 0,
            // As the load balancer's own: programs jump only to their like.
            prog_flags: BPF_F_XDP_HAS_FRAGS,
            prog_name,
            prog_ifindex: 0,
            expected_attach_type: BPF_XDP,
        };
        // SAFETY: the attribute is that of the command; words and licence outlive the call, which only reads them.
        unsafe { descriptor(BPF_PROG_LOAD, &mut attribute) }.map(Self)
    }

    /// Attaches the program to an interface of the caller's namespace, in native mode, for as long as the result lives.
    ///
    /// # Errors
    /// The kernel's refusal: the driver has no native mode, or another program is there.
    pub fn attach(&self, ifindex: u32) -> io::Result<OwnedFd> {
        let mut attribute = LinkCreate {
            prog_fd: unsigned(self.0.as_raw_fd())?,
            target_ifindex: ifindex,
            attach_type: BPF_XDP,
            flags: XDP_FLAGS_DRV_MODE,
        };
        // SAFETY: the attribute is that of the command and holds no address.
        unsafe { descriptor(BPF_LINK_CREATE, &mut attribute) }
    }

    /// Runs the program once on `frame`, as if it had come in by the loopback device of the caller's namespace, and puts
    /// the frame that it leaves into `output`. Returns the verdict (`enum xdp_action`) and that frame's length in bytes.
    ///
    /// # Errors
    /// The kernel's refusal: EINVAL for a frame of less than 14 bytes or too long for a page, ENOSPC for a short `output`.
    pub fn test_run(&self, frame: &[u8], output: &mut [u8]) -> io::Result<(u32, usize)> {
        let mut attribute = self.run_on(frame)?;
        attribute.data_size_out = u32::try_from(output.len()).map_err(io::Error::other)?;
        attribute.data_out = output.as_mut_ptr().expose_provenance() as u64;
        // SAFETY: the attribute is that of the command; the kernel reads data_size_in bytes of `frame` and writes at most
        // data_size_out bytes of `output`, which is borrowed exclusively.
        unsafe { bpf(BPF_PROG_TEST_RUN, &mut attribute) }?;
        Ok((attribute.retval, usize::try_from(attribute.data_size_out).map_err(io::Error::other)?))
    }

    /// Runs the program `repeat` times on `frame`, which each run leaves to the next as it is. Returns the last verdict.
    ///
    /// # Errors
    /// As [`Program::test_run`].
    pub fn test_runs(&self, frame: &[u8], repeat: u32) -> io::Result<u32> {
        let mut attribute = TestRun { repeat, ..self.run_on(frame)? };
        // SAFETY: the attribute is that of the command; the kernel reads data_size_in bytes of `frame`.
        unsafe { bpf(BPF_PROG_TEST_RUN, &mut attribute) }?;
        Ok(attribute.retval)
    }

    /// As [`Program::test_run`], but the kernel does what the verdict says: a redirected frame leaves.
    ///
    /// # Errors
    /// The kernel's refusal; a frame that can't be redirected is no error.
    pub fn live_run(&self, frame: &[u8]) -> io::Result<()> {
        let mut attribute = self.run_on(frame)?;
        attribute.flags = BPF_F_TEST_XDP_LIVE_FRAMES;
        // SAFETY: the attribute is that of the command; the kernel reads data_size_in bytes of `frame`.
        unsafe { bpf(BPF_PROG_TEST_RUN, &mut attribute) }?;
        Ok(())
    }

    fn run_on(&self, frame: &[u8]) -> io::Result<TestRun> {
        Ok(TestRun {
            prog_fd: unsigned(self.0.as_raw_fd())?,
            retval: 0,
            data_size_in: u32::try_from(frame.len()).map_err(io::Error::other)?,
            data_size_out: 0,
            data_in: frame.as_ptr().addr() as u64,
            data_out: 0,
            repeat: 1,
            duration: 0,
            ctx_size_in: 0,
            ctx_size_out: 0,
            ctx_in: 0,
            ctx_out: 0,
            flags: 0,
            cpu: 0,
        })
    }
}

/// A table of one program, for another one to jump to (`bpf_tail_call`).
#[derive(Debug)]
pub struct ProgramTable(OwnedFd);

impl ProgramTable {
    /// A table that holds `program` at index 0.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn of(program: BorrowedFd<'_>) -> io::Result<Self> {
        let mut create =
            MapCreate { map_type: BPF_MAP_TYPE_PROG_ARRAY, key_size: 4, value_size: 4, max_entries: 1, map_flags: 0 };
        // SAFETY: the attribute is that of the command and holds no address.
        let table = unsafe { descriptor(BPF_MAP_CREATE, &mut create) }?;
        let (key, value) = (0_u32, program.as_raw_fd());
        let mut update = MapUpdate {
            map_fd: unsigned(table.as_raw_fd())?,
            _padding: 0,
            key: (&raw const key).addr() as u64,
            value: (&raw const value).addr() as u64,
            flags: 0,
        };
        // SAFETY: the attribute is that of the command; key and value have the sizes given above and outlive the call.
        unsafe { bpf(BPF_MAP_UPDATE_ELEM, &mut update) }?;
        Ok(Self(table))
    }
}

/// The part of `union bpf_attr` for BPF_MAP_CREATE (linux/bpf.h), like those below.
#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
}

/// BPF_MAP_UPDATE_ELEM.
#[repr(C)]
struct MapUpdate {
    map_fd: u32,
    _padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// BPF_PROG_LOAD, up to the attach type.
#[repr(C)]
struct ProgramLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    /// A program may jump only to one that was loaded with the same.
    expected_attach_type: u32,
}

/// BPF_PROG_TEST_RUN, up to the CPU.
#[repr(C)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
}

/// BPF_LINK_CREATE.
#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
}

fn unsigned(descriptor: i32) -> io::Result<u32> {
    u32::try_from(descriptor).map_err(io::Error::other)
}

/// bpf(2) for commands that return a new descriptor.
///
/// # Safety
/// As for [`bpf`], and `command` is one of those.
unsafe fn descriptor<T>(command: libc::c_int, attribute: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise.
    let returned = unsafe { bpf(command, attribute) }?;
    // SAFETY: the kernel has just returned this descriptor, close-on-exec, and nothing else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(returned) })
}

/// bpf(2).
///
/// # Safety
/// `attribute` has the layout of `command`, and every address in it is valid for what the kernel does with it.
unsafe fn bpf<T>(command: libc::c_int, attribute: &mut T) -> io::Result<i32> {
    let attribute: *mut T = attribute;
    // SAFETY: pointer and size are of one live attribute; the rest is the caller's promise.
    let returned = unsafe { libc::syscall(libc::SYS_bpf, command, attribute, size_of::<T>()) };
    if returned < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(returned).map_err(io::Error::other)
}
