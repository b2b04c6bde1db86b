//! Loading a checkpoint of the family and the comparisons that need eyes.
#![allow(dead_code, reason = "each test binary uses a part of this")]

use arch_qwen3_5::checkpoint::{Checkpoint, Model};
use arch_qwen3_5::image::{ImageProcessor, Rgb};
use arch_qwen3_5::vision::VisionTower;
use golden::{Distance, Fixture, Report, Session, Tokens, fixtures, likeliest, values};
use layers::batch::ImageSpan;
use layers::gated_delta_net::Form;
use layers::placement::Placement;
use layers::sequences::SequenceState;
use layers::trace::Trace;
use layers::weights::{Container, Weights};
use layers::{DType, Tensor};

pub const MODEL_TYPES: [&str; 4] = ["qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"];

/// A loaded checkpoint.
pub struct Subject {
    pub model: Model,
}

impl Subject {
    pub fn load(fixture: &Fixture, dtype: DType) -> Self {
        Self::placed(fixture, golden::placement(dtype)).expect("the model loads")
    }

    pub fn placed(fixture: &Fixture, placement: Placement) -> layers::Result<Self> {
        let weights = Weights::open(&fixture.weight_files(), Container::Safetensors, placement)?;
        Self::of(fixture, &fixture.config, &weights, |_| {})
    }

    /// With prompts through the chunked form of the delta rule.
    pub fn chunked(fixture: &Fixture) -> Self {
        let files = fixture.weight_files();
        let weights = Weights::open(&files, Container::Safetensors, Placement::cpu()).expect("weights open");
        let chunked = |checkpoint: &mut Checkpoint| checkpoint.config.text.linear.prefill = Form::Chunked;
        Self::of(fixture, &fixture.config, &weights, chunked).expect("the model loads")
    }

    /// From any weights and configuration, after a change to what the checkpoint says.
    pub fn of(
        fixture: &Fixture,
        config: &str,
        weights: &Weights,
        change: impl FnOnce(&mut Checkpoint),
    ) -> layers::Result<Self> {
        let mut checkpoint =
            Checkpoint::new(config, &fixture.text_file("preprocessor_config.json"), weights)?;
        change(&mut checkpoint);
        let model = checkpoint.load(weights)?;
        let unused = checkpoint.unused();
        weights.finish(&unused.iter().map(String::as_str).collect::<Vec<_>>())?;
        Ok(Self { model })
    }

    fn eyes(&self) -> Option<(&VisionTower, &ImageProcessor)> {
        self.model.tower.as_ref().zip(self.model.processor.as_ref())
    }
}

/// Runs a check on every checkpoint of the family.
pub fn each(dtype: DType, check: impl Fn(&Fixture, &Subject) -> Report) {
    for fixture in fixtures(&MODEL_TYPES) {
        let report = check(&fixture, &Subject::load(&fixture, dtype));
        assert!(report.failures.is_empty(), "{}\n{report}", fixture.name());
    }
}

/// A picture as the host hands it over: transparency over white, grey as RGB.
pub fn picture(fixture: &Fixture, file: &str) -> Rgb {
    let image = image::open(fixture.folder.join(file)).expect("the picture opens").to_rgba8();
    let over_white = |pixel: &image::Rgba<u8>| {
        let alpha = f32::from(pixel[3]) / 255.0;
        [0, 1, 2].map(|c| (f32::from(pixel[c]) * alpha + 255.0 * (1.0 - alpha)).round() as u8)
    };
    Rgb {
        width: image.width() as usize,
        height: image.height() as usize,
        pixels: image.pixels().flat_map(over_white).collect(),
    }
}

fn listed(fixture: &Fixture) -> Vec<(String, Rgb, [usize; 3])> {
    let list = fixture
        .expected
        .pointer("/images/list")
        .and_then(|list| list.as_array())
        .cloned()
        .unwrap_or_default();
    list.iter()
        .map(|image| {
            let text = |key: &str| image[key].as_str().expect("a name").to_string();
            let grid = [0, 1, 2].map(|i| image["grid_thw"][i].as_u64().expect("a grid") as usize);
            (text("name"), picture(fixture, &text("file")), grid)
        })
        .collect()
}

/// The image processor and the tower, every recorded stage.
pub fn check_images(fixture: &Fixture, subject: &Subject) -> Report {
    let mut report = Report::default();
    let Some((tower, processor)) = subject.eyes() else { return report };
    for (name, rgb, grid) in listed(fixture) {
        let scope = format!("vis/{name}");
        let expected = |stage: &str| fixture.tensor(&format!("f32/{scope}/{stage}"));
        let patches = processor.patches(&rgb).expect("the picture is accepted");
        let got_grid = [1, patches.grid.height, patches.grid.width];
        report
            .holds(&format!("{scope}/grid"), got_grid == grid, || format!("{got_grid:?}, expected {grid:?}"));

        let reference = expected("resized_u8").expect("every image has it");
        let resized = processor.resize(&rgb).expect("resizes");
        let got: Vec<f32> = resized.pixels.iter().map(|&x| f32::from(x)).collect();
        report.tensors(
            &format!("{scope}/resized_u8"),
            &got,
            &reference.values,
            fixture.limit("resized_u8/max"),
        );
        let mean = got.iter().zip(&reference.values).map(|(x, y)| f64::from((x - y).abs())).sum::<f64>()
            / got.len() as f64;
        report.at_most(&format!("{scope}/resized_u8, mean"), mean, fixture.limit("resized_u8/mean"));

        // From the reference's own pixels the tower is held to the tight limit.
        let (height, width) = (reference.shape[0], reference.shape[1]);
        let same = Rgb { width, height, pixels: reference.values.iter().map(|&x| x as u8).collect() };
        let same = processor.patches(&same).expect("the picture is accepted");
        let head = expected("pixel_values_head").expect("every image has it");
        report.tensors(
            &format!("{scope}/pixel_values_head"),
            &same.values[..head.values.len()],
            &head.values,
            1e-5,
        );
        let trace = Trace::on();
        tower.forward(&same, &trace, &scope).expect("the tower runs");
        let tight = fixture.limit("f32_vision_abs_from_same_pixels");
        for (stage, tensor) in trace.into_taps() {
            let Some(expected) = fixture.tensor(&format!("f32/{stage}")) else { continue };
            report.tensors(&stage, &values(&tensor), &expected.values, tight);
        }
        let own = tower.forward(&patches, &Trace::off(), &scope).expect("the tower runs");
        let merger = expected("merger").expect("every image has it");
        let wide = fixture.limit("vision_abs_from_own_resize");
        report.tensors(&format!("{scope}/merger from own pixels"), &values(&own), &merger.values, wide);
    }
    let stages = fixture.keys().iter().filter(|key| key.starts_with("f32/vis/")).count();
    report.holds("recorded vision stages", report.compared >= stages, || {
        format!("{stages} recorded, fewer compared")
    });
    report
}

/// The tower in bf16 against the f32 reference: two and a half times what the reference itself loses.
pub fn check_images_bf16(fixture: &Fixture, subject: &Subject) -> Report {
    let mut report = Report::default();
    let Some((tower, processor)) = subject.eyes() else { return report };
    for (name, rgb, _) in listed(fixture) {
        let expected = fixture.tensor(&format!("f32/vis/{name}/merger")).expect("every image has it");
        let reference = fixture.tensor(&format!("bf16/vis/{name}/merger")).expect("every image has it");
        let loss = Distance::between(&reference.values, &expected.values);
        let resized = fixture.tensor(&format!("f32/vis/{name}/resized_u8")).expect("every image has it");
        let (height, width) = (resized.shape[0], resized.shape[1]);
        assert!(rgb.width > 0 && rgb.height > 0);
        let same = Rgb { width, height, pixels: resized.values.iter().map(|&x| x as u8).collect() };
        let patches = processor.patches(&same).expect("the picture is accepted");
        let got = tower.forward(&patches, &Trace::off(), "").expect("the tower runs");
        report.tensors(
            &format!("vis/{name}/merger in bf16"),
            &values(&got),
            &expected.values,
            2.5 * loss.max,
        );
    }
    report
}

/// One recorded prompt.
struct Prompt {
    name: String,
    ids: Vec<u32>,
    images: Vec<ImageSpan>,
    rope_delta: i64,
    greedy: Vec<u32>,
}

fn prompts(fixture: &Fixture, subject: &Subject) -> Vec<Prompt> {
    let list =
        fixture.expected.pointer("/multimodal").and_then(|list| list.as_array()).cloned().unwrap_or_default();
    let ids = |value: &serde_json::Value| -> Vec<u32> {
        value.as_array().expect("a list").iter().map(|id| id.as_u64().expect("an id") as u32).collect()
    };
    let of = |case: &serde_json::Value| {
        let tokens = ids(&case["ids"]);
        let kinds = ids(&case["mm_token_type_ids"]);
        let names = case["images"].as_array().expect("a list");
        let mut at = 0;
        let images = names
            .iter()
            .map(|name| {
                let name = name.as_str().expect("a name");
                let (embeddings, grid) = embeddings(fixture, subject, name);
                at += kinds[at..].iter().position(|&kind| kind == 1).expect("a placeholder");
                let position = at;
                at += embeddings.dim(0).expect("rows");
                ImageSpan { position, embeddings, grid }
            })
            .collect();
        Prompt {
            name: case["name"].as_str().expect("a name").to_string(),
            ids: tokens,
            images,
            rope_delta: case["rope_delta"].as_i64().expect("a number"),
            greedy: ids(&case["f32_tokens"]),
        }
    };
    list.iter().map(of).collect()
}

/// What the tower makes of an image, from the reference's own pixels.
fn embeddings(fixture: &Fixture, subject: &Subject, name: &str) -> (Tensor, (usize, usize, usize)) {
    let (tower, processor) = subject.eyes().expect("a checkpoint with image prompts has a tower");
    let resized = fixture.tensor(&format!("f32/vis/{name}/resized_u8")).expect("every image has it");
    let (height, width) = (resized.shape[0], resized.shape[1]);
    let rgb = Rgb { width, height, pixels: resized.values.iter().map(|&x| x as u8).collect() };
    let patches = processor.patches(&rgb).expect("the picture is accepted");
    let embeddings = tower.forward(&patches, &Trace::off(), name).expect("the tower runs");
    (embeddings, (1, patches.grid.height, patches.grid.width))
}

/// Prompts with images: positions, logits, decoding, greedy tokens, and the same prompt cut anywhere.
pub fn check_prompts(fixture: &Fixture, subject: &Subject) -> Report {
    let mut report = Report::default();
    let limit = fixture.limit("f32_logits_abs");
    for prompt in prompts(fixture, subject) {
        let scope = format!("mm/{}", prompt.name);
        let expected = |stage: &str| fixture.tensor(&format!("f32/{scope}/{stage}"));
        let all = Tokens { ids: &prompt.ids, images: &prompt.images };

        let taps = Session::new(&subject.model).traced(all);
        for (stage, tap, limit) in [
            ("position_ids", "position_ids", 1e-9),
            ("rope_cos", "rope/cos", fixture.limit("f32_rope_abs")),
            ("rope_sin", "rope/sin", fixture.limit("f32_rope_abs")),
        ] {
            let Some(expected) = expected(stage) else { continue };
            let (_, tap) = taps.iter().find(|(name, _)| name == tap).expect("the model shows it");
            report.tensors(&format!("{scope}/{stage}"), &values(tap), &expected.values, limit);
        }
        if let Some(expected) = expected("all") {
            let got = Session::new(&subject.model).all(all);
            report.tensors(&format!("{scope}/all"), &got.concat(), &expected.values, limit);
        }

        let mut session = Session::new(&subject.model);
        let last = session.last(all);
        let delta = session.state.counter.rope_delta();
        report.holds(&format!("{scope}/rope_delta"), delta == prompt.rope_delta, || format!("{delta}"));
        report.tensors(&format!("{scope}/last"), &last, &expected("last").expect("recorded").values, limit);
        check_continuation(&mut report, &scope, session, last, &prompt.greedy, expected("decode"), limit);

        for cut in [1, prompt.ids.len() / 3, prompt.ids.len() / 2, prompt.ids.len() - 1] {
            let mut session = Session::new(&subject.model);
            session.last(Tokens { ids: &prompt.ids[..cut], ..all });
            let got = session.last(Tokens { ids: &prompt.ids[cut..], ..all });
            let stage = format!("{scope}/last, cut after {cut}");
            report.tensors(&stage, &got, &expected("last").expect("recorded").values, limit);
            assert_eq!(session.state.len(), prompt.ids.len());
        }
    }
    report
}

fn check_continuation(
    report: &mut Report,
    scope: &str,
    mut session: Session<'_, Model>,
    last: Vec<f32>,
    greedy: &[u32],
    decode: Option<golden::Expected>,
    limit: f64,
) {
    let mut rows = Vec::new();
    let mut got = vec![likeliest(&last)];
    while got.len() < greedy.len() {
        // The recorded tokens are fed, so that one wrong token does not hide what follows.
        let row = session.last(&greedy[got.len() - 1..got.len()]);
        got.push(likeliest(&row));
        rows.push(row);
    }
    report.holds(&format!("{scope}/greedy"), got == greedy, || format!("got {got:?}, expected {greedy:?}"));
    if let Some(decode) = decode {
        let rows = rows[..decode.shape[0]].concat();
        report.tensors(&format!("{scope}/decode"), &rows, &decode.values, limit);
    }
}

/// The same prompts in bf16 against the f32 reference.
pub fn check_prompts_bf16(fixture: &Fixture, subject: &Subject) -> Report {
    let mut report = Report::default();
    for prompt in prompts(fixture, subject) {
        let all = Tokens { ids: &prompt.ids, images: &prompt.images };
        let got = Session::new(&subject.model).last(all);
        let expected = fixture.tensor(&format!("f32/mm/{}/last", prompt.name)).expect("recorded");
        let distance = Distance::between(&got, &expected.values);
        let limit = |name: &str| fixture.limit(&format!("bf16_vs_f32_oracle/{name}"));
        report.at_most(
            &format!("mm/{}/last in bf16, max", prompt.name),
            distance.max,
            limit("last_rows_max_abs"),
        );
        report.at_most(
            &format!("mm/{}/last in bf16, rms", prompt.name),
            distance.rms,
            2.0 * limit("last_rows_rms"),
        );
    }
    report
}
