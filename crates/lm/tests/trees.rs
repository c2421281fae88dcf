//! Compares trees of sequences with the same sequences read separately, for a checkpoint of every
//! family.
#![allow(clippy::unwrap_used)]

use inheritune_lm::trees::{CachedPrefix, Question, Tree};
use inheritune_lm::{Decoder, LmError, Tensor, device};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

mod support;
use support::{golden_cases, load};

/// Relative tolerance of a log-probability.
const RELATIVE: f64 = 1e-5;

/// The log-probability of every token except the first, with the sequence read separately.
fn one_by_one(decoder: &Decoder, tokens: &[u32]) -> Vec<f64> {
    let ids: Vec<i64> = tokens.iter().copied().map(i64::from).collect();
    let row = |ids: &[i64]| Tensor::from_slice(ids).view([1, -1]);
    let losses = decoder.losses(&row(&ids[..ids.len() - 1]), &row(&ids[1..])).unwrap();
    Vec::<f64>::try_from(losses.view([-1]).to_kind(inheritune_lm::Kind::Double)).unwrap().iter().map(|x| -x).collect()
}

/// The tokens on the path from a tree's root to a place.
fn path(tokens: &[u32], parents: &[Option<u32>], place: u32) -> Vec<u32> {
    let mut path = vec![tokens[place as usize]];
    let mut at = parents[place as usize];
    while let Some(parent) = at {
        path.push(tokens[parent as usize]);
        at = parents[parent as usize];
    }
    path.reverse();
    path
}

fn row(length: usize) -> Vec<Option<u32>> {
    (0..length as u32).map(|place| place.checked_sub(1)).collect()
}

fn tree<'a>(
    prefix: Option<&'a CachedPrefix>,
    tokens: &'a [u32],
    parents: &'a [Option<u32>],
    is_cached: bool,
) -> Tree<'a> {
    Tree { prefix, tokens, parents, is_cached }
}

#[test]
fn trees_give_the_answers_of_their_sequences() {
    device::set_threads(1);
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let mut compared = 0;
    for (name, dir) in golden_cases() {
        let decoder = load(&dir).frozen().unwrap();
        let vocab = decoder.config().vocab_size;
        let mut random = |n: usize| -> Vec<u32> { (0..n).map(|_| rng.random_range(0..vocab)).collect() };
        // A prefix, a longer prefix that continues it, and trees that continue the longer prefix or
        // none.
        let (first, second) = (random(3), random(2));
        let read = |trees: &[Tree<'_>]| decoder.read_trees(trees, &[]).unwrap().1.pop().unwrap();
        let first_prefix: CachedPrefix = read(&[tree(None, &first, &row(3), true)]);
        let second_prefix: CachedPrefix = read(&[tree(Some(&first_prefix), &second, &row(2), true)]);
        let parents = [None, Some(0), Some(1), Some(1), Some(0), None, Some(5), Some(3)];
        let (a, b, c) = (random(8), random(8), random(6));
        let row = row(6);
        let trees = [
            tree(Some(&second_prefix), &a, &parents, false),
            tree(None, &b, &parents, false),
            tree(None, &c, &row, false),
        ];
        let before = [[first.clone(), second.clone()].concat(), Vec::new(), Vec::new()];
        let mut questions = Vec::new();
        let mut expected = Vec::new();
        for (number, (tree, before)) in (0..).zip(trees.iter().zip(&before)) {
            for place in 0..tree.tokens.len() as u32 {
                for token in random(2) {
                    questions.push(Question { tree: number, place, token });
                    let sequence = [before.clone(), path(tree.tokens, tree.parents, place), vec![token]].concat();
                    expected.push(*one_by_one(&decoder, &sequence).last().unwrap());
                }
            }
        }
        let (answers, prefixes) = decoder.read_trees(&trees, &questions).unwrap();
        assert!(prefixes.is_empty());
        for ((question, answer), expected) in questions.iter().zip(&answers).zip(&expected) {
            let found = f64::from(answer.log_probability);
            assert!((found - expected).abs() <= RELATIVE * expected.abs(), "{name} {question:?}: {found} {expected}");
        }
        // Only the most likely tokens at a place are greedy.
        let everything: Vec<Question> = (0..vocab).map(|token| Question { tree: 2, place: 5, token }).collect();
        let answers = decoder.read_trees(&trees, &everything).unwrap().0;
        let likeliest = answers.iter().map(|answer| answer.log_probability).fold(f32::NEG_INFINITY, f32::max);
        assert!(answers.iter().all(|answer| answer.is_greedy == (answer.log_probability == likeliest)), "{name}");
        compared += expected.len();
    }
    assert!(compared > 500, "{compared}");
}

#[test]
fn invalid_trees_are_rejected() {
    let (_, dir) = golden_cases().into_iter().next().unwrap();
    let decoder = load(&dir).frozen().unwrap();
    let limit = decoder.config().max_positions as usize;
    let problem = |tokens: &[u32], parents: &[Option<u32>], questions: &[Question], is_cached| {
        let trees = [Tree { prefix: None, tokens, parents, is_cached }];
        match decoder.read_trees(&trees, questions) {
            Err(LmError::BadTokens { problem }) => problem,
            other => panic!("{other:?}"),
        }
    };
    assert!(problem(&[], &[], &[], false).contains("tree 0 has 0 tokens"));
    assert!(problem(&[1, 2], &[None, Some(1)], &[], false).contains("token 1 of tree 0 has parent 1"));
    assert!(problem(&[1, 2], &[None, None], &[], true).contains("branches"));
    assert!(problem(&[u32::MAX], &[None], &[], false).contains("outside the model's vocabulary"));
    assert!(problem(&vec![1; limit + 1], &row(limit + 1), &[], false).contains("is longer than"));
    let far = Question { tree: 0, place: 1, token: 0 };
    assert!(problem(&[1], &[None], &[far], false).contains("place 1 of tree 0"));
    assert!(decoder.read_trees(&[], &[]).is_err());
}
