//! Undoes WikiText's tokenization, as lm-evaluation-harness does before it scores a page.

/// Plain replacements before the brackets, in order.
const BEFORE: [(&str, &str); 10] = [
    ("s '", "s'"),
    (" @-@ ", "-"),
    (" @,@ ", ","),
    (" @.@ ", "."),
    (" : ", ": "),
    (" ; ", "; "),
    (" . ", ". "),
    (" ! ", "! "),
    (" ? ", "? "),
    (" , ", ", "),
];

/// Pairs whose content is trimmed at both ends, in order.
const BRACKETS: [(char, char); 5] = [('(', ')'), ('[', ']'), ('{', '}'), ('"', '"'), ('\'', '\'')];

/// Plain replacements after the brackets, in order.
const AFTER: [(&str, &str); 8] = [
    ("= = = =", "===="),
    ("= = =", "==="),
    ("= =", "=="),
    (" \u{b0} ", "\u{b0}"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
];

/// `wikitext_detokenizer` of lm-evaluation-harness 0.4.13
/// (`tasks/wikitext/preprocess_wikitext.py`). Its second rule, the pattern `/' [0-9]/`, is omitted:
/// its slashes are the delimiters of another language, so it matches nothing.
pub fn detokenize(page: &str) -> String {
    let mut text = page.to_owned();
    for (from, to) in BEFORE {
        text = text.replace(from, to);
    }
    for (open, close) in BRACKETS {
        text = trim_inside(&text, open, close);
    }
    for (from, to) in AFTER {
        text = text.replace(from, to);
    }
    text
}

/// Replaces matches of the pattern `open\s*(shortest run without close)\s*close` by `open\1close`.
fn trim_inside(text: &str, open: char, close: char) -> String {
    let mut trimmed = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(open) {
        let Some((inside, next)) = after.split_once(close) else {
            break;
        };
        trimmed.push_str(before);
        trimmed.push(open);
        trimmed.push_str(inside.trim_matches(crate::metrics::is_python_space));
        trimmed.push(close);
        rest = next;
    }
    trimmed.push_str(rest);
    trimmed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_apply_in_the_harness_s_order() {
        for (page, text) in [
            (" = Robert Boulter = \n \n He", " = Robert Boulter =\n\nHe"),
            ("a guest @-@ starring role , 1 @,@ 000 .", "a guest-starring role, 1,000 ."),
            ("in \" Teddy 's Story \" ( 1990 ) .", "in \"Teddy's Story\" (1990) ."),
            ("( a ( b ) c )", "(a ( b) c )"),
            ("= = Career = =", "== Career =="),
            ("open ( only", "open ( only"),
        ] {
            assert_eq!(detokenize(page), text);
        }
    }
}
