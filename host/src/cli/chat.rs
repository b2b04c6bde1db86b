//! A conversation: what was said so far, how the next answer is asked for, and the terminal it happens in.

use std::io::{IsTerminal, Write};
use std::path::Path;

use anyhow::{Context, bail};
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use serde_json::{Map, Value, json};
use wire_api::openai::chat::ChatCompletionChunk;

use super::ask::Client;
use crate::config::nearest;

const HELP: &str = "\
Say anything; the model answers. Ctrl-C stops an answer, Ctrl-D or /quit ends.

  /help               this
  /reset              forget the conversation; system text and settings stay
  /system TEXT        what the model is told first; without a text, nothing
  /set KEY VALUE      a parameter of the answers, like /set temperature 0.2; without a value, its default again
  /set                show the parameters
  /save FILE          write the conversation as JSON
  /quit               end

A line that ends in \\ goes on in the next one.";

const COMMANDS: [&str; 7] = ["/help", "/reset", "/system", "/set", "/save", "/quit", "/exit"];

/// What was said, and how answers are asked for.
#[derive(Debug, Clone, Default)]
pub struct Conversation {
    system: Option<String>,
    turns: Vec<Value>,
    settings: Map<String, Value>,
}

/// An answer with what it cost.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct Answer {
    /// What was said.
    pub content: String,
    /// What was thought before.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reasoning: String,
    /// Why it ended.
    pub finish_reason: Value,
    /// Tokens.
    pub usage: Value,
    /// Time.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub timings: Value,
}

impl Conversation {
    /// Nothing was said yet.
    pub fn new(system: Option<&str>) -> Self {
        Self { system: system.map(str::to_owned), ..Self::default() }
    }

    /// Sets a parameter of the requests: a number, boolean, list or object as JSON writes it, else a text.
    pub fn set(&mut self, key: &str, value: &str) -> anyhow::Result<()> {
        if ["model", "messages", "stream", "stream_options"].contains(&key) {
            bail!("{key} is not for setting here");
        }
        let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
        self.settings.insert(key.to_owned(), value);
        Ok(())
    }

    /// Everything said so far, as the API takes it.
    fn messages(&self) -> Vec<Value> {
        let system = self.system.iter().map(|text| json!({"role": "system", "content": text}));
        system.chain(self.turns.iter().cloned()).collect()
    }

    fn request(&self, model: &str) -> Value {
        let mut body = self.settings.clone();
        body.insert("model".into(), model.into());
        body.insert("messages".into(), self.messages().into());
        body.insert("stream".into(), true.into());
        body.insert("stream_options".into(), json!({"include_usage": true}));
        Value::Object(body)
    }

    /// Asks, shows the answer as it comes, and remembers both. Dropping the future stops the answer; what had
    /// been said by then is not remembered.
    ///
    /// # Errors
    /// Why there is no answer; the conversation is then as it was before.
    pub async fn ask(
        &mut self,
        client: &Client,
        model: &str,
        text: &str,
        mut printer: Printer,
    ) -> anyhow::Result<Answer> {
        let mut asked = self.clone();
        asked.turns.push(json!({"role": "user", "content": text}));
        let mut events = client.stream("/v1/chat/completions", &asked.request(model)).await?;
        let mut answer = Answer::default();
        loop {
            let Some(data) = events.next_data().await? else { bail!("the answer ended too early") };
            if data == wire_api::sse::DONE {
                break;
            }
            take(&data, &mut answer, &mut printer)?;
        }
        printer.end();
        asked.turns.push(json!({"role": "assistant", "content": answer.content}));
        *self = asked;
        Ok(answer)
    }

    fn save(&self, path: &Path) -> anyhow::Result<()> {
        let text =
            serde_json::to_string_pretty(&json!({"messages": self.messages(), "settings": self.settings}))?;
        std::fs::write(path, text + "\n").with_context(|| format!("{} cannot be written", path.display()))
    }
}

/// One event of the stream.
fn take(data: &str, answer: &mut Answer, printer: &mut Printer) -> anyhow::Result<()> {
    let value: Value = serde_json::from_str(data).context("an event of the answer is not understood")?;
    if let Some(error) = value.get("error") {
        bail!("{}", error["message"].as_str().unwrap_or("the answer failed"));
    }
    let chunk: ChatCompletionChunk =
        serde_json::from_value(value).context("an event of the answer is not understood")?;
    if let Some(usage) = chunk.usage {
        answer.usage = serde_json::to_value(usage)?;
    }
    if let Some(timings) = chunk.timings {
        answer.timings = serde_json::to_value(timings)?;
    }
    for choice in chunk.choices.into_iter().filter(|choice| choice.index == 0) {
        if let Some(thought) = choice.delta.reasoning_content.or(choice.delta.reasoning) {
            printer.thought(&thought);
            answer.reasoning.push_str(&thought);
        }
        if let Some(text) = choice.delta.content {
            printer.said(&text);
            answer.content.push_str(&text);
        }
        if let Some(reason) = choice.finish_reason {
            answer.finish_reason = serde_json::to_value(reason)?;
        }
    }
    Ok(())
}

/// Shows an answer on standard output as it comes; thoughts are dim, and only shown on a terminal.
#[derive(Debug)]
pub struct Printer {
    shown: bool,
    colours: bool,
    thinking: bool,
    at_line_start: bool,
}

impl Printer {
    /// For people.
    pub fn new() -> Self {
        Self { shown: true, colours: std::io::stdout().is_terminal(), thinking: false, at_line_start: true }
    }

    /// For those who want only the result.
    pub fn silent() -> Self {
        Self { shown: false, colours: false, thinking: false, at_line_start: true }
    }

    fn thought(&mut self, text: &str) {
        if self.colours && !self.thinking && !text.is_empty() {
            self.thinking = true;
            self.write("\x1b[2m");
        }
        if self.colours {
            self.write(text);
        }
    }

    fn said(&mut self, text: &str) {
        if self.thinking && !text.is_empty() {
            self.thinking = false;
            self.write("\x1b[0m\n\n");
        }
        self.write(text);
    }

    fn end(&mut self) {
        if self.thinking {
            self.thinking = false;
            self.write("\x1b[0m");
        }
        if !self.at_line_start {
            self.write("\n");
        }
    }

    fn write(&mut self, text: &str) {
        if !self.shown || text.is_empty() {
            return;
        }
        self.at_line_start = text.ends_with('\n');
        let mut out = std::io::stdout().lock();
        // Nobody reads any more: the next write of the shell's will say so.
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }
}

/// What a line of the terminal asks for.
#[derive(Debug, PartialEq)]
enum Input<'a> {
    Nothing,
    Quit,
    Help,
    Reset,
    System(&'a str),
    Set(&'a str, &'a str),
    Save(&'a str),
    Unknown(&'a str),
    Say(&'a str),
}

fn read(line: &str) -> Input<'_> {
    let line = line.trim();
    if !line.starts_with('/') {
        return if line.is_empty() { Input::Nothing } else { Input::Say(line) };
    }
    let (command, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let rest = rest.trim();
    match command {
        "/help" | "/?" => Input::Help,
        "/quit" | "/exit" | "/bye" => Input::Quit,
        "/reset" => Input::Reset,
        "/system" => Input::System(rest),
        "/save" => Input::Save(rest),
        "/set" => {
            let (key, value) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
            Input::Set(key, value.trim())
        }
        // A path is no command.
        _ if command[1..].contains('/') => Input::Say(line),
        _ => Input::Unknown(command),
    }
}

/// Talks in the terminal until the person has had enough.
pub async fn converse(client: &Client, model: &str, mut conversation: Conversation) -> anyhow::Result<()> {
    let mut editor = DefaultEditor::new().context("the terminal cannot be used")?;
    println!("{model} listens. /help lists what can be said beside it.");
    loop {
        // Reading a line blocks; the server, which may be in this process, must go on.
        let Some(line) = tokio::task::block_in_place(|| next_line(&mut editor))? else { return Ok(()) };
        match read(&line) {
            Input::Nothing => {}
            Input::Quit => return Ok(()),
            Input::Say(text) => say(client, model, &mut conversation, text).await,
            other => println!("{}", command(&mut conversation, other)),
        }
    }
}

/// One line, or several where they end in a backslash. `None` at the end of the input.
fn next_line(editor: &mut DefaultEditor) -> anyhow::Result<Option<String>> {
    let mut text = String::new();
    loop {
        match editor.readline(if text.is_empty() { "> " } else { ". " }) {
            Ok(line) => match line.strip_suffix('\\') {
                Some(begun) => {
                    text.push_str(begun);
                    text.push('\n');
                }
                None => {
                    text.push_str(&line);
                    // A history that cannot be kept is no reason to stop talking.
                    let _ = editor.add_history_entry(text.as_str());
                    return Ok(Some(text));
                }
            },
            Err(ReadlineError::Interrupted) => text.clear(),
            Err(ReadlineError::Eof) => return Ok(None),
            Err(error) => return Err(error).context("the terminal cannot be read"),
        }
    }
}

async fn say(client: &Client, model: &str, conversation: &mut Conversation, text: &str) {
    let outcome = tokio::select! {
        outcome = conversation.ask(client, model, text, Printer::new()) => outcome,
        _ = tokio::signal::ctrl_c() => {
            println!("\x1b[0m\n(stopped; not remembered)");
            return;
        }
    };
    match outcome {
        Ok(answer) => println!("{}\n", cost(&answer)),
        Err(error) => println!("\x1b[0m{error:#}\n"),
    }
}

/// One dim line of figures.
fn cost(answer: &Answer) -> String {
    let tokens = |name: &str| answer.usage[name].as_u64().unwrap_or_default();
    let mut text = format!("{} tokens in, {} out", tokens("prompt_tokens"), tokens("completion_tokens"));
    if let Some(speed) = answer.timings["decode_tokens_per_second"].as_f64().filter(|speed| *speed > 0.0) {
        text.push_str(&format!(", {speed:.1} tokens/s"));
    }
    if answer.finish_reason == "length" {
        text.push_str(", cut off at the limit");
    }
    format!("\x1b[2m{text}\x1b[0m")
}

/// Does what a command says; what to show for it.
fn command(conversation: &mut Conversation, input: Input<'_>) -> String {
    match input {
        Input::Help => HELP.to_owned(),
        Input::Reset => {
            conversation.turns.clear();
            "Forgotten.".to_owned()
        }
        Input::System(text) => {
            conversation.system = Some(text.to_owned()).filter(|text| !text.is_empty());
            if text.is_empty() { "No system text.".into() } else { "From now on.".into() }
        }
        Input::Set("", _) if conversation.settings.is_empty() => {
            "All parameters are at the model's defaults.".into()
        }
        Input::Set("", _) => Value::Object(conversation.settings.clone()).to_string(),
        Input::Set(key, "") => match conversation.settings.remove(key) {
            Some(_) => format!("{key} is at its default again."),
            None => format!("{key} was not set; write /set {key} VALUE."),
        },
        Input::Set(key, value) => match conversation.set(key, value) {
            Ok(()) => format!("{key} = {}", conversation.settings[key]),
            Err(error) => error.to_string(),
        },
        Input::Save("") => "Say where: /save FILE.".into(),
        Input::Save(path) => match conversation.save(Path::new(path)) {
            Ok(()) => format!("Written to {path}."),
            Err(error) => format!("{error:#}"),
        },
        Input::Unknown(name) => {
            let advice =
                nearest(name, COMMANDS).map_or_else(String::new, |near| format!(" Did you mean {near}?"));
            format!("There is no {name}.{advice} /help lists what there is.")
        }
        Input::Nothing | Input::Quit | Input::Say(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read() {
        for (line, expected) in [
            ("  hello ", Input::Say("hello")),
            ("", Input::Nothing),
            ("/quit", Input::Quit),
            ("/system You are  brief.", Input::System("You are  brief.")),
            ("/set temperature 0.2", Input::Set("temperature", "0.2")),
            ("/set", Input::Set("", "")),
            ("/rest", Input::Unknown("/rest")),
            ("/etc/passwd is a file", Input::Say("/etc/passwd is a file")),
            ("/ what", Input::Unknown("/")),
        ] {
            assert_eq!(read(line), expected, "{line}");
        }
    }

    #[test]
    fn commands_change_what_is_asked() {
        let mut conversation = Conversation::new(None);
        conversation.turns.push(json!({"role": "user", "content": "hi"}));
        for (line, expected) in [
            ("/system Be brief.", "From now on."),
            ("/set temperature 0.5", "temperature = 0.5"),
            ("/set stop [\"a\", \"b\"]", "stop = [\"a\",\"b\"]"),
            ("/set user me", "user = \"me\""),
            ("/set stream false", "stream is not for setting here"),
            ("/set user", "user is at its default again."),
            ("/rest", "There is no /rest. Did you mean /reset? /help lists what there is."),
        ] {
            assert_eq!(command(&mut conversation, read(line)), expected, "{line}");
        }
        let request = conversation.request("m");
        assert_eq!(request["messages"][0], json!({"role": "system", "content": "Be brief."}));
        assert_eq!(request["messages"][1]["content"], "hi");
        assert_eq!((&request["temperature"], &request["stream"]), (&json!(0.5), &json!(true)));
        command(&mut conversation, Input::Reset);
        assert_eq!(conversation.messages().len(), 1);

        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("talk.json");
        command(&mut conversation, Input::Save(file.to_str().unwrap()));
        let saved: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
        assert_eq!(saved["settings"]["temperature"], 0.5);
    }

    #[test]
    fn answers_are_put_together() {
        let mut answer = Answer::default();
        let mut printer = Printer::silent();
        for data in [
            r#"{"choices":[{"index":0,"delta":{"role":"assistant","reasoning_content":"hm"}}]}"#,
            r#"{"choices":[{"index":0,"delta":{"content":"He"}}]}"#,
            r#"{"choices":[{"index":0,"delta":{"content":"llo"},"finish_reason":"stop"}]}"#,
            r#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}"#,
        ] {
            take(data, &mut answer, &mut printer).unwrap();
        }
        assert_eq!((answer.content.as_str(), answer.reasoning.as_str()), ("Hello", "hm"));
        assert_eq!((&answer.finish_reason, &answer.usage["total_tokens"]), (&json!("stop"), &json!(5)));
        let error =
            take(r#"{"error":{"message":"the worker died"}}"#, &mut answer, &mut printer).unwrap_err();
        assert!(error.to_string().contains("the worker died"));
    }
}
