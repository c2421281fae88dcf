//! Which forward passes answer many sequences: what several of them begin with is read once. Pure.
//!
//! Sorted, sequences that begin alike are neighbours. Those that together have few tokens become one tree; where more have a
//! long beginning in common it becomes a trunk, read before them. The trees do not depend on how many fit into a pass.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::encoding::Sequence;

/// Tokens of a tree at most, but for one of a single sequence: attention compares them all with each other, so that more
/// would cost more than the passes they save.
const TREE_TOKENS: usize = 256;
/// A beginning becomes a trunk where that saves so many tokens.
const WORTH_A_TRUNK: usize = 128;

/// Passes in the order in which they are made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// Each needs trunks of earlier ones only.
    pub passes: Vec<Pass>,
    /// For each trunk the last pass that needs it.
    pub last_use: Vec<usize>,
}

/// One forward pass.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pass {
    /// Its trees.
    pub trees: Vec<PlannedTree>,
}

/// A tree, and what is asked about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedTree {
    /// The trunk it grows from.
    pub trunk: Option<usize>,
    /// The trunk it becomes.
    pub becomes: Option<usize>,
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// The place of the token before each.
    pub parents: Vec<Option<u32>>,
    /// After which place, which token, for which sequences; by place. Of one sequence they come in the order of its targets.
    pub questions: Vec<(u32, u32, Vec<usize>)>,
}

impl Plan {
    /// Answers `sequences`, at most `max_tokens` tokens a pass but for a single longer sequence.
    pub fn new(sequences: &[Sequence], max_tokens: usize) -> Self {
        let mut order: Vec<usize> = (0..sequences.len()).collect();
        order.sort_by(|a, b| sequences[*a].cmp(&sequences[*b]).then(a.cmp(b)));
        let shared: Vec<usize> = (0..order.len())
            .map(|at| if at == 0 { 0 } else { common(&sequences[order[at - 1]].input, &sequences[order[at]].input) })
            .collect();
        let mut grower = Grower { sequences, order, shared, trees: Vec::new(), trunks: 0 };
        grower.grow(0..sequences.len(), 0, None);
        pack(grower.trees, grower.trunks, max_tokens)
    }

    /// The same answers with nothing shared: each sequence in a pass of its own.
    pub fn one_by_one(sequences: &[Sequence]) -> Self {
        let tree = |(number, sequence): (usize, &Sequence)| {
            let mut builder = TreeBuilder::new(0);
            builder.add(sequence, number, 0);
            Pass { trees: vec![builder.finish(None, None)] }
        };
        Self { passes: sequences.iter().enumerate().map(tree).collect(), last_use: Vec::new() }
    }

    /// Tokens that will be read.
    pub fn tokens(&self) -> u64 {
        self.passes.iter().map(Pass::tokens).sum()
    }
}

impl Pass {
    /// Tokens that it reads.
    pub fn tokens(&self) -> u64 {
        self.trees.iter().map(|tree| tree.tokens.len() as u64).sum()
    }
}

/// How many elements two lists begin with in common.
fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

struct Grower<'a> {
    sequences: &'a [Sequence],
    /// Sequences by their input.
    order: Vec<usize>,
    /// What each has in common with the one before it in that order.
    shared: Vec<usize>,
    trees: Vec<PlannedTree>,
    trunks: usize,
}

impl Grower<'_> {
    fn sequence(&self, at: usize) -> &Sequence {
        &self.sequences[self.order[at]]
    }

    /// Different tokens of the sequences in `range` after the first `depth`, which they have in common.
    fn size(&self, range: &Range<usize>, depth: usize) -> usize {
        range.clone().map(|at| self.sequence(at).input.len().saturating_sub(self.known(at, range.start, depth))).sum()
    }

    /// Tokens of a sequence that are there already, where those from `start` on share one tree or trunk of `depth` tokens.
    fn known(&self, at: usize, start: usize, depth: usize) -> usize {
        if at == start { depth } else { self.shared[at].max(depth) }
    }

    /// Plans the sequences in `range`, which have their first `depth` tokens in common; those are in `trunk`.
    fn grow(&mut self, range: Range<usize>, depth: usize, trunk: Option<usize>) {
        if range.is_empty() {
            return;
        }
        let shortest = self.sequence(range.start).input.len();
        let fork = range.clone().skip(1).map(|at| self.shared[at]).min().unwrap_or(shortest);
        let size = self.size(&range, depth);
        if size <= TREE_TOKENS || fork == self.sequence(range.end - 1).input.len() {
            return self.tree(range, depth, trunk);
        }
        if (fork - depth) * (size / TREE_TOKENS) >= WORTH_A_TRUNK {
            let new = self.trunks;
            self.trunks += 1;
            self.trunk(&range, depth..fork, trunk, new);
            return self.grow(range, fork, Some(new));
        }
        // Neighbouring branches that fit into one tree together become one.
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
                self.tree(start..end, depth, trunk);
            } else {
                self.grow(start..end, depth, trunk);
            }
            start = end;
        }
    }

    /// Where the sequences end that have more than `fork` tokens in common with the one at `start`.
    fn branch_end(&self, start: usize, limit: usize, fork: usize) -> usize {
        (start + 1..limit).find(|at| self.shared[*at] <= fork).unwrap_or(limit)
    }

    fn tree(&mut self, range: Range<usize>, depth: usize, trunk: Option<usize>) {
        let mut builder = TreeBuilder::new(depth);
        for at in range.clone() {
            builder.add(self.sequence(at), self.order[at], self.known(at, range.start, depth));
        }
        // None where they all end with the trunk.
        if !builder.tokens.is_empty() {
            self.trees.push(builder.finish(trunk, None));
        }
    }

    fn trunk(&mut self, range: &Range<usize>, depths: Range<usize>, trunk: Option<usize>, new: usize) {
        let mut builder = TreeBuilder::new(depths.start);
        for at in range.clone() {
            let Sequence { input, targets } = self.sequence(at);
            let known = if at == range.start { depths.start } else { depths.end };
            builder.add_part(&input[..depths.end], (input.len() - targets.len(), targets), self.order[at], known);
        }
        self.trees.push(builder.finish(trunk, Some(new)));
    }
}

/// A tree in the making; sequences come sorted.
struct TreeBuilder {
    /// Tokens before it.
    depth: usize,
    tokens: Vec<u32>,
    parents: Vec<Option<u32>>,
    /// Places of the tokens of the last sequence.
    way: Vec<u32>,
    questions: BTreeMap<(u32, u32), Vec<usize>>,
}

impl TreeBuilder {
    fn new(depth: usize) -> Self {
        Self { depth, tokens: Vec::new(), parents: Vec::new(), way: Vec::new(), questions: BTreeMap::new() }
    }

    /// Adds a sequence whose first `known` tokens are those of the one before it.
    fn add(&mut self, sequence: &Sequence, number: usize, known: usize) {
        let first = sequence.input.len() - sequence.targets.len();
        self.add_part(&sequence.input, (first, &sequence.targets), number, known);
    }

    /// Adds the beginning `input` of a sequence, of which the inputs from `first` on are asked about.
    fn add_part(&mut self, input: &[u32], (first, targets): (usize, &[u32]), number: usize, known: usize) {
        self.way.truncate(known - self.depth);
        for &token in &input[known..] {
            self.parents.push(self.way.last().copied());
            self.way.push(self.tokens.len() as u32);
            self.tokens.push(token);
        }
        for position in first.max(self.depth)..input.len() {
            let place = self.way[position - self.depth];
            self.questions.entry((place, targets[position - first])).or_default().push(number);
        }
    }

    fn finish(self, trunk: Option<usize>, becomes: Option<usize>) -> PlannedTree {
        let questions = self.questions.into_iter().map(|((place, token), owners)| (place, token, owners)).collect();
        PlannedTree { trunk, becomes, tokens: self.tokens, parents: self.parents, questions }
    }
}

fn pack(trees: Vec<PlannedTree>, trunks: usize, max_tokens: usize) -> Plan {
    let mut plan = Plan { passes: Vec::new(), last_use: vec![0; trunks] };
    let mut pass = Pass::default();
    for tree in trees {
        let is_full = pass.tokens() as usize + tree.tokens.len() > max_tokens;
        let waits = tree.trunk.is_some_and(|trunk| pass.trees.iter().any(|other| other.becomes == Some(trunk)));
        if !pass.trees.is_empty() && (is_full || waits) {
            plan.passes.push(std::mem::take(&mut pass));
        }
        if let Some(trunk) = tree.trunk {
            plan.last_use[trunk] = plan.passes.len();
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

    /// What a plan asks for each sequence, as (what is read before, the token), in the order of the answers.
    fn asked(plan: &Plan, sequences: usize) -> Vec<Vec<(Vec<u32>, u32)>> {
        let mut asked = vec![Vec::new(); sequences];
        let mut trunks: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
        for (number, pass) in plan.passes.iter().enumerate() {
            let mut made = Vec::new();
            for tree in &pass.trees {
                let before = tree.trunk.map(|trunk| trunks[&trunk].clone()).unwrap_or_default();
                if let Some(trunk) = tree.trunk {
                    assert!(plan.last_use[trunk] >= number);
                }
                let way = |place: u32| {
                    let mut way = vec![tree.tokens[place as usize]];
                    let mut at = tree.parents[place as usize];
                    while let Some(parent) = at {
                        way.push(tree.tokens[parent as usize]);
                        at = tree.parents[parent as usize];
                    }
                    way.extend(before.iter().rev());
                    way.reverse();
                    way
                };
                for (place, token, owners) in &tree.questions {
                    for owner in owners {
                        asked[*owner].push((way(*place), *token));
                    }
                }
                if let Some(trunk) = tree.becomes {
                    made.push((trunk, way(tree.tokens.len() as u32 - 1)));
                }
            }
            trunks.extend(made);
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
        // Beginnings from a small choice, so that many are shared, some of them long.
        let beginning = (0_u32..3, 0_usize..200).prop_map(|(kind, length)| vec![kind; length]);
        let rest = prop::collection::vec(0_u32..3, 1..12);
        let sequence = (beginning, rest, 1_usize..12, prop::collection::vec(0_u32..5, 12)).prop_map(
            |(beginning, rest, targets, tokens)| {
                let input = [beginning, rest].concat();
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
    fn a_long_beginning_is_read_once() {
        let shots: Vec<u32> = (0..1000).collect();
        let question = |number: u32| {
            let own: Vec<u32> = (0..80).map(|i| 1000 + (number * 31 + i * i) % 500).collect();
            Sequence { input: [shots.clone(), own].concat(), targets: vec![7] }
        };
        // Four answers of one token each to every question.
        let sequences: Vec<Sequence> = (0..50).flat_map(|number| vec![question(number); 4]).collect();
        let plan = Plan::new(&sequences, 2048);
        assert!(plan.tokens() <= 1000 + 50 * 80, "{}", plan.tokens());
        assert_eq!((plan.last_use.len(), plan.passes[0].trees.len()), (1, 1));
        assert_eq!(Plan::one_by_one(&sequences).tokens(), 200 * 1080);
    }
}
