//! Arguments of a call as models write them: mostly JSON.
//!
//! The Anthropic dialect carries arguments as an object, so text that is none must be mended or
//! given up. Mending is narrow: it undoes the two slips models make and never guesses a value.

use serde_json::{Map, Value};

/// The object in `text`; `cut_off` tells that the model was stopped by a limit.
///
/// Nothing at all is the empty object. A text cut off keeps the members that were complete. Other
/// broken text is mended once (trailing commas, raw line breaks in strings, an object written as a
/// string). `None` means that nothing can be saved.
pub fn recover(text: &str, cut_off: bool) -> Option<Map<String, Value>> {
    if text.trim().is_empty() {
        return Some(Map::new());
    }
    match serde_json::from_str(text) {
        Ok(Value::Object(map)) => return Some(map),
        Ok(Value::String(inner)) => return object(&inner),
        Ok(_) => return None,
        Err(_) => {}
    }
    if cut_off {
        return complete_members(text).filter(|map| !map.is_empty());
    }
    object(&mend(text))
}

fn object(text: &str) -> Option<Map<String, Value>> {
    serde_json::from_str(text).ok()
}

/// What stood before the last comma between members, closed.
fn complete_members(text: &str) -> Option<Map<String, Value>> {
    let mut scan = JsonScan::default();
    let mut last_comma = None;
    for (at, byte) in text.bytes().enumerate() {
        scan.push(byte);
        if byte == b',' && scan.depth == 1 && !scan.in_string {
            last_comma = Some(at);
        }
    }
    let kept = &text[..last_comma?];
    object(&format!("{kept}}}"))
}

/// Drops commas before a closing bracket and escapes line breaks and tabs inside strings.
fn mend(text: &str) -> String {
    let mut mended = String::with_capacity(text.len() + 8);
    let mut scan = JsonScan::default();
    for character in text.chars() {
        let mut utf8 = [0; 4];
        let was_in_string = scan.in_string;
        for byte in character.encode_utf8(&mut utf8).bytes() {
            scan.push(byte);
        }
        match character {
            '\n' if was_in_string => mended.push_str("\\n"),
            '\r' if was_in_string => mended.push_str("\\r"),
            '\t' if was_in_string => mended.push_str("\\t"),
            '}' | ']' if !was_in_string => {
                let kept = mended.trim_end().len();
                if mended[..kept].ends_with(',') {
                    mended.truncate(kept - 1);
                }
                mended.push(character);
            }
            _ => mended.push(character),
        }
    }
    mended
}

/// Follows JSON byte by byte, far enough to know when a value is over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct JsonScan {
    depth: u32,
    in_string: bool,
    escaped: bool,
    closed: bool,
}

impl JsonScan {
    fn push(&mut self, byte: u8) {
        if self.in_string {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.in_string = false,
                _ => {}
            }
            return;
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => {
                self.depth = self.depth.saturating_sub(1);
                self.closed |= self.depth == 0;
            }
            _ => {}
        }
    }

    /// Follows a piece.
    pub(crate) fn extend(&mut self, piece: &str) {
        for byte in piece.bytes() {
            self.push(byte);
        }
    }

    /// Whether the outermost bracket has been closed.
    pub(crate) fn is_complete(&self) -> bool {
        self.closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn t44_t45_arguments_are_mended_or_given_up() {
        let cases = [
            ("", false, Some(json!({}))),
            ("  ", true, Some(json!({}))),
            (r#"{"b":1,"a":2}"#, false, Some(json!({"b": 1, "a": 2}))),
            (r#"{"a":1,}"#, false, Some(json!({"a": 1}))),
            (r#"{"a":[1,2, ],}"#, false, Some(json!({"a": [1, 2]}))),
            ("{\"a\":\"x\ny\"}", false, Some(json!({"a": "x\ny"}))),
            (r#""{\"a\":1}""#, false, Some(json!({"a": 1}))),
            (r#"{"a":1,"b":{"c":2},"d":"unfin"#, true, Some(json!({"a": 1, "b": {"c": 2}}))),
            (r#"{"a":1,"b":2"#, true, Some(json!({"a": 1}))),
            (r#"{"a":"x,y"#, true, None),
            (r#"{"a":"#, true, None),
            (r#"{"a":"#, false, None),
            ("[1]", false, None),
            ("7", false, None),
            ("call it", false, None),
        ];
        for (text, cut_off, expected) in cases {
            assert_eq!(recover(text, cut_off).map(Value::Object), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn hostile_text_does_no_harm(text in ".{0,200}", json_like in "[{}\\[\\],:\"\\\\a1 \n]{0,80}", cut_off: bool) {
            let _ = recover(&text, cut_off);
            let _ = recover(&json_like, cut_off);
        }

        #[test]
        fn an_object_is_complete_at_its_last_byte_and_not_before(keys in prop::collection::vec(("\\PC{0,6}", "\\PC{0,9}"), 0..5)) {
            let map: Map<String, Value> = keys.into_iter().map(|(key, value)| (key, json!([value]))).collect();
            let text = Value::Object(map).to_string();
            let mut scan = JsonScan::default();
            let end = text.len() - 1;
            scan.extend(&text[..end]);
            prop_assert!(!scan.is_complete());
            scan.extend(&text[end..]);
            prop_assert!(scan.is_complete());
        }
    }
}
