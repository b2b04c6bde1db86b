//! What clients see: the HTTP APIs over real worker processes with the echo plugin.

mod workshop;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use futures_util::StreamExt;
use neuron::generation::{Generator, Pictures};
use neuron::prompt::fetch::{FetchRules, ImageSource};
use neuron::prompt::image::ImageLimits;
use neuron::server::{House, Settings, router};
use reqwest::{Client, Response};
use serde_json::{Value, json};

use workshop::{Node, options, within};

/// A served node; the model `m` behaves as its settings say.
struct Served {
    node: Node,
    base: String,
    client: Client,
}

impl Served {
    async fn new(settings: Value) -> Self {
        Self::with(settings, Settings::default()).await
    }

    async fn with(settings: Value, server: Settings) -> Self {
        let node = Node::new(options());
        let served = Self::before_loading(node, server).await;
        served.load("m", settings).await;
        served
    }

    async fn before_loading(node: Node, server: Settings) -> Self {
        let source = ImageSource::new(FetchRules::default()).unwrap();
        let pictures = Pictures::new(source, ImageLimits::default());
        let generator = Generator::new(node.models.clone(), pictures);
        let house = Arc::new(House::new(node.models.clone(), generator, server));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router(house)).await });
        Self { node, base, client: Client::new() }
    }

    /// Puts a model with echo's tokenizer on disk; the body of the command that loads it.
    fn prepare(&self, name: &str, settings: Value) -> Value {
        let request = self.node.model(name, settings.clone());
        let folder = Path::new(request.model.as_str());
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/echo");
        for file in ["tokenizer.json", "tokenizer_config.json"] {
            std::fs::copy(fixture.join(file), folder.join(file)).unwrap();
        }
        let mut config: Value =
            serde_json::from_str(&std::fs::read_to_string(fixture.join("config.json")).unwrap()).unwrap();
        config["echo"] = settings;
        std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
        json!({"model": request.model, "name": name, "wait": true})
    }

    async fn load(&self, name: &str, settings: Value) {
        let body = self.prepare(name, settings);
        let response = self.post("/models/load", &body).await;
        assert_eq!(response.status(), 200, "{}", response.text().await.unwrap());
    }

    async fn post(&self, path: &str, body: &Value) -> Response {
        within(self.client.post(format!("{}{path}", self.base)).json(body).send()).await.unwrap()
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        let response = within(self.client.get(format!("{}{path}", self.base)).send()).await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap_or_default())
    }

    async fn ask(&self, path: &str, body: Value) -> Value {
        let response = self.post(path, &body).await;
        let status = response.status();
        let text = within(response.text()).await.unwrap();
        assert_eq!(status, 200, "{text}");
        serde_json::from_str(&text).unwrap()
    }

    /// A chat with `m`; `more` are further parameters.
    async fn chat(&self, words: &str, more: Value) -> Value {
        self.ask("/v1/chat/completions", chat(words, more)).await
    }

    async fn content(&self, words: &str, more: Value) -> String {
        let answer = self.chat(words, more).await;
        answer["choices"][0]["message"]["content"].as_str().unwrap_or_default().to_owned()
    }

    /// The data of every frame of a stream, and how many comments came.
    async fn stream(&self, path: &str, mut body: Value) -> (Vec<Value>, usize) {
        body["stream"] = json!(true);
        let response = self.post(path, &body).await;
        assert_eq!(response.status(), 200);
        assert!(response.headers()["content-type"].to_str().unwrap().starts_with("text/event-stream"));
        let text = within(response.text()).await.unwrap();
        let comments = text.lines().filter(|line| line.starts_with(':')).count();
        let mut frames: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
        if frames.last() == Some(&"[DONE]") {
            frames.pop();
        } else {
            assert!(frames.last().is_some_and(|last| last.contains("\"error\"")), "{text}");
        }
        (frames.into_iter().map(|frame| serde_json::from_str(frame).unwrap()).collect(), comments)
    }

    async fn refused(&self, path: &str, body: Value) -> (u16, Value) {
        let response = self.post(path, &body).await;
        let status = response.status().as_u16();
        let envelope: Value = within(response.json()).await.unwrap();
        assert!(status >= 400, "{envelope}");
        let error = envelope["error"].clone();
        for field in ["message", "type", "code"] {
            assert!(error[field].is_string(), "{field} of {envelope}");
        }
        (status, error)
    }
}

fn chat(words: &str, more: Value) -> Value {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": words}], "temperature": 0});
    merge(&mut body, more);
    body
}

fn merge(body: &mut Value, more: Value) {
    for (name, value) in more.as_object().cloned().unwrap_or_default() {
        body[name] = value;
    }
}

/// The text of one choice of a stream.
fn said(frames: &[Value], choice: u64) -> String {
    let pieces = frames.iter().flat_map(|frame| frame["choices"].as_array().cloned().unwrap_or_default());
    pieces
        .filter(|piece| piece["index"] == choice)
        .map(|piece| {
            let text = piece["delta"]["content"].as_str().or(piece["text"].as_str());
            text.unwrap_or_default().to_owned()
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chat_is_answered_whole_and_streamed_alike() {
    let served = Served::new(json!({})).await;
    let words = "naïve 👩‍👩‍👧‍👦 家族";
    let whole = served.chat(words, json!({})).await;
    assert_eq!(whole["object"], "chat.completion");
    assert!(whole["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(whole["choices"][0]["message"]["content"], words);
    assert_eq!(whole["choices"][0]["finish_reason"], "stop");
    let tokens = words.len() as u64;
    assert_eq!(whole["usage"]["completion_tokens"], tokens);
    assert_eq!(whole["usage"]["prompt_tokens"], tokens + 4);

    let (frames, _) = served.stream("/v1/chat/completions", chat(words, json!({}))).await;
    assert_eq!(frames[0]["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(said(&frames, 0), words);
    assert!(frames.iter().all(|frame| !frame.to_string().contains('\u{fffd}')));
    assert_eq!(frames.last().unwrap()["usage"]["completion_tokens"], tokens, "usage comes without asking");
    let reasons: Vec<&Value> =
        frames.iter().flat_map(|f| f["choices"].as_array().unwrap()).map(|c| &c["finish_reason"]).collect();
    assert_eq!(reasons.iter().filter(|reason| !reason.is_null()).count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_parameter_reaches_the_sampler() {
    let served = Served::new(json!({"sharpness": 2.5})).await;
    let hot = |more: Value| {
        let mut body = json!({"temperature": 2.0, "max_tokens": 40, "seed": 1});
        merge(&mut body, more);
        body
    };
    let words = "the quick brown fox jumps over the lazy dog";
    let exact = &words[..40];
    assert_eq!(served.content(words, json!({"max_tokens": 40})).await, exact, "temperature 0 is greedy");
    let wild = served.content(words, hot(json!({}))).await;
    assert_ne!(wild, exact, "temperature");
    assert_eq!(served.content(words, hot(json!({}))).await, wild, "equal seeds");
    assert_ne!(served.content(words, hot(json!({"seed": 2}))).await, wild, "other seeds");
    for (name, value) in [("top_k", json!(1)), ("top_p", json!(0.0001)), ("min_p", json!(1.0))] {
        let mut more = json!({});
        more[name] = value;
        assert_eq!(served.content(words, hot(more)).await, exact, "{name}");
    }
    let q = u64::from(b'q').to_string();
    let banned = served.content("qqq", json!({"logit_bias": {q.as_str(): -100}})).await;
    assert!(!banned.contains('q'), "logit_bias: {banned}");
    for (name, value) in [("presence_penalty", 2.0), ("frequency_penalty", 2.0), ("repetition_penalty", 50.0)]
    {
        let mut more = json!({"max_tokens": 6});
        more[name] = json!(value);
        assert_ne!(served.content("zzzzzz", more).await, "zzzzzz", "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn completions_obey_every_parameter_too() {
    let served = Served::new(json!({"sharpness": 2.5})).await;
    let ask = async |prompt: Value, more: Value| {
        let mut body = json!({"model": "m", "prompt": prompt, "temperature": 0, "max_tokens": 9});
        merge(&mut body, more);
        served.ask("/v1/completions", body).await["choices"].clone()
    };
    let text = |choices: &Value| choices[0]["text"].as_str().unwrap().to_owned();
    // Tokens as they are: echo says them over again for ever.
    let (abc, zzz) = (json!([97, 98, 99]), json!([122, 122, 122]));
    assert_eq!(text(&ask(abc.clone(), json!({})).await), "abcabcabc", "temperature 0 is greedy");
    let hot = async |more: Value| {
        let mut body = json!({"temperature": 2.0, "seed": 1});
        merge(&mut body, more);
        text(&ask(abc.clone(), body).await)
    };
    let wild = hot(json!({})).await;
    assert_ne!(wild, "abcabcabc", "temperature");
    assert_eq!(hot(json!({})).await, wild, "equal seeds");
    assert_ne!(hot(json!({"seed": 2})).await, wild, "other seeds");
    for (name, value) in [("top_k", json!(1)), ("top_p", json!(0.0001)), ("min_p", json!(1.0))] {
        let mut more = json!({});
        more[name] = value;
        assert_eq!(hot(more).await, "abcabcabc", "{name}");
    }
    for (more, expected, reason) in [
        (json!({"max_tokens": 2}), "ab", "length"),
        (json!({"stop": "ca"}), "ab", "stop"),
        (json!({"stop": ["xyz", "ab"]}), "", "stop"),
    ] {
        let choices = ask(abc.clone(), more.clone()).await;
        assert_eq!(
            (text(&choices).as_str(), &choices[0]["finish_reason"]),
            (expected, &json!(reason)),
            "{more}"
        );
    }
    let banned = text(&ask(abc.clone(), json!({"logit_bias": {"97": -100}})).await);
    assert!(!banned.contains('a'), "logit_bias: {banned}");
    let favoured = text(&ask(abc.clone(), json!({"logit_bias": {"113": 100}})).await);
    assert_eq!(favoured, "qqqqqqqqq", "logit_bias");
    for (name, value) in [("presence_penalty", 2.0), ("frequency_penalty", 2.0), ("repetition_penalty", 50.0)]
    {
        let mut more = json!({});
        more[name] = json!(value);
        assert_ne!(text(&ask(zzz.clone(), more).await), "zzzzzzzzz", "{name}");
    }
    assert_eq!(ask(abc.clone(), json!({"n": 3})).await.as_array().unwrap().len(), 3, "n");
    let told = ask(abc.clone(), json!({"logprobs": 3})).await;
    assert_eq!(told[0]["logprobs"]["top_logprobs"][0].as_object().unwrap().len(), 3, "logprobs");
    assert!(ask(abc, json!({})).await[0]["logprobs"].is_null());
    // A user's turn, and the marker of the answer: it ends by itself, unless it may not.
    let turn = json!([256, 259, 97, 257, 260]);
    assert_eq!(text(&ask(turn.clone(), json!({})).await), "a");
    let on = ask(turn, json!({"ignore_eos": true})).await;
    assert_eq!((text(&on).starts_with('a'), &on[0]["finish_reason"]), (true, &json!("length")), "ignore_eos");
}

#[tokio::test(flavor = "multi_thread")]
async fn log_probabilities_are_as_many_as_were_asked_for() {
    let served = Served::new(json!({"sharpness": 2.5})).await;
    let told = async |more: Value| {
        let answer = served.chat("ab", more).await;
        answer["choices"][0]["logprobs"]["content"].clone()
    };
    assert!(told(json!({})).await.is_null(), "nobody asked");
    for count in [0, 1, 4] {
        let content = told(json!({"logprobs": true, "top_logprobs": count})).await;
        let tops = content[0]["top_logprobs"].as_array().map_or(0, Vec::len);
        assert_eq!((content.as_array().unwrap().len(), tops), (2, count), "{content}");
    }
    let alone = served.chat("ab", json!({"n": 1})).await;
    assert_eq!(alone["choices"].as_array().unwrap().len(), 1);
    // A bias lifts what it names, as it bans what it names.
    let q = u64::from(b'q').to_string();
    let lifted = served.content("ab", json!({"logit_bias": {q.as_str(): 100}, "max_tokens": 3})).await;
    assert_eq!(lifted, "qqq");
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_end_where_they_should() {
    let served = Served::new(json!({})).await;
    for (name, more) in
        [("max_tokens", json!({"max_tokens": 3})), ("newer", json!({"max_completion_tokens": 3}))]
    {
        let answer = served.chat("abcdef", more).await;
        assert_eq!(answer["choices"][0]["message"]["content"], "abc", "{name}");
        assert_eq!(answer["choices"][0]["finish_reason"], "length");
    }
    for stop in [json!("cd"), json!(["xyz", "cd"])] {
        let answer = served.chat("abcdef", json!({"stop": stop})).await;
        assert_eq!(answer["choices"][0]["message"]["content"], "ab");
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
        assert_eq!(answer["choices"][0]["stop_reason"], "cd");
    }
    let on = served.chat("ab", json!({"ignore_eos": true, "max_tokens": 9})).await;
    assert_eq!(on["usage"]["completion_tokens"], 9, "ignore_eos goes on");
    let (status, error) =
        served.refused("/v1/chat/completions", chat(&"long ".repeat(1000), json!({}))).await;
    assert_eq!((status, error["code"].as_str().unwrap()), (400, "context_length_exceeded"));
}

#[tokio::test(flavor = "multi_thread")]
async fn several_answers_and_log_probabilities() {
    let served = Served::new(json!({"sharpness": 2.0})).await;
    let more =
        json!({"n": 3, "temperature": 1.5, "seed": 5, "max_tokens": 12, "logprobs": true, "top_logprobs": 2});
    let whole = served.chat("hello there, hello", more.clone()).await;
    let choices = whole["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 3);
    assert_ne!(choices[0]["message"]["content"], choices[1]["message"]["content"]);
    for choice in choices {
        let tokens = choice["logprobs"]["content"].as_array().unwrap();
        assert!(!tokens.is_empty());
        for token in tokens {
            assert!(token["logprob"].as_f64().unwrap() <= 0.0);
            assert_eq!(token["top_logprobs"].as_array().unwrap().len(), 2);
        }
    }
    let (frames, _) = served.stream("/v1/chat/completions", chat("hello there, hello", more)).await;
    for (index, choice) in choices.iter().enumerate() {
        assert_eq!(said(&frames, index as u64), choice["message"]["content"].as_str().unwrap());
    }
    let (streamed, whole) = (&frames.last().unwrap()["usage"], &whole["usage"]);
    assert_eq!(streamed["total_tokens"], whole["total_tokens"]);
    assert_eq!(whole["prompt_tokens"], 18 + 4, "a prompt counts once, however many answers it has");
}

#[tokio::test(flavor = "multi_thread")]
async fn completions_continue_texts_and_tokens() {
    let served = Served::new(json!({})).await;
    let base = json!({"model": "m", "max_tokens": 6, "temperature": 0});
    let with = |prompt: Value, more: Value| {
        let mut body = base.clone();
        body["prompt"] = prompt;
        merge(&mut body, more);
        body
    };
    // Without a marker echo says everything over again, the token that begins a text included.
    let answer = served.ask("/v1/completions", with(json!("abc"), json!({}))).await;
    assert_eq!(answer["choices"][0]["text"], "abca");
    assert_eq!(answer["usage"]["prompt_tokens"], 4);
    let answer = served.ask("/v1/completions", with(json!([97, 98, 99]), json!({"logprobs": 1}))).await;
    assert_eq!(answer["choices"][0]["text"], "abcabc");
    let logprobs = &answer["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"], json!(["a", "b", "c", "a", "b", "c"]));
    assert_eq!(logprobs["text_offset"], json!([0, 1, 2, 3, 4, 5]));
    assert_eq!(logprobs["top_logprobs"][0].as_object().unwrap().len(), 1);
    let many = served.ask("/v1/completions", with(json!(["ab", "cd"]), json!({"n": 2}))).await;
    let texts: Vec<&str> =
        many["choices"].as_array().unwrap().iter().map(|c| c["text"].as_str().unwrap()).collect();
    assert_eq!(texts, ["abab", "abab", "cdcd", "cdcd"]);
    let (frames, _) = served.stream("/v1/completions", with(json!([120, 121]), json!({}))).await;
    assert_eq!(said(&frames, 0), "xyxyxy");
    assert!(frames.last().unwrap()["usage"].is_object());
    let (status, _) = served.refused("/v1/completions", with(json!([9999]), json!({}))).await;
    assert_eq!(status, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn thoughts_and_calls_are_told_apart() {
    let script = "<think>\nbecause\n</think>\n\nLet me look.\n<tool_call>\n{\"name\": \"look\", \"arguments\": {\"at\": \"sky\"}}\n</tool_call>";
    let served = Served::new(json!({"script": script})).await;
    let tools = json!([{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]);
    let more = json!({"tools": tools, "chat_template_kwargs": {"enable_thinking": true}});
    let whole = served.chat("what is up?", more.clone()).await;
    let message = &whole["choices"][0]["message"];
    assert_eq!(message["reasoning_content"], "because");
    assert_eq!(message["content"], "Let me look.");
    assert_eq!(message["tool_calls"][0]["function"]["name"], "look");
    assert_eq!(message["tool_calls"][0]["function"]["arguments"], "{\"at\": \"sky\"}");
    assert_eq!(whole["choices"][0]["finish_reason"], "tool_calls");
    assert!(whole["usage"]["completion_tokens_details"]["reasoning_tokens"].as_u64().unwrap() > 0);

    let (frames, _) = served.stream("/v1/chat/completions", chat("what is up?", more)).await;
    assert_eq!(said(&frames, 0), "Let me look.");
    let calls: Vec<&Value> =
        frames.iter().filter_map(|f| f["choices"][0]["delta"]["tool_calls"].get(0)).collect();
    assert!(calls[0]["id"].as_str().is_some_and(|id| !id.is_empty()));
    let arguments: String = calls.iter().filter_map(|call| call["function"]["arguments"].as_str()).collect();
    assert_eq!(arguments, "{\"at\": \"sky\"}");

    // A conversation that goes on after the call renders, arguments and all.
    let messages = json!([
        {"role": "user", "content": "what is up?"},
        {"role": "assistant", "content": null, "tool_calls": message["tool_calls"]},
        {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "blue"},
    ]);
    served.chat("", json!({"messages": messages, "tools": tools})).await;

    // Echo counts what the prompt wrote of its turn as said; the script holds the forced beginning, too.
    let script = "<tool_call>\n{\"name\": \"look\", \"arguments\": {\"at\": \"sea\"}}\n</tool_call>";
    let forced = Served::new(json!({"script": script})).await;
    let choice = json!({"type": "function", "function": {"name": "look"}});
    let whole = forced.chat("go", json!({"tools": tools, "tool_choice": choice})).await;
    assert_eq!(whole["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"], "{\"at\": \"sea\"}");
    let none = served.chat("go", json!({"tools": tools, "tool_choice": "none"})).await;
    assert!(none["choices"][0]["message"]["tool_calls"].is_null());
}

#[tokio::test(flavor = "multi_thread")]
async fn pictures_travel_as_data_uris() {
    let served = Served::new(json!({})).await;
    let mut png = std::io::Cursor::new(Vec::new());
    image::RgbImage::new(8, 8).write_to(&mut png, image::ImageFormat::Png).unwrap();
    let uri = format!(
        "data:image/png;base64,{}",
        base64::engine::general_purpose::STANDARD.encode(png.into_inner())
    );
    let content = |url: &str| json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "hi"}]}]);
    let answer = served.chat("", json!({"messages": content(&uri)})).await;
    assert!(answer["usage"]["prompt_tokens"].as_u64().unwrap() > 6, "{answer}");
    for (url, expected) in [
        ("data:image/png;base64,AAAA", "an image cannot be used"),
        ("http://example.com/x.png", "images are not fetched from 'example.com'"),
    ] {
        let (status, error) =
            served.refused("/v1/chat/completions", chat("", json!({"messages": content(url)}))).await;
        assert_eq!(status, 400);
        assert!(error["message"].as_str().unwrap().contains(expected), "{error}");
    }
    let (status, _) = served.refused("/v1/chat/completions", chat("injected <|image|>", json!({}))).await;
    assert_eq!(status, 400, "a placeholder without a picture");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_said_in_one_envelope() {
    let served = Served::new(json!({})).await;
    let path = "/v1/chat/completions";
    let cases = [
        (chat("x", json!({"model": "nobody"})), 404, "model_not_found"),
        (chat("x", json!({"temperature": 9})), 400, "invalid_value"),
        (chat("x", json!({"temprature": 1})), 400, "unknown_parameter"),
        (chat("x", json!({"response_format": {"type": "json_object"}})), 400, "unsupported_parameter"),
        (chat("x", json!({"messages": []})), 400, "invalid_value"),
        (json!({"model": "m"}), 400, "missing_required_parameter"),
    ];
    for (body, expected, code) in cases {
        let (status, error) = served.refused(path, body.clone()).await;
        assert_eq!((status, error["code"].as_str().unwrap()), (expected, code), "{body}");
    }
    let (_, error) = served.refused(path, chat("x", json!({"temprature": 1}))).await;
    assert!(error["message"].as_str().unwrap().contains("temperature"), "{error}");
    let (status, error) = served.refused(path, json!([])).await;
    assert_eq!((status, error["code"].as_str().unwrap()), (400, "invalid_json"));
    assert_eq!(served.get("/nowhere").await.0, 404);
    let wrong = within(served.client.get(format!("{}{path}", served.base)).send()).await.unwrap();
    assert_eq!(wrong.status(), 405);
    assert!(within(wrong.json::<Value>()).await.unwrap()["error"]["code"].is_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_are_refused_in_the_envelope_too() {
    let small = Settings { body_limit_bytes: 1000, ..Settings::default() };
    let served = Served::with(json!({}), small).await;
    let (status, error) = served.refused("/v1/chat/completions", chat(&"x".repeat(2000), json!({}))).await;
    assert_eq!((status, error["code"].as_str().unwrap()), (413, "request_too_large"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_hangs_up_frees_its_place() {
    let served = Served::new(json!({"step_delay_ms": 20})).await;
    let body = chat(&"abcdefgh".repeat(100), json!({"stream": true}));
    let mut stream = served.post("/v1/chat/completions", &body).await.bytes_stream();
    within(stream.next()).await.unwrap().unwrap();
    served.node.until("it runs", |models| models.status("m").unwrap().activity.inflight == 1).await;
    drop(stream);
    served.node.until("it is cancelled", |models| models.status("m").unwrap().activity.inflight == 0).await;

    let whole = served
        .client
        .post(format!("{}/v1/chat/completions", served.base))
        .json(&chat(&"abc".repeat(300), json!({})));
    let asking = tokio::spawn(whole.send());
    served.node.until("it runs", |models| models.status("m").unwrap().activity.inflight == 1).await;
    asking.abort();
    served.node.until("it is cancelled", |models| models.status("m").unwrap().activity.inflight == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_is_filled_with_comments() {
    let served = Served::new(json!({"step_delay_ms": 2500})).await;
    let (frames, comments) = served.stream("/v1/chat/completions", chat("a", json!({"max_tokens": 1}))).await;
    assert_eq!(frames[0]["choices"][0]["delta"]["role"], "assistant");
    assert!(comments >= 1, "{comments}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_node_tells_of_itself_and_its_models() {
    let node = Node::new(options());
    let served = Served::before_loading(node, Settings::default()).await;
    let body = served.prepare("m", json!({"load_delay_ms": 300}));
    let mut at_once = body.clone();
    at_once["wait"] = json!(false);
    let response = served.post("/models/load", &at_once).await;
    assert_eq!(response.status(), 202);
    let job: Value = within(response.json()).await.unwrap();
    assert_eq!((job["model"].as_str().unwrap(), job["started"].as_bool().unwrap()), ("m", true));
    let events = within(served.client.get(format!("{}/models/m/events", served.base)).send()).await.unwrap();
    let events = within(events.text()).await.unwrap();
    for phase in ["resolve", "read", "warm-up", "ready"] {
        assert!(events.contains(&format!("event: {phase}\n")), "{phase} in {events}");
    }
    let again: Value = within(served.post("/models/load", &body).await.json()).await.unwrap();
    assert_eq!(again["started"], false);

    let (status, models) = served.get("/models").await;
    assert_eq!(status, 200);
    assert_eq!(models["models"][0]["state"], "ready");
    assert!(models["residency_revision"].as_u64().unwrap() > 0);
    let (_, list) = served.get("/v1/models").await;
    assert_eq!(list["data"][0]["id"], "m");
    assert_eq!(list["data"][0]["max_model_len"], 4096);
    assert_eq!(served.get("/v1/models/m").await.0, 200);
    assert_eq!(served.get("/v1/models/other").await.0, 404);
    let (_, discovery) = served.get("/discovery").await;
    assert!(discovery["devices"][0]["memory_total_bytes"].as_u64().unwrap() > 0);
    assert_eq!(discovery["plugins"][0]["architectures"][0], "echo");
    assert_eq!(served.get("/health").await.1["status"], "ok");
    assert_eq!(served.get("/ready").await.0, 200);
    assert_eq!(served.get("/version").await.1["name"], "neuron");
    let metrics = within(served.client.get(format!("{}/metrics", served.base)).send()).await.unwrap();
    assert!(within(metrics.text()).await.unwrap().contains("neuron_load_seconds_bucket"));

    let tokens = served.ask("/tokenize", json!({"model": "m", "prompt": "hé"})).await;
    assert_eq!(tokens["tokens"], json!([256, 104, 0xc3, 0xa9]));
    let text = served.ask("/detokenize", json!({"model": "m", "tokens": [104, 0xc3, 0xa9]})).await;
    assert_eq!(text["prompt"], "hé");
    let rendered =
        served.ask("/tokenize", json!({"model": "m", "messages": [{"role": "user", "content": "x"}]})).await;
    assert_eq!(rendered["tokens"], json!([256, 259, 120, 257, 260]));

    let gone = served.ask("/models/unload", json!({"model": "m"})).await;
    assert_eq!(gone["state"], "absent");
    let (status, error) = served.refused("/v1/chat/completions", chat("x", json!({}))).await;
    assert_eq!((status, error["code"].as_str().unwrap()), (404, "model_not_found"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_is_loading_is_waited_for_and_not_for_ever() {
    let patient = Settings { model_patience: Duration::from_millis(50), ..Settings::default() };
    let served = Served::before_loading(Node::new(options()), patient).await;
    let mut body = served.prepare("m", json!({"load_delay_ms": 5000}));
    body["wait"] = json!(false);
    served.post("/models/load", &body).await;
    let response = served.post("/v1/chat/completions", &chat("x", json!({}))).await;
    assert_eq!(response.status(), 503);
    assert!(response.headers().contains_key("retry-after"));
    assert_eq!(within(response.json::<Value>()).await.unwrap()["error"]["code"], "model_loading");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_in_mid_stream_is_an_event() {
    let served = Served::new(json!({"step_delay_ms": 100, "fault": {"kind": "internal", "at": 16}})).await;
    let (frames, _) = served.stream("/v1/chat/completions", chat("abcdefghij", json!({}))).await;
    let error = &frames.last().unwrap()["error"];
    assert_eq!(error["code"], "internal_error", "{frames:?}");
    assert_eq!(frames[0]["choices"][0]["delta"]["role"], "assistant");
}
