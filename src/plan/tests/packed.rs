//! Where the keys of a dispatch lie, from the parameters that its kernel gets, and what packed keys hold.

use std::collections::HashMap;

use crate::kernels::{AttentionParams, Pass};
use crate::plan::dispatch::{AttentionDispatch, KeySource};
use crate::{AttentionShape, DilatedAttentionConfig};

/// Whose key it is: item, token, head.
type Owner = (u32, u32, u32);

/// The tensors of packed keys, on indices.
#[derive(Default)]
pub(super) struct PackedKeys {
    /// Index of the first vec4 of a key in its tensor -> the key that was packed there.
    keys: HashMap<u32, Owner>,
}

/// Index in its binding of the first vec4 of key `row` of a head with this offset: `key_index` of geometry.wgsl, for f32 heads of
/// `vec4s` vec4.
pub(super) fn key_index(
    params: &AttentionParams,
    [item, segment, head]: [u32; 3],
    offset: u32,
    row: u32,
    vec4s: u32,
) -> u32 {
    let factors = [
        (item, params.key_item_stride),
        (segment, params.key_segment_stride),
        (offset, params.key_offset_stride),
        (head, vec4s),
        (row, params.key_row_stride),
    ];
    let products = factors.map(|(count, stride)| count.wrapping_mul(stride));
    products
        .into_iter()
        .fold(params.key_origin, u32::wrapping_add)
}

/// A key that a dispatch reads or writes: its owner, and its index in the tensor of packed keys, if it lies there.
pub(super) struct Key {
    pub owner: Owner,
    pub packed_at: Option<u32>,
}

impl PackedKeys {
    /// Key `row` of a dispatch in f32. It lies inside of the window; where its token does, or in packed keys where it was packed.
    pub(super) fn key(
        &self,
        dispatch: &AttentionDispatch,
        (config, shape): (&DilatedAttentionConfig, &AttentionShape),
        [item, segment, head]: [u32; 3],
        row: u32,
    ) -> Key {
        let geometry = &dispatch.geometry;
        let vec4s = config.head_dim() as u32 / 4;
        let offset = geometry.offset(head);
        let token = segment * geometry.segment_length + offset + row * geometry.dilation_rate;
        let owner = (item, token, head);
        let params = dispatch.params(config, shape);
        // Windows begin in the first item of the dispatch.
        let local = [item - dispatch.items.begin, segment, head];
        let index = key_index(&params, local, offset, row, vec4s);
        assert!(
            u64::from(index + vec4s) * 16 <= dispatch.kv.bytes.size,
            "behind the window"
        );
        let packed_at = match dispatch.keys {
            KeySource::Tokens => {
                let num_heads = config.num_heads() as u64;
                let place = u64::from(item) * shape.key_len() as u64 + u64::from(token);
                let lies_at = (place * num_heads + u64::from(head)) * u64::from(vec4s) * 16;
                assert_eq!(dispatch.kv.bytes.offset + u64::from(index) * 16, lies_at);
                None
            }
            KeySource::Packed { .. } => {
                if dispatch.pass != Pass::PackKeys {
                    assert_eq!(
                        self.keys.get(&index),
                        Some(&owner),
                        "another key was packed here"
                    );
                }
                Some(index)
            }
        };
        Key { owner, packed_at }
    }

    /// Runs a dispatch that packs keys; returns whose they are.
    pub(super) fn pack(
        &mut self,
        dispatch: &AttentionDispatch,
        call: (&DilatedAttentionConfig, &AttentionShape),
    ) {
        for key in self.copied(dispatch, call) {
            let index = key.packed_at.expect("packed");
            self.keys.insert(index, key.owner);
        }
    }

    /// The keys that a dispatch packs or unpacks: all that exist. Checks where it finds them among their tokens.
    pub(super) fn copied(
        &self,
        dispatch: &AttentionDispatch,
        (config, shape): (&DilatedAttentionConfig, &AttentionShape),
    ) -> Vec<Key> {
        let mut keys = Vec::new();
        let geometry = &dispatch.geometry;
        let (item, segment) = (dispatch.items.begin, dispatch.segments.begin);
        assert_eq!((dispatch.items.len(), dispatch.segments.len()), (1, 1));
        for head in dispatch.heads.begin..dispatch.heads.end {
            let end = dispatch.key_rows.end.min(geometry.real_keys(segment, head));
            for row in dispatch.key_rows.begin..end {
                let key = self.key(dispatch, (config, shape), [item, segment, head], row);
                let token = u64::from(key.owner.1);
                let first = u64::from(dispatch.first_tokens[0]);
                let row = token.checked_sub(first).expect("not before the window");
                let row_bytes = config.embed_dim() as u64 * 4;
                let end = u64::from(dispatch.q.skip) * 16 + (row + 1) * row_bytes;
                assert!(end <= dispatch.q.bytes.size, "behind the window");
                let place = u64::from(item) * shape.key_len() as u64 + token;
                let of_window = dispatch.q.bytes.offset + u64::from(dispatch.q.skip) * 16;
                assert_eq!(of_window + row * row_bytes, place * row_bytes);
                keys.push(key);
            }
        }
        keys
    }
}
