//! The text sides of loaded models, each read once per load.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OnceCell;

use crate::lifecycle::ModelInfo;
use crate::prompt::{ModelText, PromptError};

/// See the module. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Texts(Arc<Mutex<HashMap<String, Slot>>>);

#[derive(Debug, Clone)]
struct Slot {
    load: u64,
    text: Arc<OnceCell<Arc<ModelText>>>,
}

impl Texts {
    /// The text side of a loaded model. Whoever asks first reads the files, the others wait for it.
    pub async fn of(&self, info: &ModelInfo) -> Result<Arc<ModelText>, PromptError> {
        let slot = {
            let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let fresh = || Slot { load: info.load, text: Arc::default() };
            let slot = slots.entry(info.id.0.clone()).or_insert_with(fresh);
            // Another load may serve other files under the same name.
            if slot.load != info.load {
                *slot = fresh();
            }
            slot.clone()
        };
        let path = info.path.clone();
        let read = || async {
            let opened = tokio::task::spawn_blocking(move || ModelText::open(&path)).await;
            opened
                .unwrap_or_else(|_| Err(PromptError::Unsupported("reading the tokenizer panicked".into())))
                .map(Arc::new)
        };
        slot.text.get_or_try_init(read).await.cloned()
    }
}
