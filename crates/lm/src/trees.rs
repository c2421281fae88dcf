//! Many sequences in one forward pass, each token that several of them begin with read only once.
//!
//! Sequences that begin alike are a tree of tokens: each token sees those on its way from the root, itself included, and
//! stands as far from the start as they are many. What many trees begin with can be read before them and kept: a
//! [`Trunk`]. What the model says after a token is what it says without sharing, to rounding.
//!
//! Shapes: N tokens of all trees, T of one, P of its trunk, S = P + T, D width of the residual stream, H query heads, G key
//! and value heads, K width of a head, V vocabulary.
#![allow(non_snake_case)]

use tch::{Kind, TchError, Tensor, no_grad};

use crate::attention::{Heads, attend};
use crate::decoder::{Decoder, PositionEmbedding};
use crate::error::LmError;
use crate::positions::{Rope, Sequences, alibi};
use crate::shim::SCORE_ROWS;

/// Rows of a pass are a multiple of this. The libraries that compute on a CPU give a row the same bits whatever other rows there
/// are, but for two cases: a product of a few rows is another computation, and what is left over after the last whole
/// vectors (of 32 numbers with AVX-512) goes through other functions than these.
const ROWS: usize = 32;
/// What fills a pass up.
const FILLING: ([u32; ROWS], [Option<u32>; ROWS]) = ([0; ROWS], [None; ROWS]);

/// Tokens that begin sequences.
#[derive(Debug, Clone, Copy)]
pub struct Tree<'a> {
    /// What comes before all of them.
    pub trunk: Option<&'a Trunk>,
    /// Their ids.
    pub tokens: &'a [u32],
    /// The place in `tokens` of the one before each, which is earlier; none where it is the trunk, or nothing.
    pub parents: &'a [Option<u32>],
    /// Whether it is to be a trunk; then each token follows the one before it.
    pub is_trunk: bool,
}

/// What a row of tokens left behind in every block, for trees to grow from.
#[derive(Debug)]
pub struct Trunk {
    /// P.
    length: i64,
    /// Keys and values of each block, [1, G, P, K].
    blocks: Vec<(Tensor, Tensor)>,
}

/// Asks how likely a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    /// Which tree.
    pub tree: u32,
    /// After which of its tokens.
    pub place: u32,
    /// The token asked about.
    pub token: u32,
}

/// How likely a token is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Answer {
    /// Natural logarithm of its probability.
    pub log_probability: f32,
    /// Whether no token is likelier.
    pub is_greedy: bool,
}

impl Decoder {
    /// Reads `trees`, and answers `questions` about them in their order; gives the trunk of every tree that is to be one.
    /// Questions about one place that follow each other cost the head's product once. On a CPU an answer of a frozen model does
    /// not depend, to the last bit, on which other trees are read with its own.
    ///
    /// # Errors
    /// [`LmError::BadTokens`] for a token outside the vocabulary, a tree that is longer than the model's longest sequence or
    /// is none, a question about no place, or a trunk of another model.
    pub fn read_trees(&self, trees: &[Tree<'_>], questions: &[Question]) -> Result<(Vec<Answer>, Vec<Trunk>), LmError> {
        let mut rows = self.rows(trees)?;
        for question in questions {
            let tree = trees.get(question.tree as usize);
            if tree.is_none_or(|tree| question.place as usize >= tree.tokens.len()) {
                return Err(bad(format!("a question is about place {} of tree {}", question.place, question.tree)));
            }
            self.check_token(question.token)?;
        }
        let missing = rows.len().next_multiple_of(ROWS) - rows.len();
        let filling =
            Tree { trunk: None, tokens: &FILLING.0[..missing], parents: &FILLING.1[..missing], is_trunk: false };
        rows.extend(vec![0; missing]);
        let filled: Vec<Tree<'_>> = trees.iter().copied().chain((missing > 0).then_some(filling)).collect();
        no_grad(|| {
            let mut forest = Forest::new(self, &filled, &rows)?;
            let tokens: Vec<i64> = filled.iter().flat_map(|tree| tree.tokens).copied().map(i64::from).collect();
            let tokens_N = Tensor::f_from_slice(&tokens)?.f_to_device(self.device())?;
            let learned_ND = match self.position_embedding() {
                Some(PositionEmbedding { table_RD, first_row }) => Some(
                    table_RD.f_index_select(0, &forest.position_N.f_add_scalar(*first_row)?.f_to_kind(Kind::Int64)?)?,
                ),
                None => None,
            };
            let x_ND = self.hidden(&tokens_N, learned_ND.as_ref(), &mut forest)?;
            let trunks = forest.into_trunks();
            Ok((self.answer(&x_ND, trees, questions)?, trunks))
        })
    }

    /// How far each token of each tree is from its sequence's start; checks the trees.
    fn rows(&self, trees: &[Tree<'_>]) -> Result<Vec<i64>, LmError> {
        let limit = i64::from(self.config().max_positions);
        let mut positions: Vec<i64> = Vec::new();
        for (number, tree) in trees.iter().enumerate() {
            let first = positions.len();
            let trunk = tree.trunk.map_or(0, |trunk| trunk.length);
            if tree.tokens.is_empty() || tree.tokens.len() != tree.parents.len() {
                return Err(bad(format!(
                    "tree {number} has {} tokens, {} parents",
                    tree.tokens.len(),
                    tree.parents.len()
                )));
            }
            if tree.trunk.is_some_and(|trunk| trunk.blocks.len() != self.config().n_layers.0 as usize) {
                return Err(bad(format!("tree {number} grows from a trunk of another model")));
            }
            for (place, (&token, &parent)) in tree.tokens.iter().zip(tree.parents).enumerate() {
                self.check_token(token)?;
                let position = match parent {
                    None => trunk,
                    Some(parent) if (parent as usize) < place => positions[first + parent as usize] + 1,
                    Some(parent) => return Err(bad(format!("token {place} of tree {number} follows token {parent}"))),
                };
                if position >= limit {
                    return Err(bad(format!(
                        "a sequence of tree {number} is longer than {limit} tokens (max_positions)"
                    )));
                }
                if tree.is_trunk && position != trunk + place as i64 {
                    return Err(bad(format!("tree {number} branches and cannot be a trunk")));
                }
                positions.push(position);
            }
        }
        if positions.is_empty() {
            return Err(bad("there is no tree".to_owned()));
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
            // As many questions as need no more than so many rows of scores.
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
            // In place: a row is read before it is written, and nobody else has these.
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
struct Forest<'a> {
    trees: Vec<Grown<'a>>,
    rope: Option<Rope>,
    /// fp32.
    position_N: Tensor,
    /// Blocks that have attended.
    blocks: usize,
}

struct Grown<'a> {
    trunk: Option<&'a Trunk>,
    /// T.
    length: i64,
    /// Added to the scores, [1, 1 or H, T, S]; none where a token sees all before it.
    bias: Option<Tensor>,
    /// Keys and values, where it is to be a trunk.
    kept: Option<Vec<(Tensor, Tensor)>>,
}

impl<'a> Forest<'a> {
    fn new(decoder: &Decoder, trees: &[Tree<'a>], positions: &[i64]) -> Result<Self, TchError> {
        let position_N = Tensor::f_from_slice(positions)?.f_to_kind(Kind::Float)?.f_to_device(decoder.device())?;
        let mut start = 0;
        let mut grown = Vec::with_capacity(trees.len());
        for tree in trees {
            let length = tree.tokens.len() as i64;
            let trunk = tree.trunk.map_or(0, |trunk| trunk.length);
            let key_P = Tensor::f_arange(trunk, (Kind::Float, decoder.device()))?;
            let query_T = position_N.f_narrow(0, start, length)?;
            let distances = alibi(decoder.config(), &query_T, &Tensor::f_cat(&[&key_P, &query_T], 0)?)?;
            let is_row = tree.parents.iter().zip(0_u32..).all(|(parent, place)| *parent == place.checked_sub(1));
            let bias = if is_row && trunk == 0 && distances.is_none() {
                None
            } else {
                let unseen_TS = unseen(tree.parents, trunk)?.f_to_device(decoder.device())?;
                let bias = match distances {
                    Some(distance_HTS) => distance_HTS.f_add(&unseen_TS)?,
                    None => unseen_TS.f_unsqueeze(0)?,
                };
                // With four dimensions libtorch's fused attention takes it.
                Some(bias.f_unsqueeze(0)?.f_to_kind(decoder.compute_kind())?)
            };
            grown.push(Grown { trunk: tree.trunk, length, bias, kept: tree.is_trunk.then(Vec::new) });
            start += length;
        }
        Ok(Self { trees: grown, rope: Rope::of(decoder.config(), &position_N)?, position_N, blocks: 0 })
    }

    fn into_trunks(self) -> Vec<Trunk> {
        let trunk = |tree: Grown<'_>| {
            let length = tree.trunk.map_or(0, |trunk| trunk.length) + tree.length;
            tree.kept.map(|blocks| Trunk { length, blocks })
        };
        self.trees.into_iter().filter_map(trunk).collect()
    }
}

/// [T, S]: 0 where a token sees a key, which is the trunk's or one on its way from there, else minus infinity.
fn unseen(parents: &[Option<u32>], trunk: i64) -> Result<Tensor, TchError> {
    let trunk = trunk as usize;
    let keys = trunk + parents.len();
    let mut bias = vec![f32::NEG_INFINITY; parents.len() * keys];
    for (place, parent) in parents.iter().enumerate() {
        match parent {
            Some(parent) => bias.copy_within(*parent as usize * keys..(*parent as usize + 1) * keys, place * keys),
            None => bias[place * keys..place * keys + trunk].fill(0.0),
        }
        bias[place * keys + trunk + place] = 0.0;
    }
    Tensor::f_from_slice(&bias)?.f_view([parents.len() as i64, keys as i64])
}

impl Sequences for Forest<'_> {
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
            let (k_1GSK, v_1GSK) = match tree.trunk.and_then(|trunk| trunk.blocks.get(self.blocks)) {
                Some((k_1GPK, v_1GPK)) => {
                    (Tensor::f_cat(&[k_1GPK, &k_1GTK], 2)?, Tensor::f_cat(&[v_1GPK, &v_1GTK], 2)?)
                }
                None => (k_1GTK, v_1GTK),
            };
            found.push(attend(&q_1HTK, (&k_1GSK, &v_1GSK), tree.bias.as_ref(), heads.scale)?.f_squeeze_dim(0)?);
            if let Some(kept) = &mut tree.kept {
                // Not a view, which would keep the whole pass's.
                kept.push((k_1GSK.f_contiguous()?, v_1GSK.f_contiguous()?));
            }
            start += tree.length;
        }
        self.blocks += 1;
        Tensor::f_cat(&found, 0)
    }
}
