//! Frames in: an incremental reader that does not care where the network cut.
//!
//! Bytes are buffered until a line is complete, so a character or a line break split over two
//! chunks is whole again before anybody looks at it. Lines may end in LF, CR or CRLF; several
//! `data:` lines are one payload; comments are reported because gateways pass them on. The buffer
//! is bounded: an upstream that never ends a line must not take the daemon's memory.

use thiserror::Error;

/// Default limit of one event, in bytes.
pub const DEFAULT_LIMIT_BYTES: usize = 32 * 1024 * 1024;

/// One thing read from a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SseItem<'a> {
    /// A dispatched event.
    Event {
        /// The value of the `event:` field, where there was one.
        name: Option<&'a str>,
        /// All `data:` lines joined by LF.
        data: &'a str,
    },
    /// A comment line, without its colon.
    Comment(&'a str),
}

/// Why a stream cannot be read on.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SseError {
    /// An event outgrew the limit.
    #[error("an event of the stream is larger than {limit_bytes} bytes")]
    TooLarge {
        /// The limit in bytes.
        limit_bytes: usize,
    },
}

/// The reader: [`feed`](Self::feed) chunks, then drain [`next_item`](Self::next_item).
///
/// Bytes that are not UTF-8 are replaced by U+FFFD, as browsers do; they never end a stream.
#[derive(Debug)]
pub struct SseDecoder {
    buffer: Vec<u8>,
    /// Everything before this offset has been read.
    start: usize,
    /// No line break between `start` and here.
    scanned: usize,
    name: String,
    has_name: bool,
    data: String,
    has_data: bool,
    comment: String,
    /// The event in `name` and `data` has been handed out; the next call begins a new one.
    dispatched: bool,
    /// The last line ended in CR: an LF that follows belongs to it.
    after_cr: bool,
    at_beginning: bool,
    limit_bytes: usize,
}

impl Default for SseDecoder {
    fn default() -> Self {
        Self::with_limit(DEFAULT_LIMIT_BYTES)
    }
}

impl SseDecoder {
    /// A reader with the default limit per event.
    pub fn new() -> Self {
        Self::default()
    }

    /// A reader that gives up on events larger than `limit_bytes`.
    pub fn with_limit(limit_bytes: usize) -> Self {
        Self {
            buffer: Vec::new(),
            start: 0,
            scanned: 0,
            name: String::new(),
            has_name: false,
            data: String::new(),
            has_data: false,
            comment: String::new(),
            dispatched: false,
            after_cr: false,
            at_beginning: true,
            limit_bytes,
        }
    }

    /// Adds bytes as they arrived.
    ///
    /// # Errors
    ///
    /// [`SseError::TooLarge`] when what was fed before is an event without end that has outgrown the
    /// limit. Drain [`next_item`](Self::next_item) before feeding more.
    pub fn feed(&mut self, chunk: &[u8]) -> Result<(), SseError> {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.scanned -= self.start;
            self.start = 0;
        }
        if self.buffer.len() + self.data.len() > self.limit_bytes {
            return Err(SseError::TooLarge { limit_bytes: self.limit_bytes });
        }
        self.buffer.extend_from_slice(chunk);
        Ok(())
    }

    /// The next complete item, or `None` until more is fed.
    pub fn next_item(&mut self) -> Option<SseItem<'_>> {
        self.forget_dispatched();
        loop {
            let (line_start, line_end) = self.next_line()?;
            if line_start == line_end {
                if self.has_data {
                    return Some(self.dispatch());
                }
                self.forget_event();
                continue;
            }
            if self.buffer[line_start] == b':' {
                self.comment.clear();
                let text = String::from_utf8_lossy(&self.buffer[line_start + 1..line_end]);
                self.comment.push_str(text.strip_prefix(' ').unwrap_or(&text));
                return Some(SseItem::Comment(&self.comment));
            }
            self.field(line_start, line_end);
        }
    }

    /// The event left at the end of the body by a server that forgot the last empty line.
    ///
    /// A trailing line without line break counts as complete.
    pub fn finish(&mut self) -> Option<SseItem<'_>> {
        self.forget_dispatched();
        if self.start < self.buffer.len() {
            let (line_start, line_end) = (self.start, self.buffer.len());
            self.start = line_end;
            self.scanned = line_end;
            if self.buffer[line_start] != b':' && self.buffer[line_start] != b'\n' {
                self.field(line_start, line_end);
            }
        }
        self.has_data.then(|| self.dispatch())
    }

    fn dispatch(&mut self) -> SseItem<'_> {
        self.dispatched = true;
        SseItem::Event { name: self.has_name.then_some(self.name.as_str()), data: &self.data }
    }

    fn forget_dispatched(&mut self) {
        if self.dispatched {
            self.forget_event();
        }
    }

    fn forget_event(&mut self) {
        self.dispatched = false;
        self.has_name = false;
        self.has_data = false;
        self.name.clear();
        self.data.clear();
    }

    /// Bounds of the next complete line in the buffer, without its break.
    fn next_line(&mut self) -> Option<(usize, usize)> {
        if self.at_beginning && !self.skip_byte_order_mark() {
            return None;
        }
        if self.after_cr && self.start < self.buffer.len() {
            self.after_cr = false;
            if self.buffer[self.start] == b'\n' {
                self.start += 1;
                self.scanned = self.scanned.max(self.start);
            }
        }
        let found = self.buffer[self.scanned..].iter().position(|byte| matches!(byte, b'\n' | b'\r'));
        let Some(offset) = found else {
            self.scanned = self.buffer.len();
            return None;
        };
        let end = self.scanned + offset;
        self.after_cr = self.buffer[end] == b'\r';
        let line = (self.start, end);
        self.start = end + 1;
        self.scanned = self.start;
        Some(line)
    }

    /// False while the bytes so far could still be an incomplete byte order mark.
    fn skip_byte_order_mark(&mut self) -> bool {
        const MARK: &[u8] = b"\xEF\xBB\xBF";
        if self.buffer.len() < MARK.len() && MARK.starts_with(&self.buffer) {
            return false;
        }
        if self.buffer.starts_with(MARK) {
            self.start = MARK.len();
            self.scanned = MARK.len();
        }
        self.at_beginning = false;
        true
    }

    fn field(&mut self, line_start: usize, line_end: usize) {
        let line = &self.buffer[line_start..line_end];
        let (name, value) = match line.iter().position(|byte| *byte == b':') {
            Some(colon) => (&line[..colon], &line[colon + 1..]),
            None => (line, &line[line.len()..]),
        };
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match name {
            b"data" => {
                if self.has_data {
                    self.data.push('\n');
                }
                self.has_data = true;
                push_lossy(&mut self.data, value);
            }
            b"event" => {
                self.name.clear();
                self.has_name = true;
                push_lossy(&mut self.name, value);
            }
            _ => {}
        }
    }
}

fn push_lossy(text: &mut String, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(valid) => text.push_str(valid),
        Err(_) => text.push_str(&String::from_utf8_lossy(bytes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// `(name, data)` of an event, `(":", text)` of a comment.
    type Read = (Option<String>, String);

    /// What a stream says, whatever its chunks.
    fn read(chunks: &[&[u8]]) -> Vec<Read> {
        let mut decoder = SseDecoder::new();
        let mut items = Vec::new();
        let mut keep = |item: SseItem<'_>| match item {
            SseItem::Event { name, data } => items.push((name.map(str::to_owned), data.to_owned())),
            SseItem::Comment(text) => items.push((Some(":".to_owned()), text.to_owned())),
        };
        for chunk in chunks {
            decoder.feed(chunk).expect("small streams fit");
            while let Some(item) = decoder.next_item() {
                keep(item);
            }
        }
        if let Some(item) = decoder.finish() {
            keep(item);
        }
        items
    }

    fn event(data: &str) -> Read {
        (None, data.to_owned())
    }

    #[test]
    fn reads_what_servers_send() {
        let cases: &[(&str, Vec<Read>)] = &[
            ("data: a\n\ndata: b\n\n", vec![event("a"), event("b")]),
            ("data: a\r\n\r\ndata: b\r\n\r\n", vec![event("a"), event("b")]),
            ("data: a\r\rdata: b\r\r", vec![event("a"), event("b")]),
            ("data: a\ndata: b\n\n", vec![event("a\nb")]),
            ("data:a\n\n", vec![event("a")]),
            ("data:  a\n\n", vec![event(" a")]),
            ("data\n\n", vec![event("")]),
            ("\u{feff}data: a\n\n", vec![event("a")]),
            ("event: ping\ndata: {}\n\n", vec![(Some("ping".into()), "{}".into())]),
            ("event: lonely\n\ndata: a\n\n", vec![event("a")]),
            (
                ": hello\n\n:\ndata: a\n\n",
                vec![(Some(":".into()), "hello".into()), (Some(":".into()), String::new()), event("a")],
            ),
            ("id: 7\nretry: 10\nfoo: bar\ndata: a\n\n", vec![event("a")]),
            ("data: a", vec![event("a")]),
            ("data: a\n", vec![event("a")]),
            ("data: a\n\n: bye", vec![event("a")]),
            ("", vec![]),
        ];
        for (stream, expected) in cases {
            assert_eq!(read(&[stream.as_bytes()]), *expected, "{stream:?}");
        }
    }

    #[test]
    fn an_endless_event_is_refused() {
        let mut decoder = SseDecoder::with_limit(1024);
        assert_eq!(decoder.feed(&[b'x'; 2000]), Ok(()));
        assert_eq!(decoder.next_item(), None);
        assert_eq!(decoder.feed(b"x"), Err(SseError::TooLarge { limit_bytes: 1024 }));
        let mut decoder = SseDecoder::with_limit(1024);
        let failed = (0..100).any(|_| {
            let fed = decoder.feed(b"data: 0123456789abcdef0123456789abcdef\n");
            while decoder.next_item().is_some() {}
            fed.is_err()
        });
        assert!(failed, "lines without an end of event must not pile up");
    }

    proptest! {
        #[test]
        fn chunk_boundaries_do_not_matter(
            pieces in prop::collection::vec(
                prop::sample::select(vec!["data: ", "event: x", "é漢🧑‍🚀", "{\"a\":1}", "\n", "\r\n", "\r", "\n\n", ":", " ", "id: 1"]),
                0..40,
            ),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let stream = pieces.concat().into_bytes();
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
            at.extend([0, stream.len()]);
            at.sort_unstable();
            let chunks: Vec<&[u8]> = at.windows(2).map(|pair| &stream[pair[0]..pair[1]]).collect();
            let bytewise: Vec<&[u8]> = stream.chunks(1).collect();
            prop_assert_eq!(read(&chunks), read(&[&stream]));
            prop_assert_eq!(read(&bytewise), read(&[&stream]));
        }

        #[test]
        fn hostile_bytes_do_no_harm(stream in prop::collection::vec(any::<u8>(), 0..400), size in 1usize..50) {
            let chunks: Vec<&[u8]> = stream.chunks(size).collect();
            prop_assert_eq!(read(&chunks), read(&[&stream]));
        }

        #[test]
        fn what_is_encoded_is_decoded(payloads in prop::collection::vec("[^\r]{0,60}", 0..8)) {
            let mut stream = Vec::new();
            for payload in &payloads {
                crate::sse::encode::data(&mut stream, payload);
            }
            let expected: Vec<_> = payloads.iter().map(|payload| event(payload)).collect();
            prop_assert_eq!(read(&[&stream]), expected);
        }
    }
}
