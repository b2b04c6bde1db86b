//! `cortex models`.

use wire_api::openai::models::ModelList;

use super::ask::Options;

/// Prints the merged catalogue.
pub async fn run(ask: &Options) -> anyhow::Result<()> {
    let list: ModelList = ask.get("/v1/models").await?;
    if ask.json {
        println!("{}", serde_json::to_string(&list)?);
        return Ok(());
    }
    if list.data.is_empty() {
        println!("no node serves a model and the catalogue is empty");
    }
    for model in &list.data {
        let state = model.state.map_or_else(String::new, |state| format!("{state:?}").to_lowercase());
        let whole = |nodes: &[String]| if nodes.is_empty() { "-".to_owned() } else { nodes.join(",") };
        println!(
            "{:40} {:9} on {:20} loadable on {:20} {}",
            model.id,
            state,
            whole(&model.resident_on),
            whole(&model.loadable_on),
            model.aliases.join(" ")
        );
    }
    Ok(())
}
