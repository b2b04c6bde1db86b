//! Stands in for neuron's hidden commands `plugin-probe` and `plugin-check`.

use std::path::Path;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["plugin-probe", path] => std::process::exit(plugin_loader::probe_main(Path::new(path))),
        ["plugin-check", task] => std::process::exit(plugin_conformance::child_main(task)),
        _ => std::process::exit(2),
    }
}
