//! What TCP's flags say of a connection, as far as the packets that pass here tell.

use lb_common::connection::State;

use crate::parse::tcp_flag::{ACK, FIN, RST, SYN};

/// Who sent a segment.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    Client,
    Server,
}

/// Whether a segment asks for a new connection.
#[inline(always)]
pub fn is_opening(flags: u8) -> bool {
    flags & (SYN | ACK | RST | FIN) == SYN
}

/// Whether a segment accepts a new connection.
#[inline(always)]
pub fn is_accepting(flags: u8) -> bool {
    flags & (SYN | ACK) == SYN | ACK
}

/// Whether a segment is one of a connection that goes on.
#[inline(always)]
pub fn is_under_way(flags: u8) -> bool {
    flags & (ACK | RST | FIN) == ACK
}

/// The state of a connection after a segment.
#[inline(always)]
pub fn after(state: u8, flags: u8, sender: Sender) -> u8 {
    if flags & (SYN | RST | FIN) == 0 {
        return match (state, sender) {
            (_, Sender::Client) if is_half_open(state) && flags & ACK != 0 => State::SETTLING,
            (State::SETTLING, Sender::Client) => State::ESTABLISHED,
            _ => state,
        };
    }
    if flags & RST != 0 {
        return State::CLOSED;
    }
    if flags & FIN == 0 {
        return state;
    }
    match (state, sender) {
        (State::CLIENT_FIN, Sender::Server) | (State::SERVER_FIN, Sender::Client) => State::BOTH_FIN,
        _ if State::is_closing(state) => state,
        (_, Sender::Client) => State::CLIENT_FIN,
        (_, Sender::Server) => State::SERVER_FIN,
    }
}

/// Of the states of TCP and SCTP, the two of this class: nothing has followed SYN or INIT.
#[inline(always)]
fn is_half_open(state: u8) -> bool {
    State::class(state) == 2
}
