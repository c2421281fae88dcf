//! Estimates the cost of a tokenizer's regular expressions, in Oniguruma's syntax, from their
//! structure.
//!
//! Oniguruma backtracks, so a pattern can take time exponential in the text. The causes are
//! rejected: repetitions of something that can match in several ways, long chains of choices, and
//! backreferences. The patterns of published tokenizers have none of these; they only repeat single
//! characters.

/// Maximum length of a pattern. Those of published tokenizers have about 300 bytes.
const MAX_BYTES: usize = 16 << 10;
/// Maximum nesting depth of groups.
const MAX_DEPTH: usize = 32;
/// Maximum number of unbounded repetitions in one match. The time grows with the length of a run to
/// this power.
const MAX_REPETITIONS: usize = 3;
/// Maximum number of choices in one match.
const MAX_CHOICES: usize = 12;
/// Maximum count in braces, and maximum product of nested counts.
const MAX_COUNT: usize = 1024;
/// A repetition with at most this count counts as choices, one with a larger count as unbounded.
const FEW: usize = 16;

/// Properties of a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pattern {
    /// Minimum length of a match, in bytes.
    pub min_bytes: usize,
}

impl Pattern {
    /// Parses a pattern.
    ///
    /// # Errors
    /// The pattern may take too long, or has unsupported syntax. The message follows "the
    /// pattern".
    pub fn parse(pattern: &str) -> Result<Self, String> {
        if pattern.len() > MAX_BYTES {
            return Err(format!("is {} bytes long; at most {MAX_BYTES} are read", pattern.len()));
        }
        let mut reader = Reader { rest: pattern };
        let shape = reader.alternatives(0)?;
        if !reader.rest.is_empty() {
            return Err("has an unmatched `)`".to_owned());
        }
        if shape.repetitions > MAX_REPETITIONS {
            return Err(format!(
                "has {} consecutive unbounded repetitions; at most {MAX_REPETITIONS} are accepted, because the time \
                 grows with the length of the text to that power",
                shape.repetitions
            ));
        }
        if shape.choices > MAX_CHOICES {
            return Err(format!("has {} consecutive choices; at most {MAX_CHOICES} are accepted", shape.choices));
        }
        Ok(Self { min_bytes: shape.min_bytes })
    }
}

/// How a part of a pattern can match.
#[derive(Debug, Clone, Copy, Default)]
struct Shape {
    min_bytes: usize,
    /// Number of unbounded repetitions on the worst path.
    repetitions: usize,
    /// Number of choice points on the worst path.
    choices: usize,
    /// Product of the counts of nested braces.
    count: usize,
}

struct Reader<'a> {
    rest: &'a str,
}

impl Reader<'_> {
    fn alternatives(&mut self, depth: usize) -> Result<Shape, String> {
        if depth > MAX_DEPTH {
            return Err(format!("has groups nested more than {MAX_DEPTH} levels deep"));
        }
        let mut all = self.sequence(depth)?;
        while self.skip("|") {
            let other = self.sequence(depth)?;
            all = Shape {
                min_bytes: all.min_bytes.min(other.min_bytes),
                repetitions: all.repetitions.max(other.repetitions),
                choices: all.choices.max(other.choices).max(1),
                count: all.count.max(other.count),
            };
        }
        Ok(all)
    }

    fn sequence(&mut self, depth: usize) -> Result<Shape, String> {
        let mut all = Shape { count: 1, ..Shape::default() };
        while !self.rest.is_empty() && !self.rest.starts_with(['|', ')']) {
            let mut part = self.atom(depth)?;
            while let Some((low, high)) = self.quantifier() {
                part = repeated(part, low, high)?;
            }
            all.min_bytes = all.min_bytes.saturating_add(part.min_bytes);
            all.repetitions += part.repetitions;
            all.choices += part.choices;
            all.count = all.count.max(part.count);
        }
        Ok(all)
    }

    fn atom(&mut self, depth: usize) -> Result<Shape, String> {
        let one = |min_bytes| Shape { min_bytes, count: 1, ..Shape::default() };
        match self.next() {
            Some('(') => self.group(depth),
            Some('[') => self.class(depth).map(|()| one(1)),
            Some('\\') => self.escape().map(one),
            Some('^' | '$') => Ok(one(0)),
            Some('.') => Ok(one(1)),
            Some(other) => Ok(one(other.len_utf8())),
            None => Ok(one(0)),
        }
    }

    fn group(&mut self, depth: usize) -> Result<Shape, String> {
        if self.skip("?#") {
            let end = self.rest.find(')').ok_or("has an unclosed group")?;
            self.rest = &self.rest[end + 1..];
            return Ok(Shape { count: 1, ..Shape::default() });
        }
        let is_look = ["?=", "?!", "?<=", "?<!"].into_iter().any(|start| self.skip(start));
        if !is_look && self.skip("?") && !self.skip(":") && !self.skip(">") {
            self.named_or_flags()?;
            if self.skip(")") {
                return Ok(Shape { count: 1, ..Shape::default() });
            }
        }
        let mut shape = self.alternatives(depth + 1)?;
        if !self.skip(")") {
            return Err("has an unclosed group".to_owned());
        }
        if is_look {
            shape.min_bytes = 0;
        }
        Ok(shape)
    }

    /// Reads `<name>`, or flags such as `i-m` with the `:` after them.
    fn named_or_flags(&mut self) -> Result<(), String> {
        let unknown = || Err("has a kind of group that is not supported".to_owned());
        if self.skip("<") {
            let Some(end) = self.rest.find('>') else { return unknown() };
            if !self.rest[..end].chars().all(|c| c.is_alphanumeric() || c == '_') {
                return unknown();
            }
            self.rest = &self.rest[end + 1..];
            return Ok(());
        }
        let end = self.rest.find([':', ')']).unwrap_or(0);
        if end == 0 || !self.rest[..end].chars().all(|c| matches!(c, 'i' | 'm' | 'x' | 'a' | 's' | '-')) {
            return unknown();
        }
        if self.rest[..end].contains('x') {
            return Err("has the flag x, which is not supported".to_owned());
        }
        self.rest = &self.rest[end..];
        self.skip(":");
        Ok(())
    }

    /// Reads what follows `[`, including nested classes and sets such as `[:alpha:]`.
    fn class(&mut self, depth: usize) -> Result<(), String> {
        let mut open = 1;
        self.skip("^");
        // A `]` at the start is a literal.
        self.skip("]");
        while open > 0 {
            match self.next() {
                Some('[') if self.rest.starts_with(':') && self.rest.contains(":]") => {
                    let end = self.rest.find(":]").unwrap_or(0);
                    self.rest = &self.rest[end + 2..];
                }
                Some('[') => {
                    open += 1;
                    self.skip("^");
                    self.skip("]");
                }
                Some(']') => open -= 1,
                Some('\\') => {
                    self.next();
                }
                Some(_) => {}
                None => return Err("has an unclosed class".to_owned()),
            }
            if depth + open > MAX_DEPTH {
                return Err(format!("has classes nested more than {MAX_DEPTH} levels deep"));
            }
        }
        Ok(())
    }

    /// Reads what follows a backslash, and returns the minimum length of its match.
    fn escape(&mut self) -> Result<usize, String> {
        match self.next() {
            Some('0'..='9' | 'k' | 'g') => Err("has a backreference, which is not supported".to_owned()),
            Some('b' | 'B' | 'A' | 'z' | 'Z' | 'G' | 'y' | 'Y') => Ok(0),
            Some('K' | 'X' | 'N' | 'O' | 'c' | 'C' | 'M') => Err("has an escape that is not supported".to_owned()),
            Some('p' | 'P' | 'x' | 'u') if self.rest.starts_with('{') => {
                let end = self.rest.find('}').ok_or("has an unclosed `{`")?;
                self.rest = &self.rest[end + 1..];
                Ok(1)
            }
            Some(_) => Ok(1),
            None => Err("ends with a backslash".to_owned()),
        }
    }

    /// Returns the minimum and the maximum number of repetitions of the last part, if it has a
    /// quantifier. A `?` or `+` after the quantifier only affects which alternative is tried first,
    /// except in `{n,m}+`, which repeats again.
    fn quantifier(&mut self) -> Option<(usize, Option<usize>)> {
        let (range, is_braces) = match self.rest.chars().next()? {
            '*' => ((0, None), false),
            '+' => ((1, None), false),
            '?' => ((0, Some(1)), false),
            '{' => {
                let end = self.rest.find('}')?;
                let (low, high) = braces(&self.rest[1..end])?;
                self.rest = &self.rest[end..];
                ((low, high), true)
            }
            _ => return None,
        };
        self.next();
        if !self.skip("?") && !is_braces {
            self.skip("+");
        }
        Some(range)
    }

    fn next(&mut self) -> Option<char> {
        let mut chars = self.rest.chars();
        let next = chars.next();
        self.rest = chars.as_str();
        next
    }

    fn skip(&mut self, start: &str) -> bool {
        let after = self.rest.strip_prefix(start);
        self.rest = after.unwrap_or(self.rest);
        after.is_some()
    }
}

/// Parses `n`, `n,`, `,m` and `n,m`. Anything else in braces is text.
fn braces(inner: &str) -> Option<(usize, Option<usize>)> {
    let number =
        |digits: &str| digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().unwrap_or(usize::MAX));
    match inner.split_once(',') {
        None if inner.is_empty() => None,
        None => number(inner).map(|n| (n, Some(n))),
        Some(("", "")) => None,
        Some(("", high)) => number(high).map(|high| (0, Some(high))),
        Some((low, "")) => number(low).map(|low| (low, None)),
        Some((low, high)) => Some((number(low)?, Some(number(high)?))),
    }
}

fn repeated(part: Shape, low: usize, high: Option<usize>) -> Result<Shape, String> {
    let most = high.unwrap_or(low).max(low);
    let count = part.count.saturating_mul(most.max(1));
    if count > MAX_COUNT {
        return Err(format!("repeats something {count} times; at most {MAX_COUNT} are accepted"));
    }
    let min_bytes = part.min_bytes.saturating_mul(low);
    let is_long = high.is_none_or(|high| high > FEW);
    if (part.repetitions > 0 && high != Some(1)) || (part.choices > 0 && is_long) {
        return Err("repeats a part that can itself match in several ways, which can take exponential time".to_owned());
    }
    let times = if high == Some(low) { low } else { most };
    let varies = usize::from(high != Some(low));
    Ok(Shape {
        min_bytes,
        repetitions: if is_long && varies == 1 { 1 } else { part.repetitions },
        choices: if is_long { 0 } else { part.choices.saturating_mul(times) + varies },
        count,
    })
}

#[cfg(test)]
mod tests {
    use super::Pattern;

    fn min_bytes(pattern: &str) -> Option<usize> {
        Pattern::parse(pattern).ok().map(|pattern| pattern.min_bytes)
    }

    /// The patterns of GPT-2, Llama 3, GPT-4o, DeepSeek, Qwen, Bloom, Falcon, Command R and T5.
    #[test]
    fn patterns_of_published_tokenizers_are_accepted() {
        let known = [
            r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
            r"[一-龥぀-ゟ゠-ヿ]+",
            r" ?[^(\s|[.,!?…。，、।۔،])]+",
            "[0-9][0-9][0-9]",
            r"\d{1,3}(?=(?:\d{3})*\b)",
            r"(?<=\d)(?=(\d{3})+(?!\d))",
            " {2,}",
            r"[\s[:punct:]]",
            "``",
            r"\s?\p{L}+(?>a|b)c*+",
        ];
        for pattern in known {
            assert!(Pattern::parse(pattern).is_ok(), "{pattern}: {:?}", Pattern::parse(pattern));
        }
    }

    #[test]
    fn what_can_take_for_ever_is_refused() {
        let bad = [
            "(a*)*b",
            "(a+)+b",
            "(x+x+)+y",
            "(?:a|aa)+b",
            "(?:a|a)+b",
            "(a?){30}b",
            "(?:(?:a+)+)+b",
            r"(a*)\1\1b",
            "((a{0,1000}){0,1000}){0,1000}b",
            "a*a*a*a*b",
            "a?a?a?a?a?a?a?a?a?a?a?a?a?a?a?a?aaaa",
            "(?:a|aa)(?:a|aa)(?:a|aa)(?:a|aa)(?:a|aa)(?:a|aa)(?:a|aa)(?:a|aa)(?:a|aa)(?:a|aa)(?:a|aa)(?:a|aa)(?:a|aa)b",
            r"(?<n>a)\k<n>",
            r"\g<0>",
            "(?~ab)",
            "(?(1)a|b)",
            "(a{1,9}){1,9}{1,99}",
            "a{2000}",
            "(a{40}){40}",
            "(a",
            "a)",
            "[a",
            "\\",
            "(*FAIL)*)",
            "(?x: a)",
            "(?:a{0,20}){2}{2}b",
            "(a{17,})?+*",
            "(?=a*)*",
        ];
        for pattern in bad {
            assert!(Pattern::parse(pattern).is_err(), "{pattern}");
        }
        let deep = format!("{}a{}", "(".repeat(100), ")".repeat(100));
        assert!(Pattern::parse(&deep).is_err() && Pattern::parse(&"a".repeat(20_000)).is_err());
        assert!(Pattern::parse(&format!("{}a{}", "[".repeat(100), "]".repeat(100))).is_err());
    }

    #[test]
    fn the_shortest_match_is_known() {
        let found = [
            "",
            "abc",
            "é",
            "a|bcd",
            "a?b*c+",
            "[abc]{2,}",
            "(?:ab){3}",
            r"\p{L}+x",
            "(?=abc)",
            "^$",
            " {2,}",
            "a{",
            "a{,3}b",
            "(?i)ab",
        ]
        .map(min_bytes);
        assert_eq!(found.map(|n| n.unwrap_or(99)), [0, 3, 2, 1, 1, 2, 6, 2, 0, 0, 2, 2, 1, 2]);
    }
}
