//! Which tokens every micro-batch of every step sees, as a pure function: a resume needs only the step number.
//!
//! The training tokens of each source are cut into blocks that do not overlap. A pass over a source is one over all of
//! its blocks in an order of its own, without replacement. Sequences are numbered through the whole training, over the
//! ends of passes: a source's k-th sequence is place k mod n of its pass k / n. Where sources have weights, each has its
//! share of every [`PERIOD`] sequences. With random offsets a sequence starts at any token of its source instead.

use std::ops::Range;

use inheritune_domain::spec::{Sampling, TrainingSpec};
use serde::{Deserialize, Serialize};

/// Sequences in which sources come exactly as often as their weights say, to the nearest sequence.
pub const PERIOD: u64 = 4096;

/// The order of the training sequences.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataOrder {
    sources: Vec<Source>,
    /// Whose turn it is, sequence after sequence; from the end on again as from the start.
    turns: Vec<Turn>,
    shape: StepShape,
    sampling: Sampling,
    seed: u64,
}

/// One source's part of the training tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Source {
    first_token: u64,
    tokens: u64,
    /// Its blocks.
    sequences: u64,
    /// Its turns in a period.
    turns: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Turn {
    source: usize,
    /// Turns of that source before this one in the period.
    before: u64,
}

/// A source's tokens, and how often they come.
#[derive(Debug, Clone, PartialEq)]
pub struct Share {
    /// In the training part.
    pub tokens: Range<u64>,
    /// Relative to the others'.
    pub weight: f64,
}

/// Why there is no order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoOrder {
    /// The tokens that may be used do not fill one block.
    #[error(
        "{} gives {tokens} training tokens, but one block of {block_size} needs {} (its inputs and the token after \
         them): use more text, a larger data_fraction or a smaller block_size",
        source_name(*.source_number),
        block_size + 1
    )]
    ShorterThanBlock {
        /// From 0; none where the corpus is one.
        source_number: Option<usize>,
        /// What there is.
        tokens: u64,
        /// What is wanted.
        block_size: u32,
    },
    /// A source would never have its turn.
    #[error("training.source_weights[{0}] is less than one {PERIOD}th of their sum: leave the source out, or raise it")]
    NeverDrawn(usize),
}

fn source_name(number: Option<usize>) -> String {
    number.map_or_else(|| "the corpus".to_owned(), |number| format!("source {number} of the corpus"))
}

/// How a step is made up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepShape {
    /// Tokens a sequence.
    pub block_size: u32,
    /// Sequences a micro-batch.
    pub micro_batch: u32,
    /// Micro-batches a step.
    pub gradient_accumulation: u32,
}

impl StepShape {
    /// As a spec says.
    pub fn of(training: &TrainingSpec) -> Self {
        let TrainingSpec { block_size, micro_batch, gradient_accumulation, .. } = *training;
        Self { block_size, micro_batch, gradient_accumulation }
    }

    /// The same sequences a step in micro-batches half as large, where they can be halved.
    pub fn halved(self) -> Option<Self> {
        let gradient_accumulation = self.gradient_accumulation.checked_mul(2)?;
        let micro_batch = self.micro_batch / 2;
        (self.micro_batch.is_multiple_of(2)).then_some(Self { micro_batch, gradient_accumulation, ..self })
    }

    fn sequences(self) -> u64 {
        u64::from(self.micro_batch) * u64::from(self.gradient_accumulation)
    }
}

impl DataOrder {
    /// The order over the first `tokens` training tokens, all alike.
    ///
    /// # Errors
    /// [`NoOrder`] when there is not one block and the token after it.
    pub fn new(tokens: u64, shape: StepShape, sampling: Sampling, seed: u64) -> Result<Self, NoOrder> {
        let source = Source { turns: 1, ..Source::new(0..tokens, shape.block_size, None)? };
        Ok(Self { sources: vec![source], turns: vec![Turn { source: 0, before: 0 }], shape, sampling, seed })
    }

    /// The order over sources that come as often as their weights say.
    ///
    /// # Errors
    /// [`NoOrder`] for a source without one block and the token after it, or with next to no weight.
    pub fn weighted(shares: &[Share], shape: StepShape, sampling: Sampling, seed: u64) -> Result<Self, NoOrder> {
        let total: f64 = shares.iter().map(|share| share.weight).sum();
        let (mut sources, mut ends, mut weight) = (Vec::new(), Vec::new(), 0.0);
        for (number, share) in shares.iter().enumerate() {
            sources.push(Source::new(share.tokens.clone(), shape.block_size, Some(number))?);
            // A sum so far, so that no rounding adds up.
            weight += share.weight;
            ends.push((weight / total * PERIOD as f64).round() as u64);
        }
        let mut turns = Vec::new();
        for place in 0..PERIOD {
            let shuffled = permute(place, PERIOD, mix(seed ^ TURNS_KEY));
            let source = ends.partition_point(|end| *end <= shuffled);
            turns.push(Turn { source, before: sources[source].turns });
            sources[source].turns += 1;
        }
        match sources.iter().position(|source| source.turns == 0) {
            Some(number) => Err(NoOrder::NeverDrawn(number)),
            None => Ok(Self { sources, turns, shape, sampling, seed }),
        }
    }

    /// Blocks in one pass over all sources.
    pub fn sequences(&self) -> u64 {
        self.sources.iter().map(|source| source.sequences).sum()
    }

    /// Passes over the data that `steps` steps make; over those of a mixture as a whole.
    pub fn epochs(&self, steps: u64) -> f64 {
        steps as f64 * self.shape.sequences() as f64 / self.sequences() as f64
    }

    /// The token ranges of one micro-batch, one a sequence, each `block_size + 1` long: inputs are all but the last,
    /// targets all but the first. `step` and `micro` count from 0.
    pub fn micro_batch(&self, step: u64, micro: u64) -> Vec<Range<u64>> {
        let micro_batch = u64::from(self.shape.micro_batch);
        let first = step * self.shape.sequences() + micro * micro_batch;
        (first..first + micro_batch).map(|sequence| self.sequence(sequence)).collect()
    }

    fn sequence(&self, number: u64) -> Range<u64> {
        let period = self.turns.len() as u64;
        let turn = self.turns[(number % period) as usize];
        let source = &self.sources[turn.source];
        let nth = number / period * source.turns + turn.before;
        let seed = self.seed ^ source_key(turn.source as u64);
        let block_size = u64::from(self.shape.block_size);
        let start = match self.sampling {
            Sampling::Permutation => {
                let (pass, block) = (nth / source.sequences, nth % source.sequences);
                permute(block, source.sequences, mix(seed ^ mix(pass))) * block_size
            }
            Sampling::RandomOffsets => {
                // Of 64 random bits the remainder is even enough: no corpus comes near 2^64 tokens.
                mix(mix(seed) ^ mix(nth)) % (source.tokens - block_size)
            }
        };
        let start = source.first_token + start;
        start..start + block_size + 1
    }
}

impl Source {
    fn new(tokens: Range<u64>, block_size: u32, source_number: Option<usize>) -> Result<Self, NoOrder> {
        let (first_token, tokens) = (tokens.start, tokens.end - tokens.start);
        // The last target of the last block is one token further on.
        let sequences = tokens.saturating_sub(1) / u64::from(block_size).max(1);
        if sequences == 0 {
            return Err(NoOrder::ShorterThanBlock { source_number, tokens, block_size });
        }
        Ok(Self { first_token, tokens, sequences, turns: 0 })
    }
}

/// Keeps the turns of sources apart from the orders of their blocks.
const TURNS_KEY: u64 = 0x7475_726e;

/// Sources have orders of their own; the first one's is that of a corpus without sources.
fn source_key(number: u64) -> u64 {
    if number == 0 { 0 } else { mix(number << 32) }
}

/// Rounds of the Feistel network; four already pass for random to an observer (Luby and Rackoff, 1988), more cost
/// nothing beside a training step and help where the halves are only a few bits wide.
const FEISTEL_ROUNDS: u64 = 8;

/// Place `index` of a pseudo-random permutation of `0..len`, without ever holding the permutation: a Feistel network
/// over the next even number of bits, walked until it lands inside (Black and Rogaway, 2002, "cycle walking").
fn permute(index: u64, len: u64, key: u64) -> u64 {
    let bits = u64::BITS - (len - 1).leading_zeros();
    let half = bits.div_ceil(2).max(1);
    let mask = (1u64 << half) - 1;
    let mut place = index;
    loop {
        let (mut left, mut right) = (place >> half, place & mask);
        for round in 0..FEISTEL_ROUNDS {
            (left, right) = (right, left ^ (mix(key ^ mix(right ^ (round << 56))) & mask));
        }
        place = left << half | right;
        // The domain is at most four times `len` wide, so a walk is short.
        if place < len {
            return place;
        }
    }
}

/// SplitMix64's finaliser (Steele, Lea and Flood, 2014): every bit of the result depends on every bit of `x`.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn order(tokens: u64, seed: u64) -> DataOrder {
        let shape = StepShape { block_size: 4, micro_batch: 3, gradient_accumulation: 2 };
        DataOrder::new(tokens, shape, Sampling::Permutation, seed).unwrap()
    }

    #[test]
    fn one_block_and_the_token_after_it_is_enough() {
        let order = |tokens| {
            let shape = StepShape { block_size: 4, micro_batch: 1, gradient_accumulation: 1 };
            DataOrder::new(tokens, shape, Sampling::Permutation, 0)
        };
        let one = order(5).unwrap();
        assert_eq!(one.sequences(), 1);
        assert_eq!(one.micro_batch(7, 0), vec![0..5]);
        let error = order(4).unwrap_err();
        assert!(
            error.to_string().contains("gives 4 training tokens") && error.to_string().contains("needs 5"),
            "{error}"
        );
    }

    #[test]
    fn blocks_are_aligned_and_stay_inside_the_tokens() {
        let order = order(43, 5);
        assert_eq!(order.sequences(), 10);
        for step in 0..20 {
            for micro in 0..2 {
                for range in order.micro_batch(step, micro) {
                    assert_eq!(range.start % 4, 0);
                    assert!(range.end <= 43);
                }
            }
        }
    }

    #[test]
    fn the_order_is_pinned() {
        // A change here makes every saved training state resume on other data: it must not happen.
        let starts: Vec<u64> =
            (0..2).flat_map(|micro| order(81, 1337).micro_batch(0, micro)).map(|r| r.start / 4).collect();
        assert_eq!(starts, PINNED);
    }
    const PINNED: [u64; 6] = [13, 16, 8, 6, 9, 18];

    #[test]
    fn seeds_and_epochs_have_orders_of_their_own() {
        let epoch = |order: &DataOrder, epoch: u64| -> Vec<u64> {
            (0..200).flat_map(|i| order.micro_batch(epoch * 100 + i / 2, i % 2)).map(|r| r.start).collect()
        };
        let order = order(600 * 4 + 1, 1);
        let other = self::order(600 * 4 + 1, 2);
        assert_ne!(epoch(&order, 0), epoch(&order, 1));
        assert_ne!(epoch(&order, 0), epoch(&other, 0));
        assert_ne!(epoch(&order, 0), (0..600).map(|i| i * 4).collect::<Vec<_>>());
        assert!((order.epochs(150) - 1.5).abs() < 1e-12);
    }

    #[test]
    fn halved_micro_batches_make_the_same_steps() {
        let whole = order(4001, 3);
        let shape = StepShape { block_size: 4, micro_batch: 6, gradient_accumulation: 1 };
        let halved = DataOrder { shape: shape.halved().unwrap(), ..whole.clone() };
        assert_eq!((halved.shape.micro_batch, halved.shape.gradient_accumulation), (3, 2));
        let whole = DataOrder { shape, ..whole };
        for step in 0..50 {
            let parts: Vec<_> = (0..2).flat_map(|micro| halved.micro_batch(step, micro)).collect();
            assert_eq!(whole.micro_batch(step, 0), parts);
        }
        assert_eq!(StepShape { micro_batch: 3, ..shape }.halved(), None);
    }

    #[test]
    fn random_offsets_start_anywhere_and_stay_inside() {
        let shape = StepShape { block_size: 4, micro_batch: 1, gradient_accumulation: 1 };
        let order = DataOrder::new(25, shape, Sampling::RandomOffsets, 7).unwrap();
        let starts: Vec<u64> = (0..2000).map(|step| order.micro_batch(step, 0)[0].start).collect();
        assert_eq!(starts.iter().copied().collect::<BTreeSet<_>>(), (0..21).collect());
        let counts = (0..21).map(|start| starts.iter().filter(|found| **found == start).count());
        // 2000 draws of 21: 95 each, with a deviation of 9.5.
        assert!(counts.into_iter().all(|count| (50..140).contains(&count)));
    }

    #[test]
    fn sources_come_as_their_weights_say_and_each_block_once_a_pass() {
        let shape = StepShape { block_size: 4, micro_batch: 1, gradient_accumulation: 1 };
        let share = |tokens, weight| Share { tokens, weight };
        let shares = [share(0..401, 67.0), share(401..4802, 15.0), share(4802..4902, 4.5)];
        let order = DataOrder::weighted(&shares, shape, Sampling::Permutation, 1337).unwrap();
        assert_eq!(order.sequences(), 100 + 1100 + 24);
        let ranges: Vec<_> = (0..2 * PERIOD).map(|step| order.micro_batch(step, 0).remove(0)).collect();
        for (source, share) in shares.iter().enumerate() {
            let own: Vec<u64> = ranges
                .iter()
                .filter(|r| share.tokens.contains(&r.start))
                .map(|r| r.start - share.tokens.start)
                .collect();
            assert!(ranges.iter().filter(|r| share.tokens.contains(&r.start)).all(|r| r.end <= share.tokens.end));
            let expected = (share.weight / 86.5 * 2.0 * PERIOD as f64).round();
            assert!((own.len() as f64 - expected).abs() <= 2.0, "source {source}: {} of {expected}", own.len());
            let blocks = (share.tokens.end - share.tokens.start - 1) / 4;
            for pass in own.chunks_exact(blocks as usize) {
                assert_eq!(pass.iter().copied().collect::<BTreeSet<_>>(), (0..blocks).map(|b| b * 4).collect());
            }
        }
        // They are mixed: no long run of one source, as far as its weight allows.
        let first = |r: &&Range<u64>| r.start >= 401;
        assert!((0..PERIOD as usize - 64).all(|at| ranges[at..at + 64].iter().any(|r| first(&r))));

        let refused = |short: Range<u64>, weight| {
            let shares = [share(0..401, 1.0), share(short, weight)];
            DataOrder::weighted(&shares, shape, Sampling::Permutation, 1).unwrap_err().to_string()
        };
        assert!(refused(401..405, 1.0).starts_with("source 1 of the corpus gives 4 training tokens"));
        assert!(refused(401..802, 1e-5).starts_with("training.source_weights[1] is less than"));
    }

    proptest! {
        #[test]
        fn an_epoch_shows_every_block_once(len in 1u64..700, key: u64) {
            let seen: BTreeSet<u64> = (0..len).map(|i| permute(i, len, key)).collect();
            prop_assert_eq!(seen.len() as u64, len);
            prop_assert_eq!(seen.last().copied(), Some(len - 1));
        }
    }
}
