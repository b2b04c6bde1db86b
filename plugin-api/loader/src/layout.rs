//! Whether a library's types are laid out as this host's are.

use plugin_abi::PluginRef;
use plugin_abi::abi_stable::StableAbi;
use plugin_abi::abi_stable::abi_stability::abi_checking::{AbiInstabilityErrors, check_layout_compatibility};
use plugin_abi::abi_stable::library::LibHeader;
use plugin_abi::abi_stable::type_layout::TLFieldOrFunction;

use crate::refusal::Cause;

/// Compares in both directions: a newer plugin offers more verbs than this host knows, an older one fewer.
/// Either is fine; anything else that differs is not.
pub(crate) fn check(header: &LibHeader) -> Result<(), Cause> {
    let theirs =
        header.layout().ok_or_else(|| Cause::NotAPlugin("it was built without layout information".into()))?;
    let ours = <PluginRef as StableAbi>::LAYOUT;
    match check_layout_compatibility(ours, theirs) {
        Ok(()) => Ok(()),
        Err(as_newer) => {
            check_layout_compatibility(theirs, ours).map_err(|_| Cause::Layout(sentence(&as_newer)))
        }
    }
}

/// Where the first difference lies and what it is, without the pages of detail.
fn sentence(errors: &AbiInstabilityErrors) -> String {
    let Some(error) = errors.errors.iter().find(|error| !error.errs.is_empty()) else {
        return "for an unknown reason".into();
    };
    let place: Vec<String> = error
        .stack_trace
        .iter()
        .map(|step| match &step.found {
            TLFieldOrFunction::Field(field) => field.name().to_owned(),
            TLFieldOrFunction::Function(function) => function.name.to_string(),
        })
        .filter(|name| !name.is_empty())
        .collect();
    let what = error.errs.first().map_or_else(String::new, |what| short(&format!("{what:?}")));
    if place.is_empty() { what } else { format!("{} differs ({what})", place.join(" > ")) }
}

/// The name of the difference and its numbers; the layouts that follow fill pages.
fn short(text: &str) -> String {
    let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let end = flat.floor_char_boundary(flat.len().min(160));
    if end < flat.len() { format!("{}…", &flat[..end]) } else { flat }
}
