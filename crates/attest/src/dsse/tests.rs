use proptest::prelude::*;

use super::*;

fn key(seed: u8) -> PrivateKey {
    PrivateKey::from_seed(&[seed; 32])
}

/// The example of the specification ("protocol.md"), and lengths that count bytes and not characters.
#[test]
fn the_encoding_of_the_specification() {
    assert_eq!(
        pae("http://example.com/HelloWorld", b"hello world"),
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    );
    assert_eq!(pae("", b""), b"DSSEv1 0  0 ");
    assert_eq!(pae("\u{e9}", "\u{e9}\u{e9}".as_bytes()), "DSSEv1 2 \u{e9} 4 \u{e9}\u{e9}".as_bytes());
}

#[test]
fn signed_and_read_again() {
    let envelope = Envelope::sign("text/plain", b"payload", &key(1));
    let read = Envelope::parse(envelope.to_json().as_bytes()).unwrap();
    assert_eq!(read, envelope);
    assert_eq!(read.verify(&key(1).public()).unwrap(), b"payload");
    assert_eq!(read.verify(&key(2).public()).unwrap_err(), EnvelopeError::Unsigned(key(2).public().id()));
}

#[test]
fn two_signatures_and_the_names_they_bear() {
    let mut envelope = Envelope::sign("text/plain", b"payload", &key(1));
    envelope.countersign(&key(2)).unwrap();
    for seed in [1, 2] {
        assert_eq!(envelope.verify(&key(seed).public()).unwrap(), b"payload");
    }
    // A key is not believed for its name, and not overlooked for lack of one.
    envelope.signatures[0].keyid = Some(key(3).public().id());
    envelope.signatures[1].keyid = None;
    assert!(envelope.verify(&key(3).public()).is_err());
    assert!(envelope.verify(&key(1).public()).is_ok() && envelope.verify(&key(2).public()).is_ok());
    // A signature that can't be read takes nothing from the others.
    envelope.signatures[0].sig = "?".to_owned();
    assert!(envelope.verify(&key(1).public()).is_err());
    assert!(envelope.verify(&key(2).public()).is_ok());
}

#[test]
fn other_writers_are_understood() {
    let key = key(1);
    // Bytes whose base64 differs in the two alphabets.
    let payload = [0xfb, 0xff, 0xfe, 0xfb];
    let envelope = Envelope::sign("a/b", &payload, &key);
    let text = envelope.to_json().replace('+', "-").replace('/', "_").replace("a_b", "a/b");
    let text = text.replacen('{', "{ \"later\": 1, ", 1);
    assert_ne!(text, envelope.to_json());
    assert_eq!(Envelope::parse(text.as_bytes()).unwrap().verify(&key.public()).unwrap(), payload);
}

#[test]
fn what_is_no_envelope() {
    for text in ["", "{}", "[]", r#"{"payloadType":"a","payload":"?"}"#] {
        assert!(matches!(Envelope::parse(text.as_bytes()), Err(EnvelopeError::Shape(_))), "{text}");
    }
    let none = Envelope::parse(br#"{"payloadType":"a","payload":"","signatures":[]}"#).unwrap();
    assert!(none.verify(&key(1).public()).is_err());
    let broken = Envelope::parse(br#"{"payloadType":"a","payload":"?","signatures":[]}"#).unwrap();
    assert!(matches!(broken.verify(&key(1).public()), Err(EnvelopeError::Shape(_))));
}

/// Whatever is done to any byte of an envelope, nobody is shown a payload that was not signed. (Bytes that nobody signs are the
/// white space, the key's name and the choice of alphabet.)
#[test]
fn no_changed_byte_changes_what_is_believed() {
    let key = key(1);
    let payload = b"{\"verdict\":\"rejected\"}";
    let json = Envelope::sign("application/x", payload, &key).to_json().into_bytes();
    let mut refused = 0;
    for at in 0..json.len() {
        for change in [1u8, 2, 0x20, 0x80] {
            let mut changed = json.clone();
            changed[at] ^= change;
            match Envelope::parse(&changed).and_then(|e| e.verify(&key.public())) {
                Ok(believed) => assert_eq!(believed, payload, "byte {at}"),
                Err(_) => refused += 1,
            }
        }
    }
    // Of an envelope of this size, all but the key's name.
    let named = key.public().id().len() + "keyid".len();
    assert!(refused >= (json.len() - named - 2) * 4, "{refused} of {}", json.len() * 4);
}

proptest! {
    // Signing is slow without optimisation.
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn any_payload_comes_back_and_no_other_passes(payload: Vec<u8>, other: Vec<u8>, kind in ".{0,20}") {
        let envelope = Envelope::sign(&kind, &payload, &key(1));
        prop_assert_eq!(&envelope.verify(&key(1).public()).unwrap(), &payload);
        let exchanged = Envelope { payload: STANDARD.encode(&other), ..envelope.clone() };
        prop_assert_eq!(exchanged.verify(&key(1).public()).is_ok(), other == payload);
        let retyped = Envelope { payload_type: format!("{kind}x"), ..envelope };
        prop_assert!(retyped.verify(&key(1).public()).is_err());
    }

    #[test]
    fn no_input_panics(bytes: Vec<u8>) {
        if let Ok(envelope) = Envelope::parse(&bytes) {
            let _ = envelope.verify(&key(1).public());
        }
    }
}
