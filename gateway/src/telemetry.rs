//! Traces: one span per request, sent by OTLP over HTTP as JSON to whoever collects them.
//!
//! Off unless `[telemetry] otlp_endpoint` is set. A caller's `traceparent` is continued and what the node is sent
//! names our span as its parent; without the setting a caller's header is passed on as it came. Spans are handed
//! over a bounded queue and sent in batches: no request ever waits for a collector, and what a collector does not
//! take is dropped and said so. JSON is one of the protocol's two encodings; it needs no code generator and none
//! of the libraries that speak the other.

use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method, Request};
use http_body_util::Full;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::config::Telemetry;
use crate::fleet::identity::random_bits;
use crate::proxy::client::Client;

/// The header of W3C trace context.
pub const TRACEPARENT: &str = "traceparent";
/// Spans that may wait for the collector.
const QUEUE: usize = 4096;
/// Spans sent at once.
const BATCH: usize = 512;
/// How long a batch waits for more spans.
const PATIENCE: Duration = Duration::from_secs(1);
/// Longest wait for the collector.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Where one request belongs: which trace, which span, whose child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context {
    trace: u128,
    span: u64,
    parent: Option<u64>,
}

impl Context {
    /// Reads `00-<32 hex>-<16 hex>-<2 hex>`; whether the caller wants it traced comes with it.
    fn parse(header: &str) -> Option<(u128, u64, bool)> {
        let mut parts = header.trim().split('-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let well_formed = version.len() == 2 && version != "ff" && trace.len() == 32 && span.len() == 16;
        if !well_formed {
            return None;
        }
        let (trace, span) = (u128::from_str_radix(trace, 16).ok()?, u64::from_str_radix(span, 16).ok()?);
        let sampled = u8::from_str_radix(flags, 16).ok()? & 1 == 1;
        (trace != 0 && span != 0).then_some((trace, span, sampled))
    }

    /// What the node is told.
    pub fn header(&self) -> Option<HeaderValue> {
        HeaderValue::from_str(&format!("00-{:032x}-{:016x}-01", self.trace, self.span)).ok()
    }
}

/// A request that is over.
#[derive(Debug, Clone)]
pub struct Span {
    /// Where it belongs.
    pub context: Context,
    /// What was asked, such as `chat`.
    pub route: &'static str,
    /// When it came, in milliseconds since 1970.
    pub start_ms: f64,
    /// When it was over.
    pub end_ms: f64,
    /// When the first content came.
    pub first_token_ms: Option<f64>,
    /// How it ended.
    pub outcome: &'static str,
    /// The model.
    pub model: String,
    /// The node.
    pub node: String,
    /// The key's name.
    pub key: String,
    /// Tokens of prompt, of these cached, generated.
    pub tokens: [u64; 3],
}

/// Takes spans. Cheap to clone.
#[derive(Clone)]
pub struct Tracer {
    spans: mpsc::Sender<Span>,
    /// Of 2^64 requests so many are traced when the caller does not say.
    share: u64,
}

impl Tracer {
    /// A tracer and the task that sends its spans; None without an endpoint.
    pub fn start(settings: &Telemetry, client: Client) -> Option<(Self, JoinSet<()>)> {
        let endpoint = settings.otlp_endpoint.as_ref()?;
        let address = format!("{}/v1/traces", endpoint.trim_end_matches('/'));
        let (spans, receiver) = mpsc::channel(QUEUE);
        let mut tasks = JoinSet::new();
        tasks.spawn(send_all(receiver, client, address, settings.service.clone()));
        let share = (settings.sample.clamp(0.0, 1.0) * u64::MAX as f64) as u64;
        Some((Self { spans, share }, tasks))
    }

    /// Where a request with these headers belongs; None when it is not traced.
    pub fn begin(&self, headers: &HeaderMap) -> Option<Context> {
        let told = headers.get(TRACEPARENT).and_then(|value| Context::parse(value.to_str().ok()?));
        let span = random_bits() | 1;
        match told {
            Some((trace, parent, true)) => Some(Context { trace, span, parent: Some(parent) }),
            Some((_, _, false)) => None,
            None if random_bits() <= self.share => {
                let trace = (u128::from(random_bits()) << 64) | u128::from(random_bits()) | 1;
                Some(Context { trace, span, parent: None })
            }
            None => None,
        }
    }

    /// Takes a span to be sent soon.
    pub fn ended(&self, span: Span) {
        if self.spans.try_send(span).is_err() {
            tracing::debug!("the trace collector cannot keep up; a span is lost");
        }
    }
}

/// A request that is traced: its place, and who takes its span.
#[derive(Clone)]
pub struct Traced {
    /// Where it belongs.
    pub context: Context,
    /// Who takes the span.
    pub tracer: Tracer,
}

async fn send_all(mut spans: mpsc::Receiver<Span>, client: Client, address: String, service: String) {
    let mut failing = false;
    let mut batch = Vec::new();
    while spans.recv_many(&mut batch, BATCH).await > 0 {
        if batch.len() < BATCH {
            tokio::time::sleep(PATIENCE).await;
            while batch.len() < BATCH
                && let Ok(span) = spans.try_recv()
            {
                batch.push(span);
            }
        }
        let body = export(&batch, &service).to_string();
        let outcome = send(&client, &address, body.into()).await;
        if let (Err(why), false) = (&outcome, failing) {
            tracing::warn!(
                address,
                why,
                spans = batch.len(),
                "the trace collector takes no spans; they are lost"
            );
        }
        failing = outcome.is_err();
        batch.clear();
    }
}

async fn send(client: &Client, address: &str, body: Bytes) -> Result<(), String> {
    let request = Request::builder()
        .method(Method::POST)
        .uri(address)
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(body))
        .map_err(|error| error.to_string())?;
    let answer = tokio::time::timeout(TIMEOUT, client.request(request)).await;
    let answer = answer.map_err(|_| "no answer in time".to_owned())?;
    let status = answer.map_err(|error| crate::fleet::node_client::reason(&error))?.status();
    if status.is_success() { Ok(()) } else { Err(format!("it answered {status}")) }
}

fn export(spans: &[Span], service: &str) -> Value {
    json!({"resourceSpans": [{
        "resource": {"attributes": [
            text("service.name", service),
            text("service.version", env!("CARGO_PKG_VERSION")),
        ]},
        "scopeSpans": [{
            "scope": {"name": "cortex", "version": env!("CARGO_PKG_VERSION")},
            "spans": spans.iter().map(written).collect::<Vec<_>>(),
        }],
    }]})
}

fn written(span: &Span) -> Value {
    let nanos = |ms: f64| format!("{:.0}", ms * 1e6);
    let mut attributes = vec![
        text("gen_ai.operation.name", span.route),
        text("gen_ai.request.model", &span.model),
        text("cortex.node", &span.node),
        text("cortex.outcome", span.outcome),
        count("gen_ai.usage.input_tokens", span.tokens[0]),
        count("cortex.cached_tokens", span.tokens[1]),
        count("gen_ai.usage.output_tokens", span.tokens[2]),
    ];
    if !span.key.is_empty() {
        attributes.push(text("cortex.key", &span.key));
    }
    let events: Vec<Value> = span
        .first_token_ms
        .iter()
        .map(|at| json!({"name": "first token", "timeUnixNano": nanos(*at)}))
        .collect();
    let mut value = json!({
        "traceId": format!("{:032x}", span.context.trace),
        "spanId": format!("{:016x}", span.context.span),
        "name": format!("{} {}", span.route, span.model),
        "kind": 2, // server
        "startTimeUnixNano": nanos(span.start_ms),
        "endTimeUnixNano": nanos(span.end_ms),
        "attributes": attributes,
        "events": events,
        "status": {"code": if span.outcome == "complete" { 1 } else { 2 }},
    });
    if let Some(parent) = span.context.parent {
        value["parentSpanId"] = format!("{parent:016x}").into();
    }
    value
}

fn text(key: &str, value: &str) -> Value {
    json!({"key": key, "value": {"stringValue": value}})
}

/// The encoding writes 64-bit numbers as text.
fn count(key: &str, value: u64) -> Value {
    json!({"key": key, "value": {"intValue": value.to_string()}})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_s_trace_is_continued_and_nonsense_is_not() {
        let (spans, _receiver) = mpsc::channel(1);
        let tracer = |share| Tracer { spans: spans.clone(), share };
        let with = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(TRACEPARENT, value.parse().expect("a header"));
            headers
        };
        let told = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let context = tracer(0).begin(&with(told)).expect("the caller wants it");
        assert_eq!(
            (context.trace, context.parent),
            (0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736, Some(0x00f0_67aa_0ba9_02b7))
        );
        let header = context.header().expect("a header");
        let passed_on = Context::parse(header.to_str().expect("text")).expect("well formed");
        assert_eq!((passed_on.0, passed_on.1), (context.trace, context.span));
        assert!(tracer(u64::MAX).begin(&with(&told.replace("-01", "-00"))).is_none(), "the caller does not");
        for nonsense in ["", "00-0-0-01", "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "00-xyz"]
        {
            assert!(Context::parse(nonsense).is_none(), "{nonsense}");
        }
        assert!(tracer(u64::MAX).begin(&HeaderMap::new()).is_some_and(|context| context.parent.is_none()));
        assert!(tracer(0).begin(&HeaderMap::new()).is_none());
    }
}
