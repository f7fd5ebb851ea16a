//! Layers with parameters, one by one, forward against double precision. Their gradients are compared as parts of models.

use std::ops::Range;
use std::sync::Arc;

use dilated_attention::nn::{
    FeedForward, FeedForwardConfig, Init, LayerNorm, Linear, MultiheadAttention,
    MultiheadAttentionConfig, MultiheadInput, ParameterList, Parameters, ProjectionNorm,
};
use dilated_attention::ops::{Activation, Positions, Rotations};
use dilated_attention::testing::model::{self, Values};
use dilated_attention::testing::{Block, BlockPass, Memory, Sublayer};
use dilated_attention::{
    AttentionShape, Context, DType, DilatedAttentionConfig, Error, Heads, Recorder, Result, Tensor,
};

use crate::support::kernel_contexts::{kernel_contexts, tiny_bindings};
use crate::support::models::{assert_near, assert_within, by_name, dot, draw, read, upload, wide};
use crate::support::numbers::uniform;

const EPS: f32 = 1e-5;

fn on_all(test: impl Fn(&Context)) {
    for on in kernel_contexts().iter().chain([tiny_bindings()]) {
        test(&on.context);
    }
}

/// Records `work` with drawn weights of `list`; returns what it makes and the weights by name.
fn run(
    context: &Context,
    list: ParameterList,
    work: impl FnOnce(&mut Recorder, &Parameters) -> Result<Vec<Tensor>>,
) -> (Vec<Vec<f32>>, Values) {
    let list = Arc::new(list);
    let values = draw(&list, 4);
    let mut recorder = context.recorder("layer");
    let weights = upload(&mut recorder, &list, &values).unwrap();
    let tensors = work(&mut recorder, &weights).unwrap();
    let tensors: Vec<&Tensor> = tensors.iter().collect();
    let (tensors, _) = read(recorder, &tensors, &[]).unwrap();
    (tensors, by_name(&list, &values))
}

#[test]
fn linear_layers_and_norms() {
    on_all(|context| {
        for (rows, inputs, outputs) in [(1, 1, 1), (67, 33, 70), (300, 9, 130)] {
            let mut list = ParameterList::new();
            let init = Init::linear(inputs, 1.0);
            let sizes = [inputs, outputs];
            let linear = Linear::new(&mut list, "linear", sizes, init, Some(init));
            let norm = LayerNorm::new(&mut list, "norm", outputs, EPS);
            let x = uniform(1, rows * inputs);
            let (given, values) = run(context, list, |recorder, weights| {
                let x = recorder.upload("x", &[rows, inputs], &x)?;
                let y = recorder.empty("y", &[rows, outputs], DType::F32)?;
                linear.forward(recorder, weights, x.matrix(), y.matrix())?;
                let normal = recorder.empty("normal", &[rows, outputs], DType::F32)?;
                norm.forward(recorder, weights, y.matrix(), normal.matrix())?;
                Ok(vec![y, normal])
            });
            let y = model::linear(&values, "linear", &wide(&x), inputs);
            assert_near("linear", &given[0], &y);
            // Of what the device made of it, whose rounding is no error of the norm's.
            let normal = model::layer_norm(&values, "norm", &wide(&given[0]), EPS);
            assert_near("norm", &given[1], &normal);
        }
    });
}

fn feed_forward(
    list: &mut ParameterList,
    activation: Activation,
    norm_eps: Option<f32>,
    [embed_dim, ffn_dim]: [usize; 2],
    dropout: f32,
) -> FeedForward {
    let config = FeedForwardConfig {
        embed_dim,
        ffn_dim,
        activation,
        norm_eps,
        dropout,
        gain: 1.0,
    };
    FeedForward::new(list, "ffn", &config, 3)
}

#[test]
fn feed_forward_networks() {
    let (rows, embed_dim, ffn_dim) = (150, 19, 45);
    on_all(|context| {
        for activation in Activation::ALL {
            for norm_eps in [None, Some(EPS)] {
                let mut list = ParameterList::new();
                let sizes = [embed_dim, ffn_dim];
                let network = feed_forward(&mut list, activation, norm_eps, sizes, 0.5);
                let [x, residual] = [1, 2].map(|seed| uniform(seed, rows * embed_dim));
                let (given, values) = run(context, list, |recorder, weights| {
                    let shape = [rows, embed_dim];
                    let x = recorder.upload("x", &shape, &x)?;
                    let residual = recorder.upload("residual", &shape, &residual)?;
                    let y = recorder.empty("y", &shape, DType::F32)?;
                    let all = recorder.empty("all", &shape, DType::F32)?;
                    // Without a step, nothing is dropped.
                    network.forward(recorder, weights, None, x.matrix(), None, y.matrix())?;
                    let residual = Some((residual.matrix(), -1.5));
                    network.forward(recorder, weights, None, x.matrix(), residual, all.matrix())?;
                    Ok(vec![y, all])
                });
                let reference = model::FeedForward {
                    activations: DType::F32,
                    embed_dim,
                    ffn_dim,
                    activation,
                    norm_eps,
                };
                let mut y = reference.forward(&values, "ffn", &wide(&x));
                assert_near("network", &given[0], &y);
                for (y, residual) in y.iter_mut().zip(&residual) {
                    *y -= 1.5 * f64::from(*residual);
                }
                assert_near("network and residual", &given[1], &y);
            }
        }
    });
}

/// A network so wide that 64 rows are a chunk: chunks are as calls of their own, in every bit.
#[test]
fn chunks_of_rows_equal_calls_of_their_own() {
    let context = &kernel_contexts()[0].context;
    let (rows, embed_dim) = (130, 4);
    let mut list = ParameterList::new();
    let sizes = [embed_dim, 1 << 16];
    let network = feed_forward(&mut list, Activation::Gelu, Some(EPS), sizes, 0.0);
    let list = Arc::new(list);
    let values = draw(&list, 4);
    let mut recorder = context.recorder("chunks");
    let weights = upload(&mut recorder, &list, &values).unwrap();
    let shape = [rows, embed_dim];
    let [x, dy] = [1, 2].map(|seed| {
        let values = uniform(seed, rows * embed_dim);
        recorder.upload("x", &shape, &values).unwrap()
    });
    let mut run = |parts: &[Range<usize>]| -> Result<(Vec<Tensor>, Parameters)> {
        let gradients = Parameters::zeros(&mut recorder, &list, "gradients")?;
        let y = recorder.empty("y", &shape, DType::F32)?;
        let dx = recorder.empty("dx", &shape, DType::F32)?;
        for rows in parts {
            let [x, dy, y, dx] = [&x, &dy, &y, &dx].map(|t| t.matrix().slice(rows.clone()));
            let (x, recorder) = (x?, &mut recorder);
            network.forward(recorder, &weights, None, x, None, y?)?;
            let sets = [&weights, &gradients];
            network.backward(recorder, sets, None, x, dy?, (dx?, false))?;
        }
        Ok((vec![y, dx], gradients))
    };
    let (whole, whole_gradients) = run(std::slice::from_ref(&(0..rows))).unwrap();
    let (parts, part_gradients) = run(&[0..64, 64..128, 128..rows]).unwrap();
    let tensors: Vec<&Tensor> = whole.iter().chain(&parts).collect();
    let (tensors, sets) = read(recorder, &tensors, &[&whole_gradients, &part_gradients]).unwrap();
    assert!(tensors[..2] == tensors[2..]);
    assert!(sets[0] == sets[1]);
    assert!(tensors[0].iter().all(|y| y.is_finite()));
    let reference = model::FeedForward {
        activations: DType::F32,
        embed_dim,
        ffn_dim: sizes[1],
        activation: Activation::Gelu,
        norm_eps: Some(EPS),
    };
    // One row of each chunk: the others cost seconds in double precision.
    for row in [5, 70, 129] {
        let range = row * embed_dim..(row + 1) * embed_dim;
        let x = wide(&uniform(1, rows * embed_dim)[range.clone()]);
        let y = reference.forward(&by_name(&list, &values), "ffn", &x);
        assert_near("row", &tensors[0][range], &y);
    }
}

/// Without an activation a network is linear, what is dropped included: `<dy, y(a) - y(b)> = <dx, a - b>` holds only if the
/// backward drops in every chunk what the forward dropped there.
#[test]
fn chunks_drop_the_same_forward_and_backward() {
    let context = &kernel_contexts()[0].context;
    let (rows, embed_dim) = (130, 4);
    let mut list = ParameterList::new();
    let sizes = [embed_dim, 1 << 16];
    let network = feed_forward(&mut list, Activation::Identity, None, sizes, 0.4);
    let list = Arc::new(list);
    let mut recorder = context.recorder("chunks");
    let weights = upload(&mut recorder, &list, &draw(&list, 4)).unwrap();
    let gradients = Parameters::zeros(&mut recorder, &list, "gradients").unwrap();
    let shape = [rows, embed_dim];
    let numbers = [1, 2, 3].map(|seed| uniform(seed, rows * embed_dim));
    let [a, b, dy] = [0, 1, 2].map(|i| recorder.upload("x", &shape, &numbers[i]).unwrap());
    let [ya, yb, dx] = [(); 3].map(|()| recorder.empty("y", &shape, DType::F32).unwrap());
    for (x, y) in [(&a, &ya), (&b, &yb)] {
        let (x, y) = (x.matrix(), y.matrix());
        network
            .forward(&mut recorder, &weights, Some(9.into()), x, None, y)
            .unwrap();
    }
    let sets = [&weights, &gradients];
    let (to, x, dy) = ((dx.matrix(), false), a.matrix(), dy.matrix());
    network
        .backward(&mut recorder, sets, Some(9.into()), x, dy, to)
        .unwrap();
    let (tensors, _) = read(recorder, &[&ya, &yb, &dx], &[]).unwrap();
    let less = |a: &[f32], b: &[f32]| -> Vec<f64> {
        wide(a).iter().zip(wide(b)).map(|(a, b)| a - b).collect()
    };
    for rows in [0..64, 64..128, 128..130] {
        let part = rows.start * embed_dim..rows.end * embed_dim;
        let [ya, yb, dx] = [0, 1, 2].map(|i| &tensors[i][part.clone()]);
        let [a, b, dy] = [0, 1, 2].map(|i| &numbers[i][part.clone()]);
        let forward = dot(&less(ya, yb), dy);
        let backward = dot(&less(a, b), dx);
        let size = less(ya, yb).iter().map(|y| y * y).sum::<f64>().sqrt()
            * wide(dy).iter().map(|y| y * y).sum::<f64>().sqrt();
        assert!(
            (forward - backward).abs() < 1e-5 * size,
            "{forward} {backward} {size}"
        );
    }
}

fn attentions() -> [DilatedAttentionConfig; 3] {
    let config = |segments: &[usize], rates: &[usize]| {
        DilatedAttentionConfig::new(3, 8, segments, rates).unwrap()
    };
    let moved = config(&[5, 13, 37], &[1, 2, 3]).with_torchscale();
    let groups = config(&[7, 20], &[1, 2]).with_heads(Heads::Partitioned);
    [moved, groups, DilatedAttentionConfig::dense(3, 8).unwrap()]
}

#[test]
fn multihead_attention() {
    let (batch, len, width) = (2, 37, 24);
    let base = 32.0;
    on_all(|context| {
        for (attention, norm) in attentions().iter().flat_map(|attention| {
            let norms = [
                ProjectionNorm::None,
                ProjectionNorm::Inner,
                ProjectionNorm::QueryKey,
            ];
            norms.map(|norm| (attention, norm))
        }) {
            // Positions are those of one sequence; other lengths are for dense attention.
            let dense = attention.branches()[0].segment_length > 1000;
            for (xpos, key_len) in [(false, len), (true, len), (false, 11)] {
                if key_len != len && !dense {
                    continue;
                }
                let shape = match key_len == len {
                    true => AttentionShape::new(batch, len).unwrap(),
                    false => AttentionShape::cross(batch, len, key_len).unwrap(),
                };
                let mut list = ParameterList::new();
                let config = MultiheadAttentionConfig {
                    attention: attention.clone(),
                    norm,
                    norm_eps: EPS,
                    xpos,
                    gain: 1.0,
                };
                let layer = MultiheadAttention::new(context, &mut list, "attn", &config).unwrap();
                let rows = batch * len;
                let [x, residual] = [1, 2].map(|seed| uniform(seed, rows * width));
                let memory = uniform(3, batch * key_len * width);
                let (given, values) = run(context, list, |recorder, weights| {
                    let dims = [rows, width];
                    let x = recorder.upload("x", &dims, &x)?;
                    let residual = recorder.upload("residual", &dims, &residual)?;
                    let dims = [batch * key_len, width];
                    let memory = recorder.upload("memory", &dims, &memory)?;
                    let rotations = Rotations::upload(recorder, 8, 100, base)?;
                    // Any first position and centre will do: products depend on differences.
                    let positions = Positions {
                        seq_len: len,
                        first: 50,
                        block: 1000,
                        centre: 60,
                    };
                    let input = MultiheadInput {
                        shape: &shape,
                        x: x.matrix(),
                        memory: memory.matrix(),
                        positions: xpos.then_some((&rotations, positions)),
                        share: None,
                    };
                    let y = recorder.empty("y", x.shape(), DType::F32)?;
                    let residual = Some((residual.matrix(), 0.5));
                    layer.forward(recorder, weights, &input, residual, y.matrix())?;
                    if xpos {
                        let input = MultiheadInput {
                            positions: None,
                            share: None,
                            ..input
                        };
                        let result = layer.forward(recorder, weights, &input, None, y.matrix());
                        assert!(matches!(
                            result,
                            Err(Error::InvalidShape { what, .. }) if what == "positions"
                        ));
                    }
                    Ok(vec![y])
                });
                let reference = model::MultiheadAttention {
                    activations: DType::F32,
                    attention,
                    norm,
                    norm_eps: EPS,
                    xpos_scale_base: xpos.then_some(base),
                };
                let (x, memory) = (wide(&x), wide(&memory));
                let y = reference
                    .forward(&values, "attn", &shape, &x, &memory)
                    .unwrap();
                let pairs = y.iter().zip(&residual);
                let expected: Vec<f64> = pairs.map(|(y, r)| y + 0.5 * f64::from(*r)).collect();
                let what = format!("{attention} {norm:?} {xpos} {key_len}");
                assert_within(&what, &given[0], &expected, 1e-5);
            }
        }
    });
}

#[test]
fn blocks() {
    let (batch, len, memory_len, width) = (2, 21, 9, 24);
    let shape = AttentionShape::new(batch, len).unwrap();
    let cross = AttentionShape::cross(batch, len, memory_len).unwrap();
    let [moved, _, dense] = attentions();
    on_all(|context| {
        for (post_norm, kind) in [false, true]
            .iter()
            .flat_map(|post| [0, 1, 2].map(|k| (*post, k)))
        {
            let mut list = ParameterList::new();
            let norm = LayerNorm::new(&mut list, "norm", width, EPS);
            let mut multihead = |attention: &DilatedAttentionConfig| {
                let config = MultiheadAttentionConfig {
                    attention: attention.clone(),
                    norm: ProjectionNorm::Inner,
                    norm_eps: EPS,
                    xpos: false,
                    gain: 1.0,
                };
                MultiheadAttention::new(context, &mut list, "attn", &config).unwrap()
            };
            let sublayer = match kind {
                0 => Sublayer::SelfAttention(multihead(&moved)),
                1 => Sublayer::CrossAttention(multihead(&dense)),
                _ => {
                    let activation = Activation::Relu;
                    Sublayer::FeedForward(feed_forward(
                        &mut list,
                        activation,
                        None,
                        [width, 31],
                        0.0,
                    ))
                }
            };
            let block = Block {
                norm,
                post_norm,
                sublayer,
                residual_scale: 1.25,
                dropout: 0.0,
                place: 1,
            };
            let x = uniform(1, batch * len * width);
            let memory = uniform(2, batch * memory_len * width);
            let (given, values) = run(context, list, |recorder, weights| {
                let dims = |len| [batch, len, width];
                let x = recorder.upload("x", &dims(len), &x)?;
                let memory = recorder.upload("memory", &dims(memory_len), &memory)?;
                let pass = BlockPass {
                    weights,
                    shape: &shape,
                    memory: Some(Memory {
                        tensor: &memory,
                        shape: &cross,
                    }),
                    positions: None,
                    step_seed: None,
                    share: None,
                    first_row: 0,
                };
                Ok(vec![block.forward(recorder, &pass, &x)?.0])
            });
            let norm = |x: &[f64]| model::layer_norm(&values, "norm", x, EPS);
            let (x, memory) = (wide(&x), wide(&memory));
            let input = if post_norm { x.clone() } else { norm(&x) };
            let attend = |attention, shape, memory: &[f64]| {
                let reference = model::MultiheadAttention {
                    activations: DType::F32,
                    attention,
                    norm: ProjectionNorm::Inner,
                    norm_eps: EPS,
                    xpos_scale_base: None,
                };
                reference
                    .forward(&values, "attn", shape, &input, memory)
                    .unwrap()
            };
            let inner = match kind {
                0 => attend(&moved, &shape, &input),
                1 => attend(&dense, &cross, &memory),
                _ => {
                    let network = model::FeedForward {
                        activations: DType::F32,
                        embed_dim: width,
                        ffn_dim: 31,
                        activation: Activation::Relu,
                        norm_eps: None,
                    };
                    network.forward(&values, "ffn", &input)
                }
            };
            let sum: Vec<f64> = x.iter().zip(&inner).map(|(x, y)| 1.25 * x + y).collect();
            let expected = if post_norm { norm(&sum) } else { sum };
            assert_near(
                &format!("post-norm {post_norm}, kind {kind}"),
                &given[0],
                &expected,
            );
        }
    });
}
