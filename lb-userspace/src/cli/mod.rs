//! One file per subcommand. No parsing of arguments: that is `main`'s.

pub mod check;
pub mod cleanup;
pub mod decap;
pub mod run;
pub mod status;
mod table;

use std::io;

/// Ends quietly where the reader of our output has gone away.
fn ignore_closed_pipe(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}
