//! The child of a probe: what `neuron plugin-probe <path>` does, without neuron.

use std::path::Path;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["plugin-probe", path] => std::process::exit(plugin_loader::probe_main(Path::new(path))),
        _ => std::process::exit(2),
    }
}
