//! Many sequences in one forward pass that reads their common prefixes only once.
//!
//! Sequences with a common prefix form a tree of tokens. Each token sees the tokens on its path
//! from the root, including itself, and its position is the number of tokens before it on this
//! path. The common prefix of many trees can be read before them and cached: a [`CachedPrefix`].
//! The model's predictions equal those without sharing, up to rounding.
//!
//! Shapes: N tokens of all trees, T of one tree, P of its prefix, S = P + T, D width of the
//! residual stream, H query heads, G key and value heads, K width of a head, V vocabulary.
#![allow(non_snake_case)]

use tch::{Kind, TchError, Tensor, no_grad};

use crate::attention::{Heads, attend};
use crate::decoder::{Decoder, PositionEmbedding};
use crate::error::LmError;
use crate::positions::{Rope, Sequences, alibi};
use crate::shim::SCORE_ROWS;

/// The number of rows of a pass is a multiple of this. On a CPU, the libraries compute the same
/// bits for a row regardless of the other rows, with two exceptions: products of few rows use a
/// different algorithm, and the remainder after the last full vectors (of 32 numbers with AVX-512)
/// uses different functions.
const ROWS: usize = 32;
/// The padding of a pass.
const FILLING: ([u32; ROWS], [Option<u32>; ROWS]) = ([0; ROWS], [None; ROWS]);

/// A tree of tokens; each path from the root is the prefix of a sequence.
#[derive(Debug, Clone, Copy)]
pub struct Tree<'a> {
    /// The prefix of all its sequences.
    pub prefix: Option<&'a CachedPrefix>,
    /// Token ids.
    pub tokens: &'a [u32],
    /// Index in `tokens` of each token's predecessor, which must be smaller than the token's own
    /// index. `None` if the token follows the prefix, or is the first of its sequence.
    pub parents: &'a [Option<u32>],
    /// Whether the tree is cached as a prefix. Then each token must follow the previous one.
    pub is_cached: bool,
}

/// The cached keys and values of a prefix, which trees continue.
#[derive(Debug)]
pub struct CachedPrefix {
    /// P.
    length: i64,
    /// Keys and values of each block, [1, G, P, K].
    blocks: Vec<(Tensor, Tensor)>,
}

/// A question about the probability of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    /// The tree's index.
    pub tree: u32,
    /// Index of the token in the tree after which `token` is predicted.
    pub place: u32,
    /// The token asked about.
    pub token: u32,
}

/// The probability of a token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Answer {
    /// Natural logarithm of the token's probability.
    pub log_probability: f32,
    /// Whether no other token is more likely.
    pub is_greedy: bool,
}

impl Decoder {
    /// Reads `trees` and answers `questions` about them. Returns the answers in the order of the
    /// questions, and the prefix of every tree with `is_cached`. Adjacent questions about the same
    /// place share one product of the head. On a CPU, the bits of a frozen model's answer do not
    /// depend on the other trees in the pass.
    ///
    /// # Errors
    /// [`LmError::BadTokens`] for a token outside the vocabulary, a sequence longer than the model
    /// supports, an invalid tree, a question about a place that does not exist, or a prefix from
    /// another model.
    pub fn read_trees(
        &self,
        trees: &[Tree<'_>],
        questions: &[Question],
    ) -> Result<(Vec<Answer>, Vec<CachedPrefix>), LmError> {
        let mut rows = self.rows(trees)?;
        for question in questions {
            let tree = trees.get(question.tree as usize);
            if tree.is_none_or(|tree| question.place as usize >= tree.tokens.len()) {
                return Err(bad(format!(
                    "a question is about place {} of tree {}, which does not exist",
                    question.place, question.tree
                )));
            }
            self.check_token(question.token)?;
        }
        let missing = rows.len().next_multiple_of(ROWS) - rows.len();
        let filling =
            Tree { prefix: None, tokens: &FILLING.0[..missing], parents: &FILLING.1[..missing], is_cached: false };
        rows.extend(vec![0; missing]);
        let filled: Vec<Tree<'_>> = trees.iter().copied().chain((missing > 0).then_some(filling)).collect();
        no_grad(|| {
            let mut forest = PrefixForest::new(self, &filled, &rows)?;
            let tokens: Vec<i64> = filled.iter().flat_map(|tree| tree.tokens).copied().map(i64::from).collect();
            let tokens_N = Tensor::f_from_slice(&tokens)?.f_to_device(self.device())?;
            let learned_ND = match self.position_embedding() {
                Some(PositionEmbedding { table_RD, first_row }) => Some(
                    table_RD.f_index_select(0, &forest.position_N.f_add_scalar(*first_row)?.f_to_kind(Kind::Int64)?)?,
                ),
                None => None,
            };
            let x_ND = self.hidden(&tokens_N, learned_ND.as_ref(), &mut forest)?;
            let prefixes = forest.into_prefixes();
            Ok((self.answer(&x_ND, trees, questions)?, prefixes))
        })
    }

    /// Checks the trees and returns the position of each token in its sequence.
    fn rows(&self, trees: &[Tree<'_>]) -> Result<Vec<i64>, LmError> {
        let limit = i64::from(self.config().max_positions);
        let mut positions: Vec<i64> = Vec::new();
        for (number, tree) in trees.iter().enumerate() {
            let first = positions.len();
            let prefix = tree.prefix.map_or(0, |prefix| prefix.length);
            if tree.tokens.is_empty() || tree.tokens.len() != tree.parents.len() {
                return Err(bad(format!(
                    "tree {number} has {} tokens and {} parents",
                    tree.tokens.len(),
                    tree.parents.len()
                )));
            }
            if tree.prefix.is_some_and(|prefix| prefix.blocks.len() != self.config().n_layers.0 as usize) {
                return Err(bad(format!("tree {number} continues a prefix from another model")));
            }
            for (place, (&token, &parent)) in tree.tokens.iter().zip(tree.parents).enumerate() {
                self.check_token(token)?;
                let position = match parent {
                    None => prefix,
                    Some(parent) if (parent as usize) < place => positions[first + parent as usize] + 1,
                    Some(parent) => {
                        return Err(bad(format!(
                            "token {place} of tree {number} has parent {parent}, which is not an earlier token"
                        )));
                    }
                };
                if position >= limit {
                    return Err(bad(format!(
                        "a sequence of tree {number} is longer than {limit} tokens (max_positions)"
                    )));
                }
                if tree.is_cached && position != prefix + place as i64 {
                    return Err(bad(format!("tree {number} branches and cannot be cached as a prefix")));
                }
                positions.push(position);
            }
        }
        if positions.is_empty() {
            return Err(bad("there are no trees to read".to_owned()));
        }
        Ok(positions)
    }

    fn check_token(&self, token: u32) -> Result<(), LmError> {
        let size = self.config().vocab_size;
        if token < size {
            return Ok(());
        }
        Err(bad(format!("token {token} is outside the model's vocabulary of {size} tokens")))
    }

    fn answer(&self, x_ND: &Tensor, trees: &[Tree<'_>], questions: &[Question]) -> Result<Vec<Answer>, LmError> {
        let starts: Vec<i64> = trees
            .iter()
            .scan(0, |next, tree| {
                let start = *next;
                *next += tree.tokens.len() as i64;
                Some(start)
            })
            .collect();
        let row_of = |question: &Question| starts[question.tree as usize] + i64::from(question.place);
        let head_VD = self.head()?;
        let mut answers = Vec::with_capacity(questions.len());
        let mut rest = questions;
        while !rest.is_empty() {
            // Takes as many questions as fit into SCORE_ROWS rows of scores.
            let mut rows: Vec<i64> = Vec::new();
            let mut row_of_question: Vec<usize> = Vec::new();
            for question in rest {
                if rows.last() != Some(&row_of(question)) {
                    if rows.len() == SCORE_ROWS as usize {
                        break;
                    }
                    rows.push(row_of(question));
                }
                row_of_question.push(rows.len() - 1);
            }
            let (asked, later) = rest.split_at(row_of_question.len());
            rest = later;
            rows.resize(rows.len().max(ROWS), rows[0]);
            let rows_R = Tensor::f_from_slice(&rows)?.f_to_device(self.device())?;
            let logits_RV =
                x_ND.f_index_select(0, &rows_R)?.f_linear::<&Tensor>(&head_VD, None)?.f_to_kind(Kind::Float)?;
            let width = logits_RV.size2()?.1;
            // In place is safe: a row is read before it is written, and nothing else uses the logits.
            let log_p_RV = Tensor::f_internal_log_softmax_out(&logits_RV, &logits_RV, 1, false)?;
            let picks: Vec<i64> = asked
                .iter()
                .zip(&row_of_question)
                .map(|(question, row)| *row as i64 * width + i64::from(question.token))
                .collect();
            let picks_Q = Tensor::f_from_slice(&picks)?.f_to_device(self.device())?;
            let picked = Vec::<f32>::try_from(&log_p_RV.f_view([-1])?.f_index_select(0, &picks_Q)?)?;
            let highest = Vec::<f32>::try_from(&log_p_RV.f_amax([1], false)?)?;
            answers.extend(picked.iter().zip(&row_of_question).map(|(log_probability, &row)| Answer {
                log_probability: *log_probability,
                is_greedy: *log_probability >= highest[row],
            }));
        }
        Ok(answers)
    }
}

fn bad(problem: String) -> LmError {
    LmError::BadTokens { problem }
}

/// The trees of one pass.
struct PrefixForest<'a> {
    trees: Vec<AttentionTree<'a>>,
    rope: Option<Rope>,
    /// fp32.
    position_N: Tensor,
    /// Number of blocks that have attended so far.
    blocks: usize,
}

/// What attention needs of one tree.
struct AttentionTree<'a> {
    prefix: Option<&'a CachedPrefix>,
    /// T.
    length: i64,
    /// Added to the scores, [1, 1 or H, T, S]; `None` if every token sees all previous tokens.
    bias: Option<Tensor>,
    /// Keys and values of each block, if the tree is cached as a prefix.
    cached: Option<Vec<(Tensor, Tensor)>>,
}

impl<'a> PrefixForest<'a> {
    fn new(decoder: &Decoder, trees: &[Tree<'a>], positions: &[i64]) -> Result<Self, TchError> {
        let position_N = Tensor::f_from_slice(positions)?.f_to_kind(Kind::Float)?.f_to_device(decoder.device())?;
        let mut start = 0;
        let mut attention_trees = Vec::with_capacity(trees.len());
        for tree in trees {
            let length = tree.tokens.len() as i64;
            let prefix = tree.prefix.map_or(0, |prefix| prefix.length);
            let key_P = Tensor::f_arange(prefix, (Kind::Float, decoder.device()))?;
            let query_T = position_N.f_narrow(0, start, length)?;
            let distances = alibi(decoder.config(), &query_T, &Tensor::f_cat(&[&key_P, &query_T], 0)?)?;
            let is_row = tree.parents.iter().zip(0_u32..).all(|(parent, place)| *parent == place.checked_sub(1));
            let bias = if is_row && prefix == 0 && distances.is_none() {
                None
            } else {
                let unseen_TS = unseen(tree.parents, prefix)?.f_to_device(decoder.device())?;
                let bias = match distances {
                    Some(distance_HTS) => distance_HTS.f_add(&unseen_TS)?,
                    None => unseen_TS.f_unsqueeze(0)?,
                };
                // libtorch's fused attention requires four dimensions.
                Some(bias.f_unsqueeze(0)?.f_to_kind(decoder.compute_kind())?)
            };
            let cached = tree.is_cached.then(Vec::new);
            attention_trees.push(AttentionTree { prefix: tree.prefix, length, bias, cached });
            start += length;
        }
        Ok(Self { trees: attention_trees, rope: Rope::of(decoder.config(), &position_N)?, position_N, blocks: 0 })
    }

    fn into_prefixes(self) -> Vec<CachedPrefix> {
        let prefix = |tree: AttentionTree<'_>| {
            let length = tree.prefix.map_or(0, |prefix| prefix.length) + tree.length;
            tree.cached.map(|blocks| CachedPrefix { length, blocks })
        };
        self.trees.into_iter().filter_map(prefix).collect()
    }
}

/// [T, S]: 0 if a token sees a key, which is in the prefix or on the token's path, else minus
/// infinity.
fn unseen(parents: &[Option<u32>], prefix: i64) -> Result<Tensor, TchError> {
    let prefix = prefix as usize;
    let keys = prefix + parents.len();
    let mut bias = vec![f32::NEG_INFINITY; parents.len() * keys];
    for (place, parent) in parents.iter().enumerate() {
        match parent {
            Some(parent) => bias.copy_within(*parent as usize * keys..(*parent as usize + 1) * keys, place * keys),
            None => bias[place * keys..place * keys + prefix].fill(0.0),
        }
        bias[place * keys + prefix + place] = 0.0;
    }
    Tensor::f_from_slice(&bias)?.f_view([parents.len() as i64, keys as i64])
}

impl Sequences for PrefixForest<'_> {
    fn batch(&self) -> i64 {
        1
    }

    fn rope(&self) -> Option<&Rope> {
        self.rope.as_ref()
    }

    fn attend(&mut self, heads: &Heads) -> Result<Tensor, TchError> {
        let mut start = 0;
        let mut found = Vec::with_capacity(self.trees.len());
        for tree in &mut self.trees {
            let of_tree = |x_1NHK: &Tensor| x_1NHK.f_narrow(1, start, tree.length)?.f_transpose(1, 2);
            let (q_1HTK, k_1GTK, v_1GTK) = (of_tree(&heads.q_BTHK)?, of_tree(&heads.k_BTGK)?, of_tree(&heads.v_BTGK)?);
            let (k_1GSK, v_1GSK) = match tree.prefix.and_then(|prefix| prefix.blocks.get(self.blocks)) {
                Some((k_1GPK, v_1GPK)) => {
                    (Tensor::f_cat(&[k_1GPK, &k_1GTK], 2)?, Tensor::f_cat(&[v_1GPK, &v_1GTK], 2)?)
                }
                None => (k_1GTK, v_1GTK),
            };
            found.push(attend(&q_1HTK, (&k_1GSK, &v_1GSK), tree.bias.as_ref(), heads.scale)?.f_squeeze_dim(0)?);
            if let Some(cached) = &mut tree.cached {
                // Copies, because a view would keep the tensors of the whole pass alive.
                cached.push((k_1GSK.f_contiguous()?, v_1GSK.f_contiguous()?));
            }
            start += tree.length;
        }
        self.blocks += 1;
        Tensor::f_cat(&found, 0)
    }
}
