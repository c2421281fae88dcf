//! Trees of sequences against the same sequences one by one, for a checkpoint of every family.
#![allow(clippy::unwrap_used)]

use inheritune_lm::trees::{Question, Tree, Trunk};
use inheritune_lm::{Decoder, LmError, Tensor, device};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

mod support;
use support::{golden_cases, load};

/// Of a log-probability, relative.
const RELATIVE: f64 = 1e-5;

/// Log-probability of every token of `tokens` but the first, each sequence read by itself.
fn one_by_one(decoder: &Decoder, tokens: &[u32]) -> Vec<f64> {
    let ids: Vec<i64> = tokens.iter().copied().map(i64::from).collect();
    let row = |ids: &[i64]| Tensor::from_slice(ids).view([1, -1]);
    let losses = decoder.losses(&row(&ids[..ids.len() - 1]), &row(&ids[1..])).unwrap();
    Vec::<f64>::try_from(losses.view([-1]).to_kind(inheritune_lm::Kind::Double)).unwrap().iter().map(|x| -x).collect()
}

/// The tokens from a tree's root to one of its places.
fn way(tokens: &[u32], parents: &[Option<u32>], place: u32) -> Vec<u32> {
    let mut way = vec![tokens[place as usize]];
    let mut at = parents[place as usize];
    while let Some(parent) = at {
        way.push(tokens[parent as usize]);
        at = parents[parent as usize];
    }
    way.reverse();
    way
}

fn row(length: usize) -> Vec<Option<u32>> {
    (0..length as u32).map(|place| place.checked_sub(1)).collect()
}

fn tree<'a>(trunk: Option<&'a Trunk>, tokens: &'a [u32], parents: &'a [Option<u32>], is_trunk: bool) -> Tree<'a> {
    Tree { trunk, tokens, parents, is_trunk }
}

#[test]
fn trees_say_what_their_sequences_say() {
    device::set_threads(1);
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let mut compared = 0;
    for (name, dir) in golden_cases() {
        let decoder = load(&dir).frozen().unwrap();
        let vocab = decoder.config().vocab_size;
        let mut random = |n: usize| -> Vec<u32> { (0..n).map(|_| rng.random_range(0..vocab)).collect() };
        // A trunk, a trunk that grows from it, and trees from each and from nothing, all but the first in one pass.
        let (first, second) = (random(3), random(2));
        let read = |trees: &[Tree<'_>]| decoder.read_trees(trees, &[]).unwrap().1.pop().unwrap();
        let first_trunk: Trunk = read(&[tree(None, &first, &row(3), true)]);
        let second_trunk: Trunk = read(&[tree(Some(&first_trunk), &second, &row(2), true)]);
        let parents = [None, Some(0), Some(1), Some(1), Some(0), None, Some(5), Some(3)];
        let (a, b, c) = (random(8), random(8), random(6));
        let row = row(6);
        let trees = [
            tree(Some(&second_trunk), &a, &parents, false),
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
                    let sequence = [before.clone(), way(tree.tokens, tree.parents, place), vec![token]].concat();
                    expected.push(*one_by_one(&decoder, &sequence).last().unwrap());
                }
            }
        }
        let (answers, trunks) = decoder.read_trees(&trees, &questions).unwrap();
        assert!(trunks.is_empty());
        for ((question, answer), expected) in questions.iter().zip(&answers).zip(&expected) {
            let found = f64::from(answer.log_probability);
            assert!((found - expected).abs() <= RELATIVE * expected.abs(), "{name} {question:?}: {found} {expected}");
        }
        // The likeliest token at every place, and only that one, is greedy.
        let everything: Vec<Question> = (0..vocab).map(|token| Question { tree: 2, place: 5, token }).collect();
        let answers = decoder.read_trees(&trees, &everything).unwrap().0;
        let likeliest = answers.iter().map(|answer| answer.log_probability).fold(f32::NEG_INFINITY, f32::max);
        assert!(answers.iter().all(|answer| answer.is_greedy == (answer.log_probability == likeliest)), "{name}");
        compared += expected.len();
    }
    assert!(compared > 500, "{compared}");
}

#[test]
fn what_is_no_tree_is_refused() {
    let (_, dir) = golden_cases().into_iter().next().unwrap();
    let decoder = load(&dir).frozen().unwrap();
    let limit = decoder.config().max_positions as usize;
    let problem = |tokens: &[u32], parents: &[Option<u32>], questions: &[Question], is_trunk| {
        let trees = [Tree { trunk: None, tokens, parents, is_trunk }];
        match decoder.read_trees(&trees, questions) {
            Err(LmError::BadTokens { problem }) => problem,
            other => panic!("{other:?}"),
        }
    };
    assert!(problem(&[], &[], &[], false).contains("tree 0 has 0 tokens"));
    assert!(problem(&[1, 2], &[None, Some(1)], &[], false).contains("token 1 of tree 0 follows token 1"));
    assert!(problem(&[1, 2], &[None, None], &[], true).contains("branches"));
    assert!(problem(&[u32::MAX], &[None], &[], false).contains("outside the model's vocabulary"));
    assert!(problem(&vec![1; limit + 1], &row(limit + 1), &[], false).contains("is longer than"));
    let far = Question { tree: 0, place: 1, token: 0 };
    assert!(problem(&[1], &[None], &[far], false).contains("place 1 of tree 0"));
    assert!(decoder.read_trees(&[], &[]).is_err());
}
