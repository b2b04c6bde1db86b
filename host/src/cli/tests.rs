//! What the command line understands, and what it refuses.

use clap::CommandFactory;

use super::*;

#[test]
fn the_definition_is_sound() {
    Arguments::command().debug_assert();
}

#[test]
fn commands_are_understood() {
    for line in [
        "serve",
        "serve --config a.toml --listen 0.0.0.0:1 --model ./a --model b=org/name --plugins p --plugins q",
        "run ./model",
        "run ./model hello --system brief --set temperature=0 --context 100",
        "run smol --endpoint http://127.0.0.1:13132 --json",
        "pull org/name other/name:file.gguf --json",
        "models --json --endpoint http://n:1",
        "load org/name@main --name x --device cpu-0,cpu-0 --quantize q8_0 --alias a --alias b --no-wait",
        "unload x --drain-s 0 --if-idle",
        "plugins --json",
        "doctor --json",
        "bench --model ./m --prompt-tokens 8 --generate-tokens 4 --threads 2 --json",
        "config show --json",
        "completions zsh",
    ] {
        let words = std::iter::once("neuron").chain(line.split_whitespace());
        if let Err(error) = Arguments::try_parse_from(words) {
            panic!("{line}: {error}");
        }
    }
}

#[test]
fn what_is_wrong_is_named() {
    for (line, expected) in [
        ("serv", "serve"),
        ("serve --lissten x", "--listen"),
        ("run", "<MODEL>"),
        ("pull", "<MODELS>"),
        ("bench --model m --generate-tokens 1", "1 is not in 2.."),
        ("unload x --drain-s soon", "soon"),
        ("completions cmd", "bash"),
    ] {
        let words = std::iter::once("neuron").chain(line.split_whitespace());
        let error = Arguments::try_parse_from(words).expect_err(line).to_string();
        assert!(error.contains(expected), "{line}: {error}");
    }
}

#[test]
fn every_command_teaches_with_an_example() {
    fn walk(command: &clap::Command) {
        let name = command.get_name().to_owned();
        let leaf = command.get_subcommands().next().is_none();
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        assert!(!leaf || help.contains("neuron "), "{name} has no example");
        assert!(command.get_about().is_some(), "{name} says nothing of itself");
        command.get_subcommands().for_each(walk);
    }
    Arguments::command().get_subcommands().for_each(walk);
}

#[test]
fn models_on_the_command_line_may_have_a_name() {
    for (text, id, source) in [
        ("./a", "./a", "./a"),
        ("smol=org/name", "smol", "org/name"),
        ("/odd/path=with", "/odd/path=with", "/odd/path=with"),
    ] {
        let model = serve::model(text);
        assert_eq!((model.name(), model.source.as_str()), (id, source), "{text}");
    }
}
