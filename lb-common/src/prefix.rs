//! Allowed and denied prefixes as they lie in map `prefixes`: trees of ranges, and the look-up in them.
//!
//! A table says for each number of 64 bits what it leads to. Of IPv4 that is the address; of IPv6 the first half of the
//! address, and where a longer prefix needs the second half, the first leads to a table for it. How a table is built is user
//! space's affair; the look-up is here, so that what the packet path does is tested against a naive one.

/// Value of `prefixes`: a cache line. A run of them is a table, or several of which the first leads to the others.
///
/// The first line of a table is its header, with a [`root`] in each of its first two words. An inner node has eight separators.
/// A leaf has five, then in 32 bits each the value below the first, and by what exclusive or each separator changes it. A
/// separator is one less than where the next range begins; unused ones are [`NO_SEPARATOR`].
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefixLine {
    /// See above.
    pub words: [u64; 8],
}

const _: () = assert!(size_of::<PrefixLine>() == 64);

/// Children of an inner node.
pub const CHILDREN: u32 = 9;

/// Most levels of inner nodes: leaves for three million ranges.
pub const DEPTH_MAX: u32 = 6;

/// Separators of a leaf.
pub const LEAF_SEPARATORS: usize = 5;

/// Above every number that is looked for.
pub const NO_SEPARATOR: u64 = i64::MAX as u64;

/// A table's values.
pub mod value {
    /// The client is served.
    pub const PERMITTED: u32 = 0;
    /// It is not.
    pub const DENIED: u32 = 1;
    /// The other bits are the line of a table for the second half of the address, counted from the run's first.
    pub const SECOND_HALF: u32 = 1 << 31;
}

/// The word of a header that leads to a tree: line of its root, counted from the run's first, and levels of inner nodes.
pub const fn root(line: u32, depth: u32) -> u64 {
    line as u64 | (depth as u64) << 32
}

/// Line and depth of the tree for numbers whose first bit is that of `number`: separators have 63 bits.
#[inline(always)]
fn root_of(header: &PrefixLine, number: u64) -> (u32, u32) {
    let [low, high, ..] = header.words;
    let word = if number >> 63 == 0 { low } else { high };
    (lower(word), lower(word >> 32))
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the other half is what is to go")]
const fn lower(word: u64) -> u32 {
    word as u32
}

/// What `number` leads to by the table at line `table` of the run that begins at line `start`; `None` where a line is missing.
///
/// `line` reads the map; `negative` is all ones of a negative number, else zero, and must not become a branch, which would be
/// mispredicted at every level.
#[inline(always)]
pub fn find<'m>(
    start: u32,
    table: u32,
    number: u64,
    line: impl Fn(u32) -> Option<&'m PrefixLine>,
    negative: impl Fn(u64) -> u64,
) -> Option<u32> {
    let (root, depth) = root_of(line(start.wrapping_add(table))?, number);
    let first = start.wrapping_add(root);
    let number = number & NO_SEPARATOR;
    let mut node = 0_u32;
    let mut level = 0;
    while level < DEPTH_MAX && level < depth {
        let mut below = 0_u64;
        for separator in &line(first.wrapping_add(node))?.words {
            below = below.wrapping_sub(negative(separator.wrapping_sub(number)));
        }
        node = node.wrapping_mul(CHILDREN).wrapping_add(1).wrapping_add(lower(below));
        level += 1;
    }
    let [a, b, c, d, e, one, two, three] = line(first.wrapping_add(node))?.words;
    let changes = [lower(one >> 32), lower(two), lower(two >> 32), lower(three), lower(three >> 32)];
    let mut found = lower(one);
    for (separator, change) in [a, b, c, d, e].into_iter().zip(changes) {
        found ^= change & lower(negative(separator.wrapping_sub(number)));
    }
    Some(found)
}
