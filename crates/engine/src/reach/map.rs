//! The reach map of an image, as far as it concerns the functions that are asked for, and what is said of them.

use klpfarm_image::Image;
use klpfarm_model::Workload;
use klpfarm_reach::{Answer, Entry, Kernel, Outcome, Question, Record};

use super::store::Store;

/// What is known of an image, of the functions that are asked for.
#[derive(Debug)]
pub struct Map {
    /// The kernel's functions of these names.
    pub kernel: Kernel,
    /// What was measured, of the machine without any workload and of each workload.
    pub records: Vec<Record>,
    /// Workloads that have not been measured.
    pub unmeasured: Vec<String>,
}

impl Map {
    /// The map, of these workloads and the user's own that were measured; `None` if there is none.
    pub fn open(image: &Image, questions: &[Question], workloads: &[Workload]) -> Option<Self> {
        let names: Vec<&str> = questions.iter().map(|q| q.name.as_str()).collect();
        let store = Store::of(image);
        let kernel = store.kernel(Some(&names))?;
        let (records, unmeasured) = store.all(workloads, Some(&names));
        (!records.is_empty()).then_some(Self { kernel, records, unmeasured })
    }

    /// Workloads that could not be measured, and why.
    pub fn unavailable(&self) -> impl Iterator<Item = (&str, &str)> {
        self.records.iter().filter_map(|r| match &r.outcome {
            Outcome::Unavailable(why) => Some((r.workload.as_str(), why.as_str())),
            Outcome::Measured { .. } => None,
        })
    }
}

/// Why a livepatch can't replace a function that is there.
pub fn unpatchable(entry: Entry) -> Option<&'static str> {
    match entry {
        Entry::Traceable | Entry::Unknown => None,
        Entry::Init => Some("its code is thrown away after booting (__init): no livepatch can replace it"),
        Entry::None => {
            Some("it has no entry for the tracer (notrace, or assembly): no livepatch can replace it")
        }
    }
}

/// Why a function that is asked for is not there; empty if it is.
pub fn not_there(question: &Question, answer: &Answer, image: &Image) -> String {
    match answer {
        Answer::Found(_) => String::new(),
        Answer::NoModule(module) => match image.has_module(module) {
            Some(false) => format!("the image does not have module {module}"),
            _ => format!("no workload that was measured loads module {module}"),
        },
        Answer::Missing { variants, elsewhere } => {
            let mut text = match question.position {
                Some(position) => format!("the kernel has no function number {position} of this name there"),
                None => "the kernel has no such function there (inlined, or not built)".to_owned(),
            };
            if !variants.is_empty() {
                text.push_str(&format!("; the compiler made of it: {}", variants.join(", ")));
            }
            if !elsewhere.is_empty() {
                text.push_str(&format!("; there is one in: {}", elsewhere.join(", ")));
            }
            text
        }
    }
}

/// Three digits are more than a rate tells.
pub fn rate(per_second: f64) -> String {
    if per_second >= 100.0 || per_second == 0.0 {
        format!("{per_second:.0}")
    } else {
        format!("{per_second:.2}")
    }
}
