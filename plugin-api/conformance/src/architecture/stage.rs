//! What the checks of one architecture share: its model, and short ways to ask for logits.

use std::path::PathBuf;
use std::sync::atomic::AtomicU32;

use plugin_loader::{
    ArchitectureInfo, LoadOptions, Model, Plugin, PluginError, Row, SequenceId, Source, StepOutput, Want,
};

use crate::folder;
use crate::promise::{Asked, End, broken, ensure, skipped};

/// How far two ways to the same logits may differ, as a share of the largest logit: kernels for one row and for
/// many add up in different orders.
const TOLERANCE: f32 = 5e-3;

/// One architecture on trial.
pub(crate) struct Stage {
    pub(crate) plugin: Plugin,
    pub(crate) index: usize,
    pub(crate) loads: u32,
    folder: Option<PathBuf>,
    model: Option<Model>,
}

impl Stage {
    pub(crate) fn new(plugin: Plugin, index: usize, folder: Option<PathBuf>, loads: u32) -> Self {
        Self { plugin, index, loads, folder, model: None }
    }

    pub(crate) fn info(&self) -> &'static ArchitectureInfo {
        &self.plugin.architectures()[self.index]
    }

    /// The model to load.
    pub(crate) fn source(&self) -> Result<Source, End> {
        folder::source(self.folder.as_deref(), self.info())
    }

    pub(crate) fn options(&self) -> LoadOptions {
        LoadOptions {
            max_context: 256,
            max_sequences: 32,
            max_step_tokens: 128,
            threads: 1,
            ..LoadOptions::default()
        }
    }

    pub(crate) fn load(&self, options: &LoadOptions) -> Result<Result<Model, PluginError>, End> {
        let source = self.source()?;
        Ok(self.plugin.load(self.index, &source, options, &mut |_, _, _| true))
    }

    /// The model most checks share, loaded when first asked for.
    pub(crate) fn model(&mut self) -> Result<&mut Model, End> {
        if self.model.is_none() {
            let loaded = self.load(&self.options())?;
            match loaded {
                Ok(model) => self.model = Some(model),
                Err(error) => return skipped(format!("the model does not load: {error}")),
            }
        }
        match &mut self.model {
            Some(model) => Ok(model),
            None => skipped("there is no model"),
        }
    }

    /// Unloads the shared model.
    pub(crate) fn unload(&mut self) {
        self.model = None;
    }
}

/// Tokens that mean nothing in particular, `seed` apart.
pub(crate) fn tokens(model: &Model, count: usize, seed: u32) -> Vec<u32> {
    let plain = model.info().vocab_size.clamp(1, 200);
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12_345);
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % plain
    };
    (0..count).map(next).collect()
}

/// A row over all of a step's tokens.
pub(crate) fn row(sequence: SequenceId, position: usize, count: usize, want: Want) -> Row {
    Row { sequence, position: position as u32, tokens: 0..count as u32, want, images: 0..0 }
}

/// Feeds one row and returns what it wanted.
pub(crate) fn feed(
    model: &mut Model,
    sequence: SequenceId,
    position: usize,
    tokens: &[u32],
    want: Want,
) -> Result<Vec<f32>, End> {
    let mut output = StepOutput::default();
    model
        .step(&[row(sequence, position, tokens.len(), want)], tokens, &[], &AtomicU32::new(0), &mut output)
        .asked("a step")?;
    if let Some(error) = output.error(0) {
        return broken(format!("a row of {} tokens at {position} failed: {error}", tokens.len()));
    }
    Ok(output.logits(0).to_vec())
}

/// Logits after `tokens`, fed at once to a sequence of its own.
pub(crate) fn logits_of(model: &mut Model, tokens: &[u32]) -> Result<Vec<f32>, End> {
    let sequence = model.sequence_new().asked("a new sequence")?;
    let logits = feed(model, sequence, 0, tokens, Want::LAST);
    model.sequence_free(sequence);
    logits
}

/// The same answer by two roads.
pub(crate) fn same(what: &str, left: &[f32], right: &[f32]) -> Result<(), End> {
    ensure(left.len() == right.len(), || format!("{what}: {} logits and {}", left.len(), right.len()))?;
    let largest = left.iter().chain(right).fold(1e-6f32, |largest, logit| largest.max(logit.abs()));
    for (id, (a, b)) in left.iter().zip(right).enumerate() {
        let apart = (a - b).abs() / largest;
        if apart.is_nan() || apart > TOLERANCE {
            return broken(format!("{what}: logit {id} is {a} one way and {b} the other"));
        }
    }
    Ok(())
}
