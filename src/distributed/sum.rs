//! Sums of floating point numbers over ranks.

use super::Group;
use crate::error::Result;

impl Group {
    /// Adds up the values of all ranks, in the order of ranks, so that every rank has the same bits. All ranks give the same number of
    /// values. Each adds a part of them: a rank sends and gets about twice the bytes of its values.
    ///
    /// # Errors
    /// This rank's own, and as [`all_to_all`](Self::all_to_all).
    pub fn sum(&self, values: Result<&mut [f32]>) -> Result<()> {
        let values = self.agree(values)?;
        let (size, rank, count) = (self.size(), self.rank(), values.len());
        self.expect_same(&[("the number of values to add", count.to_string())])?;
        let part = count.div_ceil(size).max(1);
        let place = |rank: usize| (rank * part).min(count)..((rank + 1) * part).min(count);
        let mut received = Vec::new();
        let sends: Vec<&[u8]> = (0..size)
            .map(|rank| bytemuck::cast_slice(&values[place(rank)]))
            .collect();
        self.all_to_all(Ok(&sends), &mut received)?;
        let own = &mut values[place(rank)];
        own.fill(0.0);
        for bytes in &received {
            for (sum, word) in own.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *sum += f32::from_ne_bytes(*word);
            }
        }
        let own = bytemuck::cast_slice(own).to_vec();
        self.all_gather(Ok(&own), &mut received)?;
        for (rank, bytes) in received.iter().enumerate() {
            let to: &mut [u8] = bytemuck::cast_slice_mut(&mut values[place(rank)]);
            to.copy_from_slice(bytes);
        }
        Ok(())
    }
}
