//! Forwards over sequences that the device does not hold, against the same attention in core and in f64.

use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;

use dilated_attention::half::{bf16, f16};
use dilated_attention::out_of_core::{
    Generated, OutOfCoreOptions, TokenFile, TokenSink, TokenSource,
};
use dilated_attention::weights::WeightsError;
use dilated_attention::{
    AttentionShape, DType, DilatedAttention, DilatedAttentionConfig, Element, Error, Heads, Mask,
    softmax_lse,
};

use crate::forward::named_problems;
use crate::support::contexts::context_with;
use crate::support::kernel_contexts::{TestContext, kernel_contexts};
use crate::support::numbers::uniform;
use crate::support::problem::Problem;

fn options(block_tokens: usize) -> OutOfCoreOptions {
    OutOfCoreOptions::new(64 << 20).with_block_tokens(NonZeroUsize::new(block_tokens))
}

/// The output of a run over these inputs.
fn run<T: Element>(
    attention: &DilatedAttention,
    tokens: usize,
    [q, k, v]: [&[T]; 3],
    options: &OutOfCoreOptions,
) -> Result<Vec<T>, Error> {
    let inputs = [q, k, v].map(<[T]>::to_vec);
    let plan = attention.plan_out_of_core(tokens, T::DTYPE, options)?;
    let mut out = vec![T::zeroed(); q.len()];
    let [q, k, v] = &inputs;
    let mut run = attention.run_out_of_core(&plan, [q, k, v], &mut out)?;
    while !run.is_done() {
        let before = run.progress();
        let after = run.advance()?;
        assert!(after.done >= before.done && after.total == before.total);
        assert_eq!(after.is_done(), run.is_done());
    }
    assert!(run.progress().is_done());
    drop(run);
    Ok(out)
}

/// Checks a problem of one item at several lengths of blocks.
fn check(problem: &Problem, on: &TestContext, blocks: &[usize]) -> Result<(), String> {
    let attention = DilatedAttention::new(&on.context, problem.config.clone()).unwrap();
    let expected = problem.reference().out;
    let plain = problem.plain().out;
    let error = |out: &[f32]| {
        let pairs = out.iter().zip(&expected);
        let errors = pairs.map(|(a, b)| (f64::from(*a) - b).abs());
        // Unlike `max`, this keeps a NaN.
        errors.fold(0f64, |worst, error| match worst >= error {
            true => worst,
            false => error,
        })
    };
    let largest = expected.iter().fold(0f64, |most, x| most.max(x.abs()));
    let allowed = (2.0 * error(&plain)).max(largest * 2f64.powi(-21));
    for block in blocks {
        let inputs = [&problem.q, &problem.k, &problem.v].map(Vec::as_slice);
        let tokens = problem.shape.seq_len();
        let out = run(&attention, tokens, inputs, &options(*block)).unwrap();
        let worst = error(&out);
        // NaN is no error that passes.
        if worst > allowed || worst.is_nan() {
            return Err(format!(
                "blocks of {block}: {worst} where {allowed} are allowed"
            ));
        }
    }
    Ok(())
}

/// Every kind of attention, with blocks that end within segments and between the heads of a row.
#[test]
fn named_cases_equal_the_reference() {
    let on = &kernel_contexts()[0];
    for (name, problem) in named_problems() {
        let shape = &problem.shape;
        let whole =
            shape.batch() == 1 && !shape.is_cross() && shape.valid_len(0) == shape.seq_len();
        if !whole || shape.seq_len() == 0 {
            continue;
        }
        check(&problem, on, &[7, 32, 1000]).unwrap_or_else(|reason| panic!("{name}: {reason}"));
    }
}

/// Outputs that lie behind their queries, and blocks shorter than the offsets of the heads.
#[test]
fn short_blocks_hold_the_rows_of_all_heads() {
    let on = &kernel_contexts()[0];
    for (heads, segment, rate, tokens, block) in [(4, 5, 4, 98, 1), (16, 17, 16, 205, 7)] {
        let config = DilatedAttentionConfig::new(heads, 8, &[segment], &[rate]).unwrap();
        let shape = AttentionShape::new(1, tokens).unwrap();
        let problem = Problem::new(config.with_torchscale(), shape, 1.0);
        check(&problem, on, &[block]).unwrap();
    }
}

/// One block is the same windows as a call in core.
#[test]
fn one_block_has_the_bits_of_a_call_in_core() {
    let on = &kernel_contexts()[0];
    let config = DilatedAttentionConfig::new(4, 8, &[16, 64], &[1, 4]).unwrap();
    for mask in [Mask::Full, Mask::Causal] {
        let config = config
            .clone()
            .with_mask(mask)
            .with_torchscale()
            .with_mask(mask);
        let shape = AttentionShape::new(1, 150).unwrap();
        let problem = Problem::new(config.clone(), shape, 1.0);
        let attention = DilatedAttention::new(&on.context, config).unwrap();
        let inputs = [&problem.q, &problem.k, &problem.v].map(Vec::as_slice);
        let out = run(&attention, 150, inputs, &options(1000)).unwrap();
        let mut recorder = on.context.recorder("in core");
        let [q, k, v] = problem.upload(&mut recorder).unwrap();
        let result = attention.forward(&mut recorder, &q, &k, &v).unwrap();
        let expected = recorder.download::<f32>(&result.out).unwrap();
        recorder.submit().unwrap();
        assert_eq!(out, expected.wait().unwrap());
    }
}

#[test]
fn softmax_states_are_those_of_a_call_in_core() {
    let on = &kernel_contexts()[0];
    let config = DilatedAttentionConfig::new(2, 8, &[16, 64], &[2, 4]).unwrap();
    let problem = Problem::new(config.clone(), AttentionShape::new(1, 90).unwrap(), 1.0);
    let attention = DilatedAttention::new(&on.context, config).unwrap();
    let plan = attention
        .plan_out_of_core(90, DType::F32, &options(25))
        .unwrap();
    let (mut out, mut states) = (vec![0f32; 90 * 16], vec![0f32; 90 * 4]);
    let inputs: [&dyn TokenSource; 3] = [&problem.q, &problem.k, &problem.v];
    let begin = attention.run_out_of_core(&plan, inputs, &mut out).unwrap();
    let short = begin.with_softmax_state(&mut [0f32; 5].to_vec()).map(drop);
    assert!(matches!(short, Err(Error::LengthMismatch { given: 5, .. })));
    let begin = attention.run_out_of_core(&plan, inputs, &mut out).unwrap();
    let mut run = begin.with_softmax_state(&mut states).unwrap();
    while !run.is_done() {
        run.advance().unwrap();
    }
    drop(run);
    let expected = problem.reference().softmax_lse;
    for (lse, expected) in softmax_lse(&states).iter().zip(&expected) {
        assert!(
            (f64::from(*lse) - expected).abs() <= 1e-6 * expected.abs().max(1.0),
            "{lse} {expected}"
        );
    }
}

fn check_half<T: Element>(narrow: impl Fn(f32) -> T, wide: impl Fn(T) -> f32, ulp: f64) {
    let on = &kernel_contexts()[0];
    let config = DilatedAttentionConfig::new(3, 8, &[32, 128], &[1, 4]).unwrap();
    for config in [config.clone(), config.with_heads(Heads::Partitioned)] {
        let shape = AttentionShape::new(1, 300).unwrap();
        let problem = Problem::new(config.clone(), shape, 1.0).stored(T::DTYPE);
        let attention = DilatedAttention::new(&on.context, config).unwrap();
        let stored = |x: &[f32]| x.iter().map(|x| narrow(*x)).collect::<Vec<T>>();
        let inputs = [&problem.q, &problem.k, &problem.v].map(|x| stored(x));
        let inputs = inputs.each_ref().map(Vec::as_slice);
        let expected = problem.reference().out;
        for block in [50, 128] {
            let out = run(&attention, 300, inputs, &options(block)).unwrap();
            for (out, expected) in out.iter().zip(&expected) {
                // Rounded once, at the end.
                let error = (f64::from(wide(*out)) - expected).abs();
                assert!(
                    error <= 0.51 * ulp * expected.abs() + 1e-6,
                    "{error} of {expected}"
                );
            }
        }
    }
}

/// Sums are f32 until a row is complete.
#[test]
fn half_precision_is_rounded_once() {
    check_half(f16::from_f32, f16::to_f32, 2f64.powi(-10));
    check_half(bf16::from_f32, bf16::to_f32, 2f64.powi(-7));
}

/// The pool's peak stays within the plan, and that within the budget.
#[test]
fn memory_stays_within_the_budget() {
    let context = context_with(&Default::default());
    let config = DilatedAttentionConfig::new(1, 16, &[256, 1 << 15], &[1, 64]).unwrap();
    let attention = DilatedAttention::new(&context, config).unwrap();
    let tokens = 1 << 15;
    let x = uniform(3, tokens * 16);
    let plan = |kib: u64| {
        attention.plan_out_of_core(tokens, DType::F32, &OutOfCoreOptions::new(kib << 10))
    };
    let error = plan(500).map(drop).unwrap_err();
    assert!(matches!(error, Error::PlanOverBudget { .. }), "{error}");
    for kib in [2 << 10, 10 << 10] {
        let plan = plan(kib).unwrap();
        assert!(
            plan.num_blocks() > 1 && plan.device_bytes <= kib << 10,
            "{plan}"
        );
        assert_eq!(plan.packed_bytes, 2 * 512 * 64);
        context.wait().unwrap();
        context.pool().force_trim();
        context.pool().reset_peaks();
        let mut out = vec![0f32; x.len()];
        let mut run = attention
            .run_out_of_core(&plan, [&x, &x, &x], &mut out)
            .unwrap();
        while !run.is_done() {
            run.advance().unwrap();
        }
        drop(run);
        let peak = context.pool().stats().held_bytes.peak;
        assert!(
            peak <= plan.device_bytes,
            "{peak} {}\n{plan}",
            plan.device_bytes
        );
        context.wait().unwrap();
        assert_eq!(context.pool().stats().leases.current, 0);
    }
}

/// A source that fails at some tokens, or panics.
struct Failing(usize, bool);

impl TokenSource for Failing {
    fn dtype(&self) -> DType {
        DType::F32
    }

    fn num_elements(&self) -> Option<u64> {
        None
    }

    fn read(&self, tokens: Range<usize>, rows: &mut [u8]) -> io::Result<()> {
        rows.fill(0);
        match tokens.contains(&self.0) {
            true if self.1 => panic!("as it was told"),
            true => Err(io::Error::other("the disk is gone")),
            false => Ok(()),
        }
    }
}

struct Full;

impl TokenSink for Full {
    fn dtype(&self) -> DType {
        DType::F32
    }

    fn num_elements(&self) -> Option<u64> {
        Some(1600)
    }

    fn write(&mut self, _: Range<usize>, _: &[u8]) -> io::Result<()> {
        Err(io::Error::new(io::ErrorKind::StorageFull, "no room"))
    }
}

#[test]
fn what_the_host_cannot_do_is_an_error() {
    let on = &kernel_contexts()[0];
    let config = DilatedAttentionConfig::new(2, 8, &[16], &[1]).unwrap();
    let attention = DilatedAttention::new(&on.context, config).unwrap();
    let plan = attention
        .plan_out_of_core(100, DType::F32, &options(32))
        .unwrap();
    let good = vec![0.5f32; 1600];
    for panics in [false, true] {
        let bad = Failing(40, panics);
        let mut out = vec![0f32; 1600];
        let mut run = attention
            .run_out_of_core(&plan, [&good, &bad, &good], &mut out)
            .unwrap();
        while run.progress().done < 32 {
            run.advance().unwrap();
        }
        let done = run.progress();
        let error = loop {
            match run.advance() {
                Ok(progress) => assert!(progress.done < 64),
                Err(error) => break error,
            }
        };
        assert!(
            matches!(&error, Error::HostTokens { tokens, .. } if tokens.start <= 40),
            "{error}"
        );
        assert_eq!((run.progress(), run.is_done()), (done, false));
        drop(run);
        assert_eq!(out[..32 * 16], good[..32 * 16]);
    }
    let mut full = Full;
    let mut run = attention
        .run_out_of_core(&plan, [&good, &good, &good], &mut full)
        .unwrap();
    let error = loop {
        match run.advance() {
            Ok(progress) => assert!(progress.done < 32),
            Err(error) => break error,
        }
    };
    assert!(error.to_string().contains("no room"), "{error}");
    // Too few tokens in memory, tokens of another type, too little room.
    let (short, words) = (vec![0.5f32; 800], vec![0u32; 1600]);
    let begin = |k: &dyn TokenSource, out: &mut dyn TokenSink| {
        let run = attention.run_out_of_core(&plan, [&good, k, &good], out);
        run.map(drop).unwrap_err()
    };
    let mut out = vec![0f32; 1600];
    let expected = |label: &'static str, given| Error::LengthMismatch {
        label: label.into(),
        given,
        expected: 1600,
    };
    assert_eq!(begin(&short, &mut out), expected("k", 800));
    let error = begin(&words, &mut out);
    assert!(
        matches!(
            error,
            Error::WrongDType {
                given: DType::U32,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(begin(&good, &mut vec![0f32; 10]), expected("out", 10));
    // The plan of another attention.
    let longer = DilatedAttentionConfig::new(2, 8, &[16, 64], &[1, 4]).unwrap();
    let longer = DilatedAttention::new(&on.context, longer).unwrap();
    let other = longer.run_out_of_core(&plan, [&good, &good, &good], &mut out);
    assert!(matches!(other.map(drop), Err(Error::InvalidConfig { .. })));
    // States are asked for before the first block.
    let mut states = vec![0f32; 400];
    let mut run = attention
        .run_out_of_core(&plan, [&good, &good, &good], &mut out)
        .unwrap();
    run.advance().unwrap();
    let late = run.with_softmax_state(&mut states).map(drop);
    assert!(matches!(late, Err(Error::OutOfOrder { .. })));
    // Slices that are borrowed.
    let (input, output) = (&good[..], &mut &mut out[..]);
    let inputs: [&dyn TokenSource; 3] = [&input, &input, &input];
    let mut run = attention.run_out_of_core(&plan, inputs, output).unwrap();
    run.advance().unwrap();
    drop(run);
    for tokens in [0, usize::MAX] {
        let error = attention
            .plan_out_of_core(tokens, DType::F32, &options(32))
            .map(drop);
        assert!(matches!(error, Err(Error::InvalidShape { .. })));
    }
    let error = attention
        .plan_out_of_core(10, DType::U32, &options(32))
        .map(drop);
    assert!(matches!(error, Err(Error::WrongDType { .. })));
}

/// Tokens of a function are those of memory.
#[test]
fn tokens_are_generated() {
    let on = &kernel_contexts()[0];
    let config = DilatedAttentionConfig::new(2, 8, &[16, 100], &[1, 8]).unwrap();
    let attention = DilatedAttention::new(&on.context, config).unwrap();
    let x = uniform(5, 100 * 16);
    let generated = Generated::new(|tokens: Range<usize>, rows: &mut [f32]| {
        rows.copy_from_slice(&x[tokens.start * 16..tokens.end * 16]);
    });
    // Wherever the bytes lie.
    let mut bytes = [0u8; 2 * 64 + 8];
    for begin in 0..4 {
        let rows = &mut bytes[begin..][..2 * 64];
        generated.read(7..9, rows).unwrap();
        assert_eq!(*rows, *bytemuck::cast_slice::<f32, u8>(&x[7 * 16..9 * 16]));
    }
    let expected = run(&attention, 100, [&x, &x, &x], &options(30)).unwrap();
    let plan = attention
        .plan_out_of_core(100, DType::F32, &options(30))
        .unwrap();
    let mut out = vec![0f32; x.len()];
    let inputs: [&dyn TokenSource; 3] = [&generated, &generated, &generated];
    let mut run = attention.run_out_of_core(&plan, inputs, &mut out).unwrap();
    while !run.is_done() {
        run.advance().unwrap();
    }
    drop(run);
    assert_eq!(out, expected);
}

/// Keys and values in a safetensors file, which is read where they are needed.
#[test]
fn tokens_are_read_from_a_file() {
    let on = &kernel_contexts()[0];
    let config = DilatedAttentionConfig::new(2, 8, &[16, 100], &[1, 8]).unwrap();
    let attention = DilatedAttention::new(&on.context, config).unwrap();
    let [q, k, v] = [1, 2, 3].map(|seed| uniform(seed, 100 * 16));
    let path = std::env::temp_dir().join(format!("dilated-attention-{}-kv", std::process::id()));
    let bytes = |x: &[f32]| bytemuck::cast_slice::<f32, u8>(x).to_vec();
    let views = [("k", bytes(&k)), ("v", bytes(&v)), ("ids", vec![0; 800])];
    let views = views.each_ref().map(|(name, bytes)| {
        let (dtype, shape) = match *name {
            "ids" => (safetensors::Dtype::I64, vec![100]),
            _ => (safetensors::Dtype::F32, vec![100, 2, 8]),
        };
        (
            *name,
            safetensors::tensor::TensorView::new(dtype, shape, bytes).unwrap(),
        )
    });
    safetensors::serialize_to_file(views, None, &path).unwrap();
    let open = |name| TokenFile::open_safetensors(&path, name);
    let [stored_k, stored_v] = ["k", "v"].map(|name| open(name).unwrap());
    let plan = attention
        .plan_out_of_core(100, DType::F32, &options(30))
        .unwrap();
    let mut out = vec![0f32; q.len()];
    let mut run = attention
        .run_out_of_core(&plan, [&q, &stored_k, &stored_v], &mut out)
        .unwrap();
    while !run.is_done() {
        run.advance().unwrap();
    }
    drop(run);
    let expected = self::run(&attention, 100, [&q, &k, &v], &options(30)).unwrap();
    assert_eq!(out, expected);
    let error = open("ids").unwrap_err();
    assert!(
        matches!(error, Error::Weights(WeightsError::WrongStoredType { .. })),
        "{error}"
    );
    let error = open("nobody").unwrap_err();
    assert!(matches!(error, Error::TokenFile { .. }), "{error}");
    // Cut off while it is open.
    let cut = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    cut.set_len(1000).unwrap();
    let mut run = attention
        .run_out_of_core(&plan, [&q, &stored_k, &stored_v], &mut out)
        .unwrap();
    let error = (0..).find_map(|_| run.advance().err()).unwrap();
    assert!(matches!(error, Error::HostTokens { .. }), "{error}");
    drop(run);
    std::fs::remove_file(path).unwrap();
}
