//! Files of whole models (`ts_encoder_*`, `ts_decoder_*`, `ds_longnet*`).

use dilated_attention::longnet::{
    CrossAttentionConfig, EncoderDecoder, Input, LongNet, LongNetConfig, Output, OutputProjection,
    Recompute,
};
use dilated_attention::nn::{Parameters, ProjectionNorm};
use dilated_attention::ops::{self, Activation, Positions, Rotations, TokenIds, XposRole};
use dilated_attention::out_of_core::OutOfCoreOptions;
use dilated_attention::testing::Kernel;
use dilated_attention::{
    AttentionShape, Context, DType, DilatedAttentionConfig, MixGradient, Recorder, Tensor,
};

use super::attention::Engine;
use super::golden_file::GoldenFile;
use super::longnet_half;
use super::modules::{
    self, compare, compare_parameters, flag, float, number, read, same, told, weights,
};
use super::ranks::{self, Part, Results, Sums};
use super::report::Report;

/// States, features, logits, gradients and decoding of an encoder or a decoder.
pub fn check(
    file: &GoldenFile,
    engine: &mut dyn Engine,
    report: &mut Report,
) -> Result<(), String> {
    let Some(context) = engine.context().cloned() else {
        return Ok(());
    };
    let config = config(file, modules::attention(file, false)?)?;
    if engine.dtype() != DType::F32 {
        return longnet_half::check(file, engine, config, report);
    }
    forward(file, engine, &config, report)?;
    if file.has("dout") {
        gradients(file, engine, &config, ("dx", "g."), report)?;
        let attention = config.attention().clone();
        let exact = attention.with_gradient(MixGradient::Exact);
        let exact = config.clone().with_attention(exact);
        gradients(file, engine, &exact, ("dx_true", "gt."), report)?;
    }
    if file.has("step_logits") {
        let model = LongNet::new(&context, config).map_err(told)?;
        decode(file, &context, &model, report)?;
    }
    Ok(())
}

/// The model of the file's configuration, over `attention`.
pub fn config(
    file: &GoldenFile,
    attention: DilatedAttentionConfig,
) -> Result<LongNetConfig, String> {
    let (layers, ffn_dim) = (number(file, "layers")?, number(file, "ffn_dim")?);
    let mut config = LongNetConfig::encoder(attention, layers, ffn_dim);
    // DeepNorm is post-norm and without sub-LN, whatever else the configuration says; sub-LN is pre-norm.
    let deep_norm = flag(file, "deepnorm");
    config.sub_norm = flag(file, "subln") && !deep_norm;
    config.post_norm = deep_norm || !(config.sub_norm || flag(file, "normalize_before"));
    config.projection_norm = match config.sub_norm {
        true => ProjectionNorm::Inner,
        false => ProjectionNorm::None,
    };
    let scale = match deep_norm {
        true => (2.0 * layers as f32).powf(0.25),
        false => 1.0,
    };
    config.residual_scale = float(file, &["alpha"], scale);
    config.activation = activation(file)?;
    config.norm_eps = float(file, &["layernorm_eps"], 1e-5);
    let base = float(file, &["xpos_scale_base"], 512.0);
    config.xpos_scale_base = flag(file, "xpos").then_some(base);
    let vocab = number(file, "vocab")?;
    if vocab > 0 {
        config.vocab_size = Some(vocab);
        config.output_projection = OutputProjection::Own;
        // torchscale scales embeddings where it is not told otherwise; files that say nothing were told.
        if file.config["no_scale_embedding"] == false {
            config.embedding_scale = (config.attention().embed_dim() as f32).sqrt();
        }
    }
    config.final_norm = file.has("w.layer_norm.weight");
    config.embedding_norm = file.has("w.layernorm_embedding.weight");
    if let Ok([rows, _]) = file.shape::<2>("w.embed_positions.weight") {
        let positions = rows
            .checked_sub(2)
            .ok_or("embed_positions has too few rows")?;
        config.learned_positions = Some(positions);
    }
    Ok(config)
}

fn activation(file: &GoldenFile) -> Result<Activation, String> {
    let name = file.config["activation"].as_str();
    name.and_then(Activation::named)
        .ok_or_else(|| format!("config: activation {name:?}"))
}

/// The input of a file on the device.
pub enum Stored {
    Tokens(TokenIds),
    Embeddings(Tensor),
}

impl Stored {
    pub fn input(&self) -> Input<'_> {
        match self {
            Self::Tokens(ids) => Input::Tokens(ids),
            Self::Embeddings(x) => Input::Embeddings(x),
        }
    }
}

/// Batch and length of a file's inputs.
pub fn lengths(file: &GoldenFile) -> Result<AttentionShape, String> {
    let [batch, tokens] = match file.shape::<3>("x") {
        Ok([batch, tokens, _]) => [batch, tokens],
        Err(_) => file.shape::<2>("tokens")?,
    };
    AttentionShape::new(batch, tokens).map_err(told)
}

/// Tokens or embeddings of a part of the batch.
pub fn input(file: &GoldenFile, recorder: &mut Recorder, part: &Part) -> Result<Stored, String> {
    if let Ok(shape @ [_, _, width]) = file.shape::<3>("x") {
        let x = part.cut(&file.f32s("x", &shape)?, width);
        let x = recorder
            .upload("x", &part.dims(&[width]), &x)
            .map_err(told)?;
        return Ok(Stored::Embeddings(x));
    }
    let ids = part.cut(&token_ids(file)?, 1);
    let vocab = number(file, "vocab")?;
    let ids = TokenIds::upload(recorder, &ids, vocab).map_err(told)?;
    Ok(Stored::Tokens(ids))
}

/// The tokens of the file.
pub fn token_ids(file: &GoldenFile) -> Result<Vec<u32>, String> {
    let shape = file.shape::<2>("tokens")?;
    let ids = file.i32s("tokens", &shape)?;
    let ids: Option<Vec<u32>> = ids.iter().map(|id| u32::try_from(*id).ok()).collect();
    Ok(ids.ok_or("a token is negative")?)
}

fn forward(
    file: &GoldenFile,
    engine: &dyn Engine,
    config: &LongNetConfig,
    report: &mut Report,
) -> Result<(), String> {
    let lengths = lengths(file)?;
    let out_of_core = engine.out_of_core();
    let results = ranks::run(engine, &lengths, |context, part| {
        forward_part(file, context, config, part, out_of_core)
    })?;
    report.ran(results.kernels.clone());
    let tensors = results.shaped(&lengths);
    for (name, index) in [("features", 0), ("logits", 1), ("out", 1)] {
        let (shape, values) = &tensors[index];
        compare(file, name, shape, values, report);
    }
    for (index, (shape, values)) in tensors.iter().skip(2).enumerate() {
        compare(file, &format!("hidden.{index}"), shape, values, report);
    }
    Ok(())
}

/// Features, logits or else features again, and states.
fn forward_part(
    file: &GoldenFile,
    context: &Context,
    config: &LongNetConfig,
    part: &Part,
    out_of_core: Option<&OutOfCoreOptions>,
) -> Result<Results, String> {
    let model = LongNet::new(context, config.clone()).map_err(told)?;
    let mut recorder = context.recorder("model");
    let weights = weights(file, &mut recorder, model.parameters(), &same)?;
    let stored = input(file, &mut recorder, part)?;
    let mut kernels = Vec::new();
    let embedded = zero_padding(
        file,
        &mut recorder,
        (&model, &weights),
        &stored,
        part,
        &mut kernels,
    )?;
    let start = match &embedded {
        Some(embedded) => Input::Embedded(embedded),
        None => stored.input(),
    };
    let mut output = model
        .forward(&mut recorder, &weights, start, &part.call(), true)
        .map_err(told)?;
    if let Some(options) = out_of_core {
        let next = context.recorder("model");
        let before = std::mem::replace(&mut recorder, next);
        output = layers_out_of_core(before, &model, &weights, output, options, &mut kernels)?;
    }
    let features = &output.features;
    let logits = match model.config().output_projection {
        OutputProjection::None => None,
        _ => Some(
            model
                .logits(&mut recorder, &weights, features)
                .map_err(told)?,
        ),
    };
    let mut tensors = vec![features, logits.as_ref().unwrap_or(features)];
    tensors.extend(&output.states);
    let mut results = Results::read(recorder, &tensors, None).map_err(told)?;
    results.kernels.extend(kernels);
    Ok(results)
}

/// The output with layers out of core, item after item: of the recorded one, only the input of the first layer is taken.
fn layers_out_of_core(
    recorder: Recorder,
    model: &LongNet,
    weights: &Parameters,
    recorded: Output,
    options: &OutOfCoreOptions,
    kernels: &mut Vec<Kernel>,
) -> Result<Output, String> {
    let context = recorder.context().clone();
    let mut states = recorded.states;
    states.truncate(1);
    let shape = states[0].shape().to_vec();
    let mut x = read_noting(recorder, &states[0], kernels)?;
    let mut recorder = context.recorder("model");
    for index in 0..model.config().num_layers() {
        let mut y = x.clone();
        let item_len = shape[1] * shape[2];
        for (x, mut y) in x.chunks(item_len).zip(y.chunks_mut(item_len)) {
            let plan = model.plan_layer_out_of_core(shape[1], DType::F32, options);
            let plan = plan.map_err(told)?;
            let run = model.run_layer_out_of_core(&plan, weights, index, &x, &mut y);
            let mut run = run.map_err(told)?;
            while !run.is_done() {
                run.advance().map_err(told)?;
            }
        }
        states.push(recorder.upload("state", &shape, &y).map_err(told)?);
        x = y;
    }
    let last = states[states.len() - 1].clone();
    let features = match model.final_norm() {
        None => last,
        Some(norm) => {
            let features = recorder.empty("features", &shape, DType::F32);
            let features = features.map_err(told)?;
            let to = features.matrix();
            let done = norm.forward(&mut recorder, weights, last.matrix(), to);
            done.map_err(told)?;
            features
        }
    };
    // What the caller records reads the states.
    recorder.submit().map_err(told)?;
    Ok(Output { features, states })
}

/// torchscale sets the embedding of padded tokens to 0 and attends to them all the same.
fn zero_padding(
    file: &GoldenFile,
    recorder: &mut Recorder,
    (model, weights): (&LongNet, &Parameters),
    stored: &Stored,
    part: &Part,
    kernels: &mut Vec<Kernel>,
) -> Result<Option<Tensor>, String> {
    if !file.has("padding_mask") {
        return Ok(None);
    }
    let lengths = lengths(file)?;
    let mask = file.u8s("padding_mask", &[lengths.batch(), lengths.seq_len()])?;
    let mask = part.cut(mask, 1);
    let next = recorder.context().recorder("model");
    let before = std::mem::replace(recorder, next);
    let mut before = before;
    let embedded = model
        .embed(&mut before, weights, stored.input(), &part.call())
        .map_err(told)?;
    let shape = embedded.shape().to_vec();
    let mut values = read_noting(before, &embedded, kernels)?;
    let width = shape.last().copied().unwrap_or(0);
    for (row, padded) in values.chunks_mut(width.max(1)).zip(mask) {
        if padded != 0 {
            row.fill(0.0);
        }
    }
    recorder
        .upload("embedded", &shape, &values)
        .map(Some)
        .map_err(told)
}

/// Reads a tensor after everything recorded.
fn read_noting(
    recorder: Recorder,
    tensor: &Tensor,
    kernels: &mut Vec<Kernel>,
) -> Result<Vec<f32>, String> {
    let results = Results::read(recorder, &[tensor], None).map_err(told)?;
    kernels.extend(results.kernels);
    Ok(results
        .rows
        .into_iter()
        .flat_map(|rows| rows.values)
        .collect())
}

fn gradients(
    file: &GoldenFile,
    engine: &dyn Engine,
    config: &LongNetConfig,
    (dx, prefix): (&str, &str),
    report: &mut Report,
) -> Result<(), String> {
    let lengths = lengths(file)?;
    let results = ranks::run(engine, &lengths, |context, part| {
        gradients_of_part(file, context, config, part)
    })?;
    report.ran(results.kernels.clone());
    for (shape, values) in results.shaped(&lengths) {
        compare(file, dx, &shape, values, report);
    }
    if let Some(Sums { list, values }) = &results.sums {
        compare_parameters(file, prefix, list, values, &same, report);
    }
    Ok(())
}

/// Gradients of the input, and of the parameters.
fn gradients_of_part(
    file: &GoldenFile,
    context: &Context,
    config: &LongNetConfig,
    part: &Part,
) -> Result<Results, String> {
    let model = LongNet::new(context, config.clone()).map_err(told)?;
    let mut recorder = context.recorder("gradients");
    let weights = weights(file, &mut recorder, model.parameters(), &same)?;
    let stored = input(file, &mut recorder, part)?;
    let sums = model.zero_gradients(&mut recorder).map_err(told)?;
    let sets = [&weights, &sums];
    let (features, saved) = model
        .forward_saving(
            &mut recorder,
            &weights,
            stored.input(),
            &part.call(),
            None,
            Recompute::Layers,
        )
        .map_err(told)?;
    let shape @ [_, _, width] = file.shape::<3>("dout")?;
    let dout = part.cut(&file.f32s("dout", &shape)?, width);
    let dout = recorder
        .upload("dout", &part.dims(&[width]), &dout)
        .map_err(told)?;
    let dfeatures = match model.config().output_projection {
        OutputProjection::None => dout,
        _ => model
            .logits_backward(&mut recorder, sets, &features, &dout)
            .map_err(told)?,
    };
    let gradient = model
        .backward(&mut recorder, sets, saved, &dfeatures, None)
        .map_err(told)?;
    Results::read(recorder, &[&gradient], Some(&sums)).map_err(told)
}

/// The first tokens together, then one by one; each step's logits, and the caches at the end.
fn decode(
    file: &GoldenFile,
    context: &Context,
    model: &LongNet,
    report: &mut Report,
) -> Result<(), String> {
    let (steps, prefill) = (number(file, "steps")?, number(file, "prefill")?);
    let [batch, _, vocab] = file.shape::<3>("step_logits")?;
    let mut recorder = context.recorder("decoding");
    let weights = weights(file, &mut recorder, model.parameters(), &same)?;
    // Small enough that it grows.
    let mut cache = model.new_cache(&mut recorder, batch, 3).map_err(told)?;
    recorder.submit().map_err(told)?;
    let mut logits = vec![0.0; batch * steps * vocab];
    let mut begin = 0;
    while begin < steps {
        let end = if begin < prefill { prefill } else { begin + 1 };
        let mut recorder = context.recorder("decoding");
        let part = Part::of_tokens(&lengths(file)?, begin..end)?;
        let stored = input(file, &mut recorder, &part)?;
        let features = model
            .decode(
                &mut recorder,
                &weights,
                stored.input(),
                &part.call(),
                &mut cache,
            )
            .map_err(told)?;
        let step = model
            .logits(&mut recorder, &weights, &features)
            .map_err(told)?;
        let values = read(recorder, &[&step], report)?.swap_remove(0);
        for (item, values) in values.chunks((end - begin) * vocab).enumerate() {
            logits[(item * steps + begin) * vocab..][..values.len()].copy_from_slice(values);
        }
        begin = end;
    }
    compare(file, "step_logits", &[batch, steps, vocab], &logits, report);
    for layer in 0..model.config().num_layers() {
        caches(file, context, model, &cache, layer, report)?;
    }
    Ok(())
}

/// Cached keys (turned back, since the file has them before positions) and values, (batch, head, token, element).
fn caches(
    file: &GoldenFile,
    context: &Context,
    model: &LongNet,
    cache: &dilated_attention::longnet::KvCache,
    layer: usize,
    report: &mut Report,
) -> Result<(), String> {
    let Some([k, v]) = cache.layer(layer) else {
        return Err(format!("the cache has no layer {layer}"));
    };
    let mut recorder = context.recorder("caches");
    if let Some((rotations, positions)) = cache.positions(model).map_err(told)? {
        let width = model.config().attention().embed_dim();
        let rows = k.matrix().reshape(width).map_err(told)?;
        // A key was scaled as a key; a query's scale undoes it.
        ops::xpos(
            &mut recorder,
            rotations,
            rows,
            XposRole::Query,
            positions,
            true,
        )
        .map_err(told)?;
    }
    let &[batch, capacity, heads, head_dim] = k.shape() else {
        return Err("a cache has four dimensions".to_owned());
    };
    let tokens = cache.len();
    let values = read(recorder, &[k, v], report)?;
    for (name, values) in ["cache_k", "cache_v"].into_iter().zip(&values) {
        let mut ordered = Vec::new();
        for (item, head) in (0..batch).flat_map(|item| (0..heads).map(move |head| (item, head))) {
            for token in 0..tokens {
                let at = ((item * capacity + token) * heads + head) * head_dim;
                ordered.extend(&values[at..at + head_dim]);
            }
        }
        let shape = [batch, heads, tokens, head_dim];
        compare(file, &format!("{name}.{layer}"), &shape, &ordered, report);
    }
    Ok(())
}

/// dilated-attention-pytorch's LongNet: an encoder and a decoder over the same input.
pub fn check_encoder_decoder(
    file: &GoldenFile,
    engine: &mut dyn Engine,
    report: &mut Report,
) -> Result<(), String> {
    if engine.context().is_none() {
        return Ok(());
    }
    let attention = modules::attention(file, true)?;
    let ffn_dim = number(file, "ffn_dim")?;
    let config = |layers, projection_norm| {
        let mut config = LongNetConfig::encoder(attention.clone(), layers, ffn_dim);
        config.projection_norm = projection_norm;
        config.norm_eps = float(file, &["layer_norm_eps"], 1e-5);
        config.final_norm = false;
        config
    };
    let mut encoder = config(number(file, "enc_layers")?, ProjectionNorm::QueryKey);
    let mut decoder = config(number(file, "dec_layers")?, ProjectionNorm::None);
    encoder.activation = activation(file)?;
    decoder.activation = activation(file)?;
    decoder.cross_attention = Some(CrossAttentionConfig {
        attention: attention.clone(),
        projection_norm: ProjectionNorm::QueryKey,
    });
    let layers = encoder.num_layers();
    let lengths = lengths(file)?;
    let results = ranks::run(engine, &lengths, |context, part| {
        encoder_decoder_part(file, context, (&encoder, &decoder), part)
    })?;
    report.ran(results.kernels.clone());
    for (index, (shape, values)) in results.shaped(&lengths).into_iter().enumerate() {
        let name = match index {
            0 => "out".to_owned(),
            _ if index <= layers => format!("enc.{}", index - 1),
            _ => format!("dec.{}", index - 1 - layers),
        };
        compare(file, &name, &shape, values, report);
    }
    Ok(())
}

/// Output, then the outputs of the layers of both.
fn encoder_decoder_part(
    file: &GoldenFile,
    context: &Context,
    (encoder, decoder): (&LongNetConfig, &LongNetConfig),
    part: &Part,
) -> Result<Results, String> {
    let model = EncoderDecoder::new(context, encoder.clone(), decoder.clone()).map_err(told)?;
    let mut recorder = context.recorder("encoder and decoder");
    let weights = weights(file, &mut recorder, model.parameters(), &pytorch_name)?;
    let stored = input(file, &mut recorder, part)?;
    let mut call = part.call();
    let encoded = model
        .encoder()
        .forward(&mut recorder, &weights, stored.input(), &call, true)
        .map_err(told)?;
    // Of one length, and dilated: attention as over one sequence.
    call.memory = Some((encoded.features.clone(), call.shape.clone()));
    let decoded = model
        .decoder()
        .forward(&mut recorder, &weights, stored.input(), &call, true)
        .map_err(told)?;
    let mut tensors = vec![&decoded.features];
    tensors.extend(&encoded.states[1..]);
    tensors.extend(&decoded.states[1..]);
    Results::read(recorder, &tensors, None).map_err(told)
}

/// What dilated-attention-pytorch calls a parameter.
fn pytorch_name(name: &str) -> String {
    let (feed_forward, norm) = match name.starts_with("decoder.") {
        true => ("norm3", "norm4"),
        false => ("norm2", "norm3"),
    };
    name.replace("ffn.fc1", "linear1")
        .replace("ffn.fc2", "linear2")
        .replace("ffn.ffn_layernorm", norm)
        .replace("self_attn_layer_norm", "norm1")
        .replace("encoder_attn_layer_norm", "norm2")
        .replace("final_layer_norm", feed_forward)
        .replace("encoder_attn", "multihead_attn")
}

/// `fk_longnet_lm*`: the embedding plus itself after xPos over the whole width. What follows is divided by fkodom's
/// normaliser.
pub fn check_embedded(
    file: &GoldenFile,
    engine: &mut dyn Engine,
    report: &mut Report,
) -> Result<(), String> {
    let Some(context) = engine.context().cloned() else {
        return Ok(());
    };
    let shape = file.shape::<3>("embedded")?;
    let [batch, tokens, width] = shape;
    let names = file.names();
    let table = names
        .iter()
        .find(|name| name.ends_with("token_embedding.weight"));
    let table = table.ok_or("the file has no token embedding")?;
    let table_shape = file.shape::<2>(table)?;
    let mut recorder = context.recorder("embedding");
    let table = recorder
        .upload("table", &table_shape, &file.f32s(table, &table_shape)?)
        .map_err(told)?;
    let ids: Option<Vec<u32>> = file
        .i32s("tokens", &[batch, tokens])?
        .into_iter()
        .map(|id| u32::try_from(id).ok())
        .collect();
    let ids = ids.ok_or("a token is negative")?;
    let mut embedded = || {
        let ids = TokenIds::upload(&mut recorder, &ids, table_shape[0])?;
        let x = recorder.zeros("embedded", &shape, table.dtype())?;
        ops::embedding(
            &mut recorder,
            &ids,
            table.matrix(),
            1.0,
            (x.matrix(), false),
        )?;
        let base = float(file, &["xpos_scale_base"], 512.0);
        let rotations = Rotations::upload(&mut recorder, width, tokens, base)?;
        let positions = Positions {
            seq_len: tokens,
            first: 0,
            block: 1 << 30,
            centre: (tokens).div_ceil(2),
        };
        ops::xpos(
            &mut recorder,
            &rotations,
            x.matrix(),
            XposRole::Query,
            positions,
            false,
        )?;
        ops::embedding(&mut recorder, &ids, table.matrix(), 1.0, (x.matrix(), true))?;
        Ok(x)
    };
    let x = embedded().map_err(told)?;
    let values = read(recorder, &[&x], report)?;
    compare(file, "embedded", &shape, &values[0], report);
    Ok(())
}
