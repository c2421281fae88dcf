//! Which tokens each micro-batch of each step contains, as a pure function of the step number. A
//! resumed training therefore needs only the step number.
//!
//! The training tokens of each source are cut into non-overlapping blocks. A pass over a source
//! visits all of its blocks once, in a different order in each pass. Sequences are numbered
//! consecutively through the whole training, across passes: the k-th sequence of a source with n
//! blocks is number k mod n of pass k / n. If sources have weights, each gets its share of every
//! [`PERIOD`] sequences. With random offsets, a sequence starts at any token of its source instead.

use std::ops::Range;

use inheritune_domain::spec::{Sampling, TrainingSpec};
use serde::{Deserialize, Serialize};

/// Number of sequences in which each source occurs in proportion to its weight, rounded to the
/// nearest sequence.
pub const PERIOD: u64 = 4096;

/// The order of the training sequences.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataOrder {
    sources: Vec<Source>,
    /// The source of each sequence in a period; repeats in every period.
    turns: Vec<Turn>,
    shape: StepShape,
    sampling: Sampling,
    seed: u64,
}

/// The training tokens of one source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Source {
    first_token: u64,
    tokens: u64,
    /// Number of its blocks.
    sequences: u64,
    /// Number of its turns in a period.
    turns: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Turn {
    source: usize,
    /// Number of earlier turns of that source in the period.
    before: u64,
}

/// The tokens and the weight of a source.
#[derive(Debug, Clone, PartialEq)]
pub struct Share {
    /// Its range in the training tokens.
    pub tokens: Range<u64>,
    /// Its weight relative to the other sources.
    pub weight: f64,
}

/// Why no data order is possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoOrder {
    /// The usable tokens do not fill one block.
    #[error(
        "{} gives {tokens} training tokens, but one block of {block_size} needs {} (its inputs and the token after \
         them): use more text, a larger data_fraction or a smaller block_size",
        source_name(*.source_number),
        block_size + 1
    )]
    ShorterThanBlock {
        /// Number of the source, from 0; `None` if sources are not distinguished.
        source_number: Option<usize>,
        /// Number of usable tokens.
        tokens: u64,
        /// Length of a block in tokens.
        block_size: u32,
    },
    /// The weight of this source (numbered from 0) is so small that it would never be used.
    #[error("training.source_weights[{0}] is less than one {PERIOD}th of their sum: raise it or remove the source")]
    NeverDrawn(usize),
}

fn source_name(number: Option<usize>) -> String {
    number.map_or_else(|| "the corpus".to_owned(), |number| format!("source {number} of the corpus"))
}

/// How many tokens make up a step, and how it is split into micro-batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepShape {
    /// Tokens per sequence.
    pub block_size: u32,
    /// Sequences per micro-batch.
    pub micro_batch: u32,
    /// Micro-batches per step.
    pub gradient_accumulation: u32,
}

impl StepShape {
    /// The shape that the spec asks for.
    pub fn of(training: &TrainingSpec) -> Self {
        let TrainingSpec { block_size, micro_batch, gradient_accumulation, .. } = *training;
        Self { block_size, micro_batch, gradient_accumulation }
    }

    /// Returns the shape with micro-batches half as large and the same number of sequences per
    /// step, or `None` if `micro_batch` is odd.
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
    /// The order over the first `tokens` training tokens, without distinguishing sources.
    ///
    /// # Errors
    /// [`NoOrder`] if the tokens do not fill one block and the token after it.
    pub fn new(tokens: u64, shape: StepShape, sampling: Sampling, seed: u64) -> Result<Self, NoOrder> {
        let source = Source { turns: 1, ..Source::new(0..tokens, shape.block_size, None)? };
        Ok(Self { sources: vec![source], turns: vec![Turn { source: 0, before: 0 }], shape, sampling, seed })
    }

    /// The order over sources that occur in proportion to their weights.
    ///
    /// # Errors
    /// [`NoOrder`] if a source does not fill one block and the token after it, or if its weight is
    /// too small.
    pub fn weighted(shares: &[Share], shape: StepShape, sampling: Sampling, seed: u64) -> Result<Self, NoOrder> {
        let total: f64 = shares.iter().map(|share| share.weight).sum();
        let (mut sources, mut ends, mut weight) = (Vec::new(), Vec::new(), 0.0);
        for (number, share) in shares.iter().enumerate() {
            sources.push(Source::new(share.tokens.clone(), shape.block_size, Some(number))?);
            // Cumulative sums keep rounding errors from adding up.
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

    /// The number of blocks in one pass over all sources.
    pub fn sequences(&self) -> u64 {
        self.sources.iter().map(|source| source.sequences).sum()
    }

    /// The number of passes over the data in `steps` steps. A weighted mixture counts as a whole.
    pub fn epochs(&self, steps: u64) -> f64 {
        steps as f64 * self.shape.sequences() as f64 / self.sequences() as f64
    }

    /// The token ranges of one micro-batch, one per sequence. Each is `block_size + 1` long: the
    /// inputs are all tokens but the last, the targets all but the first. `step` and `micro` count
    /// from 0.
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
                // The bias of the remainder is negligible: no corpus comes near 2^64 tokens.
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
        // The last target of the last block is one token beyond the block.
        let sequences = tokens.saturating_sub(1) / u64::from(block_size).max(1);
        if sequences == 0 {
            return Err(NoOrder::ShorterThanBlock { source_number, tokens, block_size });
        }
        Ok(Self { first_token, tokens, sequences, turns: 0 })
    }
}

/// Makes the random order of turns independent of the order of blocks.
const TURNS_KEY: u64 = 0x7475_726e;

/// Gives each source its own block order. The first source has the same order as a corpus without
/// sources.
fn source_key(number: u64) -> u64 {
    if number == 0 { 0 } else { mix(number << 32) }
}

/// Number of rounds of the Feistel network. Four rounds already yield a pseudo-random permutation
/// (Luby and Rackoff, 1988). More rounds cost nothing compared to a training step, and help when
/// the halves are only a few bits wide.
const FEISTEL_ROUNDS: u64 = 8;

/// Returns element `index` of a pseudo-random permutation of `0..len` without storing the
/// permutation. Applies a Feistel network over the next even number of bits until the result is in
/// range (Black and Rogaway, 2002, "cycle walking").
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
        // The domain is at most four times as large as `len`, so the walk is short.
        if place < len {
            return place;
        }
    }
}

/// SplitMix64's finaliser (Steele, Lea and Flood, 2014): every bit of the result depends on every
/// bit of `x`.
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
        // This must never change: saved training states would resume on different data.
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
        // 2000 draws from 21 values: 95 each, with a standard deviation of 9.5.
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
        // The sources are mixed: there is no long run of the first one.
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
