//! A list of prefixes as the lines of map `prefixes`, in which a look-up takes as long whatever the prefixes are. Pure.
//!
//! Prefixes become ranges, each with what holds for it, in a static B-tree: five lines of 64 bytes are read for 3,300 to
//! 20,000 prefixes of IPv4, or of at most 64 bits.

use ipnet::IpNet;
use lb_common::net::Address;
use lb_common::prefix::{self, CHILDREN, LEAF_SEPARATORS, NO_SEPARATOR, PrefixLine, value};

use crate::model::{Access, AccessList};

/// The lines of a list, to be written one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrefixTree {
    lines: Vec<PrefixLine>,
}

/// From which number on a value holds, until the next range.
type Range<N> = (N, u32);

impl PrefixTree {
    /// The tree of `list`.
    pub fn new(list: &AccessList) -> Self {
        let mut tree = Self { lines: Vec::new() };
        let header = tree.reserve(1);
        let ranges = ranges(list);
        let is_ipv6 = list.prefixes().any(|(prefix, _)| matches!(prefix, IpNet::V6(_)));
        let halves = if is_ipv6 {
            tree.halves(&ranges)
        } else {
            ranges.iter().map(|(start, value)| (low(*start), *value)).collect()
        };
        tree.table(header, &halves);
        tree
    }

    /// The lines; the table for whole addresses of IPv4, and first halves of IPv6, is the first.
    pub fn lines(&self) -> &[PrefixLine] {
        &self.lines
    }

    /// Whether the client at `address` is served, by the look-up that packets do.
    pub fn permits(&self, address: Address) -> bool {
        let find = |table, number| {
            let line = |line: u32| self.lines.get(usize::try_from(line).ok()?);
            let negative = |word: u64| (word.cast_signed() >> 63).cast_unsigned();
            prefix::find(0, table, number, line, negative).unwrap_or(value::DENIED)
        };
        let whole = u128::from_be_bytes(address.octets);
        let (first, second) = (low(whole >> 64), low(whole));
        let found = find(0, if address.is_ipv4() { second & u64::from(u32::MAX) } else { first });
        let found = match found & value::SECOND_HALF {
            0 => found,
            _ => find(found & !value::SECOND_HALF, second),
        };
        found == value::PERMITTED
    }

    /// The ranges of the first halves of addresses, where that of one that is divided leads to a table of its own.
    fn halves(&mut self, ranges: &[Range<u128>]) -> Vec<Range<u64>> {
        let mut halves: Vec<Range<u64>> = Vec::new();
        let mut before = value::PERMITTED;
        for within in ranges.chunk_by(|(one, _), (other, _)| one >> 64 == other >> 64) {
            let [(start, found), ..] = within else { continue };
            let first = low(*start >> 64);
            let last = within.last().map_or(*found, |(_, found)| *found);
            if within.len() == 1 && low(*start) == 0 {
                push(&mut halves, first, last);
            } else {
                let mut second: Vec<Range<u64>> = Vec::new();
                push(&mut second, 0, before);
                within.iter().for_each(|(start, found)| push(&mut second, low(*start), *found));
                let header = self.reserve(1);
                self.table(header, &second);
                push(&mut halves, first, header | value::SECOND_HALF);
                if let Some(next) = first.checked_add(1) {
                    push(&mut halves, next, last);
                }
            }
            before = last;
        }
        halves
    }

    /// Writes the table of `ranges`, of which the first begins at 0, with its header at line `header`.
    fn table(&mut self, header: u32, ranges: &[Range<u64>]) {
        let (lower, upper) = ranges.split_at(ranges.partition_point(|(start, _)| *start <= NO_SEPARATOR));
        let mut upper: Vec<Range<u64>> = upper.iter().map(|(start, found)| (start & NO_SEPARATOR, *found)).collect();
        if upper.first().is_none_or(|(start, _)| *start != 0) {
            upper.insert(0, (0, lower.last().map_or(value::DENIED, |(_, found)| *found)));
        }
        let roots = [self.tree(lower), self.tree(&upper)];
        self.set(header, roots);
    }

    /// Writes the tree of `ranges`, of which the first begins at 0 and none beyond 63 bits; the word that leads to it.
    fn tree(&mut self, ranges: &[Range<u64>]) -> u64 {
        let leaves: Vec<&[Range<u64>]> = ranges.chunks(LEAF_SEPARATORS + 1).collect();
        let count = u32::try_from(leaves.len()).unwrap_or(u32::MAX);
        let depth = (0..).find(|depth| CHILDREN.pow(*depth) >= count).unwrap_or(0);
        let root = self.reserve(inner_nodes(depth));
        for level in 0..depth {
            // Leaves below a child of a node of this level.
            let leaves_below = CHILDREN.pow(depth - level - 1);
            for node in 0..CHILDREN.pow(level) {
                let separators: [u64; 8] = std::array::from_fn(|child| {
                    let child = u32::try_from(child).unwrap_or(0) + 1;
                    let first = usize::try_from((node * CHILDREN + child) * leaves_below).ok();
                    let leaf = first.and_then(|first| leaves.get(first)).copied().unwrap_or_default();
                    leaf.first().map_or(NO_SEPARATOR, |(start, _)| start - 1)
                });
                self.set(root + inner_nodes(level) + node, separators);
            }
        }
        self.lines.extend(leaves.into_iter().map(leaf));
        prefix::root(root, depth)
    }

    /// Appends lines without separators; the first one's number.
    fn reserve(&mut self, lines: u32) -> u32 {
        let first = self.lines.len();
        self.lines.extend((0..lines).map(|_| PrefixLine { words: [NO_SEPARATOR; 8] }));
        u32::try_from(first).unwrap_or(u32::MAX)
    }

    fn set<const N: usize>(&mut self, line: u32, words: [u64; N]) {
        if let Some(line) = self.lines.get_mut(usize::try_from(line).unwrap_or(usize::MAX)) {
            line.words.iter_mut().zip(words).for_each(|(to, word)| *to = word);
        }
    }
}

/// Inner nodes of a tree of this depth, and so the number of the first node below them.
fn inner_nodes(depth: u32) -> u32 {
    (CHILDREN.pow(depth) - 1) / (CHILDREN - 1)
}

/// The line of a leaf with at most six ranges.
fn leaf(ranges: &[Range<u64>]) -> PrefixLine {
    let mut separators = [NO_SEPARATOR; LEAF_SEPARATORS];
    let mut values = [0_u32; LEAF_SEPARATORS + 1];
    separators.iter_mut().zip(ranges.iter().skip(1)).for_each(|(to, (start, _))| *to = start - 1);
    let before = std::iter::once(0).chain(ranges.iter().map(|(_, found)| *found));
    values.iter_mut().zip(ranges.iter().zip(before)).for_each(|(to, ((_, found), before))| *to = found ^ before);
    let [a, b, c, d, e] = separators;
    let [first, one, two, three, four, five] = values.map(u64::from);
    PrefixLine { words: [a, b, c, d, e, first | one << 32, two | three << 32, four | five << 32] }
}

/// What `list` says of all addresses, IPv4 in the lowest 32 bits: the first range begins at 0, and neighbours differ.
fn ranges(list: &AccessList) -> Vec<Range<u128>> {
    let otherwise = value_of(list.otherwise());
    let mut ranges = Vec::new();
    push(&mut ranges, 0, otherwise);
    // The last addresses of the prefixes that the present one is in, and their values.
    let mut around: Vec<(u128, u32)> = Vec::new();
    let leave = |around: &mut Vec<(u128, u32)>, ranges: &mut Vec<Range<u128>>, before: Option<u128>| {
        while let Some((last, _)) = around.pop_if(|(last, _)| before.is_none_or(|before| *last < before)) {
            let found = around.last().map_or(otherwise, |(_, found)| *found);
            if let Some(next) = last.checked_add(1) {
                push(ranges, next, found);
            }
        }
    };
    for (prefix, access) in list.prefixes() {
        let (first, last) = (number(prefix.network()), number(prefix.broadcast()));
        leave(&mut around, &mut ranges, Some(first));
        around.push((last, value_of(access)));
        push(&mut ranges, first, value_of(access));
    }
    leave(&mut around, &mut ranges, None);
    ranges
}

/// Appends a range, or lets the last one have another value that begins at the same number.
fn push<N: PartialEq>(ranges: &mut Vec<Range<N>>, start: N, found: u32) {
    ranges.pop_if(|(last, _)| *last == start);
    if ranges.last().is_none_or(|(_, before)| *before != found) {
        ranges.push((start, found));
    }
}

fn number(address: std::net::IpAddr) -> u128 {
    match address {
        std::net::IpAddr::V4(v4) => v4.to_bits().into(),
        std::net::IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// The lower half.
#[expect(clippy::cast_possible_truncation, reason = "the other half is what is to go")]
const fn low(number: u128) -> u64 {
    number as u64
}

fn value_of(access: Access) -> u32 {
    match access {
        Access::Permitted => value::PERMITTED,
        Access::Denied => value::DENIED,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    /// Lengths from the longest down, until one of them has the address.
    fn permits(prefixes: &BTreeMap<IpNet, Access>, address: IpAddr) -> bool {
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let found = (0..=longest).rev().find_map(|length| prefixes.get(&IpNet::new(address, length).unwrap().trunc()));
        let allows = prefixes.values().any(|access| *access == Access::Permitted);
        *found.unwrap_or(if allows { &Access::Denied } else { &Access::Permitted }) == Access::Permitted
    }

    /// Few bits vary, so that prefixes lie in each other and side by side, at both ends of each half too.
    fn address(ipv6: bool) -> impl Strategy<Value = IpAddr> {
        let word =
            prop_oneof![Just(0_u32), Just(u32::MAX), Just(0x8000_0000), Just(0x7fff_ffff), 0_u32..4, any::<u32>()];
        prop::array::uniform4(word).prop_map(move |words| {
            let [a, b, c, d] = words.map(u128::from);
            let bits = a << 96 | b << 64 | c << 32 | d;
            if ipv6 { Ipv6Addr::from_bits(bits).into() } else { Ipv4Addr::from_bits(words[0]).into() }
        })
    }

    fn prefix(ipv6: bool) -> impl Strategy<Value = (IpNet, Access)> {
        let longest = if ipv6 { 128_u8 } else { 32 };
        let length = prop_oneof![Just(0), Just(longest), Just(longest / 2), 0..=longest];
        let access = prop_oneof![3 => Just(Access::Denied), 1 => Just(Access::Permitted)];
        (address(ipv6), length, access)
            .prop_map(|(address, length, access)| (IpNet::new(address, length).unwrap().trunc(), access))
    }

    /// A list, and clients of whom some are at the edges of its prefixes.
    fn case(ipv6: bool) -> impl Strategy<Value = (BTreeMap<IpNet, Access>, Vec<IpAddr>)> {
        let prefixes = prop::collection::btree_map(address(ipv6), any::<u8>(), 0..1).prop_flat_map(move |_| {
            prop::collection::vec(prefix(ipv6), 0..200).prop_map(|all| all.into_iter().collect::<BTreeMap<_, _>>())
        });
        (prefixes, prop::collection::vec(address(ipv6), 20)).prop_map(|(prefixes, mut clients)| {
            for prefix in prefixes.keys() {
                let edges = [number(prefix.network()), number(prefix.broadcast())];
                let beside = edges.into_iter().flat_map(|edge| [edge.wrapping_sub(1), edge, edge.wrapping_add(1)]);
                clients.extend(beside.map(|bits| match prefix {
                    IpNet::V4(_) => Ipv4Addr::from_bits((bits & 0xffff_ffff).try_into().unwrap()).into(),
                    IpNet::V6(_) => IpAddr::from(Ipv6Addr::from_bits(bits)),
                }));
            }
            (prefixes, clients)
        })
    }

    fn is_as_naive((prefixes, clients): (BTreeMap<IpNet, Access>, Vec<IpAddr>)) -> Result<(), TestCaseError> {
        let tree = PrefixTree::new(&AccessList::new(prefixes.clone()));
        for client in clients.into_iter().filter(|client| !is_mapped(*client)) {
            prop_assert_eq!(tree.permits(client.into()), permits(&prefixes, client), "{} in {:?}", client, &prefixes);
        }
        Ok(())
    }

    /// In the maps such an address is the IPv4 address.
    fn is_mapped(address: IpAddr) -> bool {
        matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some())
    }

    proptest! {
        #[test]
        fn the_longest_prefix_of_ipv4_wins(case in case(false)) {
            is_as_naive(case)?;
        }

        #[test]
        fn the_longest_prefix_of_ipv6_wins(case in case(true)) {
            is_as_naive(case)?;
        }
    }

    /// Numbers without a pattern, the same in every run.
    fn scattered(count: u64) -> impl Iterator<Item = u64> {
        (0..count).map(|n| lb_common::hash::mix(n + 1))
    }

    #[test]
    fn ten_thousand_prefixes_take_five_lines_a_look_up_and_no_more_memory_than_the_documents_say() {
        let deny = |prefix: IpNet| (prefix.trunc(), Access::Denied);
        let v4 = |random: u64| {
            let [a, b, c, d, length, ..] = random.to_le_bytes();
            deny(IpNet::new(Ipv4Addr::new(a, b, c, d).into(), 16 + length % 17).unwrap())
        };
        let v6 = |random: u64, length: u8| {
            let bits = u128::from(random) << 64 | u128::from(random.rotate_left(17));
            deny(IpNet::new(Ipv6Addr::from_bits(bits).into(), length).unwrap())
        };
        let lists = [
            ("v4", scattered(10_000).map(v4).collect(), 64),
            ("v6 networks", scattered(10_000).map(|random| v6(random, 32 + (random % 33) as u8)).collect(), 64),
            ("v6 hosts", scattered(10_000).map(|random| v6(random, 128)).collect::<BTreeMap<_, _>>(), 256),
        ];
        for (what, prefixes, bytes) in lists {
            let tree = PrefixTree::new(&AccessList::new(prefixes.clone()));
            let (count, lines) = (prefixes.len(), tree.lines().len());
            assert!(count > 9_000 && lines * 64 <= count * bytes, "{what}: {lines} lines for {count} prefixes");
            for (prefix, _) in prefixes.iter().step_by(97) {
                for client in [prefix.network(), prefix.broadcast()] {
                    assert_eq!(tree.permits(client.into()), permits(&prefixes, client), "{what}: {client}");
                }
            }
            let [low, high, ..] = tree.lines()[0].words;
            assert!(low >> 32 <= 4 && high >> 32 <= 4, "{what}: inner levels {}, {}", low >> 32, high >> 32);
        }
    }

    #[test]
    fn a_list_of_nothing_permits_everybody() {
        let tree = PrefixTree::new(&AccessList::new(BTreeMap::new()));
        assert!(tree.permits(IpAddr::V4(Ipv4Addr::BROADCAST).into()));
        assert!(tree.permits(IpAddr::V6(Ipv6Addr::LOCALHOST).into()));
    }
}
