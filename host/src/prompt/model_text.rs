//! The text side of one model: tokenizer, template, defaults and end tokens, read once from its files.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::ends::{EndSources, boundaries, stop_tokens};
use super::template::TemplateInput;
use super::{ChatTemplate, GenerationDefaults, GgufMetadata, PromptError, TextTokenizer, gguf_tokenizer};

/// Largest JSON or template file that is read.
const MAX_TEXT_FILE_BYTES: u64 = 256 << 20;

/// Everything about a model that concerns text.
#[derive(Debug)]
pub struct ModelText {
    tokenizer: TextTokenizer,
    template: Option<ChatTemplate>,
    defaults: GenerationDefaults,
    stop_tokens: Vec<u32>,
    image_token: Option<u32>,
    context_length: Option<u32>,
}

/// A prompt, ready for the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// Token ids; an image is one placeholder.
    pub ids: Vec<u32>,
    /// Positions after the end of each message.
    pub boundaries: Vec<u32>,
    /// The text that was tokenized; parsers look at its end to see what the template already opened.
    pub text: String,
}

/// How the rendered conversation ends.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Ending {
    /// As the template leaves it.
    #[default]
    AsRendered,
    /// With the text of the last message, so that the model goes on in the middle of it.
    Continue,
    /// With this text after it: the beginning of the answer is given.
    Append(String),
}

impl ModelText {
    /// Reads the text files of the model at `path`: a folder in HuggingFace layout, a folder with one GGUF,
    /// or a GGUF file.
    pub fn open(path: &Path) -> Result<Self, PromptError> {
        let files = Files::find(path)?;
        let config = files.json("config.json")?;
        let generation_config = files.json("generation_config.json")?;
        let tokenizer_config = files.json("tokenizer_config.json")?;
        let gguf = match &files.gguf {
            Some(path) => Some(GgufMetadata::open(path).map_err(|error| PromptError::file(path, error))?),
            None => None,
        };
        let tokenizer = tokenizer(&files, gguf.as_ref(), tokenizer_config.as_ref())?;
        let special = SpecialTokens::read(tokenizer_config.as_ref(), gguf.as_ref(), &tokenizer);
        let source = template_source(&files, tokenizer_config.as_ref(), gguf.as_ref())?;
        let sources = EndSources {
            config: config.as_ref(),
            generation_config: generation_config.as_ref(),
            eos_token: special.eos.as_deref(),
            template: source.as_deref(),
            gguf: gguf.as_ref(),
        };
        let stop_tokens = stop_tokens(sources, &tokenizer);
        let template =
            source.map(|source| ChatTemplate::new(&source, special.bos, special.eos)).transpose()?;
        Ok(Self {
            tokenizer,
            template,
            defaults: GenerationDefaults::from_config(generation_config.as_ref()),
            stop_tokens,
            image_token: image_token(config.as_ref()),
            context_length: context_length(config.as_ref(), gguf.as_ref()),
        })
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &TextTokenizer {
        &self.tokenizer
    }

    /// The chat template, if the model has one.
    pub fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// Sampling defaults.
    pub fn defaults(&self) -> &GenerationDefaults {
        &self.defaults
    }

    /// Ids that end an answer, ascending.
    pub fn stop_tokens(&self) -> &[u32] {
        &self.stop_tokens
    }

    /// The id that stands for an image in a prompt, if the model sees images.
    pub fn image_token(&self) -> Option<u32> {
        self.image_token
    }

    /// The longest sequence the model was made for, in tokens, where its files say.
    pub fn context_length(&self) -> Option<u32> {
        self.context_length
    }

    /// Renders and tokenizes a conversation that shows `images` images.
    pub fn chat(&self, input: &TemplateInput, images: usize, ending: &Ending) -> Result<Prompt, PromptError> {
        let template = self.template.as_ref().ok_or_else(|| {
            PromptError::InvalidInput(
                "the model has no chat template; use /v1/completions, or put a chat_template.jinja beside it"
                    .into(),
            )
        })?;
        let mut text = template.render(input)?;
        match ending {
            Ending::AsRendered => {}
            Ending::Continue => cut_after_last_message(&mut text, input)?,
            Ending::Append(more) => text.push_str(more),
        }
        let ids = self.tokenizer.encode(&text, false)?;
        self.check_placeholders(&ids, images)?;
        let boundaries = boundaries(&ids, &self.stop_tokens);
        Ok(Prompt { ids, boundaries, text })
    }

    /// Tokenizes plain text, with the first token the tokenizer adds by itself.
    pub fn completion(&self, text: &str) -> Result<Prompt, PromptError> {
        let ids = self.tokenizer.encode(text, true)?;
        self.check_placeholders(&ids, 0)?;
        let boundaries = boundaries(&ids, &self.stop_tokens);
        Ok(Prompt { ids, boundaries, text: text.to_owned() })
    }

    /// Takes token ids as they are.
    pub fn tokens(&self, ids: Vec<u32>) -> Result<Prompt, PromptError> {
        self.check_placeholders(&ids, 0)?;
        let boundaries = boundaries(&ids, &self.stop_tokens);
        Ok(Prompt { ids, boundaries, text: String::new() })
    }

    fn check_placeholders(&self, ids: &[u32], images: usize) -> Result<(), PromptError> {
        let found = match self.image_token {
            Some(token) => ids.iter().filter(|id| **id == token).count(),
            None if images > 0 => {
                return Err(PromptError::InvalidInput("this model does not take images".into()));
            }
            None => 0,
        };
        if found == images {
            return Ok(());
        }
        Err(PromptError::InvalidInput(format!(
            "the prompt has {found} image placeholders for {images} images; text must not contain the placeholder itself"
        )))
    }
}

/// Takes away whatever the template writes after the last message's text.
fn cut_after_last_message(text: &mut String, input: &TemplateInput) -> Result<(), PromptError> {
    let last = input.messages.last().and_then(|message| message.get("content")).and_then(Value::as_str);
    let last = last.unwrap_or_default();
    // Templates strip the text of turns; a beginning of an answer that ends in white space loses it.
    let stripped = last.trim();
    let found = if stripped.is_empty() { None } else { text.rfind(stripped) };
    let start = found.ok_or_else(|| {
        PromptError::InvalidInput(
            "continue_final_message: the template does not show the text of the last message".into(),
        )
    })?;
    text.truncate(start + stripped.len());
    text.push_str(&last[last.trim_end().len()..]);
    Ok(())
}

/// Where the text files are.
struct Files {
    folder: PathBuf,
    gguf: Option<PathBuf>,
}

impl Files {
    fn find(path: &Path) -> Result<Self, PromptError> {
        let is_gguf = |p: &Path| p.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
        if path.is_file() {
            if !is_gguf(path) {
                return Err(PromptError::file(path, "a model is a folder or a .gguf file"));
            }
            let folder = path.parent().unwrap_or(Path::new(".")).to_owned();
            return Ok(Self { folder, gguf: Some(path.to_owned()) });
        }
        let entries = std::fs::read_dir(path).map_err(|error| PromptError::file(path, error))?;
        let mut found: Vec<PathBuf> =
            entries.filter_map(|e| e.ok()).map(|e| e.path()).filter(|p| is_gguf(p)).collect();
        found.sort();
        let plain = path.join("config.json").exists() || path.join("tokenizer.json").exists();
        let gguf = if plain { None } else { found.into_iter().next() };
        Ok(Self { folder: path.to_owned(), gguf })
    }

    fn text(&self, name: &str) -> Result<Option<String>, PromptError> {
        let path = self.folder.join(name);
        match std::fs::metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(PromptError::file(path, error)),
            Ok(data) if data.len() > MAX_TEXT_FILE_BYTES => {
                return Err(PromptError::file(path, format!("{} bytes is too large", data.len())));
            }
            Ok(_) => {}
        }
        std::fs::read_to_string(&path).map(Some).map_err(|error| PromptError::file(path, error))
    }

    fn json(&self, name: &str) -> Result<Option<Value>, PromptError> {
        // A GGUF describes itself; JSON files beside it may belong to another model in the same folder.
        if self.gguf.is_some() && name != "tokenizer_config.json" && name != "generation_config.json" {
            return Ok(None);
        }
        let Some(text) = self.text(name)? else { return Ok(None) };
        serde_json::from_str(&text)
            .map(Some)
            .map_err(|error| PromptError::file(self.folder.join(name), error))
    }
}

fn tokenizer(
    files: &Files,
    gguf: Option<&GgufMetadata>,
    config: Option<&Value>,
) -> Result<TextTokenizer, PromptError> {
    let path = files.folder.join("tokenizer.json");
    if let Some(metadata) = gguf {
        let own = gguf_tokenizer::tokenizer(metadata);
        return match own {
            // The file's own tokenizer is right unless it is in a form we do not read.
            Err(PromptError::Unsupported(_)) if path.exists() => TextTokenizer::from_file(&path, config),
            other => other,
        };
    }
    TextTokenizer::from_file(&path, config)
}

struct SpecialTokens {
    bos: Option<String>,
    eos: Option<String>,
}

impl SpecialTokens {
    fn read(config: Option<&Value>, gguf: Option<&GgufMetadata>, tokenizer: &TextTokenizer) -> Self {
        // A token is written as text or as an object with its content.
        let named = |name: &str| {
            let value = config?.get(name)?;
            value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
        };
        let numbered = |name: &str| {
            let id = gguf?.u32(&format!("tokenizer.ggml.{name}_token_id"))?;
            tokenizer.token(id)
        };
        Self {
            bos: named("bos_token").or_else(|| numbered("bos")),
            eos: named("eos_token").or_else(|| numbered("eos")),
        }
    }
}

fn template_source(
    files: &Files,
    tokenizer_config: Option<&Value>,
    gguf: Option<&GgufMetadata>,
) -> Result<Option<String>, PromptError> {
    if let Some(text) = files.text("chat_template.jinja")? {
        return Ok(Some(text));
    }
    let configured = tokenizer_config.and_then(|config| config.get("chat_template"));
    let configured = configured.and_then(|template| match template {
        Value::String(text) => Some(text.clone()),
        Value::Array(named) => named_template(named),
        _ => None,
    });
    Ok(configured.or_else(|| gguf?.string("tokenizer.chat_template").map(str::to_owned)))
}

/// Some models ship several templates by name; `default` is the general one.
fn named_template(named: &[Value]) -> Option<String> {
    let by_name =
        |name: &str| named.iter().find(|entry| entry.get("name").and_then(Value::as_str) == Some(name));
    let entry = by_name("default").or_else(|| named.first())?;
    entry.get("template")?.as_str().map(str::to_owned)
}

fn image_token(config: Option<&Value>) -> Option<u32> {
    let config = config?;
    // A text-only export of a vision model keeps the id but has no tower.
    config.get("vision_config").filter(|v| v.is_object())?;
    if config.get("language_model_only").and_then(Value::as_bool) == Some(true) {
        return None;
    }
    let id = config.get("image_token_id").or_else(|| config.get("image_token_index"))?;
    id.as_u64().and_then(|id| u32::try_from(id).ok())
}

fn context_length(config: Option<&Value>, gguf: Option<&GgufMetadata>) -> Option<u32> {
    if let Some(gguf) = gguf {
        return gguf.u32(&format!("{}.context_length", gguf.architecture()?));
    }
    let config = config?;
    let key = "max_position_embeddings";
    let value = config.get(key).or_else(|| config.get("text_config")?.get(key))?;
    value.as_u64().and_then(|v| u32::try_from(v).ok())
}
