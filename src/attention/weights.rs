//! Attention weights of one token: how much it attends to each other token.

use super::DilatedAttention;
use crate::config::{AttentionShape, CallOptions, in_u32};
use crate::device::{DType, ElementFormat};
use crate::error::{Error, Result};
use crate::kernels::fold_grid;
use crate::kernels::token_weights::{TokenWeights, TokenWeightsParams};
use crate::plan::branch::BranchGeometry;
use crate::plan::dispatch::Range;
use crate::plan::window::{RowLayout, key_windows};
use crate::recorder::Recorder;
use crate::tensor::Tensor;

/// Keys that one workgroup computes, for one head.
const KEYS: u32 = 64;

impl DilatedAttention {
    /// Records the attention weights of token number `token` of each item: how much it attends to each key in each branch. The
    /// result is f32, (batch, branch, head, key). A weight is `2^(score - m) / s`, where `(m, s)` is the softmax state of the
    /// token's row over all branches.
    ///
    /// Summed over branches, the weights are the attention map of the token. Their total is 1, less what zero keys
    /// ([`Padding::ZeroKeys`](crate::Padding::ZeroKeys)) take. Weights are 0 for keys that a branch does not see, for branches that
    /// do not cover the token, and for items that end before it.
    ///
    /// `inputs` are q and k of a [`forward`](Self::forward), `softmax_state` is the state that it returned. The weights are those
    /// of the row that is written to `token`. Where [`OutputRows`](crate::OutputRows) moves rows, this row may read the query of
    /// another token.
    ///
    /// # Errors
    /// [`Error::InvalidShape`] when there is no such token; [`Error::ContextMismatch`], [`Error::WrongDType`],
    /// [`Error::InvalidShape`] for tensors that do not fit; [`Error::BindingTooSmall`] when a binding cannot cover the weights of
    /// one branch; the errors of leasing and recording.
    pub fn token_weights(
        &self,
        recorder: &mut Recorder,
        inputs: [&Tensor; 2],
        softmax_state: &Tensor,
        token: usize,
    ) -> Result<Tensor> {
        self.token_weights_with(recorder, inputs, softmax_state, token, &CallOptions::new())
    }

    /// As [`token_weights`](Self::token_weights), for a [`forward_with`](Self::forward_with) that had the same options.
    ///
    /// # Errors
    /// As [`token_weights`](Self::token_weights), and for lengths that do not fit.
    pub fn token_weights_with(
        &self,
        recorder: &mut Recorder,
        [q, k]: [&Tensor; 2],
        softmax_state: &Tensor,
        token: usize,
        options: &CallOptions,
    ) -> Result<Tensor> {
        let shape = options.shape_of(q.shape(), k.shape())?;
        self.record_token_weights(recorder, &shape, [q, k], softmax_state, token)
    }

    pub(crate) fn record_token_weights(
        &self,
        recorder: &mut Recorder,
        shape: &AttentionShape,
        [q, k]: [&Tensor; 2],
        softmax_state: &Tensor,
        token: usize,
    ) -> Result<Tensor> {
        let dtype = q.dtype();
        let query_shape = self.query_shape(shape);
        self.expect(recorder, &[("q", q)], &query_shape, dtype)?;
        self.expect(recorder, &[("k", k)], &self.key_shape(shape), dtype)?;
        let state = [("softmax_state", softmax_state)];
        self.expect(recorder, &state, &self.state_shape(shape), DType::F32)?;
        if token >= shape.seq_len() {
            return Err(Error::InvalidShape {
                what: "token whose weights are wanted".into(),
                given: token.to_string(),
                need: format!("one of the {} queries", shape.seq_len()),
            });
        }
        let caps = self.context.caps().clone();
        let format = ElementFormat::of("q", dtype, &caps)?;
        let config = &self.config;
        let num_branches = config.branches().len();
        let dims = [
            shape.batch(),
            num_branches,
            config.num_heads(),
            shape.key_len(),
        ];
        let [_, num_branches, num_heads, key_len] = dims.map(in_u32);
        let token = in_u32(token);
        let tensor = RowLayout::of_activations(config, format, &caps);
        let state_row = RowLayout::of_state(config, &caps);
        // Elements, of which a part holds whole rows: of one head, all keys.
        let row_bytes = u64::from(key_len) * 4;
        let out_layout = RowLayout {
            row_bytes: 4,
            element_bytes: 4,
            part_bytes: caps.part_bytes(row_bytes),
        };
        let too_small = |what: &'static str, requested_bytes| Error::BindingTooSmall {
            what: what.into(),
            requested_bytes,
            limit_bytes: caps.max_binding_bytes,
        };
        let kernel = TokenWeights {
            head_dim: in_u32(config.head_dim()),
            format,
        };
        self.context.compile(&[kernel.into()])?;
        let part_bytes = out_layout.part_bytes;
        let label = "token weights".into();
        let weights = recorder.empty_in_parts(label, &dims, DType::F32, part_bytes)?;
        recorder.clear(&weights, weights.whole());
        let out_layout = RowLayout {
            part_bytes: weights.part_bytes(),
            ..out_layout
        };
        for item in 0..shape.batch() {
            let [len, keys] = [shape.valid_len(item), shape.valid_key_len(item)].map(in_u32);
            if token >= len || keys == 0 {
                continue;
            }
            let first_query = item as u64 * shape.seq_len() as u64;
            let first_key = item as u64 * u64::from(key_len);
            for branch in 0..num_branches {
                let geometry = BranchGeometry::cross(config, branch, len, keys);
                let rate = geometry.dilation_rate;
                for (heads, segment, row) in geometry.rows_of_token(token) {
                    let place = |row: u32| {
                        u64::from(segment) * u64::from(geometry.segment_length)
                            + u64::from(geometry.offset(heads.begin))
                            + u64::from(row) * u64::from(rate)
                    };
                    // The weight of a head and the first key.
                    let plane = item as u64 * u64::from(num_branches) + u64::from(branch);
                    let first_weight = |head: u32| {
                        let row = plane * u64::from(num_heads) + u64::from(head);
                        row * u64::from(key_len) + place(0)
                    };
                    let has_query = row < geometry.real_rows(segment, heads.begin);
                    let query = if has_query { place(row) } else { 0 };
                    let num_keys = geometry.visible_keys(segment, heads.begin, row);
                    let windows_of = |heads: Range| {
                        let weights = |head| (out_layout, first_weight(head));
                        let keys = (tensor, first_key + place(0));
                        let tensors = [keys, weights(heads.begin)];
                        let windows = key_windows(num_keys, rate, &tensors, &caps)?;
                        let out = |&(begin, end): &(u32, u32)| {
                            let [begin, end] = [begin, end.saturating_sub(1)]
                                .map(|key| u64::from(key) * u64::from(rate));
                            let first = first_weight(heads.begin) + begin;
                            let last = first_weight(heads.end - 1) + end;
                            out_layout.window(first, last + 1, &caps)
                        };
                        let out: Option<Vec<_>> = windows.iter().map(out).collect();
                        Some((heads, windows.into_iter().zip(out?).collect::<Vec<_>>()))
                    };
                    // One binding may not cover the weights of all heads: then each head has its dispatches.
                    let each_head = || {
                        let heads = (heads.begin..heads.end).map(|begin| Range {
                            begin,
                            end: begin + 1,
                        });
                        heads.map(windows_of).collect::<Option<Vec<_>>>()
                    };
                    let windows = windows_of(heads)
                        .map(|all| vec![all])
                        .or_else(each_head)
                        .ok_or_else(|| too_small("k", tensor.row_bytes))?;
                    let windows = windows.into_iter().flat_map(|(heads, windows)| {
                        windows.into_iter().map(move |window| (heads, window))
                    });
                    for (heads, ((begin, end), out_window)) in windows {
                        if begin == end {
                            continue;
                        }
                        let keys = Range { begin, end };
                        let rows =
                            first_key + place(keys.begin)..first_key + place(keys.end - 1) + 1;
                        let k_window = tensor
                            .window(rows.start, rows.end, &caps)
                            .ok_or_else(|| too_small("k", tensor.row_bytes))?;
                        let query = first_query + query;
                        let q_window = tensor
                            .window(query, query + 1, &caps)
                            .ok_or_else(|| too_small("q", tensor.row_bytes))?;
                        let state = first_query + u64::from(token);
                        let state_window = state_row
                            .window(state, state + 1, &caps)
                            .ok_or_else(|| too_small("softmax_state", state_row.row_bytes))?;
                        let number = keys.len().div_ceil(KEYS) * heads.len();
                        let grid = fold_grid(number, caps.max_workgroups_per_dimension)
                            .ok_or_else(|| Error::SizeOverflow {
                                what: "workgroups of one dispatch".into(),
                                given: format!("{} keys, {} heads", keys.len(), heads.len()),
                            })?;
                        let params = TokenWeightsParams {
                            num_heads,
                            head_begin: heads.begin,
                            head_count: heads.len(),
                            num_keys: keys.len(),
                            dilation_rate: rate,
                            has_query: u32::from(has_query),
                            q_skip: q_window.skip,
                            k_skip: k_window.skip,
                            state_skip: state_window.skip,
                            // Before the weights of head 0, which may lie before the binding: the sum in the kernel wraps back.
                            out_skip: out_window
                                .skip
                                .wrapping_sub(heads.begin.wrapping_mul(key_len)),
                            out_stride: key_len,
                            scale_log2e: config.softmax_scale() * std::f32::consts::LOG2_E,
                            first_workgroup: 0,
                            grid_width: grid[0],
                        };
                        let bindings = [
                            (q, q_window.bytes),
                            (k, k_window.bytes),
                            (softmax_state, state_window.bytes),
                            (&weights, out_window.bytes),
                        ];
                        recorder.dispatch(kernel, &bindings, &params, grid)?;
                    }
                }
            }
        }
        Ok(weights)
    }
}
