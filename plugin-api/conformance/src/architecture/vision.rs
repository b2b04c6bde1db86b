//! Images: measured as encoded, refused beyond their limits, freed.

use plugin_loader::{ErrorKind, capability};

use super::stage::Stage;
use crate::promise::{Asked, Outcome, Promise, broken, ensure, skipped};

pub(crate) const PROMISES: &[Promise<Stage>] = &[Promise {
    name: "images",
    says: "Images are measured as they are encoded, impossible ones are refused, freed ones leave nothing.",
    check: images,
}];

fn images(stage: &mut Stage) -> Outcome {
    let sees = stage.info().can(capability::VISION);
    let model = stage.model()?;
    if model.info().image_token == u32::MAX || !sees {
        return match model.image_measure(32, 32) {
            Err(error) if error.kind == ErrorKind::Unsupported && model.info().image_token == u32::MAX => {
                skipped("this model takes no images")
            }
            Err(error) => broken(format!("without vision, measuring failed with {:?}: {error}", error.kind)),
            Ok(_) => broken("it measures images although it declares no vision"),
        };
    }
    for (width, height) in [(64u32, 64u32), (96, 32), (33, 47)] {
        let measured = match model.image_measure(width, height) {
            Err(error) if error.kind == ErrorKind::InvalidInput => continue,
            measured => measured.asked("measuring an image")?,
        };
        let pixels = vec![0x7f; (width * height * 3) as usize];
        let before = model.stats();
        let encoded = model.image_encode(width, height, &pixels).asked("encoding an image")?;
        ensure(encoded.token_count == measured && measured > 0, || {
            format!(
                "an image of {width}x{height} was measured as {measured} tokens and encoded as {}",
                encoded.token_count
            )
        })?;
        model.image_free(encoded.image);
        model.image_free(encoded.image); // an id that names nothing is ignored
        let after = model.stats();
        ensure(before.image_bytes == after.image_bytes && before.images == after.images, || {
            format!("stats went from {before:?} to {after:?}")
        })?;
    }
    for (width, height) in [(0u32, 10u32), (10, 0), (u32::MAX, u32::MAX), (1, 100_000)] {
        match model.image_measure(width, height) {
            Err(error) if error.kind == ErrorKind::InvalidInput => {}
            Err(error) => {
                return broken(format!("measuring {width}x{height} failed with {:?}: {error}", error.kind));
            }
            Ok(count) => {
                return broken(format!("an image of {width}x{height} was measured as {count} tokens"));
            }
        }
    }
    match model.image_encode(8, 8, &[0; 10]) {
        Err(error) if error.kind == ErrorKind::InvalidInput => Ok(()),
        Err(error) => broken(format!("missing pixels were refused as {:?}: {error}", error.kind)),
        Ok(_) => broken("an image whose pixels are missing was encoded"),
    }
}
