//! JSON as Python's `json.dumps` writes it.
//!
//! Chat templates were written against that function and models were trained on its output, so spaces
//! after separators, unescaped non-ASCII text and untouched key order are part of the prompt. Nothing is
//! escaped for HTML.

use minijinja::value::{Kwargs, Serde, Value, ValueKind};
use minijinja::{Error, ErrorKind};

/// How the output is laid out; the defaults are those of the `tojson` filter in chat templates.
#[derive(Debug, Clone)]
struct Layout {
    indent: Option<usize>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
    ascii: bool,
}

/// The `tojson` filter: `indent`, `separators`, `sort_keys` and `ensure_ascii` as in Python.
pub(super) fn tojson(value: &Value, indent: Option<Value>, options: Kwargs) -> Result<Value, Error> {
    let indent = match options.get::<Option<Value>>("indent")?.or(indent) {
        Some(v) if !v.is_none() && !v.is_undefined() => Some(usize::try_from(v)?),
        _ => None,
    };
    let separators: Option<Vec<String>> = options.get::<Option<Vec<String>>>("separators")?;
    let (item_separator, key_separator) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "separators must be a pair")),
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
    };
    let layout = Layout {
        indent,
        item_separator,
        key_separator,
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    let mut out = String::new();
    write(&mut out, value, &layout, 0)?;
    Ok(Value::from(out))
}

/// `value` as one line of JSON in Python's default layout with non-ASCII text kept.
pub fn to_python_json(value: &serde_json::Value) -> String {
    let layout = Layout {
        indent: None,
        item_separator: ", ".into(),
        key_separator: ": ".into(),
        sort_keys: false,
        ascii: false,
    };
    let mut out = String::new();
    write(&mut out, &Value::from(Serde(value)), &layout, 0)
        .expect("a JSON value has only string keys and finite numbers");
    out
}

fn write(out: &mut String, value: &Value, layout: &Layout, depth: usize) -> Result<(), Error> {
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push_str(&number(value)),
        ValueKind::String => string(out, value.as_str().unwrap_or_default(), layout.ascii),
        ValueKind::Seq | ValueKind::Iterable => {
            let items = value.try_iter()?.collect::<Vec<_>>();
            sequence(out, items, layout, depth)?;
        }
        ValueKind::Map => mapping(out, value, layout, depth)?,
        kind => {
            let message = format!("an {kind} value is not JSON serializable");
            return Err(Error::new(ErrorKind::BadSerialization, message));
        }
    }
    Ok(())
}

fn sequence(out: &mut String, items: Vec<Value>, layout: &Layout, depth: usize) -> Result<(), Error> {
    out.push('[');
    for (index, item) in items.iter().enumerate() {
        separate(out, layout, index, depth + 1);
        write(out, item, layout, depth + 1)?;
    }
    close(out, ']', items.is_empty(), layout, depth);
    Ok(())
}

fn mapping(out: &mut String, value: &Value, layout: &Layout, depth: usize) -> Result<(), Error> {
    let mut keys = value.try_iter()?.collect::<Vec<_>>();
    if layout.sort_keys {
        keys.sort();
    }
    out.push('{');
    for (index, key) in keys.iter().enumerate() {
        separate(out, layout, index, depth + 1);
        string(out, &key_text(key), layout.ascii);
        out.push_str(&layout.key_separator);
        write(out, &value.get_item(key)?, layout, depth + 1)?;
    }
    close(out, '}', keys.is_empty(), layout, depth);
    Ok(())
}

fn separate(out: &mut String, layout: &Layout, index: usize, depth: usize) {
    if index > 0 {
        out.push_str(&layout.item_separator);
    }
    if let Some(width) = layout.indent {
        out.push('\n');
        out.extend(std::iter::repeat_n(' ', width * depth));
    }
}

fn close(out: &mut String, bracket: char, empty: bool, layout: &Layout, depth: usize) {
    if let (Some(width), false) = (layout.indent, empty) {
        out.push('\n');
        out.extend(std::iter::repeat_n(' ', width * depth));
    }
    out.push(bracket);
}

fn key_text(key: &Value) -> String {
    match key.kind() {
        ValueKind::None => "null".into(),
        ValueKind::Bool => if key.is_true() { "true" } else { "false" }.into(),
        ValueKind::Number => number(key),
        _ => key.to_string(),
    }
}

fn number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    match f64::try_from(value.clone()) {
        Ok(v) => float(v),
        Err(_) => value.to_string(),
    }
}

/// Python's `repr` of a float: shortest digits, exponent form outside 1e-4 … 1e16.
fn float(v: f64) -> String {
    if v.is_nan() {
        return "NaN".into();
    }
    if v.is_infinite() {
        return if v > 0.0 { "Infinity" } else { "-Infinity" }.into();
    }
    let magnitude = v.abs();
    if magnitude != 0.0 && !(1e-4..1e16).contains(&magnitude) {
        let text = format!("{v:e}");
        let (digits, exponent) = text.split_once('e').expect("the e format has an exponent");
        let (sign, exponent) = match exponent.strip_prefix('-') {
            Some(rest) => ('-', rest),
            None => ('+', exponent),
        };
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    let text = format!("{v}");
    if text.contains('.') { text } else { format!("{text}.0") }
}

fn string(out: &mut String, text: &str, ascii: bool) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if (c as u32) < 0x20 => out.push_str(&format!("\\u{:04x}", c as u32)),
            c if ascii && !(' '..='~').contains(&c) => {
                let mut units = [0u16; 2];
                for unit in c.encode_utf16(&mut units) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_like_python() {
        // Left: the value; right: what CPython 3 json.dumps(value, ensure_ascii=False) prints.
        let cases = [
            (
                r#"{"b":1,"a":[true,null,"größer 今 <&'>"]}"#,
                r#"{"b": 1, "a": [true, null, "größer 今 <&'>"]}"#,
            ),
            ("[]", "[]"),
            ("{}", "{}"),
            (
                "[1.0,0.1,1e-7,1e22,123456789012345680.0,-0.0]",
                "[1.0, 0.1, 1e-07, 1e+22, 1.2345678901234568e+17, -0.0]",
            ),
            ("[18446744073709551615,-5]", "[18446744073709551615, -5]"),
            (r#""tab\tquote\"\u0001\u007f""#, "\"tab\\tquote\\\"\\u0001\u{7f}\""),
        ];
        for (input, expected) in cases {
            assert_eq!(to_python_json(&serde_json::from_str(input).unwrap()), expected);
        }
    }

    #[test]
    fn filter_options() {
        let mut env = minijinja::Environment::new();
        env.add_filter("tojson", tojson);
        let value = minijinja::context! { v => Serde(serde_json::json!({"b": [1, 2], "a": {}, "é": "🙂"})) };
        let cases = [
            (
                "{{ v|tojson(indent=2) }}",
                "{\n  \"b\": [\n    1,\n    2\n  ],\n  \"a\": {},\n  \"é\": \"🙂\"\n}",
            ),
            ("{{ v|tojson(sort_keys=true) }}", r#"{"a": {}, "b": [1, 2], "é": "🙂"}"#),
            ("{{ v|tojson(ensure_ascii=true) }}", r#"{"b": [1, 2], "a": {}, "\u00e9": "\ud83d\ude42"}"#),
            ("{{ v|tojson(separators=(',', ':')) }}", r#"{"b":[1,2],"a":{},"é":"🙂"}"#),
            ("{{ 'a<b>&' | tojson }}", "\"a<b>&\""),
        ];
        for (template, expected) in cases {
            assert_eq!(env.render_str(template, &value).unwrap(), expected, "{template}");
        }
    }
}
