//! Small steps over ranks in threads, beside their predictions.

use std::error::Error;
use std::sync::Arc;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use dilated_attention::distributed::{Group, SequenceShare, in_process};
use dilated_attention::longnet::{
    Call, Input, LongNet, LongNetConfig, Rates, Recompute, StepPredictor,
};
use dilated_attention::ops::convert;
use dilated_attention::{
    AttentionShape, Context, DType, DilatedAttention, DilatedAttentionConfig, Mask,
};
use program::say;
use testing::measurement::{Spread, date, random};
use testing::processor;

use super::{bytes, seconds};

const HEADS: usize = 4;
const HEAD_DIM: usize = 32;
const REPETITIONS: usize = 3;
const TIMEOUT: Duration = Duration::from_secs(300);

/// One step.
#[derive(Clone, Copy)]
struct Case {
    training: Option<Recompute>,
    dtype: DType,
    mask: Mask,
    tokens: usize,
    ranks: usize,
}

impl Case {
    fn config(&self) -> Result<LongNetConfig, dilated_attention::Error> {
        let lengths = [1024, 4096, 16_384];
        let attention = DilatedAttentionConfig::new(HEADS, HEAD_DIM, &lengths, &[1, 4, 16])?;
        let mut config = LongNetConfig::encoder(attention.with_mask(self.mask), 2, 256);
        config.activations = self.dtype;
        Ok(config)
    }

    fn name(&self) -> String {
        let step = match self.training {
            None => "inference",
            Some(Recompute::Insides) => "training",
            Some(Recompute::Layers) => "training, layers again",
        };
        let mask = match self.mask {
            Mask::Full => "",
            Mask::Causal => ", causal",
        };
        format!("{step}, {}{mask}", self.dtype)
    }
}

/// How time is told.
#[derive(Clone, Copy)]
enum Clock {
    Wall,
    /// That of all processors, which are the devices and the hosts of all ranks.
    Processor,
}

impl Clock {
    /// Seconds since anything.
    fn now(self) -> f64 {
        static BEGIN: OnceLock<Instant> = OnceLock::new();
        match self {
            Self::Wall => BEGIN.get_or_init(Instant::now).elapsed().as_secs_f64(),
            // That it can be told was asked before.
            Self::Processor => processor::seconds().unwrap_or(f64::NAN),
        }
    }
}

/// What a rank has measured.
struct Measured {
    received_bytes: u64,
    peak_bytes: u64,
    seconds: Vec<f64>,
}

/// The device rates of one kind of step come from its case with one rank; all other cases are predicted with them.
pub fn run(processor_time: bool) -> Result<(), Box<dyn Error>> {
    let clock = match processor_time {
        true => Clock::Processor,
        false => Clock::Wall,
    };
    if processor_time {
        processor::seconds()?;
    }
    let inference = Case {
        training: None,
        dtype: DType::F32,
        mask: Mask::Full,
        tokens: 4096,
        ranks: 1,
    };
    let training = Case {
        training: Some(Recompute::Insides),
        ..inference
    };
    let most = 4;
    let contexts: Vec<Context> = (0..most)
        .map(|_| Context::new_blocking())
        .collect::<Result<_, _>>()?;
    let adapter = contexts[0].adapter_info();
    say!(
        "adapter   {}, {}, {}",
        adapter.name,
        adapter.driver_info,
        date()
    );
    say!(
        "cores     {}, which all ranks share: P ranks have a P-th of the device's rates each",
        thread::available_parallelism().map_or(1, usize::from)
    );
    let rates = device_rates(clock, &contexts, inference)?;
    if processor_time {
        say!("seconds   of all processors, whatever else they did");
    }
    say!(
        "rates     products {:.1} GFLOP/s, attention {:.1} GFLOP/s, host {:.2} GB/s, ranks {:.2} GB/s and {} us",
        rates.product_flop / 1e9,
        rates.attention_flop / 1e9,
        rates.host_bytes / 1e9,
        rates.link_bytes / 1e9,
        (rates.link_latency * 1e6).round()
    );
    say!();
    say!(
        "{:<26} {:>6} {:>5} {:>27} {:>34} {:>36}",
        "step",
        "tokens",
        "ranks",
        "bytes received, all ranks",
        "device bytes of a rank",
        "seconds"
    );
    say!(
        "{:<26} {:>6} {:>5} {:>10} {:>10} {:>5} {:>13} {:>10} {:>9} {:>14} {:>10} {:>10}",
        "",
        "",
        "",
        "predicted",
        "measured",
        "error",
        "predicted",
        "measured",
        "error",
        "predicted",
        "measured",
        "error"
    );
    for first in [inference, training] {
        let factor = speed_of(clock, &contexts, first, &rates)?;
        let rates = Rates {
            product_flop: rates.product_flop * factor,
            attention_flop: rates.attention_flop * factor,
            ..rates
        };
        for case in cases(first) {
            compare(clock, &contexts, case, &rates)?;
        }
    }
    Ok(())
}

fn cases(first: Case) -> Vec<Case> {
    let mut cases = Vec::new();
    for tokens in [4096, 8192] {
        cases.extend([1, 2, 4].map(|ranks| Case {
            tokens,
            ranks,
            ..first
        }));
    }
    let last = Case {
        tokens: 8192,
        ranks: 4,
        ..first
    };
    cases.push(Case {
        mask: Mask::Causal,
        ..last
    });
    cases.push(match first.training {
        None => Case {
            dtype: DType::F16,
            ..last
        },
        Some(_) => Case {
            training: Some(Recompute::Layers),
            ..last
        },
    });
    cases
}

fn compare(
    clock: Clock,
    contexts: &[Context],
    case: Case,
    rates: &Rates,
) -> Result<(), Box<dyn Error>> {
    let config = case.config()?;
    let predictor = StepPredictor::new(&config, case.training, contexts[0].caps().clone())?;
    let share = case.ranks as f64;
    let shared = Rates {
        product_flop: rates.product_flop / share,
        attention_flop: rates.attention_flop / share,
        host_bytes: rates.host_bytes / share,
        link_bytes: rates.link_bytes / share,
        ..*rates
    };
    let predicted = predictor.predict(case.tokens, case.ranks, &shared)?;
    // No optimiser runs here.
    let expected = predicted.seconds() - predicted.reduction_seconds;
    let measured = on_ranks(clock, contexts, case)?;
    let received: u64 = measured.iter().map(|rank| rank.received_bytes).sum();
    let peak = measured.iter().map(|rank| rank.peak_bytes).max();
    let peak = peak.unwrap_or(0);
    // All ranks begin at the same time, and wait for the last.
    let of_steps = (0..REPETITIONS).map(|step| {
        let of_ranks = measured.iter().map(|rank| rank.seconds[step]);
        of_ranks.fold(0.0, f64::max)
    });
    let took = Spread::of(of_steps.collect()).median;
    say!(
        "{:<26} {:>6} {:>5} {:>10} {:>10} {:>7} {:>11} {:>10} {:>9} {:>14} {:>10} {:>10}",
        case.name(),
        case.tokens,
        case.ranks,
        bytes(predicted.all_received_bytes),
        bytes(received),
        error(predicted.all_received_bytes as f64, received as f64),
        bytes(predicted.device_bytes),
        bytes(peak),
        error(predicted.device_bytes as f64, peak as f64),
        seconds(expected),
        seconds(took),
        error(expected, took),
    );
    Ok(())
}

/// By how much a prediction exceeds what was measured.
fn error(predicted: f64, measured: f64) -> String {
    match predicted == measured {
        true => "0 %".to_owned(),
        false => format!("{:+.1} %", 100.0 * (predicted / measured - 1.0)),
    }
}

/// Rates of one rank, from one forward of the case's model, and one of its attention alone.
fn device_rates(clock: Clock, contexts: &[Context], case: Case) -> Result<Rates, Box<dyn Error>> {
    let (context, config) = (&contexts[0], case.config()?);
    let shape = [1, case.tokens, HEADS, HEAD_DIM];
    let values = values(case.tokens);
    let attention = DilatedAttention::new(context, config.attention().clone())?;
    let of_attention = timed(clock, || {
        let mut recorder = context.recorder("attention");
        let x = recorder.upload("x", &shape, &values)?;
        attention.forward(&mut recorder, &x, &x, &x)?;
        recorder.submit()?.wait()
    })?;
    // Up and down.
    let tensor = vec![0f32; 2 << 20];
    let of_host = timed(clock, || {
        let mut recorder = context.recorder("host");
        let x = recorder.upload("x", &[tensor.len()], &tensor)?;
        let download = recorder.download::<f32>(&x)?;
        recorder.submit()?;
        download.wait().map(drop)
    })?;
    let of_ranks = on_groups(contexts, 2, |group, _| {
        let mut received = Vec::new();
        let large = timed(clock, || {
            group.all_gather(Ok(bytemuck::cast_slice(&tensor)), &mut received)
        })?;
        Ok((large, timed(clock, || group.barrier())?))
    })?;
    let (of_link, latency) = of_ranks[0];

    let predictor = StepPredictor::new(&config, None, context.caps().clone())?;
    let unit = Rates {
        product_flop: 1.0,
        attention_flop: 1.0,
        host_bytes: 1.0,
        link_bytes: 1.0,
        link_latency: 0.0,
    };
    let [products, pairs] = predictor.predict(case.tokens, 1, &unit)?.flop;
    let step = on_ranks(clock, contexts, case)?;
    let step = Spread::of(step[0].seconds.clone()).median;
    let of_attention = of_attention * config.num_layers() as f64;
    // What a layer does beside products is counted with them. On a disturbed machine attention alone may take longer than all.
    let of_products = (step - of_attention).max(step / 10.0);
    let moved = (tensor.len() * 4) as f64;
    Ok(Rates {
        product_flop: products / of_products,
        attention_flop: pairs / of_attention,
        host_bytes: 2.0 * moved / of_host,
        link_bytes: moved / of_link,
        link_latency: latency,
    })
}

/// How much faster the device is in this kind of step than `rates` say, from its case with one rank.
fn speed_of(
    clock: Clock,
    contexts: &[Context],
    case: Case,
    rates: &Rates,
) -> Result<f64, Box<dyn Error>> {
    let predictor = StepPredictor::new(&case.config()?, case.training, contexts[0].caps().clone())?;
    let expected = predictor.predict(case.tokens, 1, rates)?.compute_seconds;
    let step = on_ranks(clock, contexts, case)?;
    Ok(expected / Spread::of(step[0].seconds.clone()).median)
}

/// Seconds of a call, after one that does not count: the median of several.
fn timed(
    clock: Clock,
    mut call: impl FnMut() -> dilated_attention::Result<()>,
) -> dilated_attention::Result<f64> {
    call()?;
    let mut times = Vec::new();
    for _ in 0..REPETITIONS {
        let begin = clock.now();
        call()?;
        times.push(clock.now() - begin);
    }
    Ok(Spread::of(times).median)
}

fn values(tokens: usize) -> Vec<f32> {
    let mut random = random();
    (0..tokens * HEADS * HEAD_DIM).map(|_| random()).collect()
}

/// Runs a case on all of its ranks.
fn on_ranks(
    clock: Clock,
    contexts: &[Context],
    case: Case,
) -> Result<Vec<Measured>, Box<dyn Error>> {
    on_groups(contexts, case.ranks, |group, context| {
        steps_of_rank(clock, &case, group, context)
    })
}

/// Calls `run` on a thread for each rank.
fn on_groups<T: Send>(
    contexts: &[Context],
    ranks: usize,
    run: impl Fn(Arc<Group>, &Context) -> dilated_attention::Result<T> + Sync,
) -> Result<Vec<T>, Box<dyn Error>> {
    thread::scope(|scope| {
        let run = &run;
        let groups = in_process(ranks, TIMEOUT).into_iter().zip(contexts);
        let threads: Vec<_> = groups
            .map(|(group, context)| scope.spawn(move || run(Arc::new(group), context)))
            .collect();
        let mut all = Vec::new();
        for thread in threads {
            let result = thread.join().map_err(|_| "a rank ended")?;
            all.push(result?);
        }
        Ok(all)
    })
}

/// Steps of one rank. The first compiles kernels, and does not count.
fn steps_of_rank(
    clock: Clock,
    case: &Case,
    group: Arc<Group>,
    context: &Context,
) -> dilated_attention::Result<Measured> {
    let config = case.config()?;
    let model = LongNet::new(context, config.clone())?;
    let weights = model.initial_weights(context, 1)?;
    let share = SequenceShare::new(Arc::clone(&group), case.tokens);
    let own = share.range();
    let width = HEADS * HEAD_DIM;
    let call = Call {
        shape: AttentionShape::new(1, own.len())?,
        ..Call::of_share(share)?
    };
    let mut recorder = context.recorder("input");
    let values = &values(case.tokens)[own.start * width..own.end * width];
    let x = recorder.upload("x", &[1, own.len(), width], values)?;
    let x = convert(&mut recorder, &x, case.dtype)?;
    // The optimiser's, which the prediction counts.
    let means = match case.training {
        None => Vec::new(),
        Some(_) => vec![
            model.zero_gradients(&mut recorder)?,
            model.zero_gradients(&mut recorder)?,
        ],
    };
    recorder.submit()?.wait()?;
    let mut measured = Measured {
        received_bytes: 0,
        peak_bytes: 0,
        seconds: Vec::new(),
    };
    for step in 0..=REPETITIONS {
        context.wait()?;
        context.pool().reset_peaks();
        group.barrier()?;
        let (begin, before) = (clock.now(), group.received_bytes()?);
        let mut recorder = context.recorder("step");
        let input = Input::Embeddings(&x);
        match case.training {
            None => {
                let _output = model.forward(&mut recorder, &weights, input, &call, false)?;
                recorder.submit()?.wait()?;
            }
            Some(recompute) => {
                let gradients = model.zero_gradients(&mut recorder)?;
                let (features, saved) =
                    model.forward_saving(&mut recorder, &weights, input, &call, None, recompute)?;
                let sets = [&weights, &gradients];
                model.backward(&mut recorder, sets, saved, &features, None)?;
                recorder.submit()?.wait()?;
            }
        }
        group.barrier()?;
        if step > 0 {
            measured.seconds.push(clock.now() - begin);
            measured.received_bytes = group.received_bytes()? - before;
            measured.peak_bytes = context.pool().stats().requested_bytes.peak;
        }
    }
    drop(means);
    Ok(measured)
}
