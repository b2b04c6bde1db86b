//! The ranks of one model, driven in lockstep.
//!
//! Every job goes to every rank with the same input, in the same order, and is over when the last rank has
//! answered. A job is never followed by another before that: a rank that waits in a collective would wait for
//! ever if its peer were given something else. The group has no clock; whoever waits for replies decides how
//! long is too long.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use super::rank::{DeviceError, EncodedImage, ModelStats, OpenRank};
use super::thread::{Answer, Batch, DeviceThread, ImageKey, Job, Reply, ReplySink, Stepped};
use crate::worker::message::ImagePixels;
use crate::worker::protocol::ModelFacts;

/// A job for all ranks.
#[derive(Debug, Clone)]
pub enum GroupJob {
    /// State operations and a forward pass.
    Step(Arc<Batch>),
    /// Tokens an image takes, by its size.
    Measure(u32, u32),
    /// Run the vision tower.
    Encode(ImageKey, Arc<ImagePixels>),
    /// What rank 0 holds.
    Stats,
}

/// What all ranks together came to.
#[derive(Debug)]
pub enum GroupAnswer {
    /// To [`GroupJob::Step`]; a row is fine only if it is fine on every rank.
    Stepped(Stepped),
    /// To [`GroupJob::Measure`].
    Measured(Result<u32, DeviceError>),
    /// To [`GroupJob::Encode`].
    Encoded(Result<EncodedImage, DeviceError>),
    /// To [`GroupJob::Stats`].
    Stats(ModelStats),
}

/// A loaded model on its device threads.
pub struct Group {
    ranks: Vec<DeviceThread>,
    facts: ModelFacts,
    ticket: u64,
    missing: usize,
    answers: Vec<Option<Answer>>,
    logits: Vec<f32>,
}

impl Group {
    /// Opens all ranks, each on its own thread, at the same time. If one fails all are dropped again and the
    /// first failure is returned, so that a load either happens everywhere or leaves nothing behind.
    ///
    /// A rank whose peer failed may wait for it for ever, in the call that makes the communicator. Such a rank is
    /// left behind with its thread, and only the end of the process frees what it holds.
    pub fn open(ranks: Vec<(String, OpenRank)>, sink: &ReplySink) -> Result<Self, DeviceError> {
        let world = ranks.len();
        let (opened, outcomes) = channel();
        let mut threads = Vec::with_capacity(world);
        for (rank, (name, open)) in ranks.into_iter().enumerate() {
            let thread = DeviceThread::start(name, rank, open, opened.clone(), Arc::clone(sink))
                .map_err(|error| DeviceError::Internal(format!("a device thread did not start: {error}")))?;
            threads.push(thread);
        }
        drop(opened);
        let mut loaded: Vec<Option<ModelFacts>> = vec![None; world];
        let mut answered = vec![false; world];
        let mut failure: Option<DeviceError> = None;
        while let Some((rank, outcome)) = next_outcome(&outcomes, failure.is_some()) {
            answered[rank] = true;
            match outcome {
                Ok(facts) => loaded[rank] = Some(facts),
                Err(error) => drop(failure.get_or_insert(error)),
            }
        }
        let all: Option<Vec<ModelFacts>> = loaded.into_iter().collect();
        let facts = all.and_then(|all| all.into_iter().reduce(together));
        let (Some(mut facts), None) = (facts, failure.as_ref()) else {
            for (thread, answered) in threads.into_iter().zip(answered) {
                if answered { thread.close() } else { std::mem::forget(thread) }
            }
            let silent = || DeviceError::Internal("a device thread ended while loading".into());
            return Err(failure.unwrap_or_else(silent));
        };
        facts.world = world as u32;
        Ok(Self { ranks: threads, facts, ticket: 0, missing: 0, answers: Vec::new(), logits: Vec::new() })
    }

    /// What the model turned out to be.
    pub fn facts(&self) -> ModelFacts {
        self.facts
    }

    /// Whether a job is under way.
    pub fn is_busy(&self) -> bool {
        self.missing > 0
    }

    /// Sends a job to every rank.
    ///
    /// # Panics
    /// When one is under way already: the caller lost count.
    pub fn start(&mut self, job: &GroupJob) -> Result<(), DeviceError> {
        assert!(!self.is_busy(), "one job at a time");
        self.ticket += 1;
        self.answers = (0..self.ranks.len()).map(|_| None).collect();
        for (index, rank) in self.ranks.iter().enumerate() {
            let job = match job {
                GroupJob::Step(batch) => Job::Step {
                    batch: Arc::clone(batch),
                    logits: (index == 0).then(|| std::mem::take(&mut self.logits)),
                },
                GroupJob::Measure(width, height) => Job::Measure { width: *width, height: *height },
                GroupJob::Encode(key, image) => Job::Encode { key: *key, image: Arc::clone(image) },
                GroupJob::Stats => Job::Stats,
            };
            rank.send(self.ticket, job)?;
        }
        self.missing = self.ranks.len();
        Ok(())
    }

    /// Takes one rank's reply; the answer of all once the last is in. A reply to anything but the job under
    /// way is dropped.
    pub fn collect(&mut self, reply: Reply) -> Option<GroupAnswer> {
        let slot = self.answers.get_mut(reply.rank)?;
        if reply.ticket != self.ticket || slot.is_some() {
            return None;
        }
        *slot = Some(reply.answer);
        self.missing -= 1;
        if self.missing > 0 {
            return None;
        }
        self.answers.drain(..).flatten().map(GroupAnswer::from).reduce(GroupAnswer::merge)
    }

    /// Gives logits memory back for the next step.
    pub fn recycle(&mut self, logits: Vec<f32>) {
        self.logits = logits;
    }

    /// Frees the model on every rank and waits for the threads.
    pub fn close(self) {
        self.ranks.into_iter().for_each(DeviceThread::close);
    }
}

/// How long ranks may take to come to an end of their own once one has failed to load.
const GRACE: Duration = Duration::from_secs(5);

/// The next rank's outcome; `None` once all are in, or when no more are to be waited for.
fn next_outcome<T>(outcomes: &Receiver<T>, one_has_failed: bool) -> Option<T> {
    if one_has_failed { outcomes.recv_timeout(GRACE).ok() } else { outcomes.recv().ok() }
}

/// Facts of several ranks as those of one model.
fn together(all: ModelFacts, rank: ModelFacts) -> ModelFacts {
    ModelFacts {
        weight_bytes: all.weight_bytes + rank.weight_bytes,
        max_context: all.max_context.min(rank.max_context),
        ..all
    }
}

impl From<Answer> for GroupAnswer {
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Stepped(stepped) => Self::Stepped(stepped),
            Answer::Measured(measured) => Self::Measured(measured),
            Answer::Encoded(encoded) => Self::Encoded(encoded),
            Answer::Stats(stats) => Self::Stats(stats),
        }
    }
}

impl GroupAnswer {
    /// Rank 0's answer, failed where a later rank failed.
    fn merge(self, other: Self) -> Self {
        match (self, other) {
            (Self::Stepped(mut all), Self::Stepped(rank)) => {
                all.outcome = all.outcome.and(rank.outcome);
                for (row, other) in all.rows.iter_mut().zip(rank.rows) {
                    if row.is_ok() {
                        *row = other;
                    }
                }
                all.unnamed.extend(rank.unnamed);
                Self::Stepped(all)
            }
            (Self::Measured(all), Self::Measured(rank)) => Self::Measured(all.and_then(|n| rank.map(|_| n))),
            (Self::Encoded(all), Self::Encoded(rank)) => Self::Encoded(all.and_then(|e| rank.map(|_| e))),
            (first, _) => first,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::double::{Double, Faults};
    use crate::device::rank::Want;
    use crate::device::thread::{BatchRow, SequenceKey, StateOp};

    fn group(world: usize, faults: &Faults) -> (Group, std::sync::mpsc::Receiver<Reply>) {
        let (replies, inbox) = channel();
        let sink: ReplySink = Arc::new(move |reply| drop(replies.send(reply)));
        let ranks =
            (0..world).map(|rank| (format!("dev-{rank}"), Double::open(faults.clone(), rank))).collect();
        (Group::open(ranks, &sink).unwrap(), inbox)
    }

    fn run(group: &mut Group, inbox: &std::sync::mpsc::Receiver<Reply>, job: &GroupJob) -> GroupAnswer {
        group.start(job).unwrap();
        loop {
            if let Some(answer) = group.collect(inbox.recv().unwrap()) {
                return answer;
            }
        }
    }

    fn one_row(before: Vec<StateOp>) -> GroupJob {
        let row = BatchRow {
            sequence: SequenceKey(1),
            position: 0,
            tokens: vec![5, 6],
            want: Want::LAST,
            images: Vec::new(),
        };
        GroupJob::Step(Arc::new(Batch { before, rows: vec![row], ..Batch::default() }))
    }

    #[test]
    fn every_rank_steps_and_only_the_first_writes() {
        let faults = Faults::default();
        let (mut group, inbox) = group(3, &faults);
        let GroupAnswer::Stepped(stepped) =
            run(&mut group, &inbox, &one_row(vec![StateOp::New(SequenceKey(1))]))
        else {
            panic!("a step is answered by a step")
        };
        assert_eq!(stepped.outcome, Ok(()));
        assert_eq!(stepped.logits.len(), group.facts().vocab_size as usize);
        assert_eq!(faults.steps(), 3);
        assert_eq!(group.facts().world, 3);
    }

    #[test]
    fn a_row_that_fails_on_one_rank_has_failed() {
        let faults = Faults::default();
        faults.fail_new_on_rank(1);
        let (mut group, inbox) = group(2, &faults);
        let GroupAnswer::Stepped(stepped) =
            run(&mut group, &inbox, &one_row(vec![StateOp::New(SequenceKey(1))]))
        else {
            panic!("a step is answered by a step")
        };
        assert_eq!(stepped.outcome, Ok(()));
        assert!(matches!(stepped.rows[0], Err(DeviceError::OutOfMemory { .. })));
        assert_eq!(stepped.unnamed.len(), 1);
    }

    #[test]
    fn a_rank_that_waits_for_one_that_failed_is_not_waited_for() {
        let faults = Faults::default();
        faults.fail_load_on_rank(1);
        let (replies, _inbox) = channel();
        let sink: ReplySink = Arc::new(move |reply| drop(replies.send(reply)));
        let waits: OpenRank = Box::new(|| {
            loop {
                std::thread::park();
            }
        });
        let ranks = vec![("dev-0".into(), waits), ("dev-1".into(), Double::open(faults.clone(), 1))];
        assert!(matches!(Group::open(ranks, &sink), Err(DeviceError::OutOfMemory { .. })));
    }

    #[test]
    fn a_load_that_fails_on_one_rank_leaves_nothing() {
        let faults = Faults::default();
        faults.fail_load_on_rank(1);
        let (replies, _inbox) = channel();
        let sink: ReplySink = Arc::new(move |reply| drop(replies.send(reply)));
        let ranks = (0..2).map(|rank| (format!("dev-{rank}"), Double::open(faults.clone(), rank))).collect();
        assert!(matches!(Group::open(ranks, &sink), Err(DeviceError::OutOfMemory { .. })));
        assert_eq!(faults.live_models(), 0);
    }
}
