//! Which query sees which key how often, from the plan's index algebra alone: no attention is computed.

use dilated_attention::DilatedAttentionConfig;
use dilated_attention::testing::BranchGeometry;

use super::compare::Comparison;
use super::golden_file::GoldenFile;
use super::report::Report;

/// Compares `count` (head, query, key) and `zpad` (head, query) where the file has them.
pub fn check(
    file: &GoldenFile,
    tokens: usize,
    config: &DilatedAttentionConfig,
    report: &mut Report,
) {
    let heads = config.num_heads();
    let expected = [
        ("count", vec![heads, tokens, tokens]),
        ("zpad", vec![heads, tokens]),
    ];
    for (tensor, shape) in expected {
        if !file.has(tensor) {
            continue;
        }
        // The shape is checked before anything of its size is made.
        let comparison = file.u8s(tensor, &shape).and_then(|reference| {
            let counted = KeyCounts::new(config, tokens, tensor == "count");
            let given = if tensor == "count" {
                counted.real
            } else {
                counted.zero
            };
            Comparison::of_counts(reference, &given)
        });
        match comparison {
            Ok(comparison) => report.compared(tensor, comparison, 0.0),
            Err(reason) => report.fail(tensor, reason),
        }
    }
}

struct KeyCounts {
    /// Times that a query sees a key, (head, query, key); empty when not wanted.
    real: Vec<u32>,
    /// Zero keys that a query sees, (head, query).
    zero: Vec<u32>,
}

impl KeyCounts {
    fn new(config: &DilatedAttentionConfig, tokens: usize, wants_real: bool) -> Self {
        let heads = config.num_heads();
        let mut counts = Self {
            real: vec![
                0;
                if wants_real {
                    heads * tokens * tokens
                } else {
                    0
                }
            ],
            zero: vec![0; heads * tokens],
        };
        if tokens == 0 {
            return counts;
        }
        for branch in 0..config.branches().len() {
            let geometry = BranchGeometry::new(config, branch as u32, tokens as u32);
            let heads = geometry.head_begin..geometry.head_begin + geometry.head_count;
            for (head, query) in heads.flat_map(|h| (0..tokens).map(move |query| (h, query))) {
                let Some((segment, row)) = geometry.row_of_output(head, query as u32) else {
                    continue;
                };
                let at = head as usize * tokens + query;
                counts.zero[at] += geometry.visible_zero_keys(segment, head, row);
                if !wants_real {
                    continue;
                }
                let first = segment as usize * geometry.segment_length as usize
                    + geometry.offset(head) as usize;
                let keys = geometry.visible_keys(segment, head, row) as usize;
                for key in (first..)
                    .step_by(geometry.dilation_rate as usize)
                    .take(keys)
                {
                    counts.real[at * tokens + key] += 1;
                }
            }
        }
        counts
    }
}
