//! What the command line and the running daemon say to each other, over a Unix socket.

pub mod client;
pub mod protocol;
pub mod server;
