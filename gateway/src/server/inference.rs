//! A request for a model, from its first byte to the first byte of its answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use wire_api::node::continuation::LOG_HEADER;
use wire_api::node::routes::{DROPPED_HEADER, WAIT_HEADER};
use wire_api::translate::chat_on_messages::ReplyContext;
use wire_api::{ApiError, Dialect, ErrorKind};

use super::account::{Account, Party, Underway};
use super::api::Api;
use super::cold::wait_for_load;
use super::{Gateway, continuing, error, hedge};
use crate::config::NodeKind;
use crate::fleet::identity::{new_id, now_ms, stable_hash};
use crate::keys::{Grant, Key};
use crate::metrics::ReplicaMetrics;
use crate::placement::decisions::Facts;
use crate::placement::prefix;
use crate::placement::route::{Placed, Step};
use crate::proxy::continuation::Upstream;
use crate::proxy::forward::{self, ForwardError, Outgoing, pass_on};
use crate::proxy::relay::Relay;
use crate::proxy::translate::{self, Return, TranslatedStream};
use crate::proxy::waiting::{KEEP_ALIVE, Waiting};
use crate::proxy::wording::{Wording, Written};
use crate::telemetry::{TRACEPARENT, Traced};

/// Most nodes one request is sent to.
const MOST_ATTEMPTS: usize = 3;
/// Most loads one request waits for, one after the other: a model may be evicted again before it is reached.
const MOST_LOADS: u32 = 4;
/// Bytes of JSON that make about one token.
const BYTES_PER_TOKEN: usize = 4;

/// A request read and understood, ready to be sent anywhere.
pub(super) struct Job {
    api: Api,
    pub(super) id: String,
    pub(super) model: String,
    model_span: Option<std::ops::Range<usize>>,
    stream: bool,
    /// The way back to the caller's dialect, where nodes do not speak it.
    back: Option<Return>,
    dropped: Vec<String>,
    pub(super) facts: Facts,
    outgoing: Outgoing,
    /// Path and body as they came, where `outgoing` is a translation of them.
    original: Option<(String, Bytes)>,
    pub(super) wait: Duration,
    started: Instant,
    key: Option<Arc<Key>>,
    traced: Option<Traced>,
}

impl Job {
    /// The request in the words of a node of this kind.
    fn wording(&self, kind: NodeKind) -> Result<Wording, ApiError> {
        let written = Written {
            api: self.api,
            outgoing: &self.outgoing,
            model_span: self.model_span.clone(),
            back: self.back.as_ref(),
            stream: self.stream,
            dropped: &self.dropped,
            original: self.original.as_ref(),
        };
        written.to(kind)
    }
}

/// Answers a request for a model.
pub async fn infer(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    // Boxed here: the layers of the router each move what they wait for, and this is large.
    Box::pin(carry(gateway, request)).await
}

async fn carry(gateway: Arc<Gateway>, request: Request) -> Response {
    let started = Instant::now();
    let id = new_id("req_");
    let Some(api) = Api::of(request.uri().path()) else {
        return super::no_route(request).await;
    };
    let job = match read(&gateway, api, &id, request, started).await {
        Ok(job) => job,
        Err(refused) => return refuse(&gateway, &refused, api, &id),
    };
    let key = job.key.clone();
    let mut response =
        if job.stream { stream(gateway, job).await } else { answer(gateway, Arc::new(job)).await };
    if let Some(key) = key {
        error::tell_limits(&mut response, &key.limits(now_ms()), api.dialect());
    }
    response
}

fn refuse(gateway: &Gateway, refused: &ApiError, api: Api, id: &str) -> Response {
    gateway.metrics.refused.with_label_values(&[&refused.code]).inc();
    error::response(refused, api.dialect(), id)
}

/// Reads the whole request: where it goes depends on its body.
async fn read(
    gateway: &Gateway,
    api: Api,
    id: &str,
    request: Request,
    started: Instant,
) -> Result<Job, ApiError> {
    if gateway.draining() {
        let error = ApiError::new(ErrorKind::Unavailable, "this gateway is shutting down");
        return Err(error.with_code("draining").with_retry_after(2));
    }
    let (mut parts, body) = request.into_parts();
    // Who may not ask is told so before their body is read.
    let key = gateway.keys.load().authenticate(&parts.headers)?;
    let body = collect(body, gateway.config.gateway.max_body_bytes()).await?;
    let peeked = wire_api::peek(&body)?;
    if peeked.model.is_empty() {
        return Err(ApiError::invalid("model", "Field required").with_code("missing_required_parameter"));
    }
    let mut facts = gateway.placement.new_facts();
    facts.session = session(&parts.headers, &peeked.session);
    facts.prompt_tokens = (body.len() / BYTES_PER_TOKEN).min(u32::MAX as usize) as u32;
    facts.max_tokens = peeked.max_tokens;
    facts.prefix_blocks = prefix::blocks(&peeked.prompt);
    facts.block_tokens = prefix::BLOCK_TOKENS;
    let (model, mut model_span, mut stream) = (peeked.model.into_owned(), peeked.model_span, peeked.stream);
    let wait = wait_of(&parts.headers, Duration::from_secs(gateway.config.gateway.load_wait_s));
    pass_on(&mut parts.headers);
    let traced = trace(gateway, &mut parts.headers);
    // Every body here is JSON, said or not; some servers want it said.
    parts.headers.entry(CONTENT_TYPE).or_insert(HeaderValue::from_static("application/json"));
    if let Ok(value) = HeaderValue::from_str(id) {
        parts.headers.insert(error::REQUEST_ID, value);
    }
    let path = parts.uri.path_and_query().map_or_else(String::new, |path| path.as_str().to_owned());
    let mut outgoing = Outgoing { method: parts.method, path, headers: parts.headers, body };
    let (mut back, mut dropped, mut original) = (None, Vec::new(), None);
    if let Some(prepared) = translate::prepare(api, &outgoing.body)? {
        model_span = wire_api::peek(&prepared.body)?.model_span;
        stream = prepared.stream;
        let path = std::mem::replace(&mut outgoing.path, prepared.path.to_owned());
        original = Some((path, std::mem::replace(&mut outgoing.body, prepared.body)));
        back = Some(prepared.back);
        dropped = prepared.dropped;
        for field in &dropped {
            gateway.metrics.dropped_fields.with_label_values(&[field]).inc();
        }
    }
    let id = id.to_owned();
    Ok(Job {
        api,
        id,
        model,
        model_span,
        stream,
        back,
        dropped,
        facts,
        outgoing,
        original,
        wait,
        started,
        key,
        traced,
    })
}

async fn collect(body: Body, most: usize) -> Result<Bytes, ApiError> {
    match Limited::new(body, most).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.downcast_ref::<LengthLimitError>().is_some() => {
            let limit = most >> 20;
            Err(ApiError::new(ErrorKind::TooLarge, format!("the body is larger than {limit} MiB")))
        }
        Err(error) => {
            let message = format!("the body broke off: {error}");
            Err(ApiError::new(ErrorKind::InvalidRequest, message).with_code("body_incomplete"))
        }
    }
}

/// Begins the request's span, where requests are traced; the node is told of it.
fn trace(gateway: &Gateway, headers: &mut HeaderMap) -> Option<Traced> {
    let tracer = gateway.tracer.as_ref()?;
    let context = tracer.begin(headers)?;
    headers.insert(TRACEPARENT, context.header()?);
    Some(Traced { context, tracer: tracer.clone() })
}

/// What ties requests of one conversation together, as a number; 0 when nothing does. What a client says of
/// itself in a header of its own is trusted before what a body may hold for other reasons.
fn session(headers: &HeaderMap, hints: &wire_api::peek::SessionHints<'_>) -> u64 {
    let header = |name: &str| headers.get(name).map(HeaderValue::as_bytes).filter(|value| !value.is_empty());
    header("x-cortex-session")
        .or_else(|| header("x-claude-code-session-id"))
        .or_else(|| hints.session_id.as_deref().map(str::as_bytes))
        .or_else(|| header("session-id"))
        .or_else(|| header("thread-id"))
        .or_else(|| header("x-session-affinity"))
        .or_else(|| header("x-session-id"))
        .or_else(|| hints.key().map(str::as_bytes))
        .map_or(0, stable_hash)
}

/// How long the caller is willing to wait for a cold model.
fn wait_of(headers: &HeaderMap, longest: Duration) -> Duration {
    headers
        .get(WAIT_HEADER)
        .and_then(|value| value.to_str().ok()?.parse::<f64>().ok())
        .filter(|seconds| *seconds >= 0.0)
        .map_or(longest, |seconds| Duration::from_secs_f64(seconds.min(longest.as_secs_f64())))
}

/// A stream: the answer itself if it begins soon, else keep-alives until it does.
async fn stream(gateway: Arc<Gateway>, job: Job) -> Response {
    let (dialect, id) = (job.api.dialect(), job.id.clone());
    let job = Arc::new(job);
    let progress = progress(&gateway, &job);
    let mut answer: crate::proxy::waiting::Answer = Box::pin(answer(gateway, job));
    match tokio::time::timeout(KEEP_ALIVE, &mut answer).await {
        Ok(response) => response,
        Err(_) => {
            let waiting = Waiting::new(answer, dialect, id.clone(), progress);
            let mut response = event_stream(Body::new(waiting));
            error::identify(&mut response, dialect, &id);
            response
        }
    }
}

fn progress(gateway: &Arc<Gateway>, job: &Arc<Job>) -> crate::proxy::waiting::Progress {
    let (gateway, job) = (Arc::clone(gateway), Arc::clone(job));
    Box::new(move || {
        let view = gateway.fleet.view();
        let id = &view.model(&job.model)?.id;
        let flights = gateway.placement.flights().list();
        flights.iter().find(|(model, _)| model == id).map(|(_, flight)| flight.line())
    })
}

async fn answer(gateway: Arc<Gateway>, job: Arc<Job>) -> Response {
    let underway = Underway::begin(&gateway.metrics);
    match serve(&gateway, &job, underway).await {
        Ok(response) => response,
        Err(refused) => refuse(&gateway, &refused, job.api, &job.id),
    }
}

/// Places the request, makes its model resident if need be, sends it, and tries elsewhere while nothing of an
/// answer has been seen.
async fn serve(gateway: &Arc<Gateway>, job: &Job, underway: Underway) -> Result<Response, ApiError> {
    let mut tried: Vec<u64> = Vec::new();
    let mut loads = 0;
    let mut underway = Some(underway);
    let mut last: Option<ApiError> = None;
    let mut grant = admit(gateway, job)?;
    gateway.budget.pay_in();
    loop {
        let view = gateway.fleet.view();
        let step = gateway.placement.route(&view, &job.model, &job.facts, &job.id, &tried);
        let placed = match step {
            Ok(Step::Go(placed)) => placed,
            Ok(Step::Load) if loads < MOST_LOADS => {
                loads += 1;
                wait_for_load(gateway, job).await?;
                continue;
            }
            Ok(Step::Load) => {
                let message = format!("the model '{}' was unloaded again before it could answer", job.model);
                let error = ApiError::new(ErrorKind::Overloaded, message).with_code("model_contended");
                return Err(error.with_retry_after(5));
            }
            // Nobody else is left: what the last node said tells more.
            Err(error) => return Err(last.unwrap_or(error)),
        };
        if loads == 0 && tried.is_empty() {
            placed.ticket.model().arrived();
        }
        let more = tried.len() + 1 < MOST_ATTEMPTS;
        tried.push(placed.node.hash);
        match hedge::ask(gateway, job, *placed, &mut tried, more).await {
            Ok(asked) => return Ok(relay(gateway, job, asked, &mut underway, grant.take()).await),
            Err(Elsewhere { error, reason }) => {
                let is_free = last.is_none() && more;
                if !is_free && !more || !gateway.budget.take() {
                    return Err(error);
                }
                gateway.metrics.retries.with_label_values(&[reason]).inc();
                last = Some(error);
            }
        }
    }
}

/// Lets the request through the limits of its key and its model.
fn admit(gateway: &Gateway, job: &Job) -> Result<Option<Grant>, ApiError> {
    let view = gateway.fleet.view();
    let model = view.model(&job.model);
    let most = model.and_then(|model| Some((model, model.spec.as_ref()?.max_requests?)));
    if let Some((model, most)) = most
        && model.gauge.inflight() >= most
    {
        let message = format!("the model '{}' has {most} requests under way, which is its limit", model.id);
        return Err(ApiError::new(ErrorKind::Overloaded, message).with_retry_after(1));
    }
    let Some(key) = &job.key else { return Ok(None) };
    let expected = model.map_or(512.0, |model| model.gauge.expected_tokens(job.facts.max_tokens));
    let tokens = u64::from(job.facts.prompt_tokens) + expected as u64;
    let names =
        model.iter().flat_map(|model| std::iter::once(&model.id).chain(&model.aliases)).map(String::as_str);
    key.admit(names.chain([job.model.as_str()]), tokens).map(Some)
}

/// A node's answer has begun.
pub(super) struct Asked {
    placed: Placed,
    way: Way,
    replay: Option<continuing::Replay>,
    response: http::Response<hyper::body::Incoming>,
}

/// The way back from a node's words to the caller's.
struct Way {
    first: Option<Box<ReplyContext>>,
    then: Option<Return>,
    spoken: Dialect,
    dropped: Vec<String>,
}

/// Why another node may be tried.
pub(super) struct Elsewhere {
    error: ApiError,
    reason: &'static str,
}

/// Sends the request to one node and waits until its answer begins. `more`: whether another may be tried.
pub(super) async fn ask_node(
    gateway: &Gateway,
    job: &Job,
    mut placed: Placed,
    more: bool,
) -> Result<Asked, Elsewhere> {
    let wording = job.wording(placed.node.kind).map_err(|error| Elsewhere { error, reason: "dialect" })?;
    let Wording { mut outgoing, model_span, first, then, spoken, stream, dropped } = wording;
    if let (Some(name), Some(span)) = (&placed.rename, &model_span) {
        outgoing.body = wire_api::peek::with_model(&outgoing.body, span, name).into();
    }
    let replay = continuing::prepare(&placed.node, stream, &mut outgoing, model_span.as_ref());
    let Some(uri) = placed.node.endpoint.uri(&outgoing.path) else {
        let error =
            ApiError::new(ErrorKind::Internal, format!("node {} has no usable URL", placed.node.name));
        return Err(Elsewhere { error, reason: "endpoint" });
    };
    let key = gateway.node_keys.get(&placed.node.hash).map_or(&[][..], Vec::as_slice);
    // An answer that is no stream begins when it is whole; silence until then is not an error. A node that is
    // gone is noticed by TCP's keep-alives.
    let silence = stream.then(|| gateway.config.gateway.idle_timeout());
    let sent = forward::send(&gateway.client, uri, outgoing, key, silence).await;
    let response = match sent {
        Ok(response) => response,
        Err(error) => {
            placed.ticket.failed();
            let (kind, reason) = match error {
                ForwardError::Unreachable(_) => (ErrorKind::Unavailable, "unreachable"),
                ForwardError::Silent(_) => (ErrorKind::Timeout, "silent"),
            };
            let message = format!("node {}: {error}", placed.node.name);
            let error = ApiError::new(kind, message).with_code("upstream_unreachable").with_retry_after(1);
            return Err(Elsewhere { error, reason });
        }
    };
    let status = response.status().as_u16();
    if forward::worth_retrying(status) && more && others(gateway, job, placed.node.hash) {
        placed.ticket.succeeded();
        let body = response.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let error = ApiError::from_response(status, &body);
        return Err(Elsewhere { error, reason: "busy" });
    }
    Ok(Asked { placed, way: Way { first, then, spoken, dropped }, replay, response })
}

/// Whether another node could serve the request.
fn others(gateway: &Gateway, job: &Job, node: u64) -> bool {
    let view = gateway.fleet.view();
    view.model(&job.model).is_some_and(|model| {
        model.replicas.iter().any(|replica| replica.node.hash != node && replica.serves())
    })
}

/// Passes the answer on, in the caller's dialect.
async fn relay(
    gateway: &Arc<Gateway>,
    job: &Job,
    asked: Asked,
    underway: &mut Option<Underway>,
    grant: Option<Grant>,
) -> Response {
    let Asked { mut placed, way, replay, response } = asked;
    placed.ticket.succeeded();
    if response.status().is_success() {
        gateway.placement.prefixes().note(placed.model.hash, &job.facts.prefix_blocks, placed.node.hash);
    }
    let handles = handles(gateway, &placed, grant.as_ref().map(Grant::key));
    let (model, node) = (Arc::clone(&placed.model), Arc::clone(&placed.node));
    let party = Party { model, node, grant, route: job.api.as_str(), traced: job.traced.clone() };
    let underway = underway.take().unwrap_or_else(|| Underway::begin(&gateway.metrics));
    let account =
        Account::open(job.id.clone(), handles, gateway.ledger.clone(), party, job.started, underway);
    let (mut parts, body) = response.into_parts();
    forward::pass_back(&mut parts.headers);
    let events = parts
        .headers
        .get(http::header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"));
    let dialect = job.api.dialect();
    let node = HeaderValue::from_str(&placed.node.name).ok();
    let idle = gateway.config.gateway.idle_timeout();
    let refused = !parts.status.is_success();
    let spoken = events.then_some(way.spoken);
    let logged = parts.headers.remove(LOG_HEADER).is_some();
    let body = match replay.filter(|_| events && logged && !refused) {
        Some(replay) => Upstream::continued(body, continuing::elsewhere(gateway, job, &placed, replay)),
        None => Upstream::Plain(body),
    };
    let relay = Body::new(Relay::new(body, spoken, idle, placed.ticket, account, job.started, refused));
    let mut response = if way.first.is_none() && way.then.is_none() {
        Response::from_parts(parts, relay)
    } else {
        translated(job, parts.status.as_u16(), relay, &way).await
    };
    if let Some(node) = node {
        response.headers_mut().insert("x-cortex-node", node);
    }
    error::identify(&mut response, dialect, &job.id);
    response
}

/// A node's answer in a dialect it does not speak.
async fn translated(job: &Job, status: u16, relay: Body, way: &Way) -> Response {
    let dialect = job.api.dialect();
    let mut response = if status >= 400 {
        let body = relay.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        error::response(&ApiError::from_response(status, &body), dialect, &job.id)
    } else {
        let chat = match &way.first {
            Some(context) => Body::new(TranslatedStream::into_chat(relay, context, &job.id)),
            None => relay,
        };
        if job.stream && !matches!(way.then, Some(Return::CountTokens)) {
            streamed(job, chat, way.then.as_ref())
        } else {
            match translate::fold(chat, way.then.as_ref()).await {
                Ok(answer) => axum::Json(answer).into_response(),
                Err(failed) => error::response(&failed, dialect, &job.id),
            }
        }
    };
    if !way.dropped.is_empty()
        && let Ok(names) = HeaderValue::from_str(&way.dropped.join(","))
    {
        response.headers_mut().insert(DROPPED_HEADER, names);
    }
    response
}

fn streamed(job: &Job, chat: Body, then: Option<&Return>) -> Response {
    let Some(back) = then else { return event_stream(chat) };
    match TranslatedStream::new(chat, back, &job.id, u64::from(job.facts.prompt_tokens)) {
        Some(body) => event_stream(Body::new(body)),
        None => {
            let error = ApiError::new(ErrorKind::Internal, "this answer is no stream");
            error::response(&error, job.api.dialect(), &job.id)
        }
    }
}

fn event_stream(body: Body) -> Response {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(http::header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

fn handles(gateway: &Gateway, placed: &Placed, key: Option<&Key>) -> Arc<ReplicaMetrics> {
    let (key_hash, key_name) = key.map_or((0, ""), |key| (key.hash, key.name.as_str()));
    let hashes = (placed.model.hash, placed.node.hash, key_hash);
    gateway.metrics.replica(hashes, &placed.model.id, &placed.node.name, key_name)
}
