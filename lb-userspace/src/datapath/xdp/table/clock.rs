//! The packet path's time, read in user space.
//!
//! Connections are timed in jiffies, of which user space has no clock: the coarse clocks count from elsewhere and are slewed.
//! A program that returns the packet path's tick is run through the kernel's test interface instead, which takes about 1 µs.

use aya::Ebpf;
use aya::programs::{ProgramError, TestRun as _, TestRunOptions, Xdp};

use crate::datapath::xdp::object::{self, LoadError, LoadOptions};

/// The program's name in the object.
const PROGRAM: &str = "tick";
/// The kernel takes no frame that is shorter than an Ethernet header.
const FRAME: [u8; 14] = [0; 14];

/// A loaded clock. Attached nowhere and pinned nowhere.
pub struct Clock(Ebpf);

/// Why the time could not be told.
#[derive(Debug, thiserror::Error)]
#[error("cannot run XDP program {PROGRAM}, which tells the time")]
pub struct ClockError(#[source] ProgramError);

impl Clock {
    /// Loads the program.
    ///
    /// # Errors
    ///
    /// As [`LoadError`] tells.
    pub fn load() -> Result<Self, LoadError> {
        object::load(PROGRAM, &[], &LoadOptions::SMALLEST).map(Self)
    }

    /// The coarse tick now: jiffies / 256, modulo 65,536.
    ///
    /// # Errors
    ///
    /// When the kernel does not run the program.
    pub fn tick(&self) -> Result<u16, ClockError> {
        let program = self.0.program(PROGRAM).and_then(|program| <&Xdp>::try_from(program).ok());
        let program = program.ok_or(ClockError(ProgramError::NotLoaded))?;
        let options = TestRunOptions { data_in: Some(&FRAME), ..TestRunOptions::default() };
        let [low, high, ..] = program.test_run(options).map_err(ClockError)?.return_value.to_le_bytes();
        Ok(u16::from_le_bytes([low, high]))
    }
}
