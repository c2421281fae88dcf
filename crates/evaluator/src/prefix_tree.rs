//! Plans the forward passes for many sequences, so that common prefixes are read once. Pure.
//!
//! After sorting, sequences with a common prefix are adjacent. Sequences that have few tokens
//! together become one tree. A long prefix of more sequences is read before them, and its keys and
//! values are cached. The trees do not depend on how many of them fit into a pass.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::encoding::Sequence;

/// Maximum number of tokens in a tree that branches. Attention compares all tokens of a tree with
/// each other, so larger trees would cost more than the passes they save.
const TREE_TOKENS: usize = 256;
/// Minimum number of saved tokens for which a prefix is cached.
const MIN_SAVED_TOKENS: usize = 128;

/// Forward passes, in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// The passes. Each uses only prefixes that earlier passes cached.
    pub passes: Vec<Pass>,
    /// For each cached prefix, the last pass that uses it.
    pub last_use: Vec<usize>,
}

/// One forward pass.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pass {
    /// Its trees.
    pub trees: Vec<PlannedTree>,
}

/// A tree of tokens and the questions about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedTree {
    /// The cached prefix that it continues.
    pub prefix: Option<usize>,
    /// The number under which the tree itself is cached as a prefix.
    pub cached_as: Option<usize>,
    /// Token ids.
    pub tokens: Vec<u32>,
    /// Index in `tokens` of each token's predecessor; `None` for a token right after the prefix.
    pub parents: Vec<Option<u32>>,
    /// (index in `tokens`, token asked about after it, sequences that ask), sorted by index. The
    /// questions of one sequence are in the order of its targets.
    pub questions: Vec<(u32, u32, Vec<usize>)>,
}

impl Plan {
    /// Plans the passes for `sequences`, with at most `max_tokens` tokens per pass. A pass exceeds
    /// this only if it consists of a single tree.
    pub fn new(sequences: &[Sequence], max_tokens: usize) -> Self {
        let mut order: Vec<usize> = (0..sequences.len()).collect();
        order.sort_by(|a, b| sequences[*a].cmp(&sequences[*b]).then(a.cmp(b)));
        let shared: Vec<usize> = (0..order.len())
            .map(|at| if at == 0 { 0 } else { common(&sequences[order[at - 1]].input, &sequences[order[at]].input) })
            .collect();
        let mut planner = PrefixTreePlanner { sequences, order, shared, trees: Vec::new(), prefixes: 0 };
        planner.plan(0..sequences.len(), 0, None);
        pack(planner.trees, planner.prefixes, max_tokens)
    }

    /// Plans one pass per sequence, without sharing prefixes. The answers are the same.
    pub fn one_by_one(sequences: &[Sequence]) -> Self {
        let tree = |(number, sequence): (usize, &Sequence)| {
            let mut builder = TreeBuilder::new(0);
            builder.add(sequence, number, 0);
            Pass { trees: vec![builder.finish(None, None)] }
        };
        Self { passes: sequences.iter().enumerate().map(tree).collect(), last_use: Vec::new() }
    }

    /// Number of tokens that all passes read.
    pub fn tokens(&self) -> u64 {
        self.passes.iter().map(Pass::tokens).sum()
    }
}

impl Pass {
    /// Number of tokens that the pass reads.
    pub fn tokens(&self) -> u64 {
        self.trees.iter().map(|tree| tree.tokens.len() as u64).sum()
    }
}

/// Returns the length of the common prefix of two lists.
fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Divides sorted sequences into trees.
struct PrefixTreePlanner<'a> {
    sequences: &'a [Sequence],
    /// Indexes of the sequences, sorted by input.
    order: Vec<usize>,
    /// Length of the prefix that each sequence shares with the previous one in that order.
    shared: Vec<usize>,
    trees: Vec<PlannedTree>,
    /// Number of cached prefixes.
    prefixes: usize,
}

impl PrefixTreePlanner<'_> {
    fn sequence(&self, at: usize) -> &Sequence {
        &self.sequences[self.order[at]]
    }

    /// Number of tokens that a tree of the sequences in `range` has after their common prefix of
    /// `depth` tokens.
    fn size(&self, range: &Range<usize>, depth: usize) -> usize {
        range.clone().map(|at| self.sequence(at).input.len().saturating_sub(self.known(at, range.start, depth))).sum()
    }

    /// Number of a sequence's tokens that the tree or its prefix already contains. The tree begins
    /// with the sequence at `start`, after a prefix of `depth` tokens.
    fn known(&self, at: usize, start: usize, depth: usize) -> usize {
        if at == start { depth } else { self.shared[at].max(depth) }
    }

    /// Plans the sequences in `range`, which share their first `depth` tokens. `prefix` contains
    /// these.
    fn plan(&mut self, range: Range<usize>, depth: usize, prefix: Option<usize>) {
        if range.is_empty() {
            return;
        }
        let shortest = self.sequence(range.start).input.len();
        let fork = range.clone().skip(1).map(|at| self.shared[at]).min().unwrap_or(shortest);
        let size = self.size(&range, depth);
        if size <= TREE_TOKENS || fork == self.sequence(range.end - 1).input.len() {
            return self.add_tree(range, depth, prefix);
        }
        if (fork - depth) * (size / TREE_TOKENS) >= MIN_SAVED_TOKENS {
            let new = self.prefixes;
            self.prefixes += 1;
            self.add_prefix(&range, depth..fork, prefix, new);
            return self.plan(range, fork, Some(new));
        }
        // Adjacent branches that fit into one tree together become one.
        let mut start = range.start;
        while start < range.end {
            let mut end = self.branch_end(start, range.end, fork);
            while end < range.end {
                let next = self.branch_end(end, range.end, fork);
                if self.size(&(start..next), depth) > TREE_TOKENS {
                    break;
                }
                end = next;
            }
            if self.size(&(start..end), depth) <= TREE_TOKENS {
                self.add_tree(start..end, depth, prefix);
            } else {
                self.plan(start..end, depth, prefix);
            }
            start = end;
        }
    }

    /// The end of the sequences that share more than `fork` tokens with the one at `start`.
    fn branch_end(&self, start: usize, limit: usize, fork: usize) -> usize {
        (start + 1..limit).find(|at| self.shared[*at] <= fork).unwrap_or(limit)
    }

    fn add_tree(&mut self, range: Range<usize>, depth: usize, prefix: Option<usize>) {
        let mut builder = TreeBuilder::new(depth);
        for at in range.clone() {
            builder.add(self.sequence(at), self.order[at], self.known(at, range.start, depth));
        }
        // It is empty if all sequences end with the prefix.
        if !builder.tokens.is_empty() {
            self.trees.push(builder.finish(prefix, None));
        }
    }

    /// Adds the tree of the tokens at `depths`, which all sequences in `range` share. It continues
    /// `prefix` and is cached as `new`.
    fn add_prefix(&mut self, range: &Range<usize>, depths: Range<usize>, prefix: Option<usize>, new: usize) {
        let mut builder = TreeBuilder::new(depths.start);
        for at in range.clone() {
            let Sequence { input, targets } = self.sequence(at);
            let known = if at == range.start { depths.start } else { depths.end };
            builder.add_part(&input[..depths.end], (input.len() - targets.len(), targets), self.order[at], known);
        }
        self.trees.push(builder.finish(prefix, Some(new)));
    }
}

/// Builds a tree from sorted sequences.
struct TreeBuilder {
    /// Number of tokens before the tree.
    depth: usize,
    tokens: Vec<u32>,
    parents: Vec<Option<u32>>,
    /// Indexes in `tokens` of the last sequence's tokens.
    path: Vec<u32>,
    questions: BTreeMap<(u32, u32), Vec<usize>>,
}

impl TreeBuilder {
    fn new(depth: usize) -> Self {
        Self { depth, tokens: Vec::new(), parents: Vec::new(), path: Vec::new(), questions: BTreeMap::new() }
    }

    /// Adds a sequence that shares its first `known` tokens with the previous one.
    fn add(&mut self, sequence: &Sequence, number: usize, known: usize) {
        let first = sequence.input.len() - sequence.targets.len();
        self.add_part(&sequence.input, (first, &sequence.targets), number, known);
    }

    /// Adds the prefix `input` of a sequence. `targets` are asked about after the inputs from
    /// `first` on.
    fn add_part(&mut self, input: &[u32], (first, targets): (usize, &[u32]), number: usize, known: usize) {
        self.path.truncate(known - self.depth);
        for &token in &input[known..] {
            self.parents.push(self.path.last().copied());
            self.path.push(self.tokens.len() as u32);
            self.tokens.push(token);
        }
        for position in first.max(self.depth)..input.len() {
            let place = self.path[position - self.depth];
            self.questions.entry((place, targets[position - first])).or_default().push(number);
        }
    }

    fn finish(self, prefix: Option<usize>, cached_as: Option<usize>) -> PlannedTree {
        let questions = self.questions.into_iter().map(|((place, token), owners)| (place, token, owners)).collect();
        PlannedTree { prefix, cached_as, tokens: self.tokens, parents: self.parents, questions }
    }
}

/// Packs `trees` into passes, in order.
fn pack(trees: Vec<PlannedTree>, prefixes: usize, max_tokens: usize) -> Plan {
    let mut plan = Plan { passes: Vec::new(), last_use: vec![0; prefixes] };
    let mut pass = Pass::default();
    for tree in trees {
        let is_full = pass.tokens() as usize + tree.tokens.len() > max_tokens;
        let waits = tree.prefix.is_some_and(|prefix| pass.trees.iter().any(|other| other.cached_as == Some(prefix)));
        if !pass.trees.is_empty() && (is_full || waits) {
            plan.passes.push(std::mem::take(&mut pass));
        }
        if let Some(prefix) = tree.prefix {
            plan.last_use[prefix] = plan.passes.len();
        }
        pass.trees.push(tree);
    }
    if !pass.trees.is_empty() {
        plan.passes.push(pass);
    }
    plan
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    /// Returns a plan's questions for each sequence as (tokens read before, token asked about), in
    /// the order of the answers.
    fn asked(plan: &Plan, sequences: usize) -> Vec<Vec<(Vec<u32>, u32)>> {
        let mut asked = vec![Vec::new(); sequences];
        let mut prefixes: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
        for (number, pass) in plan.passes.iter().enumerate() {
            let mut made = Vec::new();
            for tree in &pass.trees {
                let before = tree.prefix.map(|prefix| prefixes[&prefix].clone()).unwrap_or_default();
                if let Some(prefix) = tree.prefix {
                    assert!(plan.last_use[prefix] >= number);
                }
                let path = |place: u32| {
                    let mut path = vec![tree.tokens[place as usize]];
                    let mut at = tree.parents[place as usize];
                    while let Some(parent) = at {
                        path.push(tree.tokens[parent as usize]);
                        at = tree.parents[parent as usize];
                    }
                    path.extend(before.iter().rev());
                    path.reverse();
                    path
                };
                for (place, token, owners) in &tree.questions {
                    for owner in owners {
                        asked[*owner].push((path(*place), *token));
                    }
                }
                if let Some(prefix) = tree.cached_as {
                    made.push((prefix, path(tree.tokens.len() as u32 - 1)));
                }
            }
            prefixes.extend(made);
        }
        asked
    }

    fn expected(sequences: &[Sequence]) -> Vec<Vec<(Vec<u32>, u32)>> {
        let of = |sequence: &Sequence| {
            let first = sequence.input.len() - sequence.targets.len();
            (0..sequence.targets.len()).map(|i| (sequence.input[..=first + i].to_vec(), sequence.targets[i])).collect()
        };
        sequences.iter().map(of).collect()
    }

    fn sequences() -> impl Strategy<Value = Vec<Sequence>> {
        // Few different prefixes, so that many are shared; some of them are long.
        let prefix = (0_u32..3, 0_usize..200).prop_map(|(kind, length)| vec![kind; length]);
        let rest = prop::collection::vec(0_u32..3, 1..12);
        let sequence = (prefix, rest, 1_usize..12, prop::collection::vec(0_u32..5, 12)).prop_map(
            |(prefix, rest, targets, tokens)| {
                let input = [prefix, rest].concat();
                let targets = tokens[..targets.min(input.len())].to_vec();
                Sequence { input, targets }
            },
        );
        prop::collection::vec(sequence, 0..60)
    }

    proptest! {
        #[test]
        fn every_target_is_asked_about_once_after_what_comes_before(sequences in sequences(), budget in 1_usize..600) {
            let plan = Plan::new(&sequences, budget);
            prop_assert_eq!(asked(&plan, sequences.len()), expected(&sequences));
            prop_assert_eq!(asked(&Plan::one_by_one(&sequences), sequences.len()), expected(&sequences));
            let longest = sequences.iter().map(|sequence| sequence.input.len()).max().unwrap_or(0);
            for pass in &plan.passes {
                prop_assert!(pass.tokens() as usize <= budget.max(TREE_TOKENS).max(longest));
                prop_assert!(pass.trees.len() == 1 || pass.tokens() as usize <= budget);
            }
            let trees = |plan: &Plan| plan.passes.iter().flat_map(|pass| pass.trees.clone()).collect::<Vec<_>>();
            prop_assert_eq!(trees(&plan), trees(&Plan::new(&sequences, 10_000)));
        }
    }

    #[test]
    fn a_long_prefix_is_read_once() {
        let shots: Vec<u32> = (0..1000).collect();
        let question = |number: u32| {
            let own: Vec<u32> = (0..80).map(|i| 1000 + (number * 31 + i * i) % 500).collect();
            Sequence { input: [shots.clone(), own].concat(), targets: vec![7] }
        };
        // Every question has four answers of one token each.
        let sequences: Vec<Sequence> = (0..50).flat_map(|number| vec![question(number); 4]).collect();
        let plan = Plan::new(&sequences, 2048);
        assert!(plan.tokens() <= 1000 + 50 * 80, "{}", plan.tokens());
        assert_eq!((plan.last_use.len(), plan.passes[0].trees.len()), (1, 1));
        assert_eq!(Plan::one_by_one(&sequences).tokens(), 200 * 1080);
    }
}
