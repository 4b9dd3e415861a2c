/*! Provides the choice of the next tokens where their logits are, on a card: the ids of the rows come to the host, and nothing else.

It chooses as [`Sampling::choose`] does, by the same random numbers: what top-k and min-p keep is the same to the last token. Weights are
rounded to f32 there, and to 2^-46 of the likeliest's in a vocabulary of 151,936 ids, so that where top-p ends or a draw falls within that
of the border between two tokens, it may be the other one's side.
*/

use candle_core::{DType, Device, Tensor};
use distill_kernels::Compute;
use distill_kernels::sample::{NOTHING, Sample};

use super::Sampling;
use super::sampling::no_numbers;
use crate::Result;

/// Multiples of 2^-53 as whole numbers.
const UNIFORM_STEPS: f64 = (1u64 << 53) as f64;

impl Sampling {
    /// The next token after each row, of which the first `vocabulary` logits count.
    ///
    /// # Shapes
    /// logits [n, vocabulary or more], contiguous; random: n of them in [0, 1)
    ///
    /// # Errors
    /// Logits that are no numbers, which no token can be chosen by; what the device says.
    pub(super) fn choose_on_card(
        &self,
        (logits, vocabulary): (&Tensor, usize),
        random: &[f64],
        compute: Compute,
    ) -> Result<Vec<u32>> {
        let (rows, stride) = logits.dims2()?;
        let sample = Sample {
            rows,
            vocab: vocabulary,
            stride,
            ..self.on_card()
        };
        // Of those as likely as the likeliest 0 draws the first.
        let luck = if self.temperature == 0.0 { 0.0 } else { 1.0 };
        let uniforms = random.iter().map(|u| whole_steps(luck * u)).collect();
        let uniforms = Tensor::from_vec(uniforms, rows, logits.device())?;
        let made = compute(&[logits, &uniforms], &[(DType::U32, rows)], &|x, out| {
            Ok(vec![sample.call(x[0], x[1], out[0])?])
        })?;
        let chosen = made[0].to_device(&Device::Cpu)?.to_vec1::<u32>()?;
        if chosen.contains(&NOTHING) {
            return Err(no_numbers());
        }
        Ok(chosen)
    }

    /// What is drawn from, of no rows.
    fn on_card(&self) -> Sample {
        let all = Sample {
            rows: 0,
            vocab: 0,
            stride: 0,
            temperature: 1.0,
            top_k: 0,
            removed: 0,
            reach: 0.0,
        };
        if self.temperature == 0.0 {
            return all;
        }
        Sample {
            temperature: self.divisor(),
            top_k: self.top_k,
            removed: whole_steps(1.0 - self.top_p),
            reach: reach(self.min_p),
            ..all
        }
    }
}

/// A share as a multiple of 2^-53, which every number in [0, 1) that is one over another is.
fn whole_steps(share: f64) -> i64 {
    (share * UNIFORM_STEPS) as i64
}

/// The lowest f32 of which e to its power, as the host computes it, is at least `min_p`.
fn reach(min_p: f64) -> f32 {
    // By their bits numbers below zero are in the order of their distance from it.
    let (mut near, mut beyond) = (0, f32::INFINITY.to_bits() + 1);
    while beyond - near > 1 {
        let middle = near + (beyond - near) / 2;
        if f64::from(-f32::from_bits(middle)).exp() >= min_p {
            near = middle;
        } else {
            beyond = middle;
        }
    }
    -f32::from_bits(near)
}

#[cfg(test)]
mod tests {
    use distill_kernels::EMULATED;

    use super::*;
    use crate::generate::uniform;

    const PLAIN: Sampling = Sampling {
        temperature: 1.0,
        ..Sampling::GREEDY
    };

    fn matrix(rows: &[Vec<f32>]) -> Tensor {
        let rows: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
        Tensor::new(rows, &Device::Cpu).unwrap()
    }

    /// Refuses a token that the host does not choose. In the emulator its sums are as near to the host's as on a card: one draw in a million
    /// or so falls on the other side of an edge, and none of those here.
    #[track_caller]
    fn check(sampling: Sampling, rows: &[Vec<f32>], random: &[f64]) -> Vec<u32> {
        sampling.validate().unwrap();
        let width = rows[0].len();
        let expected = rows.iter().zip(random);
        let expected = expected.map(|(row, random)| sampling.choose(row, *random).unwrap());
        let logits = matrix(rows);
        let found = sampling.choose_on_card((&logits, width), random, EMULATED.compute);
        let found = found.unwrap();
        assert_eq!(found, expected.collect::<Vec<_>>(), "{sampling:?}, {width}");
        found
    }

    /// Numbers as a model's logits lie: most about the middle, few above.
    fn row(width: usize, seed: u64) -> Vec<f32> {
        let one = |id: u64| {
            let u = uniform(seed, id);
            (2.5 * ((u / (1.0 - u)).max(1e-6)).ln() - 3.0) as f32
        };
        (0..width as u64).map(one).collect()
    }

    /// Few different values, so that most are as likely as others.
    fn steps(width: usize, seed: u64) -> Vec<f32> {
        let row = row(width, seed).into_iter();
        row.map(|x| (x / 2.0).round() * 2.0).collect()
    }

    fn samplings() -> Vec<Sampling> {
        let mut all = vec![Sampling::GREEDY];
        for temperature in [0.3, 1.7] {
            for top_k in [0, 2, 40, 1000] {
                for (top_p, min_p) in [(1.0, 0.0), (0.9, 0.0), (0.3, 0.02), (1.0, 0.1), (0.99, 1.0)]
                {
                    all.push(Sampling {
                        temperature,
                        top_k,
                        top_p,
                        min_p,
                    });
                }
            }
        }
        all
    }

    #[test]
    fn a_card_draws_the_tokens_that_the_host_draws() {
        for (number, sampling) in (0..).zip(samplings()) {
            for width in [1, 17, 256, 2501] {
                let seeds = [4 * number, 4 * number + 1, 4 * number + 2];
                let mut rows: Vec<_> = seeds.iter().map(|seed| row(width, *seed)).collect();
                rows.extend(seeds.iter().map(|seed| steps(width, *seed)));
                let random = (0..6).map(|place| uniform(1000 + number, place));
                check(sampling, &rows, &random.collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn a_whole_vocabulary_is_drawn_from_as_on_the_host() {
        let drawn = Sampling {
            temperature: 0.8,
            top_k: 50,
            top_p: 0.95,
            min_p: 0.01,
        };
        let rows = [row(151_936, 1), row(151_936, 2)];
        for sampling in [Sampling::GREEDY, PLAIN, drawn] {
            check(sampling, &rows, &[0.37, 0.999_999]);
        }
        let odd = Sampling {
            top_p: 0.9,
            ..PLAIN
        };
        check(odd, &[row(65_537, 3)], &[0.5]);
    }

    #[test]
    fn the_ends_of_every_share_draw_what_the_host_draws() {
        let last = 1.0 - f64::EPSILON / 2.0;
        let equal = vec![1.5; 1000];
        let mut zeros = vec![-1.0; 300];
        (zeros[10], zeros[20], zeros[30]) = (-0.0, 0.0, -0.0);
        let far: Vec<f32> = (0..700)
            .map(|id| 9000.0 + (id % 3) as f32 / 256.0)
            .collect();
        let mut masked = vec![f32::NEG_INFINITY; 400];
        (masked[7], masked[399]) = (-2.0, -1.0);
        let wide: Vec<f32> = (0..600).map(|id| id as f32 - 300.0).collect();
        // What has less than 2^-54 of the likeliest's mass is nothing on a card, and 0 itself may draw it on the host.
        let random = [1e-12, 0.4, last];
        for row in [equal, zeros, far, masked, wide] {
            let rows = [(); 3].map(|()| row.clone());
            for top_p in [1e-30, 0.5, 0.7, last, 1.0] {
                for top_k in [0, 1, 2, row.len() - 1, 1 << 40] {
                    for min_p in [0.0, 0.5, 1.0] {
                        let sampling = Sampling {
                            top_k,
                            top_p,
                            min_p,
                            ..PLAIN
                        };
                        check(sampling, &rows, &random);
                    }
                }
            }
            let greedy = check(Sampling::GREEDY, std::slice::from_ref(&row), &[last]);
            let one = Sampling { top_k: 1, ..PLAIN };
            assert_eq!(greedy, check(one, &[row], &[0.0]));
        }
    }

    #[test]
    fn temperatures_at_both_ends_draw_what_the_host_draws() {
        for temperature in [1e-30, 1e-3, 1e6, 1e300] {
            let sampling = Sampling {
                temperature,
                top_p: 0.9,
                ..PLAIN
            };
            let mut row: Vec<f32> = (0..50)
                .map(|id| (id * 7 % 50) as f32 / 64.0 - 0.7)
                .collect();
            row[3] = f32::NEG_INFINITY;
            check(sampling, &[row.clone(), row], &[0.1, 0.8]);
        }
    }

    #[test]
    fn what_rows_hold_beyond_the_vocabulary_changes_nothing() {
        for beyond in [f32::NAN, f32::INFINITY, 1e30] {
            let rows = [row(1001, 5), row(1001, 6)];
            let longer = rows.each_ref().map(|row| {
                let mut row = row.clone();
                row.resize(1008, beyond);
                row
            });
            let sampling = Sampling {
                top_p: 0.9,
                ..PLAIN
            };
            let random = [0.2, 0.9];
            let found =
                sampling.choose_on_card((&matrix(&longer), 1001), &random, EMULATED.compute);
            assert_eq!(found.unwrap(), check(sampling, &rows, &random));
        }
    }

    #[test]
    fn logits_that_are_no_numbers_choose_no_token_on_a_card() {
        let small = Sampling {
            temperature: 1e-30,
            ..PLAIN
        };
        for sampling in [Sampling::GREEDY, PLAIN, small] {
            for bad in [f32::NAN, f32::INFINITY] {
                for place in [0, 299, 599] {
                    let mut broken = vec![0.5; 600];
                    broken[place] = bad;
                    refuses(sampling, &[vec![1.0; 600], broken]);
                }
            }
            refuses(sampling, &[vec![f32::NEG_INFINITY; 3]]);
        }
        refuses(small, &[vec![0.0, 1e20]]);
    }

    /// As the host does.
    #[track_caller]
    fn refuses(sampling: Sampling, rows: &[Vec<f32>]) {
        let (logits, random) = (matrix(rows), vec![0.5; rows.len()]);
        let last = rows.last().map(|row| sampling.choose(row, 0.5));
        last.unwrap().unwrap_err();
        let found = sampling.choose_on_card((&logits, rows[0].len()), &random, EMULATED.compute);
        let error = found.unwrap_err().to_string();
        assert!(error.contains("not finite numbers"), "{error}");
    }

    #[test]
    fn min_p_reaches_as_far_down_as_the_host_s_weights() {
        for min_p in [0.0, 1e-300, 1e-5, 0.02, 0.1, 0.5, 1.0 - f64::EPSILON, 1.0] {
            let reach = reach(min_p);
            assert!(f64::from(reach).exp() >= min_p, "{min_p}: {reach}");
            let below = f64::from(reach.next_down()).exp();
            assert!(below < min_p || reach == f32::NEG_INFINITY, "{min_p}");
        }
        assert_eq!(reach(0.0), f32::NEG_INFINITY);
    }
}
