//! Asking a map: who calls a function, and how often.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::record::{BACKGROUND, Kernel, Record};
use crate::symbols::{Entry, Function, VMLINUX};

/// A function that is asked for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Question {
    /// Its name.
    pub name: String,
    /// [`VMLINUX`] or a module; `None`: wherever there is one of this name.
    pub object: Option<String>,
    /// Which of those of this name in the object, from 1; `None`: there must be one only.
    pub position: Option<u32>,
}

impl Question {
    /// Read `FUNCTION`, `FUNCTION@MODULE` or either with `,POSITION` behind it.
    ///
    /// # Errors
    /// What is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (rest, position) = match text.rsplit_once(',') {
            Some((rest, digits)) => match digits.parse() {
                Ok(position) if position > 0 => (rest, Some(position)),
                _ => return Err(format!("`{text}`: the position after the comma is a number from 1")),
            },
            None => (text, None),
        };
        let (name, object) = rest.split_once('@').map_or((rest, None), |(n, o)| (n, Some(o)));
        let plain = |word: &str| !word.is_empty() && !word.contains(char::is_whitespace);
        if !plain(name) || !object.is_none_or(plain) {
            return Err(format!("`{text}`: write FUNCTION or FUNCTION@MODULE"));
        }
        // File names of modules have dashes where the modules themselves have underscores.
        Ok(Self { name: name.to_owned(), object: object.map(|o| o.replace('-', "_")), position })
    }

    fn asks_for(&self, function: &Function) -> bool {
        self.name == function.name
            && self.object.as_ref().is_none_or(|o| *o == function.object)
            && self.position.is_none_or(|p| p == function.position)
    }
}

impl std::fmt::Display for Question {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)?;
        match self.object.as_deref() {
            Some(object) if object != VMLINUX => write!(f, " [{object}]"),
            _ => Ok(()),
        }
    }
}

/// A workload that calls a function.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Caller {
    /// Its name.
    pub workload: String,
    /// Calls a second.
    pub per_second: f64,
    /// Calls between the order to start and the first progress.
    pub while_starting: u64,
}

/// A function that was found, and who calls it.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// The function.
    pub function: Function,
    /// How many there are of this name in its object: a patch has to say which one it means if there are several.
    pub of: u32,
    /// Whether it can be patched at all.
    pub entry: Entry,
    /// Workloads that call it, the most frequent first.
    pub callers: Vec<Caller>,
    /// Calls a second on a machine that runs no workload.
    pub background: f64,
}

/// What is known of a function that was asked for.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// All that fit; never empty.
    Found(Vec<Found>),
    /// The module it is said to be in is loaded neither by the idle machine nor by any workload that was measured.
    NoModule(String),
    /// There is none: what the compiler has made of it instead, and objects that have one of this name.
    Missing {
        /// Such as `NAME.isra.0`.
        variants: Vec<String>,
        /// Other objects.
        elsewhere: Vec<String>,
    },
}

/// Look a function up. `kernel` and `records` may be read for the asked names only.
pub fn ask(kernel: &Kernel, records: &[Record], question: &Question) -> Answer {
    let loaded = records.iter().flat_map(|r| r.functions.iter().map(|(f, (entry, _))| (f, *entry)));
    let all: Vec<(&Function, Entry)> = kernel.functions.iter().map(|(f, e)| (f, *e)).chain(loaded).collect();
    let mut fitting: Vec<(&Function, Entry)> =
        all.iter().copied().filter(|(f, _)| question.asks_for(f)).collect();
    fitting.sort_by_key(|(f, _)| *f);
    fitting.dedup_by_key(|(f, _)| *f);
    if !fitting.is_empty() {
        let of = |function: &Function| {
            let twins = all.iter().filter(|(f, _)| f.name == function.name && f.object == function.object);
            twins.map(|(f, _)| f.position).max().unwrap_or(1)
        };
        let found = |(function, entry): (&Function, Entry)| found(records, function, of(function), entry);
        return Answer::Found(fitting.into_iter().map(found).collect());
    }
    match &question.object {
        Some(object) if object != VMLINUX && !is_loaded(kernel, records, object) => {
            Answer::NoModule(object.clone())
        }
        _ => {
            let names = |fits: &dyn Fn(&Function) -> bool, name: &dyn Fn(&Function) -> String| {
                let found: BTreeSet<String> =
                    all.iter().filter(|(f, _)| fits(f)).map(|(f, _)| name(f)).collect();
                found.into_iter().collect::<Vec<_>>()
            };
            let is_variant = |f: &Function| f.name != question.name && stem(&f.name) == question.name;
            Answer::Missing {
                variants: names(&is_variant, &ToString::to_string),
                elsewhere: names(&|f| f.name == question.name, &|f| f.object.clone()),
            }
        }
    }
}

fn is_loaded(kernel: &Kernel, records: &[Record], module: &str) -> bool {
    kernel.modules.contains(module) || records.iter().any(|r| r.modules.contains(module))
}

fn found(records: &[Record], function: &Function, of: u32, entry: Entry) -> Found {
    let calls = |record: &Record| {
        let while_starting = record.functions.get(function).map_or(0, |(_, calls)| calls.setup);
        let per_second = record.rate(function)?;
        Some(Caller { workload: record.workload.clone(), per_second, while_starting })
    };
    let (idle, busy): (Vec<Caller>, Vec<Caller>) =
        records.iter().filter_map(calls).partition(|c| c.workload == BACKGROUND);
    let mut callers: Vec<Caller> =
        busy.into_iter().filter(|c| c.per_second > 0.0 || c.while_starting > 0).collect();
    callers.sort_by(|a, b| b.per_second.total_cmp(&a.per_second).then_with(|| a.workload.cmp(&b.workload)));
    let background = idle.first().map_or(0.0, |c| c.per_second);
    Found { function: function.clone(), of, entry, callers, background }
}

/// The name that a compiler has made others of: `f` of `f.isra.0.cold`.
pub(crate) fn stem(name: &str) -> &str {
    match name.split_once('.') {
        Some((stem, _)) if !stem.is_empty() => stem,
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attribute::Calls;
    use crate::record::Outcome;
    use crate::symbols::Symbols;

    fn kernel() -> Kernel {
        let text = "ffffffff81000000 t a\nffffffff81000010 t twin\nffffffff81000020 t twin\nffffffff81000030 t gone.isra.0\nffffffffc0000000 t a\t[m]\n";
        Kernel::of("6.1", &Symbols::parse(text, Some("a\ntwin\n")))
    }

    fn record(workload: &str, functions: &[(&str, &str, u64, u64)]) -> Record {
        let one = |(name, object, setup, window): &(&str, &str, u64, u64)| {
            let function = Function { name: (*name).into(), object: (*object).into(), position: 1 };
            (function, (Entry::Traceable, Calls { setup: *setup, window: *window }))
        };
        Record {
            workload: workload.into(),
            method: "plugin".into(),
            machine_cpus: 2,
            outcome: Outcome::Measured { window_ms: 2000, setup_ms: 0, cpus: 1.0, memory_mib: 0 },
            functions: functions.iter().map(one).collect(),
            modules: functions.iter().filter(|f| f.1 == "late").map(|f| f.1.to_owned()).collect(),
        }
    }

    fn found(answer: Answer) -> Vec<Found> {
        match answer {
            Answer::Found(all) => all,
            other => panic!("{other:?}"),
        }
    }

    fn question(text: &str) -> Question {
        Question::parse(text).unwrap()
    }

    #[test]
    fn callers_come_most_frequent_first_and_an_idle_machine_is_none() {
        let records = [
            record(BACKGROUND, &[("a", VMLINUX, 0, 4)]),
            record("slow", &[("a", VMLINUX, 0, 2)]),
            record("fast", &[("a", VMLINUX, 0, 200)]),
            record("starting", &[("a", VMLINUX, 3, 0)]),
            record("other", &[("twin", VMLINUX, 0, 9)]),
        ];
        let all = found(ask(&kernel(), &records, &question("a@vmlinux")));
        let callers: Vec<(&str, f64)> =
            all[0].callers.iter().map(|c| (c.workload.as_str(), c.per_second)).collect();
        assert_eq!(callers, [("fast", 100.0), ("slow", 1.0), ("starting", 0.0)]);
        assert_eq!((all[0].background, all[0].of, all.len()), (2.0, 1, 1));
    }

    #[test]
    fn functions_of_one_name_are_all_told() {
        let all = found(ask(&kernel(), &[], &question("twin")));
        assert_eq!(all.iter().map(|f| (f.function.position, f.of)).collect::<Vec<_>>(), [(1, 2), (2, 2)]);
        assert_eq!(found(ask(&kernel(), &[], &question("twin,2"))).len(), 1);
        assert_eq!(found(ask(&kernel(), &[], &question("a"))).len(), 2);
    }

    #[test]
    fn what_is_not_there_is_said_in_three_ways() {
        let records = [record("w", &[("late_f", "late", 0, 1)])];
        let ask = |text| ask(&kernel(), &records, &question(text));
        assert_eq!(ask("f@cifs"), Answer::NoModule("cifs".into()));
        assert!(matches!(ask("gone"), Answer::Missing { variants, .. } if variants == ["gone.isra.0"]));
        assert!(matches!(ask("twin@m"), Answer::Missing { elsewhere, .. } if elsewhere == ["vmlinux"]));
        assert!(matches!(ask("nothing@late"), Answer::Missing { .. }));
        assert!(matches!(ask("late_f"), Answer::Found(_)));
    }

    #[test]
    fn questions_are_read() {
        let q = question("f@snd-pcm,3");
        assert_eq!((q.name.as_str(), q.object.as_deref(), q.position), ("f", Some("snd_pcm"), Some(3)));
        for bad in ["", "@m", "f@", "f,0", "f,x", "a b"] {
            assert!(Question::parse(bad).is_err(), "{bad}");
        }
    }
}
