//! How full the connection table may be: connections come and go at the fill that `connections_max` stands for, and hardly
//! one finds no free slot in either of its buckets.

use evenkeel_tests::bpf::Program;
use lb_common::connection::{Bucket, State, Timeouts};
use lb_common::hash;
use lb_common::net::Protocol;
use lb_common::service::ForwardingMethod;
use lb_userspace::datapath::xdp::object::LoadOptions;
use lb_userspace::datapath::xdp::table::memory_maps::MappedTables;
use lb_userspace::datapath::xdp::table::scanner::{Constants, Scanner};
use lb_userspace::host::jiffies_per_second;

use super::bench::{Bench, OPTIONS, POISON, Verdict, in_namespace, run};
use super::frame::{ACK, Frame, RST, SYN};
use super::scene::{Family, INGRESS, real_server, service};

/// Live at once: 60 % of the slots.
const CONNECTIONS: u32 = 60_000;
/// How often as many as are live are exchanged for others.
const TURNOVERS: u32 = 3;
/// So many are exchanged at once, so the fill is 59 % on the average.
const BATCH: u32 = CONNECTIONS / 50;

/// What has had a RST is over with the next tick; nothing else ends.
const LOADED: LoadOptions = LoadOptions {
    connections_max: CONNECTIONS,
    wide_tuples: false,
    timeouts: Timeouts::new(60_000, 60_000, 60_000, 1, 60_000),
    ..OPTIONS
};

/// Offsets in a TCP segment over IPv4.
const SOURCE: usize = POISON.len() + 26;
const FLAGS: usize = POISON.len() + 47;

/// What sends segments of connections that are told apart by a number.
struct Clients<'a> {
    entrance: &'a Program,
    frame: Vec<u8>,
}

impl Clients<'_> {
    fn send(&mut self, number: u32, flags: u8) -> Verdict {
        let [_, a, b, c] = number.to_be_bytes();
        self.frame[SOURCE..SOURCE + 4].copy_from_slice(&[100, a, b, c]);
        self.frame[FLAGS] = flags;
        run(self.entrance, &self.frame).0
    }

    /// Until it is one that nothing displaces.
    fn open(&mut self, number: u32) {
        for flags in [SYN, ACK, ACK] {
            assert_eq!(self.send(number, flags), Verdict::Transmit, "connection {number}: also without a slot");
        }
    }

    /// Of one without a slot, the program may know nothing by now.
    fn close(&mut self, number: u32) {
        self.send(number, RST);
    }
}

#[test]
fn at_sixty_percent_fewer_than_one_newcomer_in_ten_thousand_finds_no_free_slot() {
    in_namespace(|| {
        let mut bench = Bench::load(&LOADED);
        bench.way(Family::V4, 1, INGRESS, 1500);
        let (service, method) = (service(Family::V4, Protocol::Tcp), ForwardingMethod::Dr);
        bench.serve(service, method, &[(real_server(Family::V4, method, 1), 1)]);
        let entrance = bench.entrance();
        let frame = Frame::tcp(Family::V4.client(40_000), service.address, SYN).bytes();
        let mut clients = Clients { entrance: &entrance, frame: [&POISON, frame.as_slice()].concat() };
        let tables = MappedTables::of(&bench.datapath).expect("can be mapped");
        let LoadOptions { timeouts, secret, .. } = LOADED;
        let mut scanner = Scanner::new(Constants { timeouts, secret, jiffies_per_second: jiffies_per_second() });

        let mut live: Vec<u32> = (0..CONNECTIONS).collect();
        live.iter().for_each(|number| clients.open(*number));
        let (mut newcomers, mut draws) = (CONNECTIONS, 0_u64);
        while newcomers < CONNECTIONS * (1 + TURNOVERS) {
            let first = newcomers;
            while newcomers < first + BATCH {
                draws += 1;
                let drawn = usize::try_from(hash::mix(draws) >> 32).expect("fits") % live.len();
                if live[drawn] >= first {
                    // Not opened yet.
                    continue;
                }
                clients.close(live[drawn]);
                live[drawn] = newcomers;
                newcomers += 1;
            }
            bench.age(3);
            let rounds = scanner.report().rounds;
            while scanner.report().rounds == rounds {
                scanner.slice(&tables.tables(), bench.tick());
            }
            (first..newcomers).for_each(|number| clients.open(number));
        }

        let counters = bench.datapath.table_counters().expect("can be read");
        println!("{newcomers} newcomers: {counters:?}");
        let without = counters.refused + counters.evicted_half_open + counters.evicted_closing + counters.lost_races;
        assert_eq!(counters.evicted_established, 0);
        assert!(without * 10_000 < u64::from(newcomers), "{without} of {newcomers} found no free slot");
        let established = (0..bench.buckets()).map(|index| {
            let bucket: Bucket = bench.get("connections", index);
            bucket.slots.iter().filter(|slot| slot.state == State::ESTABLISHED).count()
        });
        let established = u64::try_from(established.sum::<usize>()).expect("fits");
        assert!(established + without >= CONNECTIONS.into(), "{established} of {CONNECTIONS} are left");
    });
}
