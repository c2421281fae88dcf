//! Paired comparison of two models on the sequences or documents that both were measured on. Most
//! of the error of a score comes from the choice of documents, which is the same for both models.

use serde::{Deserialize, Serialize};

/// The 97.5 % quantile of the normal distribution.
const NORMAL_97_5: f64 = 1.959_963_984_540_054;

/// One sequence or document that two models were measured on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pair {
    /// The first model's result, summed over the weight: nats, or 1 for a correct answer.
    pub first: f64,
    /// The second model's result.
    pub second: f64,
    /// The weight: its tokens, or 1.
    pub weight: f64,
}

/// The first model's mean minus the second's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// The difference of the weighted means.
    pub value: f64,
    /// Its standard error; `None` for fewer than two pairs.
    pub stderr: Option<f64>,
    /// Number of pairs.
    pub n: u64,
}

impl Difference {
    /// Returns `R = Σ dᵢ / Σ wᵢ` for the differences `dᵢ` and weights `wᵢ` of the pairs, or `None`
    /// if the total weight is 0. The standard error is that of the ratio estimator of cluster
    /// sampling (Cochran, Sampling Techniques, §6.3 and §9A.2), `sqrt(k / (k - 1) · Σ (dᵢ - R wᵢ)²)
    /// / Σ wᵢ`. For k pairs of equal weight it is the sample standard deviation of their
    /// differences divided by √k.
    pub fn of(pairs: &[Pair]) -> Option<Self> {
        let weight: f64 = pairs.iter().map(|pair| pair.weight).sum();
        if weight <= 0.0 {
            return None;
        }
        let value = pairs.iter().map(|pair| pair.first - pair.second).sum::<f64>() / weight;
        let k = pairs.len() as f64;
        let stderr = (pairs.len() >= 2).then(|| {
            let squares: f64 = pairs.iter().map(|pair| (pair.first - pair.second - value * pair.weight).powi(2)).sum();
            (k / (k - 1.0) * squares).sqrt() / weight
        });
        Some(Self { value, stderr, n: pairs.len() as u64 })
    }

    /// Returns the 95 % confidence interval of the difference, by the normal distribution.
    pub fn confidence_interval(&self) -> Option<(f64, f64)> {
        let half = NORMAL_97_5 * self.stderr?;
        Some((self.value - half, self.value + half))
    }

    /// Returns the probability that two equal models differ at least this much, by the normal
    /// distribution.
    pub fn p_value(&self) -> Option<f64> {
        two_sided(self.value, self.stderr?)
    }
}

/// Returns the probability that a normal variable with mean 0 and standard deviation `stderr` is at
/// least as far from 0 as `value`, or `None` if both are 0.
pub fn two_sided(value: f64, stderr: f64) -> Option<f64> {
    if stderr == 0.0 && value == 0.0 {
        return None;
    }
    Some(libm::erfc(value.abs() / stderr / std::f64::consts::SQRT_2))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn pair(first: f64, second: f64, weight: f64) -> Pair {
        Pair { first, second, weight }
    }

    #[test]
    fn pairs_of_one_weight_are_the_paired_t_test_s() {
        // Python: from scipy import stats; d = [1, 0, 1, -1, 1, 0]; mean(d), stdev(d) / 6 ** .5
        let answers = [(1.0, 0.0), (0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)];
        let pairs: Vec<Pair> = answers.iter().map(|&(first, second)| pair(first, second, 1.0)).collect();
        let difference = Difference::of(&pairs).unwrap();
        assert!((difference.value - 1.0 / 3.0).abs() < 1e-15);
        assert!((difference.stderr.unwrap() - 0.333_333_333_333_333_3).abs() < 1e-15);
        let (low, high) = difference.confidence_interval().unwrap();
        assert!((low + 0.319_988).abs() < 1e-6 && (high - 0.986_655).abs() < 1e-6, "{low} {high}");
        // 2 * (1 - Φ(1))
        assert!((difference.p_value().unwrap() - 0.317_310_507_862_914_1).abs() < 1e-12);
    }

    #[test]
    fn weights_count() {
        // Same as the evaluator's mean_loss of the differences: n=[4,4,2], s=[8,12,7].
        let pairs = [pair(9.0, 1.0, 4.0), pair(12.0, 0.0, 4.0), pair(10.0, 3.0, 2.0)];
        let difference = Difference::of(&pairs).unwrap();
        assert!((difference.value - 2.7).abs() < 1e-15);
        assert!((difference.stderr.unwrap() - 0.421_426_150_114_109_55).abs() < 1e-15);
    }

    #[test]
    fn equal_models_differ_by_nothing() {
        let difference = Difference::of(&[pair(1.0, 1.0, 1.0), pair(0.0, 0.0, 1.0)]).unwrap();
        assert_eq!((difference.value, difference.stderr, difference.p_value()), (0.0, Some(0.0), None));
        assert_eq!(Difference::of(&[]), None);
        assert_eq!(Difference::of(&[pair(1.0, 0.0, 1.0)]).unwrap().stderr, None);
    }
}
