//! `neuron config`: what is in force, and where it came from.

use serde_json::{Map, Value, json};

use super::ConfigFile;
use crate::config::Setting;

/// What to do with it.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Print every setting, its value, and where that came from: default, file or environment.
    #[command(after_help = "Examples:
  neuron config show
  NEURON_ENGINE_SLOTS=4 neuron config show --config neuron.toml
  neuron config show --json | jq '.engine.slots'")]
    Show {
        #[command(flatten)]
        file: ConfigFile,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

/// Does it.
pub fn run(command: &Command) -> anyhow::Result<()> {
    let Command::Show { file, json } = command;
    let loaded = file.load()?;
    let settings = loaded.settings();
    if *json {
        println!("{}", serde_json::to_string_pretty(&document(&settings))?);
        return Ok(());
    }
    match &loaded.path {
        Some(path) => println!("# file: {}", path.display()),
        None => println!("# no configuration file; defaults and environment alone"),
    }
    print!("{}", text(&settings));
    Ok(())
}

/// As the file would say it, with origins as comments.
fn text(settings: &[Setting]) -> String {
    let mut lines = Vec::new();
    let mut section = "";
    for setting in settings {
        if setting.key == "models" && setting.section.is_empty() {
            lines.push(models(setting));
            continue;
        }
        if setting.section != section {
            section = &setting.section;
            lines.push((format!("\n[{section}]"), String::new()));
        }
        let line = match &setting.value {
            Some(value) => format!("{} = {value}", setting.key),
            None => format!("# {} is not set", setting.key),
        };
        lines.push((line, setting.origin.to_string()));
    }
    let width =
        lines.iter().map(|(line, _)| line.chars().count()).filter(|width| *width <= 60).max().unwrap_or(0);
    let written = lines.into_iter().map(|(line, origin)| {
        let padding = " ".repeat(width.saturating_sub(line.chars().count()));
        if origin.is_empty() { format!("{line}\n") } else { format!("{line}{padding}  # {origin}\n") }
    });
    written.collect()
}

fn models(setting: &Setting) -> (String, String) {
    let entries =
        setting.value.as_ref().and_then(toml::Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if entries.is_empty() {
        return ("\n# no [[models]]".into(), String::new());
    }
    let entries = entries
        .iter()
        .map(|entry| format!("\n[[models]]  # {}\n{entry}", setting.origin, entry = table(entry)));
    (entries.collect(), String::new())
}

/// One entry, each key on its line, so that tables inside it do not end it.
fn table(entry: &toml::Value) -> String {
    let keys = entry.as_table().into_iter().flatten();
    keys.map(|(key, value)| format!("{key} = {value}")).collect::<Vec<_>>().join("\n")
}

fn document(settings: &[Setting]) -> Value {
    let mut all = Map::new();
    for setting in settings {
        let entry = json!({"value": setting.value, "origin": setting.origin.to_string()});
        if setting.section.is_empty() {
            all.insert(setting.key.clone(), entry);
        } else if let Some(section) =
            all.entry(setting.section.clone()).or_insert_with(|| json!({})).as_object_mut()
        {
            section.insert(setting.key.clone(), entry);
        }
    }
    Value::Object(all)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;

    #[test]
    fn what_is_shown_can_be_read_again() {
        let file = "[engine]\nslots = 3\n[[models]]\nsource = \"a/b\"\n\
                    options = { step_delay_ms = 1 }\nprefix_cache_bytes = \"1 GiB\"\n";
        let environment = [("NEURON_NAME".to_owned(), "one".to_owned())];
        let loaded = Config::parse(file, Path::new("/x/neuron.toml"), environment).unwrap();
        let shown = text(&loaded.settings());
        assert!(shown.contains("# environment, NEURON_NAME"), "{shown}");
        assert!(
            shown.lines().any(|line| line.starts_with("slots = 3") && line.ends_with("# file")),
            "{shown}"
        );
        let again = Config::parse(&shown, Path::new("/x/neuron.toml"), [])
            .unwrap_or_else(|error| panic!("{error}\n{shown}"));
        assert_eq!(again.config, loaded.config);
        let document = document(&loaded.settings());
        assert_eq!(document["engine"]["slots"]["value"], 3);
        assert_eq!(document["listen"]["origin"], "default");
    }
}
