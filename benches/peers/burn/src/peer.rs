//! A case on burn.

use std::time::Instant;

use burn::tensor::module::attention;
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{Device, DeviceKind, Int, Tensor, TensorData};
use dilated_attention::reference;
use testing::cases::Case;
use testing::measurement::{error_f32, sampled_rows};

use crate::Outcome;

/// Inputs on burn's device.
pub struct Peer {
    device: Device,
    /// (1, heads, tokens, elements), as burn's attention takes them.
    inputs: [Tensor<4>; 3],
    branches: Vec<Branch>,
    options: AttentionModuleOptions,
}

/// How the rows of a branch come together.
struct Branch {
    /// (segments, heads, rows, elements)
    shape: [usize; 4],
    /// Of the rows among all (head, token) rows, in that order; none where that is the order of the inputs.
    rows: Option<Tensor<1, Int>>,
}

/// Rows of a branch as numbers `head * tokens + token`, in the order (segment, head, row).
fn rows_of(case: &Case, branch: usize) -> Outcome<(Vec<usize>, [usize; 4])> {
    let (tokens, heads) = (case.tokens, case.heads);
    let (length, rate) = (case.segments[branch].min(tokens), case.rates[branch]);
    if tokens % length != 0 || length % rate != 0 {
        return Err("not written for segments or rates that do not divide".into());
    }
    let heads_per_offset = heads.div_ceil(rate);
    let mut rows = Vec::new();
    for segment in 0..tokens / length {
        for head in 0..heads {
            let first = head * tokens + segment * length + head / heads_per_offset;
            rows.extend((0..length / rate).map(|row| first + row * rate));
        }
    }
    let shape = [tokens / length, heads, length / rate, case.head_dim];
    Ok((rows, shape))
}

/// (token, head, element) to (head, token, element).
fn heads_first(values: &[f32], case: &Case) -> Vec<f32> {
    let [_, tokens, heads, width] = case.dims();
    let row = |(head, token): (usize, usize)| &values[(token * heads + head) * width..][..width];
    let rows = (0..heads).flat_map(|head| (0..tokens).map(move |token| (head, token)));
    rows.flat_map(row).copied().collect()
}

impl Peer {
    pub fn new(case: &Case, inputs: &[Vec<f32>; 3], is_software: bool) -> Outcome<Self> {
        let device = Device::wgpu(match is_software {
            true => DeviceKind::Cpu,
            false => DeviceKind::DefaultDevice,
        });
        let [_, tokens, heads, width] = case.dims();
        let upload = |values: &Vec<f32>| {
            let data = TensorData::new(heads_first(values, case), [1, heads, tokens, width]);
            Tensor::from_data(data, &device)
        };
        let mut branches = Vec::new();
        for branch in 0..case.rates.len() {
            let (rows, shape) = rows_of(case, branch)?;
            let in_order = rows.iter().copied().eq(0..rows.len());
            let rows = (!in_order).then(|| {
                let rows: Vec<i32> = rows.iter().map(|row| *row as i32).collect();
                let count = rows.len();
                Tensor::from_data(TensorData::new(rows, [count]), &device)
            });
            branches.push(Branch { shape, rows });
        }
        let [q, k, v] = inputs;
        Ok(Self {
            inputs: [upload(q), upload(k), upload(v)],
            branches,
            options: AttentionModuleOptions {
                is_causal: case.causal,
                ..Default::default()
            },
            device,
        })
    }

    /// Seconds, and the output of each branch.
    pub fn attend(&self) -> Outcome<(f64, Vec<Tensor<4>>)> {
        self.device.sync()?;
        let started = Instant::now();
        let of_branch = |branch: &Branch| {
            let [_, heads, tokens, width] = self.inputs[0].dims();
            let [q, k, v] = self.inputs.clone().map(|input| match &branch.rows {
                None => input,
                Some(rows) => input
                    .reshape([heads * tokens, width])
                    .select(0, rows.clone())
                    .reshape(branch.shape),
            });
            attention(q, k, v, None, None, self.options)
        };
        let results = self.branches.iter().map(of_branch).collect();
        self.device.sync()?;
        Ok((started.elapsed().as_secs_f64(), results))
    }

    /// Largest error of sampled rows of each branch over what is allowed.
    pub fn error(
        &self,
        case: &Case,
        [q, k, v]: &[Vec<f32>; 3],
        results: Vec<Tensor<4>>,
    ) -> Outcome<f64> {
        let (config, shape) = (case.config()?, case.shape()?);
        let sampled = sampled_rows(case.tokens);
        let (heads, width) = (case.heads as usize, case.head_dim as usize);
        let mut largest = 0.0f64;
        for (branch, result) in results.into_iter().enumerate() {
            let values: Vec<f32> = result.try_into_data()?.try_into_vec::<f32>()?;
            let (rows, _) = rows_of(case, branch)?;
            let expected =
                reference::forward_branch_rows(&config, &shape, q, k, v, branch, &sampled)?;
            // Rows that the branch does not have are 0 in the reference and are left out here.
            let (mut found, mut wanted) = (Vec::new(), Vec::new());
            for (i, &(_, token)) in sampled.iter().enumerate() {
                for head in 0..heads {
                    let number = head * case.tokens + token;
                    if let Some(at) = rows.iter().position(|row| *row == number) {
                        found.extend_from_slice(&values[at * width..][..width]);
                        wanted.extend_from_slice(
                            &expected.out[(i * heads + head) * width..][..width],
                        );
                    }
                }
            }
            largest = largest.max(error_f32(found, &wanted));
        }
        Ok(largest)
    }
}
