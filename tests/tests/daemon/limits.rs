//! Thresholds: how many connections a real server may have.

use anyhow::Result;
use evenkeel_tests::lab::{Arms, Crowd, Forwarding};

use crate::director::{lab, wait_until};
use crate::operated::{ECHO, ECHO4, Operated, Server, each, echoes, newcomers};

#[test]
fn a_full_real_server_takes_connections_again_below_its_lower_threshold() -> Result<()> {
    let Some(lab) = lab(Forwarding::Direct, Arms::One)? else { return Ok(()) };
    let _echoes = echoes(&lab, ECHO)?;
    let tcp = Server::tcp(ECHO4).real(1, "upper_threshold = 5\nlower_threshold = 3").reals([2]);
    // So that a closed connection is soon forgotten.
    let mut operated = Operated::start_with(&lab, "\n[timeouts]\ntcp_fin = \"1s\"\n", std::slice::from_ref(&tcp))?;
    let mut crowd = Crowd::connect(lab.client(), ECHO4, 20)?;
    assert_eq!(crowd.servers(), each(&[(1, 5), (2, 15)]));
    assert_eq!(operated.connections(&tcp, 1)?, [(5, 0)]);
    let forgotten =
        |left: u64| wait_until("the end of closed connections", || Ok(operated.connections(&tcp, 1)? == [(left, 0)]));
    crowd.close("real1", 2);
    forgotten(3)?;
    assert_eq!(newcomers(&lab, ECHO4, 6)?, each(&[(2, 6)]));
    crowd.close("real1", 1);
    forgotten(2)?;
    crowd.grow(lab.client(), ECHO4, 10)?;
    // Three more to five, and the rest to the other.
    assert_eq!(crowd.servers(), each(&[(1, 5), (2, 22)]));
    crowd.talk()?;
    assert_eq!(crowd.ended(), [].into());
    operated.stop()
}
