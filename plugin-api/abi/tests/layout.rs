//! Nobody moves a field unseen: everything that crosses, as it lies in memory, compared with `layout.txt`.
//!
//! A change that is meant is written down by running this test with `UPDATE_LAYOUT=1`; what may change within
//! a major version is said in `docs/guides/abi-evolution.md`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use plugin_abi::PluginRef;
use plugin_abi::abi_stable::StableAbi;
use plugin_abi::abi_stable::type_layout::{TLData, TLField, TLFunction, TypeLayout};

/// Every type that can be reached from the root, by name.
#[derive(Default)]
struct Snapshot(BTreeMap<String, String>);

impl Snapshot {
    fn visit(&mut self, layout: &'static TypeLayout) -> String {
        let name = name(layout);
        if !self.0.contains_key(&name) {
            self.0.insert(name.clone(), String::new());
            let text = self.describe(&name, layout);
            if layout.get_fields().is_some_and(|fields| !fields.is_empty()) {
                self.0.insert(name.clone(), text);
            }
            layout.phantom_fields().iter().for_each(|field| drop(self.visit(field.layout())));
        }
        name
    }

    fn describe(&mut self, name: &str, layout: &'static TypeLayout) -> String {
        let mut text = format!("{name}: {} bytes, aligned to {}", layout.size(), layout.alignment());
        if let TLData::PrefixType(prefix) = layout.data() {
            // Writing to a String cannot fail.
            let _ = write!(text, ", the first {} fields always there", prefix.first_suffix_field);
        }
        text.push('\n');
        let mut end = 0;
        for field in layout.get_fields().iter().flat_map(|fields| fields.iter()) {
            // repr(C): each field at the next multiple of its alignment.
            let (size, alignment) = (field.layout().size(), field.layout().alignment());
            let offset = usize::next_multiple_of(end, alignment);
            end = offset + size;
            let _ = writeln!(text, "  {offset:>4} {}: {}", field.name(), self.type_of(&field));
        }
        assert!(end <= layout.size(), "{name} is not laid out as repr(C) says");
        text
    }

    /// The field's type, or its signature; what either mentions is visited.
    fn type_of(&mut self, field: &TLField) -> String {
        match field.function_range().iter().next() {
            Some(function) => self.signature(&function),
            None => self.visit(field.layout()),
        }
    }

    fn signature(&mut self, function: &TLFunction) -> String {
        let names = function.param_names.as_str().split([',', ';']).filter(|name| !name.is_empty());
        let parameters: Vec<_> = names
            .zip(function.param_type_layouts.iter())
            .map(|(name, layout)| format!("{name}: {}", self.visit(layout())))
            .collect();
        let returned = function.return_type_layout().map(|layout| format!(" -> {}", self.visit(layout())));
        format!("fn({}){}", parameters.join(", "), returned.unwrap_or_default())
    }

    fn text(self) -> String {
        self.0.into_values().filter(|text| !text.is_empty()).collect::<Vec<_>>().join("\n")
    }
}

/// The type's name with what it borrows: abi_stable prints generic structs without their parameters.
fn name(layout: &'static TypeLayout) -> String {
    let plain = layout.full_type().to_string().trim_end().replace(" >", ">");
    match layout.get_fields().and_then(|fields| fields.get(0)) {
        Some(pointer) if plain.starts_with("Slice") => {
            let borrowed = pointer.full_type().to_string();
            format!("{plain}<{}>", borrowed.split_whitespace().next_back().unwrap_or_default())
        }
        _ => plain,
    }
}

#[test]
fn every_field_is_where_it_was() {
    let mut snapshot = Snapshot::default();
    snapshot.visit(<PluginRef as StableAbi>::LAYOUT);
    let found = snapshot.text();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("layout.txt");
    if std::env::var_os("UPDATE_LAYOUT").is_some() {
        std::fs::write(&path, &found).expect("the snapshot can be written");
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    if found == expected {
        return;
    }
    let difference = found.lines().zip(expected.lines()).find(|(found, expected)| found != expected);
    panic!(
        "the ABI changed, first at {difference:?}; if that is meant, see docs/guides/abi-evolution.md and run \
         this test with UPDATE_LAYOUT=1"
    );
}

#[test]
fn the_snapshot_mentions_what_crosses() {
    let mut snapshot = Snapshot::default();
    snapshot.visit(<PluginRef as StableAbi>::LAYOUT);
    for name in ["Step", "Row", "StepResult", "Candidate", "Resident", "LoadOptions", "Failure", "LogRecord"]
    {
        assert!(snapshot.0.contains_key(name), "{name} is missing from {:?}", snapshot.0.keys());
    }
}
