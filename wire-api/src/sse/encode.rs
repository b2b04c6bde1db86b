//! Frames out: each function appends one complete frame to a buffer.
//!
//! Data is split at line breaks into several `data:` lines, as the format demands, so a payload
//! can never forge a frame.

use serde::Serialize;

/// A frame with data only: `data: …\n\n`.
pub fn data(out: &mut Vec<u8>, payload: &str) {
    data_lines(out, payload);
    out.push(b'\n');
}

/// A frame with a name: `event: …\ndata: …\n\n`. The name must be one line.
pub fn event(out: &mut Vec<u8>, name: &str, payload: &str) {
    debug_assert!(!name.contains(['\r', '\n']), "an event name is one line");
    out.extend_from_slice(b"event: ");
    out.extend_from_slice(name.as_bytes());
    out.push(b'\n');
    data(out, payload);
}

/// A comment, which clients skip: `: …\n\n`. Keeps a connection alive while there is nothing to say.
pub fn comment(out: &mut Vec<u8>, text: &str) {
    for line in text.split(['\r', '\n']) {
        out.extend_from_slice(b": ");
        out.extend_from_slice(line.as_bytes());
        out.push(b'\n');
    }
    out.push(b'\n');
}

/// The end of an OpenAI stream: `data: [DONE]\n\n`.
pub fn done(out: &mut Vec<u8>) {
    data(out, super::DONE);
}

/// A data frame holding a value as JSON, written straight into the buffer.
///
/// Compact JSON has no line breaks, so the value is never scanned.
///
/// # Panics
///
/// If the value cannot be JSON (a map with keys that are no strings), which no type of this crate is.
pub fn json_data<T: Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    out.extend_from_slice(b"data: ");
    serde_json::to_writer(&mut *out, value).expect("a wire type is always representable as JSON");
    out.extend_from_slice(b"\n\n");
}

/// A named frame holding a value as JSON. Panics as [`json_data`] does.
pub fn json_event<T: Serialize + ?Sized>(out: &mut Vec<u8>, name: &str, value: &T) {
    out.extend_from_slice(b"event: ");
    out.extend_from_slice(name.as_bytes());
    out.push(b'\n');
    json_data(out, value);
}

fn data_lines(out: &mut Vec<u8>, payload: &str) {
    for line in payload.split('\n') {
        out.extend_from_slice(b"data: ");
        out.extend_from_slice(line.strip_suffix('\r').unwrap_or(line).replace('\r', " ").as_bytes());
        out.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).expect("frames are text")
    }

    #[test]
    fn frames_are_exact() {
        assert_eq!(written(|out| data(out, "a")), "data: a\n\n");
        assert_eq!(written(|out| data(out, "a\nb")), "data: a\ndata: b\n\n");
        assert_eq!(written(|out| event(out, "ping", "{}")), "event: ping\ndata: {}\n\n");
        assert_eq!(written(|out| comment(out, "loading 43%")), ": loading 43%\n\n");
        assert_eq!(written(done), "data: [DONE]\n\n");
        assert_eq!(
            written(|out| json_data(out, &serde_json::json!({"a": "x\ny"}))),
            "data: {\"a\":\"x\\ny\"}\n\n"
        );
    }

    #[test]
    fn a_payload_cannot_forge_a_frame() {
        let text = written(|out| data(out, "x\r\revent: evil\n\ndata: y"));
        assert!(!text.contains("\nevent:"), "{text:?}");
        assert_eq!(text.matches("\n\n").count(), 1);
    }
}
