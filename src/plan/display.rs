//! A forward plan as a table.

use std::fmt;

use super::dispatch::Range;
use super::forward::ForwardPlan;
use super::window::TokenWindow;

impl fmt::Display for ForwardPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "forward of {} x {} tokens, {} heads of {}, kernel {}",
            self.shape.batch(),
            self.shape.seq_len(),
            self.num_heads,
            self.head_dim,
            self.variant
        )?;
        writeln!(
            f,
            "branch  segment  rate     items  segments       rows       keys  mode   workgroups (grid)   MiB bound q / kv"
        )?;
        for dispatch in &self.dispatches {
            let mib = |window: &TokenWindow| window.bytes.size as f64 / f64::from(1 << 20);
            let range = |range: Range| format!("{}..{}", range.begin, range.end);
            writeln!(
                f,
                "{:6}  {:7}  {:4}  {:>8}  {:>8}  {:>9}  {:>9}  {:5}  {:10} ({} x {})   {:.1} / {:.1}",
                dispatch.geometry.branch,
                dispatch.geometry.segment_length,
                dispatch.geometry.dilation_rate,
                range(dispatch.items),
                range(dispatch.segments),
                range(dispatch.rows),
                range(dispatch.key_rows),
                if dispatch.merges { "merge" } else { "write" },
                dispatch.num_workgroups,
                dispatch.grid[0],
                dispatch.grid[1],
                mib(&dispatch.q),
                mib(&dispatch.kv),
            )?;
        }
        let cleared: u64 = self.clears.iter().map(|(begin, end)| end - begin).sum();
        writeln!(f, "cleared before: {cleared} of {} rows", self.num_rows)?;
        for buffer in &self.buffers {
            writeln!(
                f,
                "leases {:<12} {:>13} bytes, class {:>13}",
                buffer.label, buffer.requested_bytes, buffer.class_bytes
            )?;
        }
        write!(
            f,
            "requested {} bytes, held {} bytes, {:.3} GFLOP, byte floor {}",
            self.requested_bytes(),
            self.held_bytes(),
            self.flop as f64 / 1e9,
            self.byte_floor
        )
    }
}
