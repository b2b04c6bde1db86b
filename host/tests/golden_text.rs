//! Tokenizer, chat template and prompt of every golden model against the reference implementation.
//!
//! `GOLDEN_DIR` names a folder of model folders, each with an `expected.json`; the default is the project's
//! own copies.

use std::path::{Path, PathBuf};

use neuron::output::Detokenizer;
use neuron::prompt::{Ending, ModelText, PromptError, TemplateInput};
use serde_json::Value;

fn models() -> Vec<(PathBuf, Value)> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/models");
    let folder = std::env::var_os("GOLDEN_DIR").map_or(own, PathBuf::from);
    let mut found: Vec<(PathBuf, Value)> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .filter_map(|path| {
            let text = std::fs::read_to_string(path.join("expected.json")).ok()?;
            Some((path, serde_json::from_str(&text).unwrap()))
        })
        .collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    assert!(!found.is_empty(), "no golden models in {}", folder.display());
    found
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

fn decode(text: &ModelText, ids: &[u32], skip_special: bool) -> String {
    let mut detokenizer = Detokenizer::new(text.tokenizer(), true, skip_special);
    let mut out = String::new();
    for id in ids {
        out.push_str(&detokenizer.push(text.tokenizer(), *id));
    }
    out.push_str(&detokenizer.finish());
    out
}

#[test]
fn golden_tokenizer() {
    for (path, expected) in models() {
        let text = ModelText::open(&path).unwrap();
        let section = &expected["tokenizer"];
        for case in section["encode"].as_array().unwrap() {
            let input = case["text"].as_str().unwrap();
            let at = format!("{} {input:?}", path.display());
            assert_eq!(text.tokenizer().encode(input, false).unwrap(), ids(&case["ids"]), "{at}");
            assert_eq!(text.tokenizer().encode(input, true).unwrap(), ids(&case["ids_with_special"]), "{at}");
        }
        for case in section["decode"].as_array().unwrap() {
            let tokens = ids(&case["ids"]);
            assert_eq!(decode(&text, &tokens, false), case["text"].as_str().unwrap(), "{}", path.display());
            let shown = case["text_skip_special"].as_str().unwrap();
            assert_eq!(decode(&text, &tokens, true), shown, "{}", path.display());
        }
    }
}

#[test]
fn golden_chat() {
    for (path, expected) in models() {
        let text = ModelText::open(&path).unwrap();
        for case in expected["chat"].as_array().into_iter().flatten() {
            check_chat(&text, case, &format!("{} {}", path.display(), case["name"]));
        }
    }
}

fn check_chat(text: &ModelText, case: &Value, at: &str) {
    let mut variables = case["kwargs"].as_object().cloned().unwrap_or_default();
    let generation = variables.remove("add_generation_prompt").and_then(|v| v.as_bool()).unwrap_or(false);
    let input = TemplateInput {
        messages: case["messages"].as_array().unwrap().clone(),
        tools: case.get("tools").and_then(Value::as_array).cloned(),
        add_generation_prompt: generation,
        variables,
    };
    let template = text.template().expect(at);
    let rendered = template.render(&input);
    if let Some(error) = case.get("error").and_then(Value::as_str) {
        let reason = error.split_once(": ").map_or(error, |(_, reason)| reason);
        match rendered {
            Err(PromptError::InvalidInput(message)) => assert!(message.contains(reason), "{at}: {message}"),
            other => panic!("{at}: expected a refusal, got {other:?}"),
        }
        return;
    }
    let rendered = rendered.unwrap_or_else(|error| panic!("{at}: {error}"));
    assert_eq!(rendered, case["rendered"].as_str().unwrap(), "{at}");
    assert_eq!(text.tokenizer().encode(&rendered, false).unwrap(), ids(&case["ids"]), "{at}");
}

#[test]
fn golden_multimodal_prompts() {
    for (path, expected) in models() {
        let text = ModelText::open(&path).unwrap();
        for case in expected.get("multimodal").and_then(Value::as_array).into_iter().flatten() {
            let at = format!("{} {}", path.display(), case["name"]);
            let images = case["image_grid_thw"].as_array().unwrap().len();
            let input = TemplateInput {
                messages: case["messages"].as_array().unwrap().clone(),
                add_generation_prompt: true,
                variables: case["kwargs"].as_object().cloned().unwrap_or_default(),
                ..Default::default()
            };
            let prompt = text
                .chat(&input, images, &Ending::AsRendered)
                .unwrap_or_else(|error| panic!("{at}: {error}"));
            assert_eq!(prompt.text, case["prompt"].as_str().unwrap(), "{at}");
            let placeholder = text.image_token().unwrap();
            let mut collapsed = ids(&case["ids"]);
            collapsed.dedup_by(|a, b| a == b && *a == placeholder);
            assert_eq!(prompt.ids, collapsed, "{at}");
        }
    }
}

#[test]
fn golden_ends_are_the_union() {
    for (path, expected) in models() {
        let text = ModelText::open(&path).unwrap();
        for name in ["config.json", "generation_config.json"] {
            let config: Value =
                serde_json::from_str(&std::fs::read_to_string(path.join(name)).unwrap()).unwrap();
            let declared: Vec<u32> = match &config["eos_token_id"] {
                Value::Array(all) => all.iter().map(|v| v.as_u64().unwrap() as u32).collect(),
                one => one.as_u64().map(|v| v as u32).into_iter().collect(),
            };
            assert!(
                declared.iter().all(|id| text.stop_tokens().contains(id)),
                "{} {expected}",
                path.display()
            );
        }
        assert!(!text.stop_tokens().is_empty());
    }
}
