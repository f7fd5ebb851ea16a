//! Dilated attention in a few lines: `cargo run --release --example hello_attention`.

use dilated_attention::{Context, DilatedAttention, DilatedAttentionConfig};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // A device, and the buffers on it.
    let context = Context::new_blocking()?;

    // 4 heads of 32. Segments of 64 tokens attend to all of theirs, segments of 256 to every fourth.
    let config = DilatedAttentionConfig::new(4, 32, &[64, 256], &[1, 4])?;
    let attention = DilatedAttention::new(&context, config)?;

    // One sequence of 1024 tokens: (batch, tokens, heads, elements of a head).
    let dims = [1, 1024, 4, 32];
    let wave = |i| (i as f32 * 0.01).sin();
    let data: Vec<f32> = (0..1024 * 4 * 32).map(wave).collect();

    // Work is recorded, then submitted at once.
    let mut recorder = context.recorder("hello");
    let q = recorder.upload("q", &dims, &data)?;
    let k = recorder.upload("k", &dims, &data)?;
    let v = recorder.upload("v", &dims, &data)?;
    let result = attention.forward(&mut recorder, &q, &k, &v)?;
    let out = recorder.download::<f32>(&result.out)?;
    recorder.submit()?;

    let out = out.wait()?;
    println!("{} numbers, the first of them {:?}", out.len(), &out[..4]);
    Ok(())
}
