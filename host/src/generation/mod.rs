//! From a request to its answer: the model is found, the prompt made, sequences run, their tokens read.
//!
//! This is the one path. A [`Turn`] is what a request became: one sequence per answer, each with its own
//! output pipeline, told as one stream of events. Dropping it cancels everything it began.

mod error;
mod images;
mod prepare;
mod texts;
mod turn;

use std::sync::Arc;

use wire_api::openai::chat::ChatRequest;
use wire_api::openai::completions::CompletionRequest;
use wire_api::{ApiError, ErrorKind};

use crate::lifecycle::{LoadedModel, Models};
use crate::prompt::ModelText;

use self::texts::Texts;
pub use error::{of_lifecycle, of_prompt};
pub use images::Pictures;
pub use prepare::Prepared;
pub use turn::{Counts, Ended, Turn, TurnEvent};

/// Makes turns. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Generator {
    models: Models,
    texts: Texts,
    pictures: Pictures,
}

/// A model that serves, and its text side.
#[derive(Debug, Clone)]
pub struct Served {
    /// The model.
    pub model: LoadedModel,
    /// Its tokenizer, template and defaults.
    pub text: Arc<ModelText>,
}

impl Generator {
    /// Generates with `models`; requests' images come from `pictures`.
    pub fn new(models: Models, pictures: Pictures) -> Self {
        Self { models, texts: Texts::default(), pictures }
    }

    /// The model that answers to `name`. Waits while it is loading or coming back; how long is for the caller
    /// to say, by dropping the future.
    ///
    /// # Errors
    ///
    /// 404 for a name nobody answers to, otherwise why the model cannot be had.
    pub async fn serve(&self, name: &str) -> Result<Served, ApiError> {
        let model = self.models.acquire(name).await.map_err(|error| of_lifecycle(&error))?;
        let text = self.texts.of(model.info()).await.map_err(|error| of_prompt(&error))?;
        Ok(Served { model, text })
    }

    /// The prompt of a chat request, and how its answer is to be read.
    ///
    /// # Errors
    ///
    /// 400, naming what is wrong or what this model cannot do.
    pub async fn chat_prompt(&self, served: &Served, request: &ChatRequest) -> Result<Prepared, ApiError> {
        prepare::chat(request, &served.text, &self.pictures).await
    }

    /// Starts to answer a chat request.
    ///
    /// # Errors
    ///
    /// As [`Generator::chat_prompt`], and 400 for a prompt longer than the context.
    pub async fn chat(&self, served: &Served, request: &ChatRequest) -> Result<Turn, ApiError> {
        self.chat_after(served, request, Vec::new()).await
    }

    /// As [`Generator::chat`], after tokens of the answer that were said elsewhere: they are read again, and
    /// generation goes on behind them.
    ///
    /// # Errors
    ///
    /// As [`Generator::chat`].
    pub async fn chat_after(
        &self,
        served: &Served,
        request: &ChatRequest,
        emitted: Vec<u32>,
    ) -> Result<Turn, ApiError> {
        let prepared = self.chat_prompt(served, request).await?;
        Turn::start(served, vec![prepared], &request.parameters, emitted)
    }

    /// Starts to complete texts.
    ///
    /// # Errors
    ///
    /// As [`Generator::chat`].
    pub async fn complete(&self, served: &Served, request: &CompletionRequest) -> Result<Turn, ApiError> {
        let prepared = prepare::completions(request, &served.text).await?;
        Turn::start(served, prepared, &request.parameters, Vec::new())
    }
}

/// Runs what takes long where it does not hold up other connections. A panic is an error of this request alone.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| ApiError::new(ErrorKind::Internal, "making the prompt panicked"))
}
