//! Tensor parallelism: several ranks give the answer of one.

use plugin_loader::{LoadOptions, Model, Want, capability};

use super::stage::{Stage, feed, logits_of, same, tokens};
use crate::promise::{Asked, End, Outcome, Promise, broken, skipped};

pub(crate) const PROMISES: &[Promise<Stage>] = &[Promise {
    name: "ranks-agree",
    says: "Two ranks give the logits of one, if it declares tensor parallelism; if not, it refuses.",
    check: ranks_agree,
}];

fn ranks_agree(stage: &mut Stage) -> Outcome {
    let model = stage.model()?;
    let prompt = tokens(model, 18, 31);
    let alone = logits_of(model, &prompt)?;
    let communicator = stage.plugin.communicator_id().asked("communicator_id")?;
    let base = stage.options();
    let options = |rank| LoadOptions { rank, world: 2, communicator, ..base.clone() };
    if !stage.info().can(capability::TENSOR_PARALLEL) {
        // Rank 1 would wait for rank 0: one rank alone must be told that there is no such thing.
        return skipped("it declares no tensor parallelism");
    }
    let source = stage.source()?;
    let (plugin, index) = (stage.plugin, stage.index);
    let run = |rank: u32| -> Result<Vec<f32>, End> {
        let mut model: Model = plugin
            .load(index, &source, &options(rank), &mut |_, _, _| true)
            .asked(&format!("rank {rank}'s load"))?;
        let sequence = model.sequence_new().asked("a new sequence")?;
        feed(&mut model, sequence, 0, &prompt[..11], Want::NOTHING)?;
        feed(&mut model, sequence, 11, &prompt[11..], Want::LAST)
    };
    let (first, second) = std::thread::scope(|scope| {
        let second = scope.spawn(|| run(1));
        (run(0), second.join())
    });
    match second {
        Ok(outcome) => drop(outcome?),
        Err(_) => return broken("rank 1 panicked in the host"),
    }
    same("two ranks and one", &alone, &first?)
}
