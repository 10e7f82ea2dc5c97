//! Figures, what is expected of them, and the table. Pure.

use serde::Serialize;

/// What a figure counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Unit {
    Seconds,
    Milliseconds,
    /// 1 000 000 bytes.
    Megabytes,
    /// Per cent of one core.
    Percent,
    PerHour,
    Times,
}

/// What a figure's median should be; a missed one changes nothing but the mark beside it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Expected {
    AtMost(f64),
    AtLeast(f64),
}

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Figure {
    pub(super) name: String,
    pub(super) unit: Unit,
    /// Absent if nothing could be measured.
    pub(super) median: Option<f64>,
    /// Every value, in the order in which they were measured.
    pub(super) values: Vec<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) expected: Option<Expected>,
    pub(super) missed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) note: Option<String>,
}

impl Figure {
    pub(super) fn new(name: impl Into<String>, unit: Unit, values: Vec<f64>) -> Self {
        let median = median(&values);
        Self { name: name.into(), unit, median, values, expected: None, missed: false, note: None }
    }

    pub(super) fn expecting(mut self, expected: Expected) -> Self {
        self.missed = !self.median.is_some_and(|m| match expected {
            Expected::AtMost(most) => m <= most,
            Expected::AtLeast(least) => m >= least,
        });
        self.expected = Some(expected);
        self
    }

    pub(super) fn noting(mut self, note: impl Into<String>) -> Self {
        self.note = Some(note.into());
        self
    }
}

/// The value in the middle; of an even number, the mean of the two in the middle.
pub(super) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let half = sorted.len() / 2;
    match sorted.as_slice() {
        [] => None,
        odd if odd.len() % 2 == 1 => Some(odd[half]),
        even => Some(f64::midpoint(even[half - 1], even[half])),
    }
}

/// All that was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Table {
    /// What it was measured on and with: label and value.
    #[serde(serialize_with = "as_map")]
    pub(super) about: Vec<(&'static str, String)>,
    pub(super) figures: Vec<Figure>,
}

fn as_map<S: serde::Serializer>(about: &[(&'static str, String)], to: S) -> Result<S::Ok, S::Error> {
    to.collect_map(about.iter().map(|(label, value)| (label, value)))
}

impl Table {
    /// For people, with aligned columns.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        for (label, value) in &self.about {
            text.push_str(&format!("{label:<9} {value}\n"));
        }
        let head = ["figure", "median", "range", "n", "expected", ""].map(str::to_owned);
        let rows: Vec<[String; 6]> = std::iter::once(head).chain(self.figures.iter().map(row)).collect();
        let width = |column: usize| rows.iter().map(|r| r[column].chars().count()).max().unwrap_or(0);
        let widths: [usize; 6] = std::array::from_fn(width);
        let notes = std::iter::once(None).chain(self.figures.iter().map(|f| f.note.as_ref()));
        text.push('\n');
        for (row, note) in rows.iter().zip(notes) {
            let cells: Vec<String> = row
                .iter()
                .zip(widths)
                .enumerate()
                .map(
                    |(i, (cell, w))| {
                        if matches!(i, 1..=3) { format!("{cell:>w$}") } else { format!("{cell:<w$}") }
                    },
                )
                .collect();
            text.push_str(cells.join("  ").trim_end());
            text.push('\n');
            if let Some(note) = note {
                text.push_str(&format!("    {note}\n"));
            }
        }
        let missed = self.figures.iter().filter(|f| f.missed).count();
        let expected = self.figures.iter().filter(|f| f.expected.is_some()).count();
        text.push_str(&format!("\n{} of {expected} expectations met\n", expected - missed));
        text
    }
}

fn row(figure: &Figure) -> [String; 6] {
    let Figure { unit, values, .. } = figure;
    let low = values.iter().copied().reduce(f64::min);
    let high = values.iter().copied().reduce(f64::max);
    let range = match (low, high) {
        (Some(low), Some(high)) if values.len() > 1 => format!("{} to {}", number(low), number(high)),
        _ => String::new(),
    };
    let expected = match figure.expected {
        Some(Expected::AtMost(most)) => format!("at most {}", with_unit(most, *unit)),
        Some(Expected::AtLeast(least)) => format!("at least {}", with_unit(least, *unit)),
        None => String::new(),
    };
    [
        figure.name.clone(),
        figure.median.map_or_else(|| "not measured".to_owned(), |m| with_unit(m, *unit)),
        range,
        values.len().to_string(),
        expected,
        if figure.missed { "MISSED".to_owned() } else { String::new() },
    ]
}

fn with_unit(value: f64, unit: Unit) -> String {
    let word = match unit {
        Unit::Seconds => "s",
        Unit::Milliseconds => "ms",
        Unit::Megabytes => "MB",
        Unit::Percent => "%",
        Unit::PerHour => "an hour",
        Unit::Times => "times",
    };
    format!("{} {word}", number(value))
}

/// Three digits that count, and no more decimals than two but for what is below one.
fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 1.0 || v == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_in_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn an_expectation_is_met_at_its_bound_and_missed_without_a_value() {
        let figure = |values: Vec<f64>, e| Figure::new("x", Unit::Seconds, values).expecting(e).missed;
        assert!(!figure(vec![2.0], Expected::AtMost(2.0)));
        assert!(figure(vec![2.1], Expected::AtMost(2.0)));
        assert!(!figure(vec![10.0], Expected::AtLeast(10.0)));
        assert!(figure(vec![9.9], Expected::AtLeast(10.0)));
        assert!(figure(Vec::new(), Expected::AtMost(2.0)));
    }

    #[test]
    fn the_table_is_aligned_and_marks_what_is_missed() {
        let table = Table {
            about: vec![("host", "a CPU".into())],
            figures: vec![
                Figure::new("fork to applied", Unit::Seconds, vec![2.5, 1.5, 3.0])
                    .expecting(Expected::AtMost(2.0))
                    .noting("why"),
                Figure::new("size", Unit::Megabytes, vec![512.4]),
                Figure::new("none", Unit::Times, Vec::new()),
            ],
        };
        let expected = "\
host      a CPU

figure                 median         range  n  expected
fork to applied        2.50 s  1.50 to 3.00  3  at most 2.00 s  MISSED
    why
size                   512 MB                1
none             not measured                0

0 of 1 expectations met
";
        assert_eq!(table.text(), expected);
        let json = serde_json::to_value(&table).unwrap();
        assert_eq!(json["about"]["host"], "a CPU");
        let first = &json["figures"][0];
        assert_eq!((&first["unit"], &first["expected"]["at-most"]), (&"seconds".into(), &2.0.into()));
        assert_eq!((&first["missed"], &first["values"][1]), (&true.into(), &1.5.into()));
    }

    #[test]
    fn numbers_keep_three_digits() {
        let of = [0.0, 0.0634, 0.9996, 1.234, 12.34, 123.4].map(number);
        assert_eq!(of, ["0.00", "0.063", "1.000", "1.23", "12.3", "123"]);
    }
}
