//! Deterministic mutations of files, which are the counterpart of fuzzing in `cargo test`. Tests of
//! other crates include this module.

#![allow(missing_docs)]

/// Maximum number of changes of one file.
const MAX_CHANGES: u64 = 6;

/// Prints the name of the file if its check panics. Printing every name would allocate memory while
/// memory use is measured.
pub struct Told(pub String);

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("the file was {}", self.0);
        }
    }
}

/// Applies a few changes to `file`: removes, repeats or sets bytes, or inserts bytes of `other`.
pub fn change(file: &mut Vec<u8>, other: &[u8], dice: &mut Dice) {
    for _ in 0..=dice.next() % MAX_CHANGES {
        let at = dice.below(file.len() + 1);
        let length = dice.below(16).min(file.len() - at);
        match dice.next() % 6 {
            0 => drop(file.drain(at..at + length)),
            1 => drop(file.splice(at..at, file[at..at + length].to_vec())),
            2 => drop(file.splice(at..at, [0xff; 8].into_iter().take(length))),
            3 => {
                let from = dice.below(other.len() + 1);
                let to = (from + dice.below(64)).min(other.len());
                drop(file.splice(at..at, other[from..to].iter().copied()));
            }
            _ if at < file.len() => file[at] = dice.next() as u8,
            _ => {}
        }
    }
}

/// A deterministic random number generator (xorshift64).
pub struct Dice(pub u64);

impl Dice {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 16
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}
