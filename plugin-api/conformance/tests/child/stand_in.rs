//! Stands in for neuron's hidden commands `plugin-probe` and `plugin-check`, and for `neuron plugin check` where
//! there is no neuron yet.

use std::path::Path;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["plugin-probe", path] => std::process::exit(plugin_loader::probe_main(Path::new(path))),
        ["plugin-check", task] => std::process::exit(plugin_conformance::child_main(task)),
        ["check", file] => report(file, None),
        ["check", file, model] => report(file, Some(model)),
        _ => std::process::exit(2),
    }
}

fn report(file: &str, model: Option<&str>) {
    let program = std::env::current_exe().expect("this program is a file");
    let options = plugin_conformance::Options {
        model: model.map(Into::into),
        ..plugin_conformance::Options::new(program)
    };
    let report = plugin_conformance::check(Path::new(file), &options);
    println!("{report}");
    std::process::exit(i32::from(!report.passed()));
}
