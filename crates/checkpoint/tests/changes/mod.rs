//! Changed copies of files, the same in every run: what fuzzing is to `cargo test`. Tests of other crates include it.

#![allow(missing_docs)]

/// Changes of one file, at most.
const MAX_CHANGES: u64 = 6;

/// Which file it was, when a check of it panics. To print every name would take memory while it is counted.
pub struct Told(pub String);

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("the file was {}", self.0);
        }
    }
}

/// Makes a few changes in `file`: bytes taken out, repeated, set, or taken from `other`.
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

/// Numbers that are the same in every run (xorshift64).
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
