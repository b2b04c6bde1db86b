//! Tool calls in every format, cut at every place.

use super::*;
use proptest::prelude::*;
use serde_json::json;

fn tools() -> Vec<ToolSchema> {
    let parameters = json!({"properties": {
        "city": {"type": "string"}, "days": {"type": "integer"}, "opts": {"type": "array"}, "deep": {"type": "object"},
    }});
    vec![
        ToolSchema { name: "lookup".into(), parameters: Some(parameters) },
        ToolSchema { name: "now".into(), parameters: None },
    ]
}

/// Text and calls, folded.
#[derive(Debug, Default, PartialEq)]
struct Folded {
    text: String,
    calls: Vec<(String, String, bool)>,
}

fn fold(format: ToolFormat, pieces: &[&str]) -> Folded {
    let mut parser = ToolParser::new(format, tools());
    let mut deltas: Vec<ToolDelta> = pieces.iter().flat_map(|piece| parser.push(piece)).collect();
    deltas.extend(parser.finish());
    let mut folded = Folded::default();
    for delta in deltas {
        match delta {
            ToolDelta::Text(text) => folded.text.push_str(&text),
            ToolDelta::Start { index, name } => {
                assert_eq!(index, folded.calls.len());
                folded.calls.push((name, String::new(), false));
            }
            ToolDelta::Arguments { index, text } => folded.calls[index].1.push_str(&text),
            ToolDelta::End { index } => folded.calls[index].2 = true,
        }
    }
    assert_eq!(parser.calls(), folded.calls.len());
    folded
}

fn check(format: ToolFormat, input: &str, text: &str, calls: &[(&str, &str)]) {
    let expected = Folded {
        text: text.to_owned(),
        calls: calls.iter().map(|(name, args)| ((*name).to_owned(), (*args).to_owned(), true)).collect(),
    };
    assert_eq!(fold(format, &[input]), expected, "whole: {input}");
    let characters: Vec<String> = input.chars().map(String::from).collect();
    let characters: Vec<&str> = characters.iter().map(String::as_str).collect();
    assert_eq!(fold(format, &characters), expected, "by character: {input}");
}

#[test]
fn tagged_json() {
    use ToolFormat::TaggedJson as F;
    check(F, "plain text\n", "plain text\n", &[]);
    check(
        F,
        "Checking.\n\n<tool_call>\n{\"name\": \"lookup\", \"arguments\": {\"city\": \"Oslo }\\\" {\", \"days\": 3}}\n</tool_call>",
        "Checking.",
        &[("lookup", "{\"city\": \"Oslo }\\\" {\", \"days\": 3}")],
    );
    check(
        F,
        "<tool_call>{\"name\":\"now\",\"arguments\":{}}</tool_call>\n<tool_call>{\"arguments\": {\"a\": [1,{\"b\":2}]}, \"name\": \"x\"}</tool_call>",
        "",
        &[("now", "{}"), ("x", "{\"a\": [1,{\"b\":2}]}")],
    );
    check(F, "<tool_call>{\"name\": \"now\"}</tool_call> and more", "and more", &[("now", "{}")]);
    check(
        F,
        "<tool_call>{\"name\": \"now\", \"arguments\": \"{\\\"a\\\": 1}\"}</tool_call>",
        "",
        &[("now", "{\"a\": 1}")],
    );
    check(F, "<tool_call>{\"name\": \"now\", \"arguments\": null}</tool_call>", "", &[("now", "{}")]);
    check(
        F,
        "<tool_call>{\"function\": {\"name\": \"now\", \"arguments\": {\"a\": 1}}}</tool_call>",
        "",
        &[("now", "{\"a\": 1}")],
    );
    check(
        F,
        "<tool_call>{\"name\": \"now\", \"arguments\": {\"a\": 1}</tool_call>x",
        "x",
        &[("now", "{\"a\": 1}")],
    );
    check(F, "a <tool_cal", "a <tool_cal", &[]);
    check(F, "<tool_call>not json", "<tool_call>not json", &[]);
    check(F, "<tool_call>[1]", "<tool_call>[1]", &[]);
}

#[test]
fn tagged_xml() {
    use ToolFormat::TaggedXml as F;
    check(
        F,
        "Checking.\n\n<tool_call>\n<function=lookup>\n<parameter=city>\nOslo \"x\"\n</parameter>\n<parameter=days>\n3\n</parameter>\n<parameter=opts>\n[\"a\", true, null]\n</parameter>\n</function>\n</tool_call>",
        "Checking.",
        &[("lookup", "{\"city\": \"Oslo \\\"x\\\"\", \"days\": 3, \"opts\": [\"a\",true,null]}")],
    );
    check(
        F,
        "<tool_call>\n<function=now>\n</function>\n</tool_call>\n<tool_call>\n<function=now>\n</function>\n</tool_call>",
        "",
        &[("now", "{}"), ("now", "{}")],
    );
    check(
        F,
        "<tool_call>\n<function=lookup>\n<parameter=city>\nline 1\n\nline <b>3</b>\n\n</parameter>\n</function>\n</tool_call>",
        "",
        &[("lookup", "{\"city\": \"line 1\\n\\nline <b>3</b>\\n\"}")],
    );
    check(F, "<function=now>\n</function> done", "done", &[("now", "{}")]);
    check(
        F,
        "<tool_call>\n<function=lookup>\n<parameter=days>\nmany\n</parameter>\n</tool_call>",
        "",
        &[("lookup", "{\"days\": \"many\"}")],
    );
    check(
        F,
        "<tool_call>\n<function=lookup>\n<parameter=city>\nOslo\n</function>\n</tool_call>",
        "",
        &[("lookup", "{\"city\": \"Oslo\"}")],
    );
    check(F, "<tool_call> nothing", "<tool_call> nothing", &[]);
    check(F, "1 < 2 and <func", "1 < 2 and <func", &[]);
}

#[test]
fn bare_json() {
    use ToolFormat::BareJson as F;
    check(
        F,
        "{\"name\": \"lookup\", \"parameters\": {\"city\": \"Oslo\"}}",
        "",
        &[("lookup", "{\"city\": \"Oslo\"}")],
    );
    check(
        F,
        "<|python_tag|>{\"type\": \"function\", \"name\": \"now\", \"parameters\": {}}",
        "",
        &[("now", "{}")],
    );
    check(
        F,
        "{\"name\": \"now\", \"parameters\": {}}; {\"name\": \"now\", \"parameters\": {}}",
        "",
        &[("now", "{}"), ("now", "{}")],
    );
    check(F, "{\"name\": \"Bob\", \"age\": 3}", "{\"name\": \"Bob\", \"age\": 3}", &[]);
    check(F, "{\"a\": 1} is JSON", "{\"a\": 1} is JSON", &[]);
    check(F, "It is {\"name\": \"now\"}", "It is {\"name\": \"now\"}", &[]);
}

#[test]
fn arguments_stream_while_they_are_written() {
    let mut parser = ToolParser::new(ToolFormat::TaggedJson, tools());
    assert_eq!(
        parser.push("<tool_call>{\"name\": \"now\", \"arg"),
        [ToolDelta::Start { index: 0, name: "now".into() }]
    );
    assert_eq!(
        parser.push("uments\": {\"a\": \"lo"),
        [ToolDelta::Arguments { index: 0, text: "{\"a\": \"lo".into() }]
    );
    let mut parser = ToolParser::new(ToolFormat::TaggedXml, tools());
    parser.push("<tool_call>\n<function=lookup>\n<parameter=city>\n");
    assert_eq!(parser.push("Os"), [ToolDelta::Arguments { index: 0, text: "{\"city\": \"Os".into() }]);
}

#[test]
fn a_call_cut_short_keeps_what_it_has() {
    let folded = fold(ToolFormat::TaggedJson, &["<tool_call>{\"name\": \"now\", \"arguments\": {\"a\": \"b"]);
    assert_eq!(folded.calls, [("now".to_owned(), "{\"a\": \"b".to_owned(), false)]);
    let folded = fold(ToolFormat::TaggedXml, &["<tool_call><function=lookup><parameter=city>\nOslo</para"]);
    assert_eq!(folded.calls, [("lookup".to_owned(), "{\"city\": \"Oslo</para".to_owned(), false)]);
}

#[test]
fn formats_are_read_from_templates() {
    let of = ToolFormat::of_template;
    assert_eq!(of("… <tool_call>\n{\"name\": …"), Some(ToolFormat::TaggedJson));
    assert_eq!(of("… <tool_call>\n<function=…"), Some(ToolFormat::TaggedXml));
    assert_eq!(of("{% if tools %} <|python_tag|>"), Some(ToolFormat::BareJson));
    assert_eq!(of("{{ messages }}"), None);
}

#[test]
fn forced_prefixes_parse_as_the_beginning_of_a_call() {
    let rest = [
        (ToolFormat::TaggedJson, "\"days\": 1}}</tool_call>"),
        (ToolFormat::TaggedXml, "<parameter=days>\n1\n</parameter>\n</function>\n</tool_call>"),
        (ToolFormat::BareJson, "\"days\": 1}}"),
    ];
    for (format, rest) in rest {
        let prefix = format.forced_prefix(Some("lookup"));
        let folded = fold(format, &[&prefix, rest]);
        assert_eq!(folded.calls, [("lookup".to_owned(), "{\"days\": 1}".to_owned(), true)]);
    }
}

proptest! {
    #[test]
    fn cuts_do_not_matter(
        format in prop_oneof![Just(ToolFormat::TaggedJson), Just(ToolFormat::TaggedXml), Just(ToolFormat::BareJson)],
        words in proptest::collection::vec(prop_oneof![
            Just("<tool_call>"), Just("</tool_call>"), Just("\n"), Just("{\"name\": \"now\""), Just(", \"arguments\": "),
            Just("{\"a\": 1}"), Just("}"), Just("<function=lookup>"), Just("<parameter=city>"), Just("</parameter>"),
            Just("<parameter=days>"), Just("</function>"), Just("<|python_tag|>"), Just("日"), Just("<"), Just("\""), Just(";"),
        ], 0..14),
        cuts in proptest::collection::vec(0usize..200, 0..10),
    ) {
        let whole = words.concat();
        let mut at: Vec<usize> = cuts.into_iter().filter(|c| *c <= whole.len() && whole.is_char_boundary(*c)).collect();
        at.extend([0, whole.len()]);
        at.sort_unstable();
        let pieces: Vec<&str> = at.windows(2).map(|w| &whole[w[0]..w[1]]).collect();
        prop_assert_eq!(fold(format, &pieces), fold(format, &[&whole]));
    }

    #[test]
    fn never_panics(text in "\\PC{0,60}", format in prop_oneof![Just(ToolFormat::TaggedJson), Just(ToolFormat::TaggedXml), Just(ToolFormat::BareJson)]) {
        fold(format, &[&text]);
    }
}
