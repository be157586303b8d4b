//! What was measured, as text for a terminal and as CSV. Pure.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, Table, presets};

use crate::cost::{Cost, Spread};
use crate::matrix::{Experiment, Kind, size};

/// A figure that was found, in nanoseconds above the empty program.
#[derive(Clone, Debug)]
pub struct Finding {
    pub experiment: Experiment,
    /// Of the program.
    pub table: Spread,
    /// Of the same program with its connections in an LRU_HASH.
    pub lru: Lru,
    /// Of one read, from user space, of memory as large as the connection table; `None` where that is small.
    pub floor: Option<Cost>,
    /// Of the empty program, the packets' making included.
    pub empty: Cost,
}

/// The control with an LRU_HASH.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lru {
    /// Not part of this experiment.
    None,
    /// It cost so much.
    Measured(Spread),
    /// It could not be measured, for this reason.
    Skipped(String),
}

impl Finding {
    /// What share of the control's cost the program's is, in percent.
    pub fn percent_of_lru(&self) -> Option<i64> {
        match &self.lru {
            Lru::Measured(lru) => self.table.median.percent_of(lru.median),
            Lru::None | Lru::Skipped(_) => None,
        }
    }

    /// Whether it keeps to its limits; `None` where it has none.
    pub fn keeps_limits(&self) -> Option<bool> {
        let own = self.experiment.limit().map(|limit| self.table.median.rounded() <= limit);
        let of_lru = self.experiment.limit_of_lru().zip(self.percent_of_lru()).map(|(limit, share)| share <= limit);
        match (own, of_lru) {
            (None, None) => None,
            (own, of_lru) => Some(own.unwrap_or(true) && of_lru.unwrap_or(true)),
        }
    }
}

/// Two tables, one of established connections and one of new ones, the notes, and how many limits were kept.
pub fn text(findings: &[Finding]) -> String {
    let mut text = String::new();
    const ABOVE_EMPTY: &str = "above the empty program";
    let tables = [
        ("established connections, in random order", ABOVE_EMPTY, vec![Kind::Established]),
        ("new connections", ABOVE_EMPTY, vec![Kind::New, Kind::FirstAck]),
        (
            "beside 10,000 denied prefixes",
            "above the same without them",
            vec![Kind::EstablishedListed, Kind::NewListed],
        ),
        ("in 10,000 denied prefixes", ABOVE_EMPTY, vec![Kind::Denied]),
    ];
    for (title, above, kinds) in tables {
        let findings: Vec<_> = findings.iter().filter(|finding| kinds.contains(&finding.experiment.kind)).collect();
        if !findings.is_empty() {
            push(&mut text, &format!("{title}: ns a packet {above}, median [lowest..highest]"));
            push(&mut text, &format!("{}\n", table(&findings)));
        }
    }
    if findings.iter().any(|finding| finding.floor.is_some()) {
        push(&mut text, "one read: of memory as large as the table, at random, each after the other, from user space");
    }
    for note in notes(findings) {
        push(&mut text, &note);
    }
    push(&mut text, &summary(findings));
    text
}

fn push(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

const HEADER: [&str; 7] = ["packets", "servers", "flows", "ns", "spread", "limit", ""];
const CONTROL_HEADER: [&str; 4] = ["LRU_HASH", "spread", "of that (limit)", "one read"];

fn table(findings: &[&Finding]) -> String {
    let has_control = findings.iter().any(|finding| finding.lru != Lru::None);
    let columns = HEADER.len() + if has_control { CONTROL_HEADER.len() } else { 0 };
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(HEADER.into_iter().chain(CONTROL_HEADER).take(columns));
    for finding in findings {
        table.add_row(row(finding).into_iter().take(columns));
    }
    if let Some(first) = table.column_mut(0) {
        first.set_padding((0, 1));
    }
    for index in [2, 3, 5, 7, 10] {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n")
}

fn row(finding: &Finding) -> Vec<String> {
    let experiment = &finding.experiment;
    let kind = match experiment.kind {
        Kind::Established => String::new(),
        Kind::EstablishedListed => " established".to_owned(),
        Kind::NewListed => " new".to_owned(),
        kind @ (Kind::New | Kind::FirstAck | Kind::Denied) => format!(" {}", kind.name()),
    };
    let verdict = match finding.keeps_limits() {
        None => "",
        Some(true) => "ok",
        Some(false) => "OVER",
    };
    let (lru, spread) = match &finding.lru {
        Lru::Measured(lru) => (lru.median.rounded().to_string(), range(lru)),
        Lru::Skipped(_) => ("skipped".to_owned(), String::new()),
        Lru::None => (String::new(), String::new()),
    };
    let share = finding.percent_of_lru().map_or_else(String::new, |share| match experiment.limit_of_lru() {
        Some(limit) => format!("{share} % ({limit})"),
        None => format!("{share} %"),
    });
    vec![
        format!("{} {}{kind}", experiment.family.name(), experiment.path.name()),
        format!("{} {}", experiment.scheduler.name(), experiment.servers),
        size(experiment.flows),
        finding.table.median.rounded().to_string(),
        range(&finding.table),
        experiment.limit().map_or_else(String::new, |limit| limit.to_string()),
        verdict.to_owned(),
        lru,
        spread,
        share,
        finding.floor.map_or_else(String::new, |floor| floor.rounded().to_string()),
    ]
}

fn range(spread: &Spread) -> String {
    format!("[{}..{}]", spread.lowest.rounded(), spread.highest.rounded())
}

/// Each reason for which a control was skipped, once.
fn notes(findings: &[Finding]) -> Vec<String> {
    let mut notes = Vec::new();
    for finding in findings {
        if let Lru::Skipped(reason) = &finding.lru {
            let note = format!("skipped: LRU_HASH at {} flows, {reason}", size(finding.experiment.flows));
            if !notes.contains(&note) {
                notes.push(note);
            }
        }
    }
    notes
}

fn summary(findings: &[Finding]) -> String {
    let judged: Vec<bool> = findings.iter().filter_map(Finding::keeps_limits).collect();
    let kept = judged.iter().filter(|kept| **kept).count();
    format!("{kept} of {} figures with a limit keep to it", judged.len())
}

/// One line an experiment, nanoseconds with one decimal; what was not measured is empty.
pub fn csv(findings: &[Finding]) -> String {
    let mut csv = "kind,family,path,scheduler,real_servers,flows,ns_median,ns_lowest,ns_highest,limit_ns,\
                   lru_ns_median,lru_ns_lowest,lru_ns_highest,percent_of_lru,limit_percent,one_read_ns,empty_ns\n"
        .to_owned();
    for finding in findings {
        let Finding { experiment, table, lru, floor, empty } = finding;
        let Experiment { kind, family, path, scheduler, servers, flows, prefixes: _ } = experiment;
        let (kind, family, path, scheduler) = (kind.name(), family.name(), path.name(), scheduler.name());
        let spread = |spread: &Spread| format!("{},{},{}", spread.median, spread.lowest, spread.highest);
        let lru = match lru {
            Lru::Measured(lru) => spread(lru),
            Lru::None | Lru::Skipped(_) => ",,".to_owned(),
        };
        let optional = |number: Option<i64>| number.map_or_else(String::new, |number| number.to_string());
        let (limit, share) = (optional(experiment.limit()), optional(finding.percent_of_lru()));
        let floor = floor.map_or_else(String::new, |floor| floor.to_string());
        let (table, limit_of_lru) = (spread(table), optional(experiment.limit_of_lru()));
        let what = format!("{kind},{family},{path},{scheduler},{servers},{flows}");
        // A string takes whatever is written to it.
        writeln!(csv, "{what},{table},{limit},{lru},{share},{limit_of_lru},{floor},{empty}").unwrap_or_default();
    }
    csv
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::experiments;

    fn spread(tenths: [i64; 3]) -> Spread {
        let [median, lowest, highest] = tenths.map(Cost::from_tenths);
        Spread { median, lowest, highest }
    }

    fn finding(name: &str, table: [i64; 3], lru: Lru) -> Finding {
        let experiment = *experiments(false).iter().find(|experiment| experiment.to_string() == name).unwrap();
        let floor = (experiment.flows == 10_000_000).then_some(Cost::from_tenths(1474));
        Finding { experiment, table: spread(table), lru, floor, empty: Cost::from_tenths(140) }
    }

    fn findings() -> Vec<Finding> {
        vec![
            finding("established v4 dr rr/64 1", [120, 118, 150], Lru::Measured(spread([360, 350, 400]))),
            finding("established v4 dr rr/64 1M", [780, 510, 796], Lru::Measured(spread([2000, 1990, 2100]))),
            finding("established v6 tun rr/64 10M", [2254, 2200, 2300], Lru::Skipped("1 GB is too little".into())),
            finding("new v4 dr wlc/64 39k", [710, 640, 940], Lru::None),
            finding("new v4 dr lc/64 39k", [710, 640, 940], Lru::None),
        ]
    }

    #[test]
    fn limits_are_judged_for_themselves_and_against_the_control() {
        // 78 ns is below 80, but 39 % of the control, where a third is the limit; 225.4 is rounded to 225.
        let kept: Vec<Option<bool>> = findings().iter().map(Finding::keeps_limits).collect();
        assert_eq!(kept, [Some(true), Some(false), Some(true), Some(true), None]);
    }

    #[test]
    fn the_table_reads_well() {
        let expected = "\
established connections, in random order: ns a packet above the empty program, median [lowest..highest]
packets  servers  flows   ns  spread      limit        LRU_HASH  spread      of that (limit)  one read
v4 dr    rr 64        1   12  [12..15]       25  ok          36  [35..40]    33 %
v4 dr    rr 64       1M   78  [51..80]       80  OVER       200  [199..210]  39 % (33)
v6 tun   rr 64      10M  225  [220..230]    225  ok     skipped                                    147

new connections: ns a packet above the empty program, median [lowest..highest]
packets    servers  flows  ns  spread    limit
v4 dr new  wlc 64     39k  71  [64..94]     85  ok
v4 dr new  lc 64      39k  71  [64..94]

one read: of memory as large as the table, at random, each after the other, from user space
skipped: LRU_HASH at 10M flows, 1 GB is too little
3 of 4 figures with a limit keep to it
";
        assert_eq!(text(&findings()), expected);
    }

    #[test]
    fn the_csv_has_one_line_an_experiment() {
        let csv = csv(&findings());
        let lines: Vec<&str> = csv.lines().collect();
        assert_eq!(lines.len(), 6);
        let columns = lines[0].split(',').count();
        assert!(lines.iter().all(|line| line.split(',').count() == columns), "{csv}");
        assert_eq!(lines[2], "established,v4,dr,rr,64,1000000,78.0,51.0,79.6,80,200.0,199.0,210.0,39,33,,14.0");
        assert_eq!(lines[4], "new,v4,dr,wlc,64,39000,71.0,64.0,94.0,85,,,,,,,14.0");
    }
}
