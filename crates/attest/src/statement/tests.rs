use klpfarm_model::verdict::Why;
use klpfarm_model::{Accel, Arm};

use klpfarm_model::Patch;

use super::*;
use crate::{Envelope, PrivateKey};

fn verdict() -> Verdict {
    let patch = |name: &str, sha256: &str| Patch {
        name: name.into(),
        file: format!("somewhere/{name}.ko").into(),
        sha256: sha256.into(),
        ..Patch::default()
    };
    Verdict {
        turns: std::collections::BTreeMap::new(),
        schema: klpfarm_model::plan::SCHEMA,
        verdict: Outcome::Qualified,
        tier: Tier::Proposed,
        causes: vec![Why::CutShort { reason: "interrupted".into() }.into()],
        patches: vec![patch("one", "aa"), patch("two", "bb")],
        image: ImageFacts { name: "debian-12".into(), hash: "11".into(), release: Some("6.1.0".into()) },
        checkpoint: Some("debian-12-abc".into()),
        wear: None,
        accel: Accel::Tcg,
        arms: BTreeMap::new(),
        bounds: vec![Bound {
            turn: None,
            arm: Arm::Loaded,
            patches: vec!["one".into()],
            failed: 0,
            clean: 14,
            failure_rate: 0.192_636_1,
            confidence: 0.95,
            exposure: None,
        }],
        evidence: Vec::new(),
        reach: Vec::new(),
        blind: Vec::new(),
        unavailable: BTreeMap::new(),
        farm_errors: Vec::new(),
        remarks: Vec::new(),
        plan: "cc".into(),
        took_ms: 5,
        farm: "0.1.0".into(),
    }
}

fn signed() -> (Vec<u8>, Statement) {
    let bytes = serde_json::to_vec_pretty(&verdict()).unwrap();
    let digests = Digests { verdict: sha256(&bytes), journal: sha256(b"journal"), plan: sha256(b"plan") };
    let statement = Statement::new(&verdict(), digests, "2026-11-22T01:02:03Z".into());
    (bytes, statement)
}

/// Field names are API: docs/verdict.md.
#[test]
fn the_statement_as_it_is_written() {
    let (bytes, statement) = signed();
    let value: serde_json::Value = serde_json::from_slice(&statement.to_json()).unwrap();
    assert_eq!(value["_type"], "https://in-toto.io/Statement/v1");
    assert_eq!(value["predicateType"], "urn:klpfarm:verdict:v1");
    let subject = serde_json::json!([
        {"name": "one.ko", "digest": {"sha256": "aa"}},
        {"name": "two.ko", "digest": {"sha256": "bb"}},
        {"name": "verdict.json", "digest": {"sha256": sha256(&bytes)}},
    ]);
    assert_eq!(value["subject"], subject);
    assert_eq!(
        value["predicate"],
        serde_json::json!({
            "verdict": "qualified",
            "tier": "proposed",
            "image": {"name": "debian-12", "hash": "11", "release": "6.1.0"},
            "checkpoint": "debian-12-abc",
            "bounds": [{"arm": "loaded", "patches": ["one"], "failed": 0, "clean": 14,
                        "failure_rate": 0.192_636_1, "confidence": 0.95}],
            "farm": "0.1.0",
            "plan": "cc",
            "files": {
                "verdict.json": sha256(&bytes),
                "journal.jsonl": sha256(b"journal"),
                "plan.json": sha256(b"plan"),
            },
            "time": "2026-11-22T01:02:03Z",
        })
    );
}

#[test]
fn a_statement_goes_through_an_envelope() {
    let (bytes, statement) = signed();
    let key = PrivateKey::from_seed(&[9; 32]);
    let envelope = Envelope::sign(PAYLOAD_TYPE, &statement.to_json(), &key);
    let payload = envelope.verify(&key.public()).unwrap();
    let read = Statement::parse(&envelope.payload_type, &payload).unwrap();
    assert_eq!(read, statement);
    assert_eq!(read.about(&bytes).unwrap(), verdict());
    assert_eq!((read.signed("plan.json"), read.signed("junit.xml")), (Some(sha256(b"plan").as_str()), None));
}

#[test]
fn no_other_verdict_fits_a_statement() {
    let (bytes, statement) = signed();
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        assert!(matches!(statement.about(&changed), Err(StatementError::OtherVerdict { .. })), "byte {at}");
    }
    for cut in 0..bytes.len() {
        assert!(statement.about(&bytes[..cut]).is_err());
    }
}

#[test]
fn a_statement_that_contradicts_its_verdict_is_not_believed() {
    let (bytes, statement) = signed();
    let changed = |change: &dyn Fn(&mut Statement)| {
        let mut statement = statement.clone();
        change(&mut statement);
        statement.about(&bytes).unwrap_err().to_string()
    };
    for (said, part) in [
        (changed(&|s| s.predicate.verdict = Outcome::Rejected), "verdict: the statement says \"rejected\""),
        (changed(&|s| s.predicate.tier = Tier::Stable), "tier: "),
        (changed(&|s| s.predicate.checkpoint = None), "checkpoint: the statement says null"),
        (changed(&|s| s.predicate.bounds[0].failure_rate = 0.01), "bounds: "),
        (changed(&|s| s.predicate.image.hash = "22".into()), "image: "),
        (changed(&|s| s.predicate.plan = "dd".into()), "plan: "),
        (changed(&|s| drop(s.subject.remove(0))), "subject: the statement says two.ko, verdict.json"),
        (changed(&|s| drop(s.subject.pop())), "for another verdict.json: sha256 none was signed"),
        (changed(&|s| s.subject[0].digest.clear()), "subject: "),
    ] {
        assert!(said.contains(part), "{said} lacks {part}");
    }
}

#[test]
fn other_statements_are_refused_by_their_type() {
    let (_, statement) = signed();
    let json = String::from_utf8(statement.to_json()).unwrap();
    for (kind, text, part) in [
        ("text/plain", json.clone(), "payloadType is \"text/plain\""),
        (PAYLOAD_TYPE, json.replace("Statement/v1", "Statement/v0.1"), "_type is"),
        (PAYLOAD_TYPE, json.replace(PREDICATE_TYPE, "https://slsa.dev/provenance/v1"), "predicateType is"),
        (PAYLOAD_TYPE, json.replace("\"tier\"", "\"tear\""), "missing field `tier`"),
        (PAYLOAD_TYPE, "[]".to_owned(), "_type is"),
        (PAYLOAD_TYPE, String::new(), "EOF"),
    ] {
        let error = Statement::parse(kind, text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(part), "{error} lacks {part}");
    }
}
