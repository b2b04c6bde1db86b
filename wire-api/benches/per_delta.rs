//! What one streamed delta costs: read from the server's frame, translated, written for the client.
//!
//! The target is 3 µs for a translated delta. Passing bytes through costs a peek per request and
//! nothing per delta.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use serde_json::json;
use wire_api::openai::chat::{ChatCompletionChunk, ChunkHead, Delta};
use wire_api::sse::{SseDecoder, SseItem, encode};
use wire_api::translate::chat_on_messages::stream::ChatStream;
use wire_api::translate::messages_on_chat::stream::MessagesStream;
use wire_api::translate::responses_on_chat::stream::ResponsesStream;

fn head() -> ChunkHead {
    ChunkHead { id: "chatcmpl-0123456789abcdef".into(), created: 1_700_000_000, model: "org/model".into() }
}

fn chat_frame() -> Vec<u8> {
    let mut frame = Vec::new();
    encode::json_data(&mut frame, &head().delta(0, Delta::text(" token")));
    frame
}

fn messages_frame() -> Vec<u8> {
    let mut frame = Vec::new();
    let event =
        json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": " token"}});
    encode::json_event(&mut frame, "content_block_delta", &event);
    frame
}

/// Decodes a frame and hands its data on.
fn each(decoder: &mut SseDecoder, frame: &[u8], mut take: impl FnMut(&str)) {
    decoder.feed(frame).expect("it fits");
    while let Some(item) = decoder.next_item() {
        if let SseItem::Event { data, .. } = item {
            take(data);
        }
    }
}

fn per_delta(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("delta");
    group.throughput(Throughput::Elements(1));
    let (chat, messages) = (chat_frame(), messages_frame());
    let mut out = Vec::with_capacity(4096);

    group.bench_function("write chat chunk", |bencher| {
        let head = head();
        bencher.iter(|| {
            out.clear();
            encode::json_data(&mut out, &head.delta(0, Delta::text(black_box(" token"))));
        });
    });
    group.bench_function("read chat chunk", |bencher| {
        let mut decoder = SseDecoder::new();
        bencher.iter(|| {
            each(&mut decoder, black_box(&chat), |data| {
                black_box(serde_json::from_str::<ChatCompletionChunk>(data).expect("a chunk"));
            });
        });
    });
    group.bench_function("messages on chat", |bencher| {
        let mut decoder = SseDecoder::new();
        let mut stream = MessagesStream::new("msg_1", 0, Default::default());
        bencher.iter(|| {
            out.clear();
            each(&mut decoder, black_box(&chat), |data| stream.data(data, &mut out));
        });
    });
    group.bench_function("chat on messages", |bencher| {
        let mut decoder = SseDecoder::new();
        let mut stream = ChatStream::new(head(), Default::default());
        let start =
            json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}});
        stream.event(&start.to_string(), &mut |_| {});
        bencher.iter(|| {
            out.clear();
            each(&mut decoder, black_box(&messages), |data| {
                stream.event(data, &mut |piece| piece.write(&mut out))
            });
        });
    });
    group.bench_function("responses on chat", |bencher| {
        let mut decoder = SseDecoder::new();
        let mut stream = ResponsesStream::new("resp_1", 0, Default::default());
        bencher.iter(|| {
            out.clear();
            each(&mut decoder, black_box(&chat), |data| stream.data(data, &mut out));
        });
    });
    group.finish();
}

fn per_request(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("request");
    for (name, size) in [("1 KB", 1_000), ("75 KB", 75_000)] {
        let body = json!({"model": "org/model", "stream": true, "messages": [{"role": "user", "content": "word ".repeat(size / 5)}], "max_tokens": 100}).to_string();
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_function(format!("peek {name}"), |bencher| {
            bencher.iter(|| black_box(wire_api::peek(black_box(body.as_bytes())).expect("an object")));
        });
        group.bench_function(format!("parse {name}"), |bencher| {
            bencher.iter(|| {
                black_box(wire_api::ChatRequest::parse(black_box(body.as_bytes())).expect("a request"))
            });
        });
    }
    group.finish();
}

criterion_group!(benches, per_delta, per_request);
criterion_main!(benches);
