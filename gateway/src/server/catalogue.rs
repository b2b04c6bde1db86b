//! `GET /v1/models`: every model any node serves or could load, in the caller's dialect.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use http::HeaderMap;
use plugin_loader::Residency;
use serde::Deserialize;
use wire_api::anthropic::models::{ModelInfo, ModelPage};
use wire_api::node::models::ModelState;
use wire_api::openai::models::{Model, ModelList};
use wire_api::{ApiError, Dialect};

use super::{Gateway, dialect_of, error};
use crate::fleet::view::{FleetView, ModelView};

/// The page an Anthropic client asks for.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Page {
    limit: Option<usize>,
    after_id: Option<String>,
    before_id: Option<String>,
}

/// All models.
pub async fn list(
    State(gateway): State<Arc<Gateway>>,
    headers: HeaderMap,
    Query(page): Query<Page>,
) -> Response {
    let dialect = dialect_of(&headers);
    if let Err(refused) = gateway.keys.load().authenticate(&headers) {
        return error::response(&refused, dialect, "");
    }
    let view = gateway.fleet.view();
    match dialect {
        Dialect::OpenAi => {
            Json(ModelList::new(view.models.iter().map(|model| openai(model)).collect())).into_response()
        }
        Dialect::Anthropic => {
            let models = anthropic(&view);
            let limit = page.limit.unwrap_or(20);
            let (after, before) = (page.after_id.as_deref(), page.before_id.as_deref());
            Json(ModelPage::of(&models, limit, after, before)).into_response()
        }
    }
}

/// One model, by id or alias.
pub async fn one(
    State(gateway): State<Arc<Gateway>>,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Response {
    let dialect = dialect_of(&headers);
    if let Err(refused) = gateway.keys.load().authenticate(&headers) {
        return error::response(&refused, dialect, "");
    }
    match (gateway.fleet.view().model(&id), dialect) {
        (None, _) => error::response(&ApiError::model_not_found(&id), dialect, ""),
        (Some(model), Dialect::OpenAi) => Json(openai(model)).into_response(),
        (Some(model), Dialect::Anthropic) => Json(info(model, &id)).into_response(),
    }
}

/// A model as OpenAI clients read it, with where it is.
pub fn openai(model: &ModelView) -> Model {
    let names = |residency: Residency| {
        let there = model.replicas.iter().filter(move |r| r.residency == residency && r.node.usable());
        there.map(|replica| replica.node.name.clone()).collect::<Vec<_>>()
    };
    let loading = model.replicas.iter().find(|replica| replica.residency == Residency::LOADING);
    let resident_on = names(Residency::RESIDENT);
    let state = if !resident_on.is_empty() {
        ModelState::Ready
    } else if loading.is_some() {
        ModelState::Loading
    } else {
        let failed =
            model.replicas.iter().any(|r| r.status.as_ref().is_some_and(|s| s.state == ModelState::Failed));
        if failed { ModelState::Failed } else { ModelState::Absent }
    };
    let details = model.replicas.iter().filter_map(|r| r.status.as_ref()?.details.as_ref()).next();
    Model {
        max_model_len: context_tokens(model),
        state: Some(state),
        modalities: details.map_or_else(Vec::new, |details| details.modalities.clone()),
        aliases: model.aliases.clone(),
        resident_on,
        loadable_on: names(Residency::LOADABLE),
        progress: loading.and_then(|r| r.status.as_ref()?.progress.as_ref()?.fraction()),
        ..Model::new(&model.id, created(model), owner(&model.id))
    }
}

fn context_tokens(model: &ModelView) -> Option<u64> {
    let reported =
        model.replicas.iter().filter_map(|r| Some(r.status.as_ref()?.details.as_ref()?.context_tokens));
    reported.filter(|tokens| *tokens > 0).min().or(model.spec.as_ref().and_then(|spec| spec.context_tokens))
}

fn created(model: &ModelView) -> u64 {
    let since = model.replicas.iter().filter_map(|r| r.status.as_ref()?.details.as_ref()?.ready_since_ms);
    since.min().unwrap_or(0) / 1000
}

/// `org` of `org/name`.
fn owner(id: &str) -> &str {
    match id.split_once('/') {
        Some((owner, _)) if !owner.is_empty() => owner,
        _ => "cortex",
    }
}

/// Ids and aliases: some clients only offer models whose names begin like their own.
fn anthropic(view: &FleetView) -> Vec<ModelInfo> {
    let mut models = Vec::new();
    for model in &view.models {
        models.push(info(model, &model.id));
        models.extend(model.aliases.iter().map(|alias| info(model, alias)));
    }
    models
}

fn info(model: &ModelView, name: &str) -> ModelInfo {
    ModelInfo {
        max_input_tokens: context_tokens(model),
        max_tokens: model.spec.as_ref().and_then(|spec| spec.max_tokens).map(u64::from),
        ..ModelInfo::new(name, created(model))
    }
}
