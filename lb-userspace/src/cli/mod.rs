//! One file per subcommand. No parsing of arguments: that is `main`'s.

pub mod check;
