//! The standard error of perplexity that lm-evaluation-harness reports, bit for bit. Pure.
//!
//! The harness bootstraps it (`bootstrap_stderr` in `lm_eval/api/metrics.py` of version 0.4.13)
//! with Python's random numbers and fixed seeds, so its value is a pure function of the documents'
//! log-likelihoods. To reproduce it, this module draws the same numbers and rounds every operation
//! as CPython does.
//!
//! The bits are those of CPython 3.11 and earlier, where `sum()` of floats adds from left to right.
//! Since 3.12 it is a compensated sum (Neumaier), and the last digits may differ. Both programs use
//! `exp` and `pow` of the platform's libm, so the same libm gives the same bits.

use std::hint::black_box;

use rayon::prelude::*;

/// The harness's default number of resamples (`bootstrap_iters` in `lm_eval/evaluator.py`).
pub const HARNESS_RESAMPLES: u32 = 100_000;

/// Maximum number of resamples per seed (`chunk_size` in `bootstrap_stderr`).
const CHUNK: u32 = 1000;

/// Returns the standard error of `exp(-mean(log_likelihoods))`: the sample deviation of that
/// perplexity over `resamples` draws, with replacement, of as many values as there are (at most
/// 2³²).
///
/// Resamples are drawn in chunks of 1000. Like the harness, this omits an incomplete last chunk,
/// unless it is the only one. Chunks run in parallel on rayon's current pool; the result does not
/// depend on its number of threads.
///
/// Returns `None` for fewer than two values (the harness reports "N/A") or fewer than two resamples
/// (it reports "N/A" for none and divides by zero for one). Returns infinity or NaN if a perplexity
/// or a square is too large for an `f64`; the harness then raises an `OverflowError`.
pub fn perplexity_stderr(log_likelihoods: &[f64], resamples: u32) -> Option<f64> {
    if log_likelihoods.len() < 2 || resamples < 2 {
        return None;
    }
    let size = CHUNK.min(resamples);
    let mut perplexities = vec![0.0; (resamples / size * size) as usize];
    perplexities
        .par_chunks_exact_mut(size as usize)
        .enumerate()
        .for_each(|(seed, chunk)| resample(log_likelihoods, seed as u32, chunk));
    Some(sample_stddev(&perplexities))
}

/// Fills `perplexities` with the perplexities of resamples of `population` (the harness's
/// `_bootstrap_internal`).
fn resample(population: &[f64], seed: u32, perplexities: &mut [f64]) {
    let count = population.len();
    let mut choices = Choices::new(seed, count);
    for perplexity in perplexities {
        let mut sum = 0.0;
        let mut missing = count;
        while missing > 0 {
            let indices = choices.at_most(missing);
            for &index in indices {
                sum += population[index as usize];
            }
            missing -= indices.len();
        }
        *perplexity = (-(sum / count as f64)).exp();
    }
}

/// The harness's `sample_stddev`.
///
/// Python's `x ** 2` is libm's `pow(x, 2.0)`, which is not always correctly rounded (glibc's
/// differs from `x * x` for one in 1200 numbers). The compiler must not see the exponent, or it
/// would multiply instead.
fn sample_stddev(values: &[f64]) -> f64 {
    let two = black_box(2.0);
    let count = values.len() as f64;
    let mean = sum(values.iter().copied()) / count;
    (sum(values.iter().map(|value| (value - mean).powf(two))) / (count - 1.0)).sqrt()
}

/// Python's `sum()` up to 3.11: from zero, left to right.
fn sum(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(0.0, |sum, value| sum + value)
}

/// The indices that Python's `random.Random(seed).choices(population)` picks: `floor(random() * n)`
/// for each (`Lib/random.py`).
struct Choices {
    twister: MersenneTwister,
    /// `n / 2⁵³`. `random()` is `k / 2⁵³`. Powers of two scale exactly, so `k * (n / 2⁵³)` equals
    /// `random() * n`, with the same single rounding.
    scale: f64,
    /// The indices from one block of the generator.
    indices: [u32; WORDS / 2],
    /// Number of indices already taken.
    taken: usize,
}

impl Choices {
    /// Creates the choices among `count` items.
    fn new(seed: u32, count: usize) -> Self {
        let scale = count as f64 / (1_u64 << 53) as f64;
        Self { twister: MersenneTwister::new(seed), scale, indices: [0; WORDS / 2], taken: WORDS / 2 }
    }

    /// Returns the next indices: at least one, at most `most`.
    fn at_most(&mut self, most: usize) -> &[u32] {
        if self.taken == self.indices.len() {
            self.refill();
        }
        let start = self.taken;
        self.taken += most.min(self.indices.len() - start);
        &self.indices[start..self.taken]
    }

    /// Computes the indices of the next block.
    fn refill(&mut self) {
        let scale = self.scale;
        let words = self.twister.block();
        let (pairs, _) = words.as_chunks();
        for (index, &pair) in self.indices.iter_mut().zip(pairs) {
            *index = floor(mantissa(pair) * scale);
        }
        self.taken = 0;
    }
}

/// `random() * 2⁵³`, from the two words that a call of `random()` consumes: the upper 27 bits of
/// the first, then the upper 26 of the second (`_random_Random_random_impl` in CPython's
/// `Modules/_randommodule.c`).
fn mantissa([high, low]: [u32; 2]) -> f64 {
    f64::from(high >> 5) * 67_108_864.0 + f64::from(low >> 6)
}

/// The floor of a value in 0..2³². Equals `value as u32`, but uses operations that have vector
/// instructions.
///
/// From 2⁵² to 2⁵³ the doubles are the integers. So the low bits of `value + 2⁵²` are the integer
/// nearest to the value. This is the floor, or one more if it is above the value.
fn floor(value: f64) -> u32 {
    const SHIFT: f64 = (1_u64 << 52) as f64;
    let shifted = value + SHIFT;
    (shifted.to_bits() as u32).wrapping_sub(u32::from(shifted - SHIFT > value))
}

/// Words of the generator's state (`n` in the paper).
const WORDS: usize = 624;

/// Distance between the words that the recurrence combines (`m` in the paper).
const DISTANCE: usize = 397;

/// The generator of Python's `random`: MT19937 of Matsumoto and Nishimura, "Mersenne Twister" (ACM
/// TOMACS 8, 1998), and their `mt19937ar.c`. It computes whole blocks, in loops that the compiler
/// can vectorise.
struct MersenneTwister {
    state: [u32; WORDS],
}

impl MersenneTwister {
    /// `random.Random(seed)`: `init_by_array` with `seed` as the only word of the key, which is how
    /// CPython seeds with a non-negative integer.
    fn new(seed: u32) -> Self {
        let mut state = [0; WORDS];
        state[0] = 19_650_218;
        for i in 1..WORDS {
            state[i] = scrambled(state[i - 1], 1_812_433_253).wrapping_add(i as u32);
        }
        for (before, i) in (1..WORDS).map(|i| (i - 1, i)).chain([(WORDS - 1, 1)]) {
            state[i] = (state[i] ^ scrambled(state[before], 1_664_525)).wrapping_add(seed);
        }
        for (before, i) in (2..WORDS).map(|i| (i - 1, i)).chain([(WORDS - 1, 1)]) {
            state[i] = (state[i] ^ scrambled(state[before], 1_566_083_941)).wrapping_sub(i as u32);
        }
        state[0] = 0x8000_0000;
        Self { state }
    }

    /// Returns the next 624 words.
    fn block(&mut self) -> [u32; WORDS] {
        self.advance();
        let mut words = self.state;
        for word in &mut words {
            *word = tempered(*word);
        }
        words
    }

    /// Replaces each word of the state with the word 624 positions later in the sequence.
    fn advance(&mut self) {
        let state = &mut self.state;
        for i in 0..WORDS - DISTANCE {
            state[i] = state[i + DISTANCE] ^ twisted(state[i], state[i + 1]);
        }
        for i in WORDS - DISTANCE..WORDS - 1 {
            state[i] = state[i + DISTANCE - WORDS] ^ twisted(state[i], state[i + 1]);
        }
        state[WORDS - 1] = state[DISTANCE - 1] ^ twisted(state[WORDS - 1], state[0]);
    }
}

/// One step of the initialisation.
fn scrambled(word: u32, factor: u32) -> u32 {
    (word ^ (word >> 30)).wrapping_mul(factor)
}

/// The top bit of one word and the other bits of the next, times the matrix `A`.
fn twisted(word: u32, next: u32) -> u32 {
    let joined = (word & 0x8000_0000) | (next & 0x7fff_ffff);
    (joined >> 1) ^ ((joined & 1).wrapping_neg() & 0x9908_b0df)
}

/// The output for a word of the state.
fn tempered(word: u32) -> u32 {
    let word = word ^ (word >> 11);
    let word = word ^ ((word << 7) & 0x9d2c_5680);
    let word = word ^ ((word << 15) & 0xefc6_0000);
    word ^ (word >> 18)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const FIVE: [f64; 5] = [-0.125, -3.7, -1.1, -0.02, -6.3];
    const SEVEN: [f64; 7] = [-2.0, -0.1, -0.3, -4.4, -1.7, -0.9, -12.5];

    /// The first thousand values of `random.Random(seed).random()`, from four blocks.
    fn thousand_randoms(seed: u32) -> Vec<f64> {
        let mut twister = MersenneTwister::new(seed);
        let words: Vec<u32> = (0..4).flat_map(|_| twister.block()).collect();
        words.as_chunks().0[..1000].iter().map(|&pair| mantissa(pair) / (1_u64 << 53) as f64).collect()
    }

    #[test]
    fn random_numbers_are_cpythons() {
        for (seed, first, last) in [
            (0, [0.8444218515250481, 0.7579544029403025, 0.420571580830845], 0.4804125346981437),
            (1, [0.13436424411240122, 0.8474337369372327, 0.763774618976614], 0.7062615472551386),
            (99, [0.40397807494366633, 0.20007544457494542, 0.17880232058661227], 0.15455054961261028),
        ] {
            let randoms = thousand_randoms(seed);
            assert_eq!(randoms[..3], first, "seed {seed}");
            assert_eq!(randoms[999], last, "seed {seed}");
        }
    }

    #[test]
    fn floors_are_exact() {
        let below_one = mantissa([u32::MAX, u32::MAX]) / (1_u64 << 53) as f64;
        assert!(below_one < 1.0);
        for count in [1, 2, 3, 1000, 5153, 65_536, 1_000_003, u32::MAX] {
            let whole = f64::from(count);
            assert_eq!(floor(below_one * whole), count - 1, "the largest draw of {count}");
            assert_eq!(floor(whole), count);
            assert_eq!(floor(whole.next_down()), count - 1);
            assert_eq!(floor(whole.next_up()), count);
            assert_eq!(floor(whole - 0.5), count - 1);
        }
        assert_eq!(floor(0.0), 0);
        for random in thousand_randoms(7) {
            let value = random * 5153.0;
            assert_eq!(f64::from(floor(value)), value.floor());
        }
    }

    /// The values are those of `bootstrap_stderr(perplexity, xs, iters)` of lm-eval 0.4.13 with
    /// CPython 3.11.7 and glibc 2.36.
    #[test]
    fn standard_errors_equal_those_of_the_harness() {
        assert_eq!(perplexity_stderr(&[-0.5, -2.25], 1000), Some(2.7993922701564373));
        assert_eq!(perplexity_stderr(&FIVE, 2500), Some(37.19430702699692));
        assert_eq!(perplexity_stderr(&SEVEN, 20), Some(636.5447338461628));
        let longer_than_a_block: Vec<f64> = (0..700).map(|i| -f64::from(i % 97) / 16.0).collect();
        assert_eq!(perplexity_stderr(&longer_than_a_block, 20), Some(1.0638748794999209));
    }

    #[test]
    fn an_incomplete_last_chunk_is_omitted() {
        assert_eq!(perplexity_stderr(&FIVE, 2999), perplexity_stderr(&FIVE, 2000));
        assert_ne!(perplexity_stderr(&FIVE, 3000), perplexity_stderr(&FIVE, 2000));
    }

    #[test]
    fn too_few_values_have_no_standard_error() {
        assert_eq!(perplexity_stderr(&[], HARNESS_RESAMPLES), None);
        assert_eq!(perplexity_stderr(&[-1.0], HARNESS_RESAMPLES), None);
        assert_eq!(perplexity_stderr(&SEVEN, 0), None);
        assert_eq!(perplexity_stderr(&SEVEN, 1), None);
        assert_eq!(perplexity_stderr(&[-1.0, -1.0], 2), Some(0.0));
    }

    /// `sample_stddev([8.4507, 0.0])`; multiplication would give 5.975547275773156.
    #[test]
    #[cfg(all(target_arch = "x86_64", target_env = "gnu"))]
    fn squares_are_libms_powers() {
        assert_eq!(sample_stddev(&[8.4507, 0.0]), 5.975547275773157);
    }

    #[test]
    fn threads_do_not_matter() {
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| perplexity_stderr(&SEVEN, 8000).unwrap().to_bits())
        };
        let one = with(1);
        assert!([2, 3, 8].into_iter().all(|threads| with(threads) == one));
    }
}
