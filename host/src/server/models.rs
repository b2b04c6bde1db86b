//! `GET /v1/models`: what requests may name.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use wire_api::ApiError;
use wire_api::node::models::ModelStatus;
use wire_api::openai::models::{Model, ModelList};

use super::error::Refused;
use super::{House, unix_seconds};

/// All models.
pub async fn list(State(house): State<Arc<House>>) -> Json<ModelList> {
    Json(ModelList::new(house.models.list().into_iter().map(|status| model(&house, status)).collect()))
}

/// One model.
pub async fn show(State(house): State<Arc<House>>, Path(id): Path<String>) -> Result<Json<Model>, Refused> {
    match house.models.status(&id) {
        Some(status) => Ok(Json(model(&house, status))),
        None => Err(Refused(ApiError::model_not_found(&id))),
    }
}

fn model(house: &House, status: ModelStatus) -> Model {
    let details = status.details.as_ref();
    let since = details.and_then(|details| details.ready_since_ms).map_or_else(unix_seconds, |ms| ms / 1000);
    Model {
        max_model_len: details.map(|details| details.context_tokens),
        state: Some(status.state),
        modalities: details.map(|details| details.modalities.clone()).unwrap_or_default(),
        aliases: status.aliases.clone(),
        progress: status.progress.as_ref().and_then(|progress| progress.fraction()),
        ..Model::new(status.id.0, since, house.settings.name.clone())
    }
}
