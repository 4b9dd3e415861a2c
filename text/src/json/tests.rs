use super::{Json, Object, parse, take};
use crate::limits::{JSON_DEPTH_MAX, JSON_INTEGER_DIGITS_MAX};

fn text(value: &str) -> Json {
    Json::from(value)
}

/// Every expectation is what Python's `json.loads` gives.
#[test]
fn values_are_those_of_python() {
    for (written, expected) in [
        (" null\t\r\n", Json::Null),
        ("true", Json::Bool(true)),
        ("-0", Json::Integer(0)),
        ("-0.0", Json::Float(-0.0)),
        ("1e5", Json::Float(100_000.0)),
        ("1E+5", Json::Float(100_000.0)),
        ("1.50", Json::Float(1.5)),
        ("1e400", Json::Float(f64::INFINITY)),
        ("[]", Json::Array(vec![])),
        ("{ }", Json::Object(Object::new())),
        (
            "[1 , \"a\"]",
            Json::Array(vec![Json::Integer(1), text("a")]),
        ),
        (
            r#""\"\\\/\b\f\n\r\t\u00e9""#,
            text("\"\\/\u{8}\u{c}\n\r\té"),
        ),
        (r#""\ud83d\ude00\u0000""#, text("😀\0")),
        ("\"\u{7f}\u{2028}é\"", text("\u{7f}\u{2028}é")),
    ] {
        assert_eq!(parse(written), Ok(expected), "{written}");
    }
}

#[test]
fn numbers_that_are_none_are_read_as_python_reads_them() {
    assert!(matches!(parse("NaN"), Ok(Json::Float(value)) if value.is_nan()));
    assert_eq!(parse("Infinity"), Ok(Json::Float(f64::INFINITY)));
    assert_eq!(
        parse("[-Infinity]"),
        Ok(Json::Array(vec![Json::Float(f64::NEG_INFINITY)]))
    );
    assert!(parse("-NaN").is_err() && parse("Infinit").is_err() && parse("nan").is_err());
}

#[test]
fn integers_above_64_bits_are_kept() {
    for written in [
        "123456789012345678901234567890",
        "-123456789012345678901234567890",
        "18446744073709551616",
        "-9223372036854775809",
        "9223372036854775808",
        &"9".repeat(60),
    ] {
        let expected = Json::LongInteger(written.to_owned());
        assert_eq!(parse(written), Ok(expected), "{written}");
    }
    let smallest = i64::MIN;
    assert_eq!(parse(&smallest.to_string()), Ok(Json::Integer(smallest)));
    let digits = "9".repeat(JSON_INTEGER_DIGITS_MAX + 1);
    assert!(parse(&digits).unwrap_err().contains("digits"));
}

#[test]
fn a_lone_surrogate_spoils_the_text_that_it_is_in_and_no_other() {
    for written in [
        r#""\ud83d""#,
        r#""a\ud83dx""#,
        r#""\ude00\ud83d""#,
        r#""\ud83d\u0041""#,
    ] {
        let value = parse(written).unwrap();
        assert!(
            value.unusable().unwrap().contains("lone surrogate"),
            "{written}"
        );
    }
    let Ok(Json::Object(mut fields)) = parse(r#"{"id": "\ud800", "\udfff": 1, "text": "fine"}"#)
    else {
        panic!("no object")
    };
    assert_eq!(take(&mut fields, "text"), Some(text("fine")));
    assert_eq!(
        fields
            .values()
            .filter(|value| value.unusable().is_some())
            .count(),
        2
    );
}

#[test]
fn a_name_that_stands_twice_has_no_usable_value() {
    for written in [
        r#"{"a": 1, "b": 2, "a": 3}"#,
        r#"{"a": 1, "b": 2, "\u0061": 1}"#,
        r#"{"a": null, "b": 2, "a": 1, "a": 2}"#,
    ] {
        let Ok(Json::Object(fields)) = parse(written) else {
            panic!("no object")
        };
        let found: Vec<_> = fields.iter().map(|(name, v)| (&**name, v.kind())).collect();
        let expected = [("a", "a field that is given twice"), ("b", "a number")];
        assert_eq!(found, expected, "{written}");
    }
}

#[test]
fn what_python_refuses_is_refused_with_the_place() {
    for (written, expected) in [
        ("", "expected a value at byte 0, where it ends"),
        ("\u{feff}1", "expected a value at byte 0"),
        ("nul", "expected a value at byte 0"),
        ("01", "expected the end at byte 1, found '1'"),
        ("1.", "expected the end at byte 1"),
        ("1e", "expected the end at byte 1"),
        ("-", "expected a digit at byte 1"),
        ("+1", "expected a value"),
        (".5", "expected a value"),
        ("[1,]", "expected a value at byte 3"),
        ("[1 2]", "expected `,` or `]` at byte 3"),
        ("{\"a\":1,}", "expected a name in double quotes at byte 7"),
        ("{\"a\" 1}", "expected `:`"),
        ("{'a': 1}", "expected a name in double quotes"),
        ("{} {}", "expected the end at byte 3"),
        ("\"a", "a text does not end"),
        ("\"\t\"", "in place of a control character"),
        (r#""\x""#, "expected an escape that JSON knows"),
        (r#""\u+123""#, "four hexadecimal digits"),
        (r#""\u00é""#, "four hexadecimal digits"),
        (r#""\ud83d\uzzzz""#, "four hexadecimal digits"),
        ("\u{a0}1", "expected a value"),
    ] {
        let error = parse(written).unwrap_err();
        assert!(error.contains(expected), "{written}: {error}");
    }
    let deep = "[".repeat(JSON_DEPTH_MAX + 2);
    assert!(parse(&deep).unwrap_err().contains("deep"));
    let fine = format!(
        "{}{}",
        "[".repeat(JSON_DEPTH_MAX),
        "]".repeat(JSON_DEPTH_MAX)
    );
    assert!(parse(&fine).is_ok());
}

proptest::proptest! {
    #[test]
    fn what_serde_json_reads_is_read_alike(value in proptest::collection::vec(
        proptest::sample::select(vec!["1", "-2.5e3", "\"a\\u00e9\\n\"", "null", "[true, {}]", "{\"x\": [], \"y\": {\"x\": \"\"}}"]), 0..6)
    ) {
        let written = format!("[{}]", value.join(" ,"));
        let expected: serde_json::Value = serde_json::from_str(&written).unwrap();
        proptest::prop_assert_eq!(serde_json::Value::from(&parse(&written).unwrap()), expected);
    }

    #[test]
    fn any_text_ends_in_a_value_or_an_error(text in "[\\[\\]{}\",:\\\\u0-9a-eNI.+ -]{0,40}") {
        let ours = parse(&text).is_ok();
        let theirs = serde_json::from_str::<serde_json::Value>(&text).is_ok();
        // Ours takes more: not-a-number, infinities, lone surrogates, numbers beyond f64.
        proptest::prop_assert!(ours || !theirs, "{}", text);
    }
}
