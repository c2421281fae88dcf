//! Cuts tokens into the windows that a model reads at once. Pure.

use std::ops::Range;

/// The part of one sequence in one forward pass: the model reads `input`, and the last `scored` of
/// `targets` are scored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// The sequence or document that the window belongs to.
    pub unit: usize,
    /// Token ids.
    pub input: Vec<i64>,
    /// The token after each of `input`; of the same length.
    pub targets: Vec<i64>,
    /// Number of scored targets, from the end.
    pub scored: usize,
}

/// Returns the number of windows that [`block_range`] cuts `tokens` tokens into.
pub fn block_count(tokens: u64, block_size: u64) -> u64 {
    tokens.saturating_sub(1).div_ceil(block_size.max(1))
}

/// Returns the tokens of window `index`: its inputs are all but the last of them, its targets all
/// but the first.
///
/// Windows do not overlap: window i predicts the tokens `i·block_size + 1` to `(i + 1)·block_size`,
/// and the last window the remaining ones. So every token except the first of all is a target
/// exactly once, predicted from the preceding tokens of its window.
pub fn block_range(index: u64, tokens: u64, block_size: u64) -> Range<u64> {
    let start = index * block_size;
    start..(start + block_size + 1).min(tokens)
}

/// Returns the window over `tokens`, which are those of a [`block_range`]. All targets are scored.
pub fn block(unit: usize, tokens: Vec<i64>) -> Window {
    let targets = tokens.get(1..).unwrap_or_default().to_vec();
    let mut input = tokens;
    input.pop();
    Window { unit, scored: targets.len(), input, targets }
}

/// Returns lm-evaluation-harness's rolling windows over a document's `tokens`
/// (`get_rolling_token_windows` with a context of one token, then `make_disjoint_window`). Every
/// token is scored once. The first window starts with `prefix`, and the following windows with the
/// token before their first target. The last window is extended with earlier tokens to
/// `max_length`; these are not scored again.
pub fn rolling(unit: usize, tokens: &[i64], prefix: i64, max_length: usize) -> Vec<Window> {
    let mut windows = Vec::new();
    let first = tokens.len().min(max_length);
    if first > 0 {
        let input = [prefix].iter().chain(&tokens[..first - 1]).copied().collect();
        windows.push(Window { unit, input, targets: tokens[..first].to_vec(), scored: first });
    }
    let mut done = first;
    while done < tokens.len() {
        let scored = (tokens.len() - done).min(max_length);
        let end = done + scored;
        windows.push(Window {
            unit,
            input: tokens[end - max_length - 1..end - 1].to_vec(),
            targets: tokens[end - max_length..end].to_vec(),
            scored,
        });
        done = end;
    }
    windows
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn blocks_score_every_token_but_the_first_once(tokens in 0_u64..200, block_size in 1_u64..40) {
            let mut scored = Vec::new();
            for index in 0..block_count(tokens, block_size) {
                let window = block(index as usize, block_range(index, tokens, block_size).map(|t| t as i64).collect());
                prop_assert!(!window.input.is_empty() && window.input.len() as u64 <= block_size);
                prop_assert_eq!(window.input.len(), window.targets.len());
                prop_assert!(window.input.iter().zip(&window.targets).all(|(a, b)| a + 1 == *b));
                scored.extend(window.targets);
            }
            prop_assert_eq!(scored, (1..tokens as i64).collect::<Vec<_>>());
        }

        #[test]
        fn rolling_windows_score_every_token_once(tokens in 0_i64..100, max_length in 1_usize..30) {
            let document: Vec<i64> = (0..tokens).collect();
            let mut scored: Vec<i64> = Vec::new();
            for window in rolling(0, &document, -1, max_length) {
                prop_assert_eq!(window.input.len(), window.targets.len());
                prop_assert!(window.input.len() <= max_length);
                prop_assert!(window.input.iter().zip(&window.targets).all(|(a, b)| a + 1 == *b));
                scored.extend(&window.targets[window.targets.len() - window.scored..]);
            }
            prop_assert_eq!(scored, document);
        }
    }

    #[test]
    fn rolling_windows_are_the_harness_s() {
        // lm_eval 0.4.13: [make_disjoint_window(w) for w in get_rolling_token_windows(list(range(10)), -100, 4, 1)]
        // gives ([-100], [0..4]), ([3], [4..8]), ([5, 6, 7], [8, 9]); a window's input is context + targets but the last.
        let document: Vec<i64> = (0..10).collect();
        let windows: Vec<_> = rolling(7, &document, -100, 4).into_iter().map(|w| (w.input, w.scored)).collect();
        assert_eq!(windows, [(vec![-100, 0, 1, 2], 4), (vec![3, 4, 5, 6], 4), (vec![5, 6, 7, 8], 2)]);
    }
}
