//! The loaded model.

use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use plugin_sdk::{Batch, BatchRow, Encoded, Error, ImageView, Loaded, Model, Result, Want};

use crate::config::Config;
use crate::fault::Outcome;
use crate::sequence::Sequence;
use crate::vision;
use crate::vocabulary::{IMAGE, VOCABULARY};

/// One rank of a loaded echo.
pub struct EchoModel {
    config: Config,
    rank: usize,
}

impl EchoModel {
    pub(crate) fn new(config: Config, rank: usize) -> Self {
        Self { config, rank }
    }

    /// Takes as long as the settings say, listening to cancellation.
    fn dawdle(&self, batch: &Batch<'_, Sequence, Arc<str>>) -> Result<()> {
        let settings = &self.config.settings;
        let whole = Duration::from_millis(settings.step_delay_ms)
            + Duration::from_micros(settings.token_delay_us) * batch.total_tokens() as u32;
        let begin = Instant::now();
        while begin.elapsed() < whole {
            batch.check_cancelled()?;
            sleep((whole - begin.elapsed().min(whole)).min(Duration::from_millis(2)));
        }
        batch.check_cancelled()
    }

    /// Whether every image token has its image.
    fn check(row: &BatchRow<'_, Sequence, Arc<str>>) -> Result<()> {
        for (place, _) in row.tokens.iter().enumerate().filter(|(_, token)| **token == IMAGE) {
            let position = row.position + place;
            let shown = |image: &plugin_sdk::RowImage<'_, Arc<str>>| {
                (image.position..image.position + image.tokens).contains(&position)
            };
            if !row.images.iter().any(shown) {
                return Err(Error::InvalidInput(format!(
                    "there is no image for the image token at position {position}"
                )));
            }
        }
        Ok(())
    }

    /// Feeds one row. An `Err` fails the batch.
    fn feed(&self, row: &mut BatchRow<'_, Sequence, Arc<str>>) -> Result<()> {
        if let Err(error) = Self::check(row) {
            row.fail(error);
            return Ok(());
        }
        for image in &row.images {
            row.sequence.see(image.position, image.image.clone());
        }
        for &token in row.tokens {
            row.sequence.push(token);
        }
        if let Some(fault) = &self.config.settings.fault
            && fault.strikes(row.sequence, row.position)
        {
            match fault.strike()? {
                Outcome::Row(error) => {
                    row.sequence.trim(row.position);
                    row.fail(error);
                }
                Outcome::Nan => row.logits.fill(f32::NAN),
            }
            return Ok(());
        }
        self.write_logits(row);
        Ok(())
    }

    fn write_logits(&self, row: &mut BatchRow<'_, Sequence, Arc<str>>) {
        if self.rank != 0 || row.logits.is_empty() {
            return;
        }
        let end = row.sequence.len();
        let first = if row.want == Want::ALL { end - row.tokens.len() + 1 } else { end };
        for (length, logits) in (first..=end).zip(row.logits.chunks_exact_mut(VOCABULARY)) {
            for (id, logit) in logits.iter_mut().enumerate() {
                *logit = noise(length as u64, id as u64);
            }
            let next = row.sequence.next(length, self.config.settings.script.as_deref());
            logits[next as usize] = self.config.settings.sharpness;
        }
    }
}

/// A number between 0 and 1 that depends on nothing but its arguments (finaliser of SplitMix64).
fn noise(length: u64, id: u64) -> f32 {
    let mut bits = (length << 32 | id).wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((bits ^ bits >> 31) >> 40) as f32 / (1u64 << 24) as f32
}

impl Model for EchoModel {
    type Sequence = Sequence;
    type Image = Arc<str>;

    fn info(&self) -> Loaded {
        Loaded {
            vocab_size: VOCABULARY,
            max_context: self.config.max_context,
            image_token: self.config.settings.vision.then_some(IMAGE),
            fork_any_length: self.config.settings.fork_any_length,
            weight_bytes: self.config.settings.weight_bytes,
        }
    }

    fn sequence(&mut self) -> Result<Sequence> {
        Ok(Sequence::new(self.config.settings.bytes_per_token))
    }

    fn length(&self, sequence: &Sequence) -> usize {
        sequence.len()
    }

    fn fork(&mut self, sequence: &Sequence, length: usize) -> Result<Sequence> {
        Ok(sequence.fork(length))
    }

    fn trim(&mut self, sequence: &mut Sequence, length: usize) -> Result<()> {
        sequence.trim(length);
        Ok(())
    }

    fn bytes(&self, sequence: &Sequence) -> u64 {
        sequence.bytes()
    }

    fn step(&mut self, batch: &mut Batch<'_, Sequence, Arc<str>>) -> Result<()> {
        self.dawdle(batch)?;
        batch.rows.iter_mut().try_for_each(|row| self.feed(row))
    }

    fn measure_image(&self, width: usize, height: usize) -> Result<usize> {
        if !self.config.settings.vision {
            return Err(Error::Unsupported("this model does not take images".into()));
        }
        vision::measure(width, height)
    }

    fn encode_image(&mut self, image: ImageView<'_>) -> Result<Encoded<Arc<str>>> {
        if !self.config.settings.vision {
            return Err(Error::Unsupported("this model does not take images".into()));
        }
        vision::encode(image)
    }
}
