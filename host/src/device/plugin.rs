//! A rank that is a plugin behind the ABI.

use std::sync::Arc;

use plugin_loader::{
    ErrorKind, HostServices, ImageId, LoadOptions, Model, Phase, Plugin, PluginError, Policy,
    Row as LoaderRow, SequenceId, Source,
};

use super::rank::{DeviceError, EncodedImage, ModelStats, OpenRank, Rank, Step, StepOutput, Want};
use crate::worker::message::ImagePixels;
use crate::worker::protocol::{LoadOrder, LoadPhase, MemoryPlan, ModelFacts, RankDevice, WeightFormat};

/// Hears how far one rank's load has come: rank, phase, bytes done, bytes in all. Answers whether to go on.
pub type LoadProgress = Arc<dyn Fn(usize, LoadPhase, u64, u64) -> bool + Send + Sync>;

impl From<PluginError> for DeviceError {
    fn from(error: PluginError) -> Self {
        let PluginError { kind, message, need_bytes } = error;
        match kind {
            ErrorKind::InvalidInput => Self::InvalidInput(message),
            ErrorKind::Unsupported => Self::Unsupported(message),
            ErrorKind::OutOfMemory => Self::OutOfMemory { message, need_bytes },
            ErrorKind::DeviceLost => Self::DeviceLost(message),
            ErrorKind::Internal => Self::Internal(message),
            ErrorKind::Cancelled => Self::Cancelled,
        }
    }
}

/// The architecture of one load order inside its plugin, ready to be planned and loaded.
pub struct Opened {
    plugin: Plugin,
    architecture: usize,
    source: Source,
    order: LoadOrder,
}

impl Opened {
    /// Maps the plugin the order names. It stays mapped until the process ends.
    pub fn open(order: LoadOrder, services: &HostServices, policy: &Policy) -> Result<Self, DeviceError> {
        let plugin = Plugin::open_under(&order.plugin, services, policy)
            .map_err(|refusal| DeviceError::Unsupported(refusal.to_string()))?;
        let name = &order.architecture;
        let place = plugin.architectures().iter().position(|info| info.name == *name);
        let missing = || {
            DeviceError::Unsupported(format!("{} offers no architecture {name:?}", order.plugin.display()))
        };
        let architecture = place.ok_or_else(missing)?;
        if order.devices.is_empty() {
            return Err(DeviceError::InvalidInput("a model needs at least one device".into()));
        }
        for device in &order.devices {
            plugin.probe(&device_info(device))?;
        }
        let source = Source {
            format: match order.format {
                WeightFormat::None => plugin_loader::WeightFormat::NONE,
                WeightFormat::Safetensors => plugin_loader::WeightFormat::SAFETENSORS,
                WeightFormat::Gguf => plugin_loader::WeightFormat::GGUF,
            },
            config: order.config.clone(),
            preprocessor: order.preprocessor.clone(),
            files: order.files.clone(),
        };
        Ok(Self { plugin, architecture, source, order })
    }

    /// Memory by class, for every rank.
    pub fn plan(&self) -> Result<Vec<MemoryPlan>, DeviceError> {
        (0..self.order.devices.len())
            .map(|rank| {
                let plan =
                    self.plugin.plan(self.architecture, &self.source, &self.options(rank, [0; 128]))?;
                Ok(MemoryPlan {
                    weight_bytes: plan.weight_bytes,
                    mapped_bytes: plan.mapped_bytes,
                    kv_bytes_per_token: plan.kv_bytes_per_token,
                    state_bytes_per_sequence: plan.state_bytes_per_sequence,
                    activation_bytes_per_token: plan.activation_bytes_per_token,
                    vision_bytes: plan.vision_bytes,
                    fixed_bytes: plan.fixed_bytes,
                    max_context: plan.max_context,
                    vocab_size: plan.vocab_size,
                })
            })
            .collect()
    }

    /// One opener per rank, with the name of the thread that is to run it.
    pub fn ranks(&self, progress: &LoadProgress) -> Result<Vec<(String, OpenRank)>, DeviceError> {
        let world = self.order.devices.len();
        let communicator = if world > 1 { self.plugin.communicator_id()? } else { [0; 128] };
        let ranks = self.order.devices.iter().enumerate().map(|(rank, device)| {
            let (plugin, architecture) = (self.plugin, self.architecture);
            let (source, options) = (self.source.clone(), self.options(rank, communicator));
            let progress = Arc::clone(progress);
            let open: OpenRank = Box::new(move || {
                let mut report = |phase: Phase, done: u64, total: u64| {
                    phase_of(phase).is_none_or(|phase| progress(rank, phase, done, total))
                };
                let model = plugin.load(architecture, &source, &options, &mut report)?;
                Ok(Box::new(PluginRank::new(model)) as Box<dyn Rank>)
            });
            (device.thread_name(rank), open)
        });
        Ok(ranks.collect())
    }

    fn options(&self, rank: usize, communicator: [u8; 128]) -> LoadOptions {
        let order = &self.order;
        LoadOptions {
            device: device_info(&order.devices[rank]),
            dtype: order.dtype.clone(),
            quantize: order.quantize.clone(),
            rank: rank as u32,
            world: order.devices.len() as u32,
            communicator,
            max_context: order.max_context,
            max_sequences: order.max_sequences,
            max_step_tokens: order.max_step_tokens,
            threads: order.threads,
            state_bytes: order.state_bytes,
            options: order.options.clone(),
        }
    }
}

fn phase_of(phase: Phase) -> Option<LoadPhase> {
    match phase {
        Phase::READ => Some(LoadPhase::Read),
        Phase::QUANTIZE => Some(LoadPhase::Quantize),
        Phase::UPLOAD => Some(LoadPhase::Upload),
        Phase::WARM_UP => Some(LoadPhase::WarmUp),
        _ => None, // a newer plugin's phase is not worth failing a load for
    }
}

/// A device in the ABI's terms.
pub fn device_info(device: &RankDevice) -> plugin_loader::DeviceInfo {
    use plugin_loader::{DeviceInfo, DeviceKind};
    let nothing = DeviceInfo {
        kind: DeviceKind::CPU,
        ordinal: 0,
        compute_capability: 0,
        driver: 0,
        cpu_level: 0,
        pci_address: 0,
        total_bytes: 0,
        free_bytes: 0,
    };
    match *device {
        RankDevice::Cpu { level, total_bytes, free_bytes } => {
            DeviceInfo { cpu_level: level, total_bytes, free_bytes, ..nothing }
        }
        RankDevice::Cuda {
            ordinal,
            compute_capability,
            pci_address,
            driver,
            total_bytes,
            free_bytes,
            ..
        } => DeviceInfo {
            pci_address,
            kind: DeviceKind::CUDA,
            ordinal,
            compute_capability,
            driver,
            total_bytes,
            free_bytes,
            ..nothing
        },
    }
}

/// A loaded model and the memory its steps reuse.
struct PluginRank {
    model: Model,
    rows: Vec<LoaderRow>,
    spans: Vec<plugin_loader::ImageSpan>,
    output: plugin_loader::StepOutput,
}

impl PluginRank {
    fn new(model: Model) -> Self {
        Self { model, rows: Vec::new(), spans: Vec::new(), output: plugin_loader::StepOutput::default() }
    }
}

impl Rank for PluginRank {
    fn facts(&self) -> ModelFacts {
        let info = self.model.info();
        ModelFacts {
            vocab_size: info.vocab_size,
            max_context: info.max_context,
            image_token: (info.image_token != u32::MAX).then_some(info.image_token),
            fork_any_length: info.fork_any_length != 0,
            max_row_tokens: info.max_row_tokens,
            weight_bytes: info.weight_bytes,
            resident_bytes: 0,
            world: 1,
        }
    }

    fn sequence_new(&mut self) -> Result<u64, DeviceError> {
        Ok(self.model.sequence_new()?.get())
    }

    fn sequence_free(&mut self, sequence: u64) {
        self.model.sequence_free(SequenceId::from_number(sequence));
    }

    fn fork(&mut self, sequence: u64, length: u32) -> Result<u64, DeviceError> {
        Ok(self.model.fork(SequenceId::from_number(sequence), length)?.get())
    }

    fn trim(&mut self, sequence: u64, length: u32) -> Result<(), DeviceError> {
        Ok(self.model.trim(SequenceId::from_number(sequence), length)?)
    }

    fn step(&mut self, step: &Step<'_>, output: &mut StepOutput<'_>) -> Result<(), DeviceError> {
        self.rows.clear();
        self.rows.extend(step.rows.iter().map(|row| LoaderRow {
            sequence: SequenceId::from_number(row.sequence),
            position: row.position,
            tokens: row.token_offset..row.token_offset + row.token_count,
            want: row.want,
            images: row.image_offset..row.image_offset + row.image_count,
        }));
        self.spans.clear();
        self.spans.extend(step.images.iter().map(|span| plugin_loader::ImageSpan {
            image: ImageId::from_number(span.image),
            position: span.position,
            token_count: span.token_count,
        }));
        self.output.exchange_logits(output.logits);
        let outcome = self.model.step(&self.rows, step.tokens, &self.spans, step.cancel, &mut self.output);
        if outcome.is_ok() {
            for (index, result) in output.rows.iter_mut().enumerate() {
                if let Some(error) = self.output.error(index) {
                    *result = Err(error.into());
                }
                if self.rows[index].want == Want::TOKEN
                    && let Some(token) = self.output.token(index)
                    && let Some(slot) = output.tokens.get_mut(step.rows[index].output as usize)
                {
                    *slot = token;
                }
            }
        }
        self.output.exchange_logits(output.logits);
        Ok(outcome?)
    }

    fn image_measure(&mut self, width: u32, height: u32) -> Result<u32, DeviceError> {
        Ok(self.model.image_measure(width, height)?)
    }

    fn image_encode(&mut self, image: &ImagePixels) -> Result<EncodedImage, DeviceError> {
        let encoded = self.model.image_encode(image.width, image.height, &image.rgb)?;
        Ok(EncodedImage {
            image: encoded.image.get(),
            token_count: encoded.token_count,
            reserved: 0,
            bytes: encoded.bytes,
        })
    }

    fn image_free(&mut self, image: u64) {
        self.model.image_free(ImageId::from_number(image));
    }

    fn stats(&mut self) -> ModelStats {
        self.model.stats()
    }
}
