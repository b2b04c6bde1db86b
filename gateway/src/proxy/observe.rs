//! Reading along: tokens, first content and the proper end of an answer, without decoding it.
//!
//! Passing bytes through is the point, so this only searches them: for the one object that counts
//! tokens, for the first piece of content, for the words a stream ends with. What it misses it
//! leaves unknown; it never delays or changes a byte.

use std::sync::LazyLock;
use std::time::Instant;

use memchr::memmem::Finder;
use serde::Deserialize;

/// Most bytes kept of a line or answer that is not complete yet.
const KEPT: usize = 64 << 10;

static USAGE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"usage\":"));

/// Pieces of a stream that are content, when what follows is not an empty string.
static CONTENT: LazyLock<Vec<Finder<'static>>> = LazyLock::new(|| {
    ["\"content\":\"", "\"reasoning_content\":\"", "\"text\":\"", "\"reasoning\":\"", "\"delta\":\""]
        .map(Finder::new)
        .into()
});

/// Pieces of a stream that are content by themselves.
static CONTENT_ALWAYS: LazyLock<Vec<Finder<'static>>> =
    LazyLock::new(|| ["\"tool_calls\":[{", "\"content_block_delta\""].map(Finder::new).into());

/// What a stream ends with, in any dialect; an error event ends it properly, too.
static ENDS: LazyLock<Vec<Finder<'static>>> = LazyLock::new(|| {
    [
        "data: [DONE]",
        "event: message_stop",
        "event: response.completed",
        "event: response.incomplete",
        "event: response.failed",
        "event: error",
        "data: {\"error\":",
        "data:[DONE]",
    ]
    .map(Finder::new)
    .into()
});

/// Token counts of an answer, whatever its dialect calls them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Tokens of the prompt, cached ones included.
    pub prompt: u64,
    /// Of these, tokens from a cache.
    pub cached: u64,
    /// Tokens generated.
    pub completion: u64,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WireUsage {
    prompt_tokens: u64,
    completion_tokens: u64,
    input_tokens: u64,
    output_tokens: u64,
    cache_read_input_tokens: u64,
    cache_creation_input_tokens: u64,
    prompt_tokens_details: Option<WireDetails>,
    input_tokens_details: Option<WireDetails>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WireDetails {
    cached_tokens: u64,
}

impl Tokens {
    /// Reads the object that begins `json`; what follows it does not matter.
    fn read(json: &[u8]) -> Option<Self> {
        let usage = serde_json::Deserializer::from_slice(json).into_iter::<WireUsage>().next()?.ok()?;
        let details = usage.prompt_tokens_details.or(usage.input_tokens_details).unwrap_or_default();
        let read_elsewhere = usage.cache_read_input_tokens + usage.cache_creation_input_tokens;
        Some(Self {
            prompt: usage.prompt_tokens.max(usage.input_tokens + read_elsewhere),
            cached: details.cached_tokens.max(usage.cache_read_input_tokens),
            completion: usage.completion_tokens.max(usage.output_tokens),
        })
    }

    /// Counts are cumulative: the larger one is the later one.
    fn merge(&mut self, later: Self) {
        self.prompt = self.prompt.max(later.prompt);
        self.cached = self.cached.max(later.cached);
        self.completion = self.completion.max(later.completion);
    }
}

/// Reads along one answer.
pub struct Observer {
    stream: bool,
    kept: Vec<u8>,
    tokens: Option<Tokens>,
    ended: bool,
    events: u64,
    first_content: Option<Instant>,
    last_content: Option<Instant>,
}

impl Observer {
    /// For an answer that is a stream of events, or one object.
    pub fn new(stream: bool) -> Self {
        Self {
            stream,
            kept: Vec::new(),
            tokens: None,
            ended: false,
            events: 0,
            first_content: None,
            last_content: None,
        }
    }

    /// The next bytes of the answer, as they came.
    pub fn saw(&mut self, bytes: &[u8]) {
        if !self.stream {
            self.keep_tail(bytes);
            return;
        }
        if self.kept.is_empty() && bytes.ends_with(b"\n") {
            self.read_events(bytes);
            return;
        }
        self.kept.extend_from_slice(bytes);
        let Some(end) = memchr::memrchr(b'\n', &self.kept) else {
            if self.kept.len() > KEPT {
                self.kept.clear();
            }
            return;
        };
        let kept = std::mem::take(&mut self.kept);
        self.read_events(&kept[..=end]);
        self.kept.extend_from_slice(&kept[end + 1..]);
    }

    /// The answer is over: reads the counts of one that was no stream.
    pub fn finish(&mut self) {
        let kept = std::mem::take(&mut self.kept);
        if self.stream {
            self.read_events(&kept);
        } else if let Some(at) = kept.windows(USAGE.needle().len()).rposition(|w| w == USAGE.needle()) {
            self.tokens = Tokens::read(&kept[at + USAGE.needle().len()..]);
        }
    }

    /// Whether a stream came to its proper end.
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// Token counts, where the answer told them.
    pub fn tokens(&self) -> Option<Tokens> {
        self.tokens
    }

    /// When the first piece of content came.
    pub fn first_content(&self) -> Option<Instant> {
        self.first_content
    }

    /// Seconds between tokens: the time between first and last content over the tokens in it.
    pub fn inter_token_s(&self) -> Option<f64> {
        let span = self.last_content?.duration_since(self.first_content?).as_secs_f64();
        let pieces = self.tokens.map_or(self.events, |tokens| tokens.completion.max(self.events));
        (pieces > 1).then(|| span / (pieces - 1) as f64)
    }

    fn keep_tail(&mut self, bytes: &[u8]) {
        self.kept.extend_from_slice(bytes);
        if self.kept.len() > 2 * KEPT {
            self.kept.drain(..self.kept.len() - KEPT);
        }
    }

    fn read_events(&mut self, text: &[u8]) {
        if self.first_content.is_some() || has_content(text) {
            let now = Instant::now();
            self.first_content.get_or_insert(now);
            self.last_content = Some(now);
            self.events += memchr::memmem::find_iter(text, b"\ndata:").count() as u64 + 1;
        }
        for at in USAGE.find_iter(text) {
            if let Some(tokens) = Tokens::read(&text[at + USAGE.needle().len()..]) {
                self.tokens.get_or_insert_default().merge(tokens);
            }
        }
        self.ended = self.ended || ENDS.iter().any(|end| at_line_start(text, end));
    }
}

fn has_content(text: &[u8]) -> bool {
    let nonempty = |finder: &Finder<'_>| {
        finder
            .find_iter(text)
            .any(|at| text.get(at + finder.needle().len()).is_some_and(|byte| *byte != b'"'))
    };
    CONTENT.iter().any(nonempty) || CONTENT_ALWAYS.iter().any(|finder| finder.find(text).is_some())
}

fn at_line_start(text: &[u8], finder: &Finder<'_>) -> bool {
    finder.find_iter(text).any(|at| at == 0 || text[at - 1] == b'\n')
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHAT: &str = concat!(
        "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n",
        ": keep-alive\n\n",
        "data: {\"choices\":[{\"delta\":{\"content\":\"Hi\"}}]}\n\n",
        "data: {\"choices\":[{\"delta\":{\"content\":\" there\"}}]}\n\n",
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":2,\"total_tokens\":9,",
        "\"prompt_tokens_details\":{\"cached_tokens\":4}}}\n\n",
        "data: [DONE]\n\n"
    );

    #[test]
    fn a_chat_stream_cut_anywhere() {
        for cut in 0..CHAT.len() {
            let mut observer = Observer::new(true);
            observer.saw(&CHAT.as_bytes()[..cut]);
            observer.saw(&CHAT.as_bytes()[cut..]);
            observer.finish();
            assert_eq!(
                observer.tokens(),
                Some(Tokens { prompt: 7, cached: 4, completion: 2 }),
                "cut at {cut}"
            );
            assert!(observer.ended() && observer.first_content().is_some(), "cut at {cut}");
        }
    }

    #[test]
    fn the_empty_first_chunk_is_not_content() {
        let mut observer = Observer::new(true);
        observer.saw(&CHAT.as_bytes()[..CHAT.find(": keep").expect("there")]);
        assert!(observer.first_content().is_none());
        assert!(!observer.ended());
    }

    #[test]
    fn a_messages_stream() {
        let mut observer = Observer::new(true);
        for event in [
            "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":10,\"cache_read_input_tokens\":5,\"output_tokens\":1}}}\n\n",
            "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"delta\":{\"type\":\"text_delta\",\"text\":\"x\"}}\n\n",
            "event: message_delta\ndata: {\"type\":\"message_delta\",\"usage\":{\"output_tokens\":30}}\n\n",
            "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
        ] {
            observer.saw(event.as_bytes());
        }
        assert_eq!(observer.tokens(), Some(Tokens { prompt: 15, cached: 5, completion: 30 }));
        assert!(observer.ended() && observer.first_content().is_some());
    }

    #[test]
    fn an_answer_that_quotes_the_words_is_not_fooled() {
        let mut observer = Observer::new(true);
        observer.saw(b"data: {\"choices\":[{\"delta\":{\"content\":\"it ends with data: [DONE]\"}}]}\n\n");
        assert!(!observer.ended());
        let mut whole = Observer::new(false);
        whole.saw(b"{\"choices\":[{\"message\":{\"content\":\"say \\\"usage\\\": 5\"}}],\"usage\":{\"prompt_tokens\":3}}");
        whole.finish();
        assert_eq!(whole.tokens().map(|tokens| tokens.prompt), Some(3));
    }

    #[test]
    fn long_answers_keep_only_their_end() {
        let mut observer = Observer::new(false);
        for _ in 0..100 {
            observer.saw(&[b'x'; 9000]);
        }
        observer.saw(b"\"usage\":{\"completion_tokens\":12}}");
        assert!(observer.kept.len() <= 2 * KEPT + 9000);
        observer.finish();
        assert_eq!(observer.tokens().map(|tokens| tokens.completion), Some(12));
    }
}
