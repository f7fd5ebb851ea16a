//! Prints plans as tables.

use std::fmt;

use super::backward::BackwardPlan;
use super::dispatch::{AttentionDispatch, Range};
use super::forward::ForwardPlan;
use super::window::TokenWindow;
use super::workspace::PlannedBuffer;
use crate::kernels::Pass;

impl fmt::Display for ForwardPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "forward of {} x {} tokens, {} heads of {}",
            self.shape.batch(),
            self.shape.seq_len(),
            self.num_heads,
            self.head_dim,
        )?;
        writeln!(f, "kernel {}, chosen: {}", self.variant, self.reason)?;
        write_parts(f, &self.buffers, "out", self.num_rows)?;
        write_dispatches(f, &self.dispatches)?;
        let cleared = cleared_rows(&self.clears);
        writeln!(f, "cleared before: {cleared} of {} rows", self.num_rows)?;
        write_buffers(f, &self.buffers)?;
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

impl fmt::Display for BackwardPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "backward of {} x {} tokens, {} heads of {}",
            self.shape.batch(),
            self.shape.seq_len(),
            self.num_heads,
            self.head_dim,
        )?;
        writeln!(f, "kernels {}, chosen: {}", self.variant, self.reason)?;
        if let Some(dtype) = self.converted_from {
            writeln!(
                f,
                "inputs are converted from {dtype} to f32, gradients back"
            )?;
        }
        let num_rows = self.shape.batch() as u64 * self.shape.seq_len() as u64;
        write_parts(f, &self.buffers, "dq", num_rows)?;
        write_dispatches(f, &self.dispatches)?;
        writeln!(
            f,
            "cleared before: {} rows of dq, {} of dk and dv",
            cleared_rows(&self.query_clears),
            cleared_rows(&self.key_clears)
        )?;
        write_buffers(f, &self.buffers)?;
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

/// Says how the tensors of queries are cut, if one buffer does not hold them. `like` is one of them, of `num_rows` tokens.
fn write_parts(
    f: &mut fmt::Formatter<'_>,
    buffers: &[PlannedBuffer],
    like: &str,
    num_rows: u64,
) -> fmt::Result {
    let parts: Vec<_> = buffers
        .iter()
        .filter(|buffer| buffer.label == like)
        .collect();
    let [first, .., _] = &parts[..] else {
        return Ok(());
    };
    let bytes: u64 = parts.iter().map(|part| part.requested_bytes).sum();
    writeln!(
        f,
        "tensors of queries lie in {} buffers of {} tokens of {num_rows}",
        parts.len(),
        first.requested_bytes * num_rows / bytes
    )
}

fn cleared_rows(clears: &[(u64, u64)]) -> u64 {
    clears.iter().map(|(begin, end)| end - begin).sum()
}

fn write_dispatches(f: &mut fmt::Formatter<'_>, dispatches: &[AttentionDispatch]) -> fmt::Result {
    writeln!(
        f,
        "pass           branch  segment  rate     items  segments       rows       keys  mode   workgroups (grid)   MiB bound q / kv"
    )?;
    for dispatch in dispatches {
        let mib = |window: &TokenWindow| window.bytes.size as f64 / f64::from(1 << 20);
        let range = |range: Range| format!("{}..{}", range.begin, range.end);
        writeln!(
            f,
            "{:13}  {:6}  {:7}  {:4}  {:>8}  {:>8}  {:>9}  {:>9}  {:5}  {:10} ({} x {})   {:.1} / {:.1}",
            match dispatch.pass {
                Pass::Forward => "forward",
                Pass::BranchDelta => "branch delta",
                Pass::Weights => "weights",
                Pass::Dq => "dq",
                Pass::Dk => "dk",
                Pass::Dv => "dv",
                Pass::DkDv => "dk, dv",
                Pass::PackKeys => "pack k, v",
                Pass::PackGradients => "pack dk, dv",
                Pass::UnpackGradients => "unpack dk, dv",
            },
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
    Ok(())
}

fn write_buffers(f: &mut fmt::Formatter<'_>, buffers: &[PlannedBuffer]) -> fmt::Result {
    for buffer in buffers {
        writeln!(
            f,
            "leases {:<13} {:>13} bytes, class {:>13}",
            buffer.label, buffer.requested_bytes, buffer.class_bytes
        )?;
    }
    Ok(())
}
