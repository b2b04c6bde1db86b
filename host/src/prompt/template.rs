//! The model's chat template, rendered the way the reference implementation renders it.
//!
//! Templates are programs written for Jinja2 inside Python: they call string methods, `raise_exception`
//! and `strftime_now`, and rely on `trim_blocks`, `lstrip_blocks` and Python's JSON. They come with a
//! model from anywhere, so a rendering may spend a bounded number of instructions and write a bounded
//! number of bytes. A failure is reported with the template's own words and never replaced by a guess.

use std::io::{self, Write};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Value};
use serde_json::{Map, Value as Json};

use super::{PromptError, pyjson, strftime};

const NAME: &str = "chat_template";
const MAX_SOURCE_BYTES: usize = 1 << 20;
const MAX_RENDERED_BYTES: usize = 64 << 20;
/// Instructions one rendering may spend. A long agent conversation with a hundred tools spends about a million.
const FUEL: u64 = 50_000_000;

/// A compiled chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    bos_token: Option<String>,
    eos_token: Option<String>,
}

/// What a template sees.
#[derive(Debug, Clone, Default)]
pub struct TemplateInput {
    /// Messages in the shape templates expect, oldest first.
    pub messages: Vec<Json>,
    /// Tool declarations in OpenAI's shape, or none.
    pub tools: Option<Vec<Json>>,
    /// Whether to open the assistant's turn.
    pub add_generation_prompt: bool,
    /// Further variables (`chat_template_kwargs`, `enable_thinking`); they win over everything else.
    pub variables: Map<String, Json>,
}

impl ChatTemplate {
    /// Compiles `source`. The tokens are what `bos_token` and `eos_token` stand for inside it.
    pub fn new(
        source: &str,
        bos_token: Option<String>,
        eos_token: Option<String>,
    ) -> Result<Self, PromptError> {
        if source.len() > MAX_SOURCE_BYTES {
            return Err(PromptError::Unsupported(format!(
                "the chat template has {} bytes; at most {MAX_SOURCE_BYTES} are accepted",
                source.len()
            )));
        }
        let mut environment = environment();
        environment.add_template_owned(NAME, without_generation_tags(source)).map_err(|error| {
            PromptError::Unsupported(format!("the chat template does not compile: {}", chain(&error)))
        })?;
        Ok(Self { environment, source: source.to_owned(), bos_token, eos_token })
    }

    /// The template as the model ships it; parsers and stop tokens are chosen from its words.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Renders a conversation.
    pub fn render(&self, input: &TemplateInput) -> Result<String, PromptError> {
        let template = self.environment.get_template(NAME).map_err(|error| rejected(&error))?;
        let mut variables = Map::new();
        variables.insert("messages".into(), Json::Array(input.messages.clone()));
        // Templates ask `tools is none` as well as `if tools`, so the name exists in any case.
        variables.insert("tools".into(), input.tools.clone().map_or(Json::Null, Json::Array));
        variables.insert("documents".into(), Json::Null);
        variables.insert("add_generation_prompt".into(), Json::Bool(input.add_generation_prompt));
        for (name, token) in [("bos_token", &self.bos_token), ("eos_token", &self.eos_token)] {
            if let Some(token) = token {
                variables.insert(name.into(), Json::String(token.clone()));
            }
        }
        variables.extend(input.variables.clone());
        let context = Value::from(Serde(&variables));
        let mut out = Bounded { bytes: Vec::new() };
        template.render_captured_to(context, &mut out).map_err(|error| rejected(&error))?;
        String::from_utf8(out.bytes)
            .map_err(|_| PromptError::InvalidInput("the chat template cut a character".into()))
    }
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").field("bytes", &self.source.len()).finish_non_exhaustive()
    }
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("the default delimiters are valid"));
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", pyjson::tojson);
    // In Python nothing can be done with None, and strings and mappings have items: templates ask before they look.
    environment.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    environment.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String)
    });
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", |format: String| strftime::now(&format));
    environment
}

fn rejected(error: &Error) -> PromptError {
    PromptError::InvalidInput(format!("the model's chat template refused the conversation: {}", chain(error)))
}

/// The error with its causes, as one line.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

/// `{% generation %}` marks the assistant's own words for training masks and prints nothing; here it becomes a
/// block that is always taken, with the same control of white space.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else { break };
        let tag = &rest[start..start + length + 2];
        out.push_str(&rest[..start]);
        let word = tag[2..tag.len() - 2].trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        match word {
            "generation" => out.push_str(&tag.replacen("generation", "if true", 1)),
            "endgeneration" => out.push_str(&tag.replacen("endgeneration", "endif", 1)),
            _ => out.push_str(tag),
        }
        rest = &rest[start + length + 2..];
    }
    out.push_str(rest);
    out
}

/// Collects output up to a limit.
struct Bounded {
    bytes: Vec<u8>,
}

impl Write for Bounded {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + data.len() > MAX_RENDERED_BYTES {
            return Err(io::Error::other(format!("more than {MAX_RENDERED_BYTES} bytes of prompt")));
        }
        self.bytes.extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn render(source: &str, messages: Json) -> Result<String, PromptError> {
        let template = ChatTemplate::new(source, Some("<s>".into()), Some("</s>".into()))?;
        let Json::Array(messages) = messages else { panic!("messages is an array") };
        template.render(&TemplateInput { messages, add_generation_prompt: true, ..Default::default() })
    }

    #[test]
    fn pythonisms_of_published_templates() {
        let cases = [
            ("{{ bos_token }}|{{ eos_token }}", "<s>|</s>"),
            ("{% for m in messages[::-1] %}{{ m.role }},{% endfor %}", "assistant,user,"),
            ("{{ messages[0]['content'].split(' ')[-1].strip().upper() }}", "YOU"),
            ("{{ 'x' if messages[0].content.startswith('how') else 'y' }}", "x"),
            (
                "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
                "2",
            ),
            (
                "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ loop.previtem.role }}{% endfor %}",
                "user",
            ),
            ("{% for k, v in messages[0].items() %}{{ k }};{% endfor %}", "role;content;"),
            ("{% for k, v in messages[0] | items %}{{ k }};{% endfor %}", "role;content;"),
            ("{{ messages | selectattr('role', 'equalto', 'user') | list | length }}", "1"),
            ("{{ messages[0] is mapping }} {{ messages is sequence }} {{ none }}", "True True None"),
            (
                "{{ tools is iterable }} {{ 'a' is iterable }} {{ messages[0] is sequence }} {{ 1 is sequence }}",
                "False True True False",
            ),
            ("{{ tools is none }} {{ tools is defined }} {% if tools %}t{% endif %}", "True True "),
            ("{{ messages[1].tool_calls is defined }}{{ messages[1].get('x', 'd') }}", "Falsed"),
            ("{%- generation -%} a {%- endgeneration -%} b", "ab"),
            ("  {% if true %}\n  x\n  {% endif %}\ny\n", "  x\ny"),
            ("{{ strftime_now('%Y') | length }}", "4"),
            ("{%- macro f(a, b=2) -%}{{ a + b }}{%- endmacro -%}{{ f(1) }}", "3"),
            ("{{ '%s-%d' | format('a', 3) }} {{ 'a' ~ 1 ~ true }}", "a-3 a1True"),
            ("{{ messages[0] | tojson }}", r#"{"role": "user", "content": "how are you"}"#),
        ];
        let messages =
            json!([{"role": "user", "content": "how are you"}, {"role": "assistant", "content": "well"}]);
        for (source, expected) in cases {
            assert_eq!(render(source, messages.clone()).unwrap(), expected, "{source}");
        }
    }

    #[test]
    fn refusals_quote_the_template() {
        let error = render("{{ raise_exception('only two roles') }}", json!([])).unwrap_err();
        assert!(
            matches!(&error, PromptError::InvalidInput(text) if text.contains("only two roles")),
            "{error}"
        );
        let error = render("{% if %}", json!([])).unwrap_err();
        assert!(
            matches!(&error, PromptError::Unsupported(text) if text.contains("does not compile")),
            "{error}"
        );
        let error = render("{{ messages[0].content.nothing.more }}", json!([{"content": "x"}])).unwrap_err();
        assert!(matches!(error, PromptError::InvalidInput(_)));
    }

    #[test]
    fn hostile_templates_end() {
        let forever = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}x{% endfor %}{% endfor %}{% endfor %}";
        assert!(matches!(render(forever, json!([])), Err(PromptError::InvalidInput(_))));
        let deep = "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}";
        assert!(matches!(render(deep, json!([])), Err(PromptError::InvalidInput(_))));
    }

    #[test]
    fn request_variables_reach_the_template() {
        let template = ChatTemplate::new("{{ enable_thinking }}{{ x }}", None, None).unwrap();
        let mut input = TemplateInput::default();
        input.variables.insert("enable_thinking".into(), json!(false));
        input.variables.insert("x".into(), json!([1]));
        assert_eq!(template.render(&input).unwrap(), "False[1]");
    }

    proptest::proptest! {
        #[test]
        fn never_panics(pieces in proptest::collection::vec(proptest::sample::select(vec![
            "{% ", " %}", "{{ ", " }}", "messages", "[::-1]", "[0]", ".content", "|tojson", "|items", " if ", "else", "endif",
            "for m in ", "endfor", "set x = ", "generation", "endgeneration", "macro f()", "endmacro", "f()", "'é'", "(", ")",
            "~", "%", "-", "{#", "#}", "\n", "raise_exception(1)", ".split(' ')", "strftime_now('%q')", "break",
        ]), 0..24)) {
            let source = pieces.concat();
            let _ = render(&source, json!([{"role": "user", "content": "a b"}]));
        }
    }
}
