//! How far a connection has come, from the packets of either side.

use lb_common::connection::State as Number;

use super::super::frame::{ACK, FIN, RST, SYN};

/// The state of a connection or of a persistence template.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    Opening,
    SctpOpening,
    UdpNew,
    TemplateNew,
    ClientFin,
    ServerFin,
    BothFin,
    Closed,
    Settling,
    Established,
    Udp,
    Template,
    UdpDirect,
}

/// Who sent a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Client,
    Server,
}

/// Which of a real server's two counts a connection is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    Active,
    Inactive,
}

impl State {
    pub const ALL: [Self; 13] = [
        Self::Opening,
        Self::SctpOpening,
        Self::UdpNew,
        Self::TemplateNew,
        Self::ClientFin,
        Self::ServerFin,
        Self::BothFin,
        Self::Closed,
        Self::Settling,
        Self::Established,
        Self::Udp,
        Self::Template,
        Self::UdpDirect,
    ];

    /// Its number in the table.
    pub fn number(self) -> u8 {
        match self {
            Self::Opening => Number::OPENING,
            Self::SctpOpening => Number::SCTP_OPENING,
            Self::UdpNew => Number::UDP_NEW,
            Self::TemplateNew => Number::TEMPLATE_NEW,
            Self::ClientFin => Number::CLIENT_FIN,
            Self::ServerFin => Number::SERVER_FIN,
            Self::BothFin => Number::BOTH_FIN,
            Self::Closed => Number::CLOSED,
            Self::Settling => Number::SETTLING,
            Self::Established => Number::ESTABLISHED,
            Self::Udp => Number::UDP,
            Self::Template => Number::TEMPLATE,
            Self::UdpDirect => Number::UDP_DIRECT,
        }
    }

    /// The state with this number.
    pub fn numbered(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.number() == number)
    }

    /// How well it is protected from newcomers: 2 half-open, 3 closing, 4 established by one packet, 5 by more.
    pub fn class(self) -> u8 {
        match self {
            Self::Opening | Self::SctpOpening | Self::UdpNew | Self::TemplateNew => 2,
            Self::ClientFin | Self::ServerFin | Self::BothFin | Self::Closed => 3,
            Self::Settling => 4,
            Self::Established | Self::Udp | Self::Template | Self::UdpDirect => 5,
        }
    }

    pub fn is_template(self) -> bool {
        matches!(self, Self::TemplateNew | Self::Template)
    }

    /// Whether the client may open the connection anew.
    pub fn is_closing(self) -> bool {
        matches!(self, Self::ClientFin | Self::ServerFin | Self::BothFin | Self::Closed)
    }

    /// Which count it is in; templates are in none.
    pub fn counts(self) -> Option<Count> {
        match self {
            Self::Opening | Self::Settling | Self::Established => Some(Count::Active),
            Self::TemplateNew | Self::Template => None,
            Self::SctpOpening
            | Self::UdpNew
            | Self::ClientFin
            | Self::ServerFin
            | Self::BothFin
            | Self::Closed
            | Self::Udp
            | Self::UdpDirect => Some(Count::Inactive),
        }
    }

    /// The state after a TCP segment with `flags`, or a UDP datagram, of `side`.
    pub fn after(self, side: Side, flags: u8) -> Self {
        match self {
            Self::UdpNew | Self::UdpDirect if side == Side::Client => Self::Udp,
            Self::UdpNew | Self::UdpDirect | Self::Udp | Self::TemplateNew | Self::Template | Self::Closed => self,
            _ if flags & RST != 0 => Self::Closed,
            _ if flags & FIN != 0 => self.after_fin(side),
            Self::Opening | Self::SctpOpening if side == Side::Client && flags & (SYN | ACK) == ACK => Self::Settling,
            Self::Settling if side == Side::Client && flags & SYN == 0 => Self::Established,
            _ => self,
        }
    }

    fn after_fin(self, side: Side) -> Self {
        match (self, side) {
            (Self::Opening | Self::SctpOpening | Self::Settling | Self::Established, Side::Client) => Self::ClientFin,
            (Self::Opening | Self::SctpOpening | Self::Settling | Self::Established, Side::Server) => Self::ServerFin,
            (Self::ClientFin, Side::Server) | (Self::ServerFin, Side::Client) => Self::BothFin,
            _ => self,
        }
    }
}

/// Whether a TCP segment asks for a connection: SYN, and none of ACK, RST, FIN.
pub fn is_opening(flags: u8) -> bool {
    flags & (SYN | ACK | RST | FIN) == SYN
}

/// The whole life of a connection that both sides close in order.
#[test]
fn a_connection_opens_settles_and_closes_from_both_sides() {
    let steps = [
        (Side::Server, SYN | ACK, State::Opening),
        (Side::Client, ACK, State::Settling),
        (Side::Server, ACK, State::Settling),
        (Side::Client, ACK, State::Established),
        (Side::Client, FIN | ACK, State::ClientFin),
        (Side::Client, ACK, State::ClientFin),
        (Side::Server, FIN | ACK, State::BothFin),
        (Side::Server, RST, State::Closed),
        (Side::Client, FIN, State::Closed),
    ];
    let mut state = State::Opening;
    for (side, flags, expected) in steps {
        state = state.after(side, flags);
        assert_eq!(state, expected, "after {flags:#x} of the {side:?}");
    }
}

#[test]
fn only_a_second_datagram_of_the_client_establishes_udp() {
    assert_eq!(State::UdpNew.after(Side::Server, 0), State::UdpNew);
    assert_eq!(State::UdpNew.after(Side::Client, 0), State::Udp);
    assert_eq!(State::Udp.after(Side::Client, 0), State::Udp);
}

#[test]
fn a_number_leads_back_to_its_state() {
    for state in State::ALL {
        assert_eq!(State::numbered(state.number()), Some(state));
        assert_eq!(state.number() >> 4, state.class());
    }
    assert_eq!(State::numbered(0), None);
}
