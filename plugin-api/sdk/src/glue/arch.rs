//! The verbs of the architecture family.

use std::sync::OnceLock;

use plugin_abi::arch::{
    ArchitectureInfo, Architectures, DeviceInfo, EncodedImage, Image, LoadOptions, ModelInfo, ModelSource,
    ModelStats, Plan, Step, StepResult,
};
use plugin_abi::host;
use plugin_abi::{Code, Failure, Handle, Slice, Str};

use super::entry::{ArchitectureEntry, ErasedArchitecture};
use super::guard::{guard, guard_silently};
use super::model::{ErasedModel, Outputs, StepView};
use crate::arch::{ImageView, Options, Progress, Source, same_copy};
use crate::device;
use crate::error::{Error, Result};

/// The vtable.
pub(crate) const VERBS: Architectures = Architectures {
    describe,
    probe,
    plan,
    communicator_id,
    load,
    unload,
    sequence_new,
    sequence_free,
    fork,
    trim,
    sequence_bytes,
    step,
    image_measure,
    image_encode,
    image_free,
    stats,
};

/// A loaded model behind its handle. Once a step has panicked its state cannot be trusted.
struct Cell {
    model: Box<dyn ErasedModel>,
    poisoned: bool,
}

struct Entries {
    list: Vec<&'static dyn ErasedArchitecture>,
    infos: Vec<ArchitectureInfo>,
}

// SAFETY: the infos point to 'static data that nobody writes to.
unsafe impl Send for Entries {}
// SAFETY: as above.
unsafe impl Sync for Entries {}

fn entries() -> &'static Entries {
    static ENTRIES: OnceLock<Entries> = OnceLock::new();
    ENTRIES.get_or_init(|| {
        let mut list: Vec<_> =
            inventory::iter::<ArchitectureEntry>.into_iter().map(|entry| entry.0).collect();
        list.sort_by_key(|architecture| architecture.describe().name);
        let infos = list.iter().map(|architecture| info(*architecture)).collect();
        Entries { list, infos }
    })
}

fn info(architecture: &dyn ErasedArchitecture) -> ArchitectureInfo {
    let description = architecture.describe();
    let leak = |names: &[&'static str]| {
        Slice::new(Box::leak(names.iter().map(|name| Str::new(name)).collect::<Box<[Str]>>()))
    };
    ArchitectureInfo {
        name: Str::new(description.name),
        model_types: leak(description.model_types),
        gguf_architectures: leak(description.gguf_architectures),
        capabilities: description.capabilities,
        max_world: description.max_world,
        reserved: 0,
    }
}

fn architecture(index: u32) -> Result<&'static dyn ErasedArchitecture> {
    entries()
        .list
        .get(index as usize)
        .copied()
        .ok_or_else(|| Error::InvalidInput(format!("this plugin has no architecture number {index}")))
}

unsafe extern "C" fn describe() -> Slice<ArchitectureInfo> {
    guard_silently(Slice::EMPTY, || Slice::new(&entries().infos))
}

unsafe extern "C" fn probe(device: *const DeviceInfo, failure: *mut Failure) -> Code {
    // SAFETY: the host passes valid pointers for the length of the call.
    let (device, failure) = unsafe { (&*device, &mut *failure) };
    guard(failure, || {
        let manifest =
            super::manifest().ok_or_else(|| Error::Internal("the plugin was not initialised".into()))?;
        device::fits(manifest.build, device)?;
        (manifest.probe)(device)
    })
}

fn text<'a>(text: Str, what: &str) -> Result<&'a str> {
    // SAFETY: the host keeps what it passes valid for the length of the call, which 'a does not outlive.
    unsafe { text.as_str() }.map_err(|_| Error::InvalidInput(format!("{what} is not UTF-8")))
}

/// Turns the host's description of files and wishes into safe views and hands them on.
fn with_views<T>(
    source: &ModelSource,
    options: &LoadOptions,
    body: impl FnOnce(&Source<'_>, &Options<'_>) -> Result<T>,
) -> Result<T> {
    // SAFETY: the host keeps the list valid for the length of the call.
    let files = unsafe { source.files.as_slice() };
    let files = files.iter().map(|file| text(*file, "a file name")).collect::<Result<Vec<_>>>()?;
    let source_view = Source {
        format: source.format,
        config: text(source.config, "config.json")?,
        preprocessor: text(source.preprocessor, "preprocessor_config.json")?,
        files: &files,
    };
    let options_view = Options {
        device: options.device,
        dtype: text(options.dtype, "dtype")?,
        quantize: text(options.quantize, "quantize")?,
        rank: options.rank as usize,
        world: options.world.max(1) as usize,
        communicator: &options.communicator,
        max_context: options.max_context as usize,
        max_sequences: options.max_sequences as usize,
        max_step_tokens: options.max_step_tokens as usize,
        threads: options.threads.max(1) as usize,
        state_bytes: options.state_bytes,
        options: text(options.options, "options")?,
    };
    if options_view.rank >= options_view.world {
        return Err(Error::InvalidInput(format!(
            "rank {} of a world of {}",
            options_view.rank, options_view.world
        )));
    }
    body(&source_view, &options_view)
}

unsafe extern "C" fn plan(
    index: u32,
    source: *const ModelSource,
    options: *const LoadOptions,
    plan: *mut Plan,
    failure: *mut Failure,
) -> Code {
    // SAFETY: the host passes valid pointers for the length of the call.
    let (source, options, plan, failure) = unsafe { (&*source, &*options, &mut *plan, &mut *failure) };
    guard(failure, || {
        let architecture = architecture(index)?;
        *plan = with_views(source, options, |source, options| architecture.plan(source, options))?;
        Ok(())
    })
}

unsafe extern "C" fn communicator_id(id: *mut [u8; 128], failure: *mut Failure) -> Code {
    // SAFETY: the host passes valid pointers for the length of the call.
    let (id, failure) = unsafe { (&mut *id, &mut *failure) };
    guard(failure, || {
        *id = architecture(0)?.communicator_id()?;
        Ok(())
    })
}

unsafe extern "C" fn load(
    index: u32,
    source: *const ModelSource,
    options: *const LoadOptions,
    progress: *const host::Progress,
    info: *mut ModelInfo,
    failure: *mut Failure,
) -> Code {
    // SAFETY: the host passes valid pointers for the length of the call.
    let (source, options, progress, info, failure) =
        unsafe { (&*source, &*options, progress.as_ref(), &mut *info, &mut *failure) };
    guard(failure, || {
        let architecture = architecture(index)?;
        let model = with_views(source, options, |source, options| {
            if options.world > 1 {
                same_copy(options.communicator)?;
            }
            architecture.load(source, options, &Progress(progress))
        })?;
        *info = model.info();
        info.handle = Box::into_raw(Box::new(Cell { model, poisoned: false })) as u64;
        Ok(())
    })
}

unsafe extern "C" fn unload(model: Handle) {
    guard_silently((), || {
        if model != Handle::NONE {
            // SAFETY: the host passes a handle from `load` once, and no other call is under way.
            drop(unsafe { Box::from_raw(model.0 as *mut Cell) });
        }
    });
}

/// Runs one call on a model; a panic inside poisons it.
fn with_model(
    model: Handle,
    failure: &mut Failure,
    body: impl FnOnce(&mut dyn ErasedModel, &mut Failure) -> Result<()>,
) -> Code {
    if model == Handle::NONE {
        return Error::InvalidInput("no model".into()).write(failure);
    }
    // SAFETY: the host passes a live handle from `load`, one call at a time.
    let cell = unsafe { &mut *(model.0 as *mut Cell) };
    if cell.poisoned {
        return Error::Internal("the model panicked earlier and must be reloaded".into()).write(failure);
    }
    let mut finished = false;
    let mut inner = Failure::NONE;
    let code = guard(failure, || {
        let result = body(cell.model.as_mut(), &mut inner);
        finished = true;
        result
    });
    cell.poisoned = !finished;
    if code == Code::OK && inner.code != Code::OK {
        *failure = inner; // rows failed alone
    }
    code
}

unsafe extern "C" fn sequence_new(model: Handle, sequence: *mut u64, failure: *mut Failure) -> Code {
    // SAFETY: the host passes valid pointers for the length of the call.
    let (sequence, failure) = unsafe { (&mut *sequence, &mut *failure) };
    with_model(model, failure, |model, _| {
        *sequence = model.sequence_new()?;
        Ok(())
    })
}

unsafe extern "C" fn sequence_free(model: Handle, sequence: u64) {
    with_model(model, &mut Failure::NONE.clone(), |model, _| {
        model.sequence_free(sequence);
        Ok(())
    });
}

unsafe extern "C" fn fork(
    model: Handle,
    sequence: u64,
    length: u32,
    forked: *mut u64,
    failure: *mut Failure,
) -> Code {
    // SAFETY: the host passes valid pointers for the length of the call.
    let (forked, failure) = unsafe { (&mut *forked, &mut *failure) };
    with_model(model, failure, |model, _| {
        *forked = model.fork(sequence, length as usize)?;
        Ok(())
    })
}

unsafe extern "C" fn trim(model: Handle, sequence: u64, length: u32, failure: *mut Failure) -> Code {
    // SAFETY: the host passes a valid pointer for the length of the call.
    let failure = unsafe { &mut *failure };
    with_model(model, failure, |model, _| model.trim(sequence, length as usize))
}

unsafe extern "C" fn sequence_bytes(model: Handle, sequence: u64) -> u64 {
    let mut bytes = 0;
    with_model(model, &mut Failure::NONE.clone(), |model, _| {
        bytes = model.sequence_bytes(sequence);
        Ok(())
    });
    bytes
}

unsafe extern "C" fn step(
    model: Handle,
    step: *const Step,
    result: *mut StepResult,
    failure: *mut Failure,
) -> Code {
    // SAFETY: the host passes valid pointers and lends valid memory for the length of the call.
    let (step, outputs, failure) = unsafe {
        let result = &mut *result;
        let outputs = Outputs {
            rows: result.rows.as_slice(),
            logits: result.logits.as_slice(),
            tokens: result.tokens.as_slice(),
        };
        (StepView::new(&*step), outputs, &mut *failure)
    };
    with_model(model, failure, |model, inner| model.step(&step, outputs, inner))
}

unsafe extern "C" fn image_measure(
    model: Handle,
    width: u32,
    height: u32,
    token_count: *mut u32,
    failure: *mut Failure,
) -> Code {
    // SAFETY: the host passes valid pointers for the length of the call.
    let (token_count, failure) = unsafe { (&mut *token_count, &mut *failure) };
    with_model(model, failure, |model, _| {
        *token_count = model.image_measure(width as usize, height as usize)? as u32;
        Ok(())
    })
}

unsafe extern "C" fn image_encode(
    model: Handle,
    image: *const Image,
    encoded: *mut EncodedImage,
    failure: *mut Failure,
) -> Code {
    // SAFETY: the host passes valid pointers and pixels for the length of the call.
    let (image, rgb, encoded, failure) =
        unsafe { (&*image, (*image).rgb.as_slice(), &mut *encoded, &mut *failure) };
    with_model(model, failure, |model, _| {
        let (width, height) = (image.width as usize, image.height as usize);
        if width == 0 || height == 0 || rgb.len() != width * height * 3 {
            return Err(Error::InvalidInput(format!(
                "an image of {width}x{height} pixels cannot have {} bytes",
                rgb.len()
            )));
        }
        *encoded = model.image_encode(ImageView { width, height, rgb })?;
        Ok(())
    })
}

unsafe extern "C" fn image_free(model: Handle, image: u64) {
    with_model(model, &mut Failure::NONE.clone(), |model, _| {
        model.image_free(image);
        Ok(())
    });
}

unsafe extern "C" fn stats(model: Handle, stats: *mut ModelStats) -> Code {
    // SAFETY: the host passes a valid pointer for the length of the call.
    let stats = unsafe { &mut *stats };
    with_model(model, &mut Failure::NONE.clone(), |model, _| {
        *stats = model.stats();
        Ok(())
    })
}
