//! Two roads to the same answer through a real architecture: cold and warm, alone and among others, whole and
//! continued. The log probabilities are compared bit for bit where the arithmetic is the same, because a
//! cache that is nearly right is wrong.

mod workshop;

use neuron::worker::message::{ImagePixels, Sampling, Submission};
use wire_api::node::load::{LoadRequest, UnloadRequest};

use workshop::{Node, Outcome, install, options, plugin, root, within};

/// Architectures with a pure KV cache and with recurrent state.
const MODELS: [(&str, &str); 2] = [("qwen3", "tiny-qwen3-tied"), ("qwen3_5", "tiny-qwen3_5-text")];

fn text(length: u32, flavour: u32) -> Vec<u32> {
    (0..length).map(|index| (index * index * 31 + index * 7 + flavour * 101) % 250).collect()
}

fn submission(prompt: Vec<u32>, boundaries: Vec<u32>) -> Submission {
    Submission {
        prompt,
        images: Vec::new(),
        sampling: Sampling::greedy(),
        max_tokens: 12,
        stop_tokens: Vec::new(),
        top_logprobs: Some(4),
        emitted: Vec::new(),
        boundaries,
    }
}

async fn node(architecture: &str, model: &str) -> Node {
    let built = plugin(architecture);
    let node = Node::with(options(), |directory| install(&built, directory));
    load(&node, model).await;
    node
}

async fn load(node: &Node, model: &str) {
    load_on(node, model, 1).await;
}

async fn load_on(node: &Node, model: &str, ranks: usize) {
    let path = root().join("fixtures/models").join(model);
    let request = LoadRequest {
        model: path.to_str().unwrap().into(),
        name: Some("m".into()),
        dtype: Some("f32".into()),
        devices: vec!["cpu-0".into(); ranks],
        ..LoadRequest::default()
    };
    within(node.models.load(request).unwrap().wait()).await.unwrap();
}

async fn unload(node: &Node) {
    let request = UnloadRequest { model: "m".into(), wait: true, ..UnloadRequest::default() };
    within(node.models.unload(&request)).await.unwrap();
}

async fn ask(node: &Node, submission: Submission) -> Outcome {
    Outcome::of(node.submit("m", submission).await).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_warm_answer_is_the_cold_one_bit_for_bit() {
    for (architecture, model) in MODELS {
        let warm_node = node(architecture, model).await;
        let first = submission(text(200, 1), vec![70, 150, 200]);
        let answer = ask(&warm_node, first.clone()).await;
        let mut prompt = first.prompt.clone();
        prompt.extend(&answer.tokens);
        prompt.extend(text(90, 2));
        let second = submission(prompt, vec![70, 150, 200, 212, 300]);
        let warm = ask(&warm_node, second.clone()).await;
        let cold = ask(&node(architecture, model).await, second).await;
        assert_eq!(cold.cached_tokens, 0);
        let expected = if architecture == "qwen3" { 208 } else { 150 };
        assert!(warm.cached_tokens >= expected, "{model}: {} tokens were cached", warm.cached_tokens);
        assert_eq!(warm.tokens, cold.tokens, "{model}");
        assert_eq!(warm.logprobs, cold.logprobs, "{model}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_among_others_and_a_continued_one_are_the_answer_alone() {
    for (architecture, model) in MODELS {
        let node = node(architecture, model).await;
        let alone: Vec<_> = {
            let mut answers = Vec::new();
            for index in 0..5 {
                answers.push(ask(&node, submission(text(40 + 60 * index, index), Vec::new())).await);
            }
            answers
        };
        unload(&node).await;
        load(&node, model).await;
        let mut streams = Vec::new();
        for index in 0..5 {
            streams.push(node.submit("m", submission(text(40 + 60 * index, index), Vec::new())).await);
        }
        for (stream, alone) in streams.into_iter().zip(&alone) {
            let together = Outcome::of(stream).await;
            assert_eq!(together.tokens, alone.tokens, "{model}");
            for (a, b) in together.logprobs.iter().zip(&alone.logprobs) {
                assert!((a.logprob - b.logprob).abs() < 1e-4, "{model}: {a:?} is not {b:?}");
            }
        }
        let mut continued = submission(text(160, 2), Vec::new());
        continued.emitted = alone[2].tokens[..5].to_vec();
        assert_eq!(ask(&node, continued).await.tokens, alone[2].tokens[5..], "{model}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_is_part_of_the_prefix() {
    // Ids of tiny-qwen3_5-vl's config.json.
    const IMAGE: u32 = 524;
    let picture = |seed: u32| {
        let rgb: Vec<u8> =
            (0..64 * 96 * 3).map(|index: u32| (index.wrapping_mul(seed * 2 + 1) >> 3) as u8).collect();
        ImagePixels { width: 96, height: 64, rgb, sha256: [seed as u8; 32] }
    };
    let mut first = submission(text(60, 1), vec![60, 100]);
    first.prompt.insert(40, IMAGE);
    first.prompt.extend(text(50, 2));
    first.images = vec![picture(1)];
    let warm_node = node("qwen3_5", "tiny-qwen3_5-vl").await;
    let answer = ask(&warm_node, first.clone()).await;
    let mut second = first.clone();
    second.prompt.extend(&answer.tokens);
    second.prompt.extend(text(30, 3));
    let warm = ask(&warm_node, second.clone()).await;
    let other = ask(&warm_node, Submission { images: vec![picture(2)], ..second.clone() }).await;
    unload(&warm_node).await;
    load(&warm_node, "tiny-qwen3_5-vl").await;
    let cold = ask(&warm_node, second).await;
    assert!(warm.cached_tokens > 60, "{} tokens were cached", warm.cached_tokens);
    assert_eq!((warm.tokens, warm.logprobs.clone()), (cold.tokens, cold.logprobs));
    assert!(other.cached_tokens <= 40, "another picture is another prompt");
    assert_ne!(other.logprobs, warm.logprobs);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_ranks_say_what_one_says() {
    for (architecture, model) in MODELS {
        let node = node(architecture, model).await;
        let one = ask(&node, submission(text(130, 4), Vec::new())).await;
        unload(&node).await;
        load_on(&node, model, 2).await;
        let two = ask(&node, submission(text(130, 4), Vec::new())).await;
        assert_eq!(one.tokens, two.tokens, "{model}");
        for (a, b) in one.logprobs.iter().zip(&two.logprobs) {
            assert!((a.logprob - b.logprob).abs() < 1e-3, "{model}: {a:?} is not {b:?}");
        }
    }
}
