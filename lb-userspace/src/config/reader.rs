//! Takes values out of a parsed table by key and type, and reports what does not fit. Knows no key by name.

use std::borrow::Cow;
use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeInteger, DeTable, DeValue};

use super::address::{self, Role};
use super::duration;
use super::keepalived;
use super::report::Report;
use super::schema::{self, Kind, Table};
use super::suggest::{closest, did_you_mean, one_of};

/// One table of the file.
pub struct Reader<'t> {
    kind: &'static Table,
    table: &'t DeTable<'t>,
    /// Keys that are there, but misspelt.
    misspelt: Vec<&'static str>,
    /// The table's header, or its text when it is inline.
    pub span: Range<usize>,
}

/// Words that a key may have: those that work, and those that are known and do not.
pub struct Words<T: 'static> {
    /// What is allowed, and its meaning.
    pub now: &'static [(&'static str, T)],
    /// What is refused as not available yet.
    pub later: &'static [&'static str],
    /// What is refused for good, and why.
    pub never: &'static [(&'static str, &'static str)],
}

/// The words of a key, without their meaning.
pub struct Spelling {
    /// What is allowed.
    pub now: Vec<&'static str>,
    later: &'static [&'static str],
    never: &'static [(&'static str, &'static str)],
}

impl<T> Words<T> {
    /// The words without their meaning.
    pub fn spelling(&self) -> Spelling {
        Spelling { now: self.now.iter().map(|(word, _)| *word).collect(), later: self.later, never: self.never }
    }
}

impl Spelling {
    /// The word that was probably meant by `text` as the value of `key`.
    pub fn meant(&self, key: &str, text: &str) -> Option<&'static str> {
        if self.later(text) || self.never(text).is_some() {
            return None;
        }
        schema::our_word(key, text).or_else(|| closest(text, self.now.iter().copied()))
    }

    /// Whether `text` will be allowed in a later version.
    pub fn later(&self, text: &str) -> bool {
        self.later.contains(&text.to_lowercase().as_str())
    }

    /// Why `text` is refused for good, if it is.
    pub fn never(&self, text: &str) -> Option<String> {
        let text = text.to_lowercase();
        self.never.iter().find(|(word, _)| *word == text).map(|(word, why)| format!("{word} {why}"))
    }
}

impl<'t> Reader<'t> {
    /// Reads `table` as one of `kind`, and reports the keys that have no place in it.
    pub fn open(kind: &'static Table, table: &'t DeTable<'t>, span: Range<usize>, report: &mut Report<'_>) -> Self {
        let unknown = table.keys().filter(|key| !kind.knows(key.get_ref()));
        let misspelt = unknown.filter_map(|key| report_unknown(kind, key, table, report)).collect();
        Self { kind, table, misspelt, span }
    }

    /// Whether `key` is there, of whatever type.
    pub fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Whether `key` is there in no form: neither misspelt nor lost with a syntax error.
    pub fn lacks(&self, key: &str, report: &Report<'_>) -> bool {
        !self.has(key) && !self.misspelt.contains(&key) && !report.is_lost(key)
    }

    /// Whether an array without elements is at `key`.
    pub fn is_empty_array(&self, key: &str) -> bool {
        self.table.get(key).is_some_and(|value| value.get_ref().as_array().is_some_and(|array| array.is_empty()))
    }

    /// Where the value at `key` is written.
    pub fn place(&self, key: &'static str) -> Option<Range<usize>> {
        self.value(key).map(Spanned::span)
    }

    /// Where the value at `key` of the table at `table` is written.
    pub fn place_in(&self, table: &str, key: &str) -> Option<Range<usize>> {
        self.table.get(table)?.get_ref().as_table()?.get(key).map(Spanned::span)
    }

    /// Reports `key` as missing, unless it is there.
    pub fn require(&self, key: &str, allowed: &str, help: &str, report: &mut Report<'_>) {
        debug_assert!(self.kind.requires(key), "{key} is optional in the schema of {}", self.kind.header);
        if self.lacks(key, report) {
            let message = format!("{} is missing, must be {allowed}", self.path(key));
            report.error(&self.span, message, Some(help.to_owned()));
        }
    }

    /// The string at `key`.
    pub fn string(&self, key: &'static str, report: &mut Report<'_>) -> Option<Spanned<&'t str>> {
        let value = self.value(key)?;
        match value.get_ref() {
            DeValue::String(text) => Some(Spanned::new(value.span(), text.as_ref())),
            _ => self.wrong_type(key, value, "a string in quotes", report),
        }
    }

    /// The strings in the array at `key`.
    pub fn strings(&self, key: &'static str, report: &mut Report<'_>) -> Option<Spanned<Vec<Spanned<&'t str>>>> {
        const ALLOWED: &str = "an array of strings in quotes";
        let value = self.value(key)?;
        let DeValue::Array(array) = value.get_ref() else {
            let names = value.get_ref().as_str().filter(|text| keepalived::is_bare_list(text));
            let help = names.map(|names| keepalived::way_out(key, names));
            let message = self.type_message(key, value, &format!("{ALLOWED}, in [ ] even when it is one"), report);
            report.error(&value.span(), message, help);
            return None;
        };
        let mut strings = Vec::with_capacity(array.len());
        for element in array.iter() {
            match element.get_ref() {
                DeValue::String(text) => strings.push(Spanned::new(element.span(), text.as_ref())),
                _ => self.report_type(key, element, ALLOWED, report),
            }
        }
        let readable = array.is_empty() || !strings.is_empty();
        readable.then(|| Spanned::new(value.span(), strings))
    }

    /// The boolean at `key`.
    pub fn boolean(&self, key: &'static str, report: &mut Report<'_>) -> Option<bool> {
        let value = self.value(key)?;
        match value.get_ref() {
            DeValue::Boolean(boolean) => Some(*boolean),
            _ => self.wrong_type(key, value, "true or false, without quotes", report),
        }
    }

    /// The integer at `key`, which must lie in `range`; `help` says what it means.
    pub fn integer<N>(
        &self,
        key: &'static str,
        range: RangeInclusive<N>,
        help: &str,
        report: &mut Report<'_>,
    ) -> Option<N>
    where
        N: Copy + PartialOrd + TryFrom<i128> + std::fmt::Display,
    {
        let value = self.value(key)?;
        let allowed = format!("{}..={}", range.start(), range.end());
        let DeValue::Integer(integer) = value.get_ref() else {
            return self.wrong_type(key, value, &format!("a number without quotes, {allowed}"), report);
        };
        let number = number(integer).and_then(|number| N::try_from(number).ok());
        let number = number.filter(|number| range.contains(number));
        if number.is_none() {
            let message = format!("{} is {}, must be {allowed}", self.path(key), report.quote(&value.span()));
            report.error(&value.span(), message, Some(help.to_owned()));
        }
        number
    }

    /// The duration at `key`, which must lie in the bounds that the schema sets; `help` says why they are what they are.
    pub fn duration(&self, key: &'static str, help: &str, report: &mut Report<'_>) -> Option<Duration> {
        let value = self.value(key)?;
        let Some(Kind::Duration(bounds)) = self.kind.key(key).map(|key| key.kind) else {
            debug_assert!(false, "{key} is no duration in the schema of {}", self.kind.header);
            return None;
        };
        let span = value.get_ref().as_str().and_then(duration::parse);
        if span.is_some_and(|span| bounds.contains(span)) {
            return span;
        }
        let (allowed, help) = match value.get_ref() {
            DeValue::String(_) if span.is_some() => (bounds.to_string(), help),
            DeValue::String(_) => (format!("a number and its unit, {bounds}"), duration::UNITS),
            _ => (format!("a number and its unit in quotes, {bounds}"), duration::UNITS),
        };
        let found = report.quote(&value.span());
        let meant = duration::meant(found.trim_matches(['"', '\'']), &bounds);
        let help = meant.map_or_else(|| help.to_owned(), |meant| did_you_mean(&meant));
        report.error(&value.span(), self.type_message(key, value, &allowed, report), Some(help));
        None
    }

    /// The string or integer at `key`, as text; `allowed` says which.
    pub fn text(&self, key: &'static str, allowed: &str, report: &mut Report<'_>) -> Option<Spanned<String>> {
        let value = self.value(key)?;
        match value.get_ref() {
            DeValue::String(text) => Some(Spanned::new(value.span(), text.clone().into_owned())),
            DeValue::Integer(integer) => {
                let written = || report.quote(&value.span());
                Some(Spanned::new(value.span(), number(integer).map_or_else(written, |number| number.to_string())))
            }
            _ => self.wrong_type(key, value, allowed, report),
        }
    }

    /// The word at `key`, one of `words`.
    pub fn word<T: Copy>(&self, key: &'static str, words: &Words<T>, report: &mut Report<'_>) -> Option<T> {
        let value = self.value(key)?;
        let known = words.spelling();
        let allowed = one_of(&known.now);
        let DeValue::String(text) = value.get_ref() else {
            return self.wrong_type(key, value, &allowed, report);
        };
        if let Some((_, meaning)) = words.now.iter().find(|(word, _)| word == text) {
            return Some(*meaning);
        }
        let (path, found) = (self.path(key), text.escape_debug());
        let (message, help) = if known.later(text) {
            (format!("{path} is \"{found}\": not available yet in this version, use {allowed}"), None)
        } else {
            let help = known.meant(key, text).map(did_you_mean);
            let help = help.or_else(|| known.never(text));
            (format!("{path} is \"{found}\", must be {allowed}"), help)
        };
        report.error(&value.span(), message, help);
        None
    }

    /// The table at `key`.
    pub fn table(&self, key: &'static str, kind: &'static Table, report: &mut Report<'_>) -> Option<Reader<'t>> {
        let value = self.value(key)?;
        match value.get_ref() {
            DeValue::Table(table) => Some(Reader::open(kind, table, value.span(), report)),
            DeValue::String(_) if kind.knows("address") => {
                self.report_no_table(key, value, &format!("a table, written {}", kind.header), report);
                None
            }
            _ => self.wrong_type(key, value, &format!("a table, written {}", kind.header), report),
        }
    }

    /// The tables of the array at `key`. A single table is an error, but read all the same.
    pub fn tables(&self, key: &'static str, kind: &'static Table, report: &mut Report<'_>) -> Vec<Reader<'t>> {
        let Some(value) = self.value(key) else { return vec![] };
        let allowed = format!("an array of tables, each written {}", kind.header);
        let mut tables = vec![];
        match value.get_ref() {
            DeValue::Array(array) => {
                let mut wrong = array.iter().filter(|element| !element.get_ref().is_table());
                if let Some(first) = wrong.next() {
                    self.report_no_table(key, first, &allowed, report);
                }
                let readable = array.iter().filter_map(|element| Some((element.get_ref().as_table()?, element.span())));
                tables.extend(readable.map(|(table, span)| Reader::open(kind, table, span, report)));
            }
            DeValue::Table(_) if !report.quote(&value.span()).starts_with(['[', '{']) => {
                let message = format!("{} is missing above, must come before what belongs to it", kind.header);
                let help = format!("start each {key} with {}", kind.header);
                report.error(&value.span(), message, Some(help));
            }
            DeValue::Table(table) => {
                self.report_no_table(key, value, &allowed, report);
                tables.push(Reader::open(kind, table, value.span(), report));
            }
            _ => self.report_no_table(key, value, &allowed, report),
        }
        tables
    }

    /// The path of `key` from the top level, as messages name it.
    pub fn path(&self, key: &str) -> String {
        if self.kind.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.kind.path) }
    }

    fn value(&self, key: &'static str) -> Option<&'t Spanned<DeValue<'t>>> {
        debug_assert!(self.kind.knows(key), "{key} is not in the schema of {}", self.kind.header);
        self.table.get(key)
    }

    fn wrong_type<T>(
        &self,
        key: &str,
        value: &Spanned<DeValue<'_>>,
        allowed: &str,
        report: &mut Report<'_>,
    ) -> Option<T> {
        self.report_type(key, value, allowed, report);
        None
    }

    fn report_type(&self, key: &str, value: &Spanned<DeValue<'_>>, allowed: &str, report: &mut Report<'_>) {
        report.error(&value.span(), self.type_message(key, value, allowed, report), None);
    }

    fn type_message(&self, key: &str, value: &Spanned<DeValue<'_>>, allowed: &str, report: &Report<'_>) -> String {
        let found = match value.get_ref() {
            DeValue::Array(_) => "an array".to_owned(),
            DeValue::Table(_) => "a table".to_owned(),
            _ => report.quote(&value.span()),
        };
        format!("{} is {found}, must be {allowed}", self.path(key))
    }

    /// A value where tables belong, with an example of one.
    fn report_no_table(&self, key: &str, value: &Spanned<DeValue<'_>>, allowed: &str, report: &mut Report<'_>) {
        let words: Vec<&str> = value.get_ref().as_str().unwrap_or_default().split_whitespace().collect();
        let example = keepalived::block_example(key, &keepalived::written_address(&words));
        report.error(&value.span(), self.type_message(key, value, allowed, report), Some(example));
    }
}

fn number(integer: &DeInteger<'_>) -> Option<i128> {
    i128::from_str_radix(integer.as_str(), integer.radix()).ok()
}

/// Reports `key` as unknown; yields the key of this table that was meant.
fn report_unknown(
    kind: &Table,
    key: &Spanned<Cow<'_, str>>,
    table: &DeTable<'_>,
    report: &mut Report<'_>,
) -> Option<&'static str> {
    let word = key.get_ref().as_ref();
    let place = if kind.header.is_empty() { "at the top level".to_owned() } else { format!("in {}", kind.header) };
    let message = format!("unknown key \"{}\" {place}", word.escape_debug());
    if schema::is_later(word) {
        let message = format!("{word} {place}: not available yet in this version");
        report.error(&key.span(), message, Some("remove it".to_owned()));
        return None;
    }
    if let Some(way_out) = schema::moved(word) {
        report.error(&key.span(), message, Some(way_out.to_owned()));
        return None;
    }
    if kind.path.is_empty() && word == "real_server" {
        report.lose(word);
        let header = schema::REAL_SERVER.header;
        let help = format!("write {header}, below the {} that it serves", schema::VIRTUAL_SERVER.header);
        report.error(&key.span(), message, Some(help));
        return None;
    }
    let text = |key: &str| table.get(key).map(|value| report.quote(&value.span()).trim_matches('"').to_owned());
    if word == "port" && kind.knows("address") {
        let role = if kind.knows("protocol") { Role::VirtualServer } else { Role::RealServer };
        let help = port_way_out(role, text("address"), text("port"));
        report.error(&key.span(), message, Some(help));
        return None;
    }
    let (help, meant) = meaning(kind, word, text(word));
    report.error(&key.span(), message, Some(help));
    meant
}

/// The way out for a port that is a key of its own.
fn port_way_out(role: Role, address: Option<String>, port: Option<String>) -> String {
    let written = address.and_then(|address| address::parse(&address, role).ok());
    match written.zip(port.and_then(|port| port.parse().ok())) {
        Some((written, port)) if port != 0 || role == Role::VirtualServer => {
            format!("remove it, and write address = \"{}\"", address::with_port(written.ip, port))
        }
        _ => r#"remove it, and put the port into address = "ip:port""#.to_owned(),
    }
}

/// The way out, and the key of this table that was meant.
fn meaning(kind: &Table, word: &str, value: Option<String>) -> (String, Option<&'static str>) {
    let keys: Vec<&'static str> = kind.keys.iter().map(|key| key.name).collect();
    if let Some(ours) = schema::translated(word).filter(|ours| kind.knows(ours)) {
        let way_out = value.map(|value| keepalived::way_out(word, &value));
        let help = format!("keepalived's {word} is called {ours} here; {}", way_out.unwrap_or_default());
        return (help, Some(ours));
    }
    if let Some(near) = closest(word, keys.iter().copied()) {
        return (did_you_mean(near), Some(near));
    }
    if let Some(home) = schema::TABLES.iter().find(|table| table.knows(word)) {
        return (format!("it belongs under {}", home.header), None);
    }
    let everywhere = schema::TABLES.iter().flat_map(|table| table.keys.iter().map(|key| (key.name, table.header)));
    let near = closest(word, everywhere.clone().map(|(key, _)| key));
    match near.and_then(|near| everywhere.clone().find(|(key, _)| *key == near)) {
        Some((near, header)) if !header.is_empty() => (format!("did you mean \"{near}\" under {header}?"), None),
        Some(_) | None => (format!("known here: {}", keys.join(", ")), None),
    }
}
