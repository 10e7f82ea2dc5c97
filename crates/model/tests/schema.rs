//! The JSON schemas in `docs/schema` are those of the types; `make bless` writes them anew.

use klpfarm_model::{Event, Plan, Verdict};
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use snapbox::{assert_data_eq, file};

/// The schema of what is written: a field that always stands in the file is required.
fn schema<T: JsonSchema>(title: &str) -> String {
    let mut schema =
        SchemaSettings::draft2020_12().for_serialize().into_generator().into_root_schema_for::<T>();
    schema.insert("title".to_owned(), title.into());
    serde_json::to_string_pretty(&schema).unwrap() + "\n"
}

#[test]
fn of_a_plan() {
    assert_data_eq!(schema::<Plan>("plan.json"), file!["../../../docs/schema/plan.json"].raw());
}

#[test]
fn of_an_event() {
    let text = schema::<Event>("A line of journal.jsonl");
    assert_data_eq!(text, file!["../../../docs/schema/journal.json"].raw());
}

#[test]
fn of_a_verdict() {
    assert_data_eq!(schema::<Verdict>("verdict.json"), file!["../../../docs/schema/verdict.json"].raw());
}
