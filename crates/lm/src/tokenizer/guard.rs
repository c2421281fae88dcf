//! Protects the process from third-party tokenizers: panics become errors, and time and memory are
//! limited.
//!
//! [`inheritune_checkpoint::tokenizer_json`] rejects what can be seen in the file. This module
//! covers what only shows when the tokenizer runs.

use std::ffi::{c_int, c_ulong};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::time::{Duration, Instant};

use tokenizers::{NormalizedString, Normalizer, Tokenizer};

/// Backtracking steps of a pattern at one position of a text, and in the search for one match. The
/// limits bound the longest run of spaces that the usual patterns can handle.
const MAX_STEPS_AT_ONE_PLACE: c_ulong = 5_000_000;
const MAX_STEPS_OF_A_SEARCH: c_ulong = 50_000_000;
/// Bytes of text that are encoded at a time, counted at their maximum length after normalisation.
const MAX_BYTES_AT_ONCE: u64 = 8 << 20;
/// Maximum growth of texts that are too long for [`MAX_BYTES_AT_ONCE`].
const MAX_GROWTH_OF_LONG_TEXTS: u64 = 4;
const SLICE_BYTES: usize = 16 << 10;
/// Processor time for one text, and in addition per megabyte.
const MAX_TIME: Duration = Duration::from_secs(5);
const MAX_TIME_OF_A_MEGABYTE: Duration = Duration::from_secs(60);
/// Shorter texts are not timed: the timing would cost more than the encoding.
const MIN_TIMED_BYTES: usize = 1024;
/// Length and processor time of the texts that a new tokenizer is tested on.
const TRIAL_CHARS: usize = 600;
const MAX_TRIAL_TIME: Duration = Duration::from_millis(100);
/// Characters that patterns distinguish.
const TRIAL_CHARACTERS: [&str; 14] = [" ", "\n", "\t", "a", "A", "x", "1", ".", "'", "é", "日", "ab", "\r\n", " a"];

/// Runs a library on untrusted data and turns panics into errors.
pub(super) fn caught<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    limit_patterns();
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
        let said = said.unwrap_or("it panicked");
        if said.contains("retry-limit") || said.contains("match-stack limit") {
            return Err("the pattern of its normalizer or pre_tokenizer takes too long on this text".to_owned());
        }
        let said: String = said.chars().filter(|c| !c.is_control()).take(200).collect();
        Err(format!("the tokenizers library failed: {said}"))
    })
}

// Functions of Oniguruma, the regex library of the tokenizers library.
#[allow(unsafe_code)]
unsafe extern "C" {
    fn onig_set_retry_limit_in_match(steps: c_ulong) -> c_int;
    fn onig_set_retry_limit_in_search(steps: c_ulong) -> c_int;
}

/// By default, Oniguruma backtracks up to ten million steps at each position of a text, without a
/// limit on the whole search.
#[allow(unsafe_code)]
fn limit_patterns() {
    static ONCE: Once = Once::new();
    // SAFETY: both store one number in a variable of the library that each search reads. No search
    // is running yet: every use of the library in this process goes through `caught`, which waits
    // for this.
    ONCE.call_once(|| unsafe {
        onig_set_retry_limit_in_match(MAX_STEPS_AT_ONE_PLACE);
        onig_set_retry_limit_in_search(MAX_STEPS_OF_A_SEARCH);
    });
}

/// Tests a tokenizer on runs of the characters that patterns distinguish, and of `more`.
pub(super) fn tried(tokenizer: &Tokenizer, more: &[char]) -> Result<(), String> {
    let more: Vec<String> = more.iter().map(char::to_string).collect();
    for unit in TRIAL_CHARACTERS.iter().copied().chain(more.iter().map(String::as_str)) {
        let text = unit.repeat(TRIAL_CHARS / unit.chars().count());
        for text in [text.clone(), format!("{text}!")] {
            let time = || -> Result<Duration, String> {
                let started = Clock::start();
                caught(|| tokenizer.encode_fast(text.as_str(), false).map(|_| ()).map_err(|error| error.to_string()))?;
                Ok(started.elapsed())
            };
            // Measured twice, since another process may have interfered.
            if time()? > MAX_TRIAL_TIME && time()? > MAX_TRIAL_TIME {
                let shown: String = unit.escape_debug().collect();
                return Err(format!(
                    "its normalizer or pre_tokenizer takes more than {} ms for {TRIAL_CHARS} characters of `{shown}`",
                    MAX_TRIAL_TIME.as_millis()
                ));
            }
        }
    }
    Ok(())
}

/// Splits texts into groups that can be encoded at a time, if each may become `growth` times as
/// long.
pub(super) fn groups<S: AsRef<str>>(texts: &[S], growth: u64) -> Vec<&[S]> {
    let mut groups = Vec::new();
    let (mut start, mut bytes) = (0, 0u64);
    for (at, text) in texts.iter().enumerate() {
        let more = (text.as_ref().len() as u64).saturating_mul(growth);
        if at > start && bytes.saturating_add(more) > MAX_BYTES_AT_ONCE {
            groups.push(&texts[start..at]);
            (start, bytes) = (at, 0);
        }
        bytes = bytes.saturating_add(more);
    }
    groups.push(&texts[start..]);
    groups
}

/// Encodes one text, within memory and time limits.
pub(super) fn encode(tokenizer: &Tokenizer, growth: u64, (text, with_added): (&str, bool)) -> Result<Vec<u32>, String> {
    if growth > MAX_GROWTH_OF_LONG_TEXTS && (text.len() as u64).saturating_mul(growth) > MAX_BYTES_AT_ONCE {
        check_growth(tokenizer, text)?;
    }
    let clock = (text.len() >= MIN_TIMED_BYTES).then(Clock::start);
    let ids = caught(|| {
        let encoding = tokenizer.encode_fast(text, with_added).map_err(|error| error.to_string())?;
        Ok(encoding.get_ids().to_vec())
    })?;
    if let Some(clock) = clock {
        let allowed = MAX_TIME + MAX_TIME_OF_A_MEGABYTE.mul_f64(text.len() as f64 / 1e6);
        let took = clock.elapsed();
        if took > allowed {
            return Err(format!(
                "takes {:.1} s for a text of {} bytes; the limit is {:.1} s",
                took.as_secs_f64(),
                text.len(),
                allowed.as_secs_f64()
            ));
        }
    }
    Ok(ids)
}

/// Measures in slices how long a long text becomes.
fn check_growth(tokenizer: &Tokenizer, text: &str) -> Result<(), String> {
    let Some(normalizer) = tokenizer.get_normalizer() else { return Ok(()) };
    let most = (text.len() as u64).saturating_mul(MAX_GROWTH_OF_LONG_TEXTS);
    let (mut rest, mut bytes) = (text, 0u64);
    while !rest.is_empty() {
        let (slice, after) = rest.split_at(rest.floor_char_boundary(SLICE_BYTES.min(rest.len())));
        rest = after;
        let mut normalized = NormalizedString::from(slice);
        caught(|| normalizer.normalize(&mut normalized).map_err(|error| error.to_string()))?;
        bytes += normalized.get().len() as u64;
        if bytes > most {
            return Err(format!(
                "its normalizer makes a text of {} bytes more than {MAX_GROWTH_OF_LONG_TEXTS} times as long",
                text.len()
            ));
        }
    }
    Ok(())
}

/// Processor time of this thread, if the system reports it: a busy machine does not slow it down.
struct Clock {
    processor: Option<Duration>,
    wall: Instant,
}

impl Clock {
    fn start() -> Self {
        Self { processor: processor_time(), wall: Instant::now() }
    }

    fn elapsed(&self) -> Duration {
        let wall = self.wall.elapsed();
        let processor = self.processor.and_then(|start| processor_time()?.checked_sub(start));
        processor.map_or(wall, |processor| processor.min(wall))
    }
}

/// On Linux the nanoseconds are the first number of this file.
fn processor_time() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split(' ').next()?.parse().ok().map(Duration::from_nanos)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::{caught, groups};

    #[test]
    fn texts_come_in_groups() {
        let lengths = |texts: &[usize], growth| {
            let texts: Vec<String> = texts.iter().map(|length| "a".repeat(length << 20)).collect();
            groups(&texts, growth).iter().map(|group| group.len()).collect::<Vec<_>>()
        };
        assert_eq!(lengths(&[4, 4, 1], 1), [2, 1]);
        assert_eq!(lengths(&[9, 1, 9], 1), [1, 1, 1]);
        assert_eq!(lengths(&[1, 1, 1], 8), [1, 1, 1]);
        assert_eq!(lengths(&[], 8), [0]);
    }

    #[test]
    fn s2_a_panic_is_an_error() {
        let error = caught::<()>(|| panic!("Onig: Regex search error: retry-limit-in-match over")).unwrap_err();
        assert_eq!(error, "the pattern of its normalizer or pre_tokenizer takes too long on this text");
        assert_eq!(caught::<()>(|| panic!("a\nb")).unwrap_err(), "the tokenizers library failed: ab");
        assert_eq!(caught(|| Ok(1)), Ok(1));
    }
}
