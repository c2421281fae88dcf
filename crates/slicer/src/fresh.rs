//! Fresh weights, without libtorch. The same seed and tensor name give the same bytes on every
//! machine of one architecture, whatever else is in the plan.

use bytes::Bytes;
use half::{bf16, f16};
use inheritune_checkpoint::decoder_config::Init;
use inheritune_checkpoint::safetensors_header::Dtype;
use inheritune_domain::id::Sha256Digest;
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution as _, StandardNormal};

/// Numbers per chunk. This constant affects the result: each chunk has its own generator, so that
/// chunks can be generated in any order.
pub const CHUNK_NUMBERS: u64 = 1 << 20;

/// One chunk of a fresh tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct FreshChunk {
    /// The run's seed for this model.
    pub seed: u64,
    /// The tensor's name.
    pub tensor: String,
    /// Index of the chunk in the tensor, from 0.
    pub chunk: u64,
    /// Number of values in the chunk.
    pub numbers: u64,
    /// How the values are initialised.
    pub init: Init,
    /// The type that the values are written as.
    pub dtype: Dtype,
}

impl FreshChunk {
    /// The chunks of a tensor of `numbers` values.
    pub fn of(
        tensor: &str,
        seed: u64,
        numbers: u64,
        (init, dtype): (Init, Dtype),
    ) -> impl Iterator<Item = Self> + Send + use<> {
        let tensor = tensor.to_owned();
        (0..numbers.div_ceil(CHUNK_NUMBERS)).map(move |chunk| Self {
            seed,
            tensor: tensor.clone(),
            chunk,
            numbers: CHUNK_NUMBERS.min(numbers - chunk * CHUNK_NUMBERS),
            init,
            dtype,
        })
    }

    /// The chunk's bytes, little endian.
    pub fn bytes(&self) -> Bytes {
        match self.init {
            Init::Zeros => self.encode(std::iter::repeat(0.0)),
            Init::Ones => self.encode(std::iter::repeat(1.0)),
            Init::Normal { std } => {
                let mut rng = self.rng();
                self.encode(std::iter::from_fn(move || {
                    let x: f64 = StandardNormal.sample(&mut rng);
                    Some((x * std) as f32)
                }))
            }
        }
    }

    fn rng(&self) -> ChaCha8Rng {
        let label = format!("inheritune fresh weights 1\n{}\n{}\n{}", self.seed, self.chunk, self.tensor);
        ChaCha8Rng::from_seed(Sha256Digest::of(label.as_bytes()).0)
    }

    fn encode(&self, numbers: impl Iterator<Item = f32>) -> Bytes {
        let numbers = numbers.take(self.numbers as usize);
        match self.dtype {
            Dtype::F32 => collect(numbers.map(f32::to_le_bytes), self.numbers),
            Dtype::F16 => collect(numbers.map(|x| f16::from_f32(x).to_le_bytes()), self.numbers),
            Dtype::Bf16 => collect(numbers.map(|x| bf16::from_f32(x).to_le_bytes()), self.numbers),
            // Not weight types: an inventory rejects them, so no plan contains one.
            Dtype::F64 => collect(numbers.map(|x| f64::from(x).to_le_bytes()), self.numbers),
            Dtype::I64 => collect(numbers.map(|x| (x as i64).to_le_bytes()), self.numbers),
            Dtype::I32 => collect(numbers.map(|x| (x as i32).to_le_bytes()), self.numbers),
            Dtype::I16 => collect(numbers.map(|x| (x as i16).to_le_bytes()), self.numbers),
            Dtype::I8 => collect(numbers.map(|x| (x as i8).to_le_bytes()), self.numbers),
            Dtype::U8 | Dtype::Bool => collect(numbers.map(|x| (x as u8).to_le_bytes()), self.numbers),
        }
    }
}

fn collect<const N: usize>(numbers: impl Iterator<Item = [u8; N]>, count: u64) -> Bytes {
    let mut bytes = Vec::with_capacity(count as usize * N);
    for number in numbers {
        bytes.extend_from_slice(&number);
    }
    bytes.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(seed: u64, tensor: &str, numbers: u64, what: (Init, Dtype)) -> Vec<u8> {
        FreshChunk::of(tensor, seed, numbers, what).flat_map(|chunk| chunk.bytes()).collect()
    }

    const NORMAL: Init = Init::Normal { std: 0.02 };

    #[test]
    fn seed_and_name_decide() {
        let one = bytes(1, "w", 100, (NORMAL, Dtype::F32));
        assert_eq!(one, bytes(1, "w", 100, (NORMAL, Dtype::F32)));
        assert_ne!(one, bytes(2, "w", 100, (NORMAL, Dtype::F32)));
        assert_ne!(one, bytes(1, "v", 100, (NORMAL, Dtype::F32)));
        // A release that changed these bytes would change every fresh model of an existing seed.
        assert_eq!(hex::encode(&one[..16]), "3937463c3937363a30460cbbe4fc8dbb");
    }

    #[test]
    fn chunks_differ_and_fill_the_tensor() {
        let numbers = CHUNK_NUMBERS + 3;
        let chunks: Vec<FreshChunk> = FreshChunk::of("w", 1, numbers, (NORMAL, Dtype::F16)).collect();
        assert_eq!(chunks.iter().map(|chunk| chunk.numbers).collect::<Vec<_>>(), [CHUNK_NUMBERS, 3]);
        let (first, last) = (chunks[0].bytes(), chunks[1].bytes());
        assert_eq!((first.len() as u64, last.len()), (2 * CHUNK_NUMBERS, 6));
        assert_ne!(first[..6], last[..]);
        assert_eq!(FreshChunk::of("w", 1, 0, (NORMAL, Dtype::F16)).count(), 0);
    }

    #[test]
    fn types_round_the_same_numbers() {
        let wide = bytes(1, "w", 1000, (NORMAL, Dtype::F32));
        let half = bytes(1, "w", 1000, (NORMAL, Dtype::F16));
        let brain = bytes(1, "w", 1000, (NORMAL, Dtype::Bf16));
        for (i, x) in wide.chunks_exact(4).enumerate() {
            let x = f32::from_le_bytes([x[0], x[1], x[2], x[3]]);
            assert!(x.abs() < 0.2);
            assert_eq!(half[2 * i..2 * i + 2], f16::from_f32(x).to_le_bytes());
            assert_eq!(brain[2 * i..2 * i + 2], bf16::from_f32(x).to_le_bytes());
        }
        assert_eq!(bytes(1, "w", 3, (Init::Ones, Dtype::Bf16)), [0x80, 0x3f].repeat(3));
        assert_eq!(bytes(1, "w", 3, (Init::Zeros, Dtype::F32)), [0; 12]);
    }
}
