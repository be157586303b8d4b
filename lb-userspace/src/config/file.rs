//! Reading the configuration file; the only part of the configuration that touches anything.

use std::path::{Path, PathBuf};
use std::{fs, io};

use super::{Config, Diagnostics, not_utf8, parse_with};

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The file can be read, but not used.
    #[error(transparent)]
    Invalid(Diagnostics),
}

/// Reads and checks the file at `path`, and those that it names.
///
/// # Errors
/// [`LoadError::Read`] when the file cannot be read, [`LoadError::Invalid`] with all that is wrong in it.
pub fn load(path: &Path) -> Result<Config, LoadError> {
    let name = path.display().to_string();
    let bytes = fs::read(path).map_err(|source| LoadError::Read { path: path.to_owned(), source })?;
    match str::from_utf8(&bytes) {
        Ok(text) => parse_with(&name, text, &|path| fs::read_to_string(path)).map_err(LoadError::Invalid),
        Err(error) => Err(LoadError::Invalid(not_utf8(&name, &bytes, error.valid_up_to()))),
    }
}
