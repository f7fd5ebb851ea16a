//! Tensors in an application's own shaders, and the application's buffers as tensors; commands of its own over the pool's
//! leases.

use dilated_attention::SliceOptions;
use dilated_attention::ops::ScaledAdd;
use dilated_attention::pool::{
    PARAMS_USAGE, Pool, PoolError, PoolOptions, STAGING_USAGE, STORAGE_USAGE,
};
use dilated_attention::reference;
use dilated_attention::{
    AttentionShape, Context, ContextOptions, DType, DeviceCaps, DilatedAttention,
    DilatedAttentionConfig, Error, Lease, PoolStats, Tensor, TensorPart, wgpu,
};

use crate::support::contexts::{context_with, contexts};
use crate::support::failing_source::FailingSource;
use crate::support::numbers::uniform;

/// A compute shader of the application's with one binding to write, and perhaps one to read.
struct OwnShader {
    pipeline: wgpu::ComputePipeline,
    device: wgpu::Device,
}

/// Numbers that are exact in f32: those of `pattern`.
const PATTERN: &str = "
@group(0) @binding(0) var<storage, read_write> numbers: array<f32>;
@compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3u) {
    if id.x < arrayLength(&numbers) {
        numbers[id.x] = f32(id.x * 7u % 32u) / 16.0 - 1.0;
    }
}";

fn pattern(count: usize) -> Vec<f32> {
    let number = |i: usize| (i * 7 % 32) as f32 / 16.0 - 1.0;
    (0..count).map(number).collect()
}

const DOUBLE: &str = "
@group(0) @binding(0) var<storage, read_write> doubled: array<f32>;
@group(0) @binding(1) var<storage, read> numbers: array<f32>;
@compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3u) {
    if id.x < arrayLength(&numbers) {
        doubled[id.x] = 2.0 * numbers[id.x];
    }
}";

impl OwnShader {
    #[expect(clippy::disallowed_methods, reason = "the application's")]
    fn new(device: &wgpu::Device, wgsl: &str) -> Self {
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some("own shader"),
            source: wgpu::ShaderSource::Wgsl(wgsl.into()),
        });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some("own shader"),
            layout: None,
            module: &module,
            entry_point: None,
            compilation_options: Default::default(),
            cache: None,
        });
        Self {
            pipeline,
            device: device.clone(),
        }
    }

    /// One invocation for each of `count` numbers.
    fn run(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        bindings: &[wgpu::BindingResource<'_>],
        count: usize,
    ) {
        let entries = (0..)
            .zip(bindings)
            .map(|(binding, resource)| wgpu::BindGroupEntry {
                binding,
                resource: resource.clone(),
            });
        let entries: Vec<_> = entries.collect();
        let group = self.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some("own shader"),
            layout: &self.pipeline.get_bind_group_layout(0),
            entries: &entries,
        });
        let mut pass = encoder.begin_compute_pass(&Default::default());
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &group, &[]);
        pass.dispatch_workgroups(count.div_ceil(64) as u32, 1, 1);
    }
}

#[expect(clippy::disallowed_methods, reason = "the application's")]
fn own_buffer(device: &wgpu::Device, bytes: u64, usage: wgpu::BufferUsages) -> wgpu::Buffer {
    device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("own buffer"),
        size: bytes,
        usage,
        mapped_at_creation: false,
    })
}

fn submit(context: &Context, record: impl FnOnce(&mut wgpu::CommandEncoder)) {
    let mut encoder = context.device().create_command_encoder(&Default::default());
    record(&mut encoder);
    context.queue().submit([encoder.finish()]);
}

/// Rows of 8 f32 from byte `offset` on.
fn part(buffer: &wgpu::Buffer, offset: u64, rows: usize) -> TensorPart<'_> {
    TensorPart {
        buffer,
        bytes: offset..offset + rows as u64 * 32,
        rows: 0..rows,
    }
}

fn read(context: &Context, tensor: &Tensor) -> Vec<f32> {
    let mut recorder = context.recorder("read");
    let download = recorder.download(tensor).unwrap();
    recorder.submit().unwrap();
    download.wait().unwrap()
}

/// An own shader writes q, attention takes it from there, an own shader takes the result: one queue, and the host waits once,
/// at the end.
#[test]
fn own_shaders_write_an_input_and_read_the_result() {
    let (_, context) = &contexts()[0];
    let config = DilatedAttentionConfig::new(2, 8, &[8, 16], &[1, 2]).unwrap();
    let dims = [1, 24, 2, 8];
    let count = dims.iter().product::<usize>();
    let attention = DilatedAttention::new(context, config.clone()).unwrap();
    let (write, double) = (
        OwnShader::new(context.device(), PATTERN),
        OwnShader::new(context.device(), DOUBLE),
    );
    // Behind something else of the application's.
    let buffer = own_buffer(context.device(), 256 + 4 * count as u64, STORAGE_USAGE);
    let part = part(&buffer, 256, 48);
    let q = context
        .import_tensor("q", &dims, DType::F32, std::slice::from_ref(&part))
        .unwrap();
    assert_eq!(q.only_part().unwrap(), part);
    let (k_data, v_data) = (uniform(1, count), uniform(2, count));

    submit(context, |encoder| {
        write.run(encoder, &[part.binding()], count)
    });
    q.mark_written();
    let mut recorder = context.recorder("attention");
    let k = recorder.upload("k", &dims, &k_data).unwrap();
    let v = recorder.upload("v", &dims, &v_data).unwrap();
    let out = attention.forward(&mut recorder, &q, &k, &v).unwrap().out;
    recorder.submit().unwrap();
    let doubled = context
        .pool()
        .acquire("doubled", 4 * count as u64, STORAGE_USAGE)
        .unwrap();
    let mut work = context.pool().encoder(context.queue(), "double").unwrap();
    work.keep(&doubled);
    let bindings = [doubled.binding(), out.only_part().unwrap().binding()];
    double.run(work.encoder(), &bindings, count);
    let result = work.download::<f32>(&doubled).unwrap();
    work.submit().unwrap();
    // All of it is submitted, so none of it is needed any more.
    drop((q, k, v, out, doubled));
    let result = result.wait().unwrap();

    let q_data = pattern(count);
    let mut recorder = context.recorder("uploaded");
    let [q, k, v] =
        [&q_data, &k_data, &v_data].map(|data| recorder.upload("uploaded", &dims, data).unwrap());
    let out = attention.forward(&mut recorder, &q, &k, &v).unwrap().out;
    recorder.submit().unwrap();
    let uploaded: Vec<f32> = read(context, &out).iter().map(|x| 2.0 * x).collect();
    assert_eq!(result, uploaded, "the same bits as with an upload");
    let shape = AttentionShape::new(1, 24).unwrap();
    let oracle = reference::forward(&config, &shape, &q_data, &k_data, &v_data).unwrap();
    for (given, expected) in result.iter().zip(oracle.out) {
        assert!((f64::from(*given) - 2.0 * expected).abs() < 1e-5);
    }
}

/// A tensor of the pool's, written by an own shader after the recording that made it.
#[test]
fn own_shaders_write_tensors_of_a_recorder() {
    for options in [
        PoolOptions::default(),
        PoolOptions::default().with_poison(true),
    ] {
        let context = context_with(&ContextOptions::new().with_pool(options));
        let shader = OwnShader::new(context.device(), PATTERN);
        let mut recorder = context.recorder("made");
        let tensor = recorder.empty("x", &[40, 8], DType::F32).unwrap();
        recorder.submit().unwrap();
        submit(&context, |encoder| {
            for part in tensor.parts() {
                shader.run(encoder, &[part.binding()], 320);
            }
        });
        tensor.mark_written();
        assert_eq!(read(&context, &tensor), pattern(320));
    }
}

#[test]
fn what_the_library_was_not_told_of_is_not_written() {
    let (_, context) = &contexts()[0];
    let buffer = own_buffer(context.device(), 320, STORAGE_USAGE);
    let x = context
        .import_tensor("x", &[10, 8], DType::F32, &[part(&buffer, 0, 10)])
        .unwrap();
    let mut recorder = context.recorder("reader");
    let download = recorder.download::<f32>(&x).unwrap();
    let error = recorder.submit().unwrap_err();
    assert!(matches!(&error, Error::NotWritten { label, .. } if label == "x"));
    assert!(error.to_string().contains("mark_written"), "{error}");
    assert!(matches!(
        download.wait(),
        Err(Error::DownloadAbandoned { .. })
    ));
    // What the library writes, it knows.
    let mut recorder = context.recorder("writer");
    recorder.write(&x, &pattern(80)).unwrap();
    recorder.submit().unwrap();
    assert_eq!(read(context, &x), pattern(80));
    // A cancelled submission leaves a tensor torn, until somebody writes it anew.
    let large = own_buffer(context.device(), 256 << 10, STORAGE_USAGE);
    let large = context
        .import_tensor("large", &[8192, 8], DType::F32, &[part(&large, 0, 8192)])
        .unwrap();
    let mut recorder = context.recorder("cancelled");
    recorder.write(&large, &pattern(8192 * 8)).unwrap();
    let slices = SliceOptions::default().with_target(Default::default());
    let mut sliced = recorder.submit_in_slices(slices);
    pollster::block_on(sliced.step()).unwrap();
    sliced.cancel();
    let download = |large| {
        let mut recorder = context.recorder("reader");
        let download = recorder.download::<f32>(large).unwrap();
        recorder.submit().map(|_| download)
    };
    assert!(matches!(download(&large), Err(Error::NotWritten { .. })));
    large.mark_written();
    download(&large).unwrap().wait().unwrap();
}

#[test]
fn buffers_that_no_tensor_can_be_made_of_are_errors() {
    let (_, context) = &contexts()[0];
    let buffer = own_buffer(context.device(), 1024, STORAGE_USAGE);
    let shape = [10, 8];
    let import = |part: TensorPart<'_>| {
        context
            .import_tensor("x", &shape, DType::F32, &[part])
            .map(drop)
    };
    let invalid = |part: TensorPart<'_>, what: &str| {
        let made = import(part);
        assert!(
            matches!(&made, Err(Error::InvalidPart { label, given, .. }) if label == "x" && given.contains(what)),
            "{what}: {made:?}"
        );
    };
    let good = part(&buffer, 0, 10);
    let with_bytes = |bytes| TensorPart {
        bytes,
        ..good.clone()
    };
    invalid(with_bytes(0..316), "bytes 0..316");
    invalid(with_bytes(0..1024), "bytes 0..1024");
    invalid(TensorPart::whole(&buffer, 10), "bytes 0..1024");
    #[expect(clippy::reversed_empty_ranges, reason = "what is wrong")]
    invalid(with_bytes(320..0), "bytes 320..0");
    invalid(with_bytes(768..1088), "of 1024");
    invalid(with_bytes(u64::MAX - 320..u64::MAX), "of 1024");
    invalid(with_bytes(16..336), "at byte 16");
    let no_copies = own_buffer(context.device(), 320, wgpu::BufferUsages::STORAGE);
    invalid(part(&no_copies, 0, 10), "usages");
    let lent = context.pool().acquire("lent", 320, STORAGE_USAGE).unwrap();
    invalid(part(lent.buffer(), 0, 10), "has lent it");

    let rows = TensorPart {
        rows: 0..9,
        ..good.clone()
    };
    assert!(matches!(import(rows), Err(Error::InvalidShape { what, .. }) if what == "x"));
    let several = [part(&buffer, 0, 5), part(&buffer, 256, 5)];
    let error = context
        .import_tensor("x", &shape, DType::F32, &several)
        .map(drop);
    assert_eq!(
        error,
        Err(Error::SeveralParts {
            label: "x".into(),
            given: 2
        })
    );
    let none = context.import_tensor("x", &shape, DType::F32, &[]);
    assert!(matches!(none, Err(Error::InvalidShape { .. })));
    let endless = context.import_tensor("x", &[usize::MAX, 8], DType::F32, &[good]);
    assert!(matches!(endless, Err(Error::SizeOverflow { .. })));
    assert_eq!(context.pool().stats().imported.total, 0);
    let whole = TensorPart::whole(&buffer, 32);
    let tensor = context.import_tensor("x", &[32, 8], DType::F32, &[whole]);
    assert_eq!(tensor.unwrap().only_part().unwrap().bytes, 0..1024);
}

/// Another device of the same instance, which wgpu can tell.
#[test]
fn a_buffer_of_another_device_is_refused() {
    let instance =
        wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
    let adapter = pollster::block_on(instance.request_adapter(&Default::default())).unwrap();
    let open = || pollster::block_on(adapter.request_device(&Default::default())).unwrap();
    let ((device, queue), (other, _)) = (open(), open());
    let context = Context::from_device(device, queue).unwrap();
    let buffer = own_buffer(&other, 320, STORAGE_USAGE);
    let error = context
        .import_tensor("x", &[10, 8], DType::F32, &[part(&buffer, 0, 10)])
        .map(drop)
        .unwrap_err();
    assert!(
        matches!(&error, Error::InvalidPart { need, .. } if need.contains("device")),
        "{error}"
    );
}

/// Whether a buffer is mapped or destroyed, wgpu tells at submission alone; before, either may change.
#[test]
fn a_buffer_that_cannot_be_used_is_refused_at_submission() {
    let (_, context) = &contexts()[0];
    #[expect(clippy::disallowed_methods, reason = "the application's")]
    let mapped = context.device().create_buffer(&wgpu::BufferDescriptor {
        label: Some("own buffer"),
        size: 320,
        usage: STORAGE_USAGE,
        mapped_at_creation: true,
    });
    let destroyed = own_buffer(context.device(), 320, STORAGE_USAGE);
    destroyed.destroy();
    for buffer in [&mapped, &destroyed] {
        let part = part(buffer, 0, 10);
        let x = context
            .import_tensor("x", &[10, 8], DType::F32, &[part])
            .unwrap();
        let mut recorder = context.recorder("uses it");
        recorder.write(&x, &pattern(80)).unwrap();
        let error = recorder.submit().map(drop).unwrap_err();
        assert!(
            matches!(&error, Error::Validation { label, .. } if label == "uses it"),
            "{error}"
        );
    }
    mapped.unmap();
    let whole = part(&mapped, 0, 10);
    let x = context
        .import_tensor("x", &[10, 8], DType::F32, &[whole])
        .unwrap();
    let mut recorder = context.recorder("uses it");
    recorder.write(&x, &pattern(80)).unwrap();
    recorder.submit().unwrap();
    assert_eq!(read(context, &x), pattern(80));
}

/// Odd lengths in half precision, no elements, and shapes of any rank.
#[test]
fn parts_are_whole_words_and_all_rows() {
    let context = Context::dry_run(DeviceCaps::webgpu_defaults());
    let mut recorder = context.recorder("shapes");
    for (shape, dtype, bytes, rows) in [
        (&[3][..], DType::F16, 8, 1),
        (&[3, 5], DType::F16, 32, 3),
        (&[2, 3, 4, 8], DType::F32, 768, 24),
        (&[], DType::U32, 4, 1),
        (&[0, 8], DType::F32, 16, 0),
        (&[8, 0], DType::F16, 16, 0),
    ] {
        let tensor = recorder.empty("x", shape, dtype).unwrap();
        let part = tensor.only_part().unwrap();
        assert_eq!(
            (&part.bytes, &part.rows),
            (&(0..bytes), &(0..rows)),
            "{shape:?}"
        );
        assert_eq!(tensor.parts().len(), 1);
    }
    let together = recorder
        .empty_together("ab", &[&[5], &[5]], DType::F32)
        .unwrap();
    let [a, b] = [&together[0], &together[1]].map(|tensor| tensor.only_part().unwrap());
    assert_eq!(a.buffer, b.buffer);
    assert_eq!((a.bytes, b.bytes), (0..20, 256..276));
    // What a dry run is told to import is of no device of its own.
    let (device, _queue) = wgpu::Device::noop(&Default::default());
    let buffer = own_buffer(&device, 320, STORAGE_USAGE);
    let imported = context.import_tensor("x", &[10, 8], DType::F32, &[part(&buffer, 0, 10)]);
    assert_eq!(imported.unwrap().shape(), [10, 8]);
}

#[test]
fn a_dispatch_that_reads_and_writes_one_buffer_is_refused() {
    let (_, context) = &contexts()[0];
    let buffer = own_buffer(context.device(), 1024, STORAGE_USAGE);
    let [x, out] = [("x", 0), ("out", 512)].map(|(label, offset)| {
        let part = part(&buffer, offset, 10);
        let tensor = context.import_tensor(label, &[10, 8], DType::F32, &[part]);
        tensor.unwrap()
    });
    x.mark_written();
    let mut recorder = context.recorder("both");
    let double = |recorder: &mut _, out: &Tensor| {
        ScaledAdd::new(x.matrix(), 2.0).write(recorder, out.matrix())
    };
    assert_eq!(
        double(&mut recorder, &out),
        Err(Error::SharedBuffer {
            read: "x".into(),
            written: "out".into()
        })
    );
    // The recording is as it was, and goes on.
    let own = recorder.empty("own", &[10, 8], DType::F32).unwrap();
    double(&mut recorder, &own).unwrap();
    recorder.submit().unwrap();
}

#[test]
fn an_imported_buffer_is_never_the_pools() {
    let context = context_with(&ContextOptions::default());
    let pool = context.pool();
    let buffer = own_buffer(context.device(), 320, STORAGE_USAGE);
    let import = || {
        let part = part(&buffer, 0, 10);
        context
            .import_tensor("mine", &[10, 8], DType::F32, &[part])
            .unwrap()
    };
    let before = pool.stats();
    let x = import();
    let stats = pool.stats();
    assert_eq!(
        (stats.imported.current, stats.imported_bytes.current),
        (1, 320)
    );
    assert!(pool.report().to_string().contains("imported 1 buffers"));
    let without_imports = |stats: PoolStats| {
        let mut stats = stats;
        (stats.imported, stats.imported_bytes) = Default::default();
        stats
    };
    assert_eq!(without_imports(stats), without_imports(before));
    // The recording alone holds it, and makes other tensors.
    let mut recorder = context.recorder("writes");
    recorder.write(&x, &pattern(80)).unwrap();
    drop(x);
    let others: Vec<Tensor> = (0..3)
        .map(|_| recorder.zeros("other", &[10, 8], DType::F32).unwrap())
        .collect();
    for other in &others {
        assert_ne!(other.only_part().unwrap().buffer, &buffer);
    }
    recorder.submit().unwrap();
    context.wait().unwrap();
    drop(others);
    let stats = pool.stats();
    assert_eq!((stats.imported.current, stats.imported.peak), (0, 1));
    assert!(stats.identities_hold(), "{stats}");
    let lent = pool.acquire("lent", 320, STORAGE_USAGE).unwrap();
    assert_ne!(lent.buffer(), &buffer);
    // It is the application's as before: the zeros did not go there.
    let x = import();
    x.mark_written();
    assert_eq!(read(&context, &x), pattern(80));
    pool.reset_peaks();
    assert_eq!(pool.stats().imported.peak, 1);
}

fn leased(pool: &Pool, bytes: u64) -> Lease {
    pool.acquire("data", bytes, STORAGE_USAGE).unwrap()
}

#[test]
fn an_encoder_brings_bytes_to_leases_and_back() {
    let context = context_with(&ContextOptions::default());
    let (pool, queue) = (context.pool(), context.queue());
    // More than one staging buffer, and behind something that stays.
    let count = 300_000;
    let data: Vec<u32> = (0..count).collect();
    let lease = leased(pool, 4 * u64::from(count) + 8);
    let mut work = pool.encoder(queue, "there and back").unwrap();
    work.upload(&lease, 0, &[[7u16, 8], [9, 10]]).unwrap();
    work.upload(&lease, 8, &data).unwrap();
    work.upload::<u64>(&lease, 8, &[]).unwrap();
    let words = work.download::<u32>(&lease).unwrap();
    let vectors = work.download::<[f32; 2]>(&lease).unwrap();
    drop(lease);
    let submission = work.submit().unwrap();
    let here = words.wait().unwrap();
    assert_eq!(here[..2], [7 | 8 << 16, 9 | 10 << 16]);
    assert_eq!(here[2..], data);
    assert_eq!(vectors.wait().unwrap().len(), count as usize / 2 + 1);
    submission.wait().unwrap();
    drop((words, vectors));
    context.wait().unwrap();
    let stats = pool.stats();
    assert_eq!((stats.leases.current, stats.pending.current), (0, 0));
    assert!(stats.identities_hold(), "{stats}");
}

#[test]
fn an_encoder_keeps_its_leases_until_it_is_submitted() {
    let context = context_with(&ContextOptions::default());
    let (pool, queue) = (context.pool(), context.queue());
    let lease = leased(pool, 4096);
    let serial = lease.buffer_serial();
    let mut work = pool.encoder(queue, "work").unwrap();
    work.keep(&lease);
    drop(lease);
    let other = leased(pool, 4096);
    assert_ne!(
        other.buffer_serial(),
        serial,
        "its commands may be submitted first"
    );
    work.submit().unwrap();
    assert_eq!(leased(pool, 4096).buffer_serial(), serial);
    // One that is never submitted gives all back, and its downloads say why they do not come.
    let mut dropped = pool.encoder(queue, "dropped").unwrap();
    dropped.upload(&other, 0, &[1u32; 1024]).unwrap();
    let download = dropped.download::<u32>(&other).unwrap();
    assert!(matches!(download.wait(), Err(Error::NotSubmitted { .. })));
    drop((dropped, other));
    assert!(matches!(
        download.wait(),
        Err(Error::DownloadAbandoned { .. })
    ));
    drop(download);
    context.wait().unwrap();
    assert_eq!(pool.stats().leases.current, 0);
}

#[test]
fn wrong_commands_of_an_encoder_are_errors() {
    let context = context_with(&ContextOptions::default());
    let (pool, queue) = (context.pool(), context.queue());
    let lease = leased(pool, 16);
    let mut work = pool.encoder(queue, "wrong").unwrap();
    for (offset, count) in [(0, 17), (2, 4), (0, 3), (16, 4), (u64::MAX - 3, 4)] {
        let error = work.upload(&lease, offset, &vec![1u8; count]).unwrap_err();
        assert!(
            matches!(&error, Error::InvalidShape { what, .. } if what == "data"),
            "{error}"
        );
    }
    let other = Pool::new(context.device(), PoolOptions::default());
    let foreign = leased(&other, 16);
    let errors = [
        work.upload(&foreign, 0, &[1u32]).unwrap_err(),
        work.download::<u32>(&foreign).map(drop).unwrap_err(),
    ];
    for error in errors {
        assert!(matches!(error, Error::ContextMismatch { .. }), "{error}");
    }
    let [params, staging] =
        [PARAMS_USAGE, STAGING_USAGE].map(|usage| pool.acquire("other usages", 16, usage).unwrap());
    let errors = [
        work.upload(&staging, 0, &[1u32]).unwrap_err(),
        work.download::<u32>(&params).map(drop).unwrap_err(),
    ];
    for error in errors {
        assert!(
            matches!(&error, Error::Pool(PoolError::InvalidUsage { label, .. }) if label == "other usages"),
            "{error}"
        );
    }
    drop(staging);
    // What the application itself records wrongly, wgpu refuses when it is submitted.
    let download = work.download::<u32>(&lease).unwrap();
    let [from, to] = [params.buffer(), lease.buffer()];
    work.encoder().copy_buffer_to_buffer(from, 0, to, 0, 16);
    let error = work.submit().map(drop).unwrap_err();
    assert!(
        matches!(&error, Error::Validation { label, .. } if label == "wrong"),
        "{error}"
    );
    assert!(matches!(
        download.wait(),
        Err(Error::DownloadAbandoned { .. })
    ));
    drop((download, lease, params));
    context.wait().unwrap();
    assert_eq!(pool.stats().leases.current, 0);
    // The pool works on.
    let lease = leased(pool, 16);
    let mut work = pool.encoder(queue, "right").unwrap();
    work.upload(&lease, 0, &[1u32, 2, 3, 4]).unwrap();
    let download = work.download::<u32>(&lease).unwrap();
    work.submit().unwrap();
    assert_eq!(download.wait().unwrap(), [1, 2, 3, 4]);

    let source = FailingSource::new(context.device(), u64::MAX, 0);
    let without_device = Pool::from_source(source, PoolOptions::default());
    let error = without_device
        .encoder(queue, "nowhere")
        .map(drop)
        .unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
}

/// An upload for which memory runs out half way leaves none of itself in the commands.
#[test]
fn an_upload_without_memory_is_not_half_recorded() {
    const BYTES: u64 = 8 << 20;
    // Staging buffers have at most 4 MiB: there is room for the first alone.
    let options = PoolOptions::default().with_budget_bytes(BYTES + (6 << 20));
    let context = context_with(&ContextOptions::new().with_pool(options));
    let (pool, queue) = (context.pool(), context.queue());
    let lease = leased(pool, BYTES);
    let mut work = pool.encoder(queue, "too much").unwrap();
    work.upload(&lease, 0, &[1u32, 2]).unwrap();
    let error = work.upload(&lease, 0, &vec![9u32; 2 << 20]).unwrap_err();
    assert!(
        matches!(error, Error::Pool(PoolError::BudgetExceeded { .. })),
        "{error}"
    );
    pool.set_budget_bytes(None);
    let download = work.download::<u32>(&lease).unwrap();
    work.submit().unwrap();
    assert_eq!(download.wait().unwrap()[..2], [1, 2]);
}
