//! Forward time against sequence length, with criterion: `cargo bench --bench attention`.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use dilated_attention::{Context, DilatedAttention, DilatedAttentionConfig, Mask};

const NUM_HEADS: usize = 2;
const HEAD_DIM: usize = 32;

fn sequence_sweep(criterion: &mut Criterion) {
    let context = Context::new_blocking().expect("an adapter");
    let mut group = criterion.benchmark_group("forward");
    group
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500));
    for mask in [Mask::Full, Mask::Causal] {
        let config =
            DilatedAttentionConfig::new(NUM_HEADS, HEAD_DIM, &[512, 2048, 8192], &[1, 4, 16])
                .expect("valid")
                .with_mask(mask);
        let attention = DilatedAttention::new(&context, config).expect("fits");
        for tokens in [8192usize, 16_384, 32_768] {
            let dims = [1, tokens, NUM_HEADS, HEAD_DIM];
            let data: Vec<f32> = (0..dims.iter().product())
                .map(|i: usize| ((i * 7919) % 1009) as f32 / 504.5 - 1.0)
                .collect();
            let mut recorder = context.recorder("inputs");
            let q = recorder.upload("q", &dims, &data).expect("uploads");
            recorder.submit().expect("submits");
            group.throughput(Throughput::Elements(tokens as u64));
            group.bench_with_input(
                BenchmarkId::new(format!("{mask:?}"), tokens),
                &q,
                |bencher, q| {
                    bencher.iter(|| {
                        let mut recorder = context.recorder("forward");
                        let result = attention.forward(&mut recorder, q, q, q).expect("records");
                        recorder
                            .submit()
                            .and_then(|submission| submission.wait())
                            .expect("runs");
                        result
                    });
                },
            );
        }
    }
    group.finish();
}

criterion_group!(benches, sequence_sweep);
criterion_main!(benches);
