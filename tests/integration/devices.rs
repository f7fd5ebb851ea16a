//! Devices that an application brings: too small ones, queues and encoders of another.

use dilated_attention::{Context, ContextOptions, DType, DeviceCaps, Error};

use crate::support::contexts::context_with;
use crate::support::training::{batch, config, options, step, trainer};

#[test]
fn a_device_of_the_least_limits_trains_and_each_smaller_one_is_refused() {
    let least = DeviceCaps::least_limits();
    let context = context_with(&ContextOptions {
        limits: Some(least.clone()),
        ..ContextOptions::default()
    });
    let device_limits = context.device().limits();
    assert_eq!(
        device_limits.max_storage_buffers_per_shader_stage,
        least.max_storage_buffers_per_shader_stage
    );
    let mut trainer = trainer(&context, config(), options());
    assert!(step(&mut trainer, &[batch(0, 1, 30)]).loss.is_finite());

    type Smaller = (&'static str, fn(&mut wgpu::Limits));
    let smaller: [Smaller; 5] = [
        ("max_storage_buffers_per_shader_stage", |limits| {
            limits.max_storage_buffers_per_shader_stage -= 1;
        }),
        ("max_bindings_per_bind_group", |limits| {
            limits.max_bindings_per_bind_group -= 1;
        }),
        ("max_uniform_buffer_binding_size", |limits| {
            limits.max_uniform_buffer_binding_size -= 1;
        }),
        ("max_compute_workgroup_size_x", |limits| {
            limits.max_compute_workgroup_size_x -= 1;
        }),
        ("max_compute_invocations_per_workgroup", |limits| {
            limits.max_compute_invocations_per_workgroup -= 1;
        }),
    ];
    for (name, make_smaller) in smaller {
        let mut limits = least.clone();
        make_smaller(&mut limits);
        let info = context.adapter_info();
        let error = DeviceCaps::new(info, &limits, wgpu::Features::empty(), &[]);
        let Err(Error::DeviceTooSmall { limit, given, need }) = error else {
            panic!("{name}: {error:?}");
        };
        assert_eq!((limit, given + 1), (name, need));
    }
}

/// Numbers that would divide by zero or cover nothing are refused when caps are made, so no plan meets them.
#[test]
fn numbers_that_no_device_has_are_refused() {
    let defaults = wgpu::Limits::default();
    let caps = DeviceCaps::from_limits(&defaults).expect("WebGPU's defaults");
    assert_eq!(caps, DeviceCaps::webgpu_defaults());
    for alignment in [0, 4, 16, 48, u32::MAX] {
        let storage = wgpu::Limits {
            min_storage_buffer_offset_alignment: alignment,
            ..defaults.clone()
        };
        let uniform = wgpu::Limits {
            min_uniform_buffer_offset_alignment: alignment,
            ..defaults.clone()
        };
        for limits in [storage, uniform] {
            let error = DeviceCaps::from_limits(&limits).expect_err("refused");
            assert!(matches!(error, Error::InvalidConfig { .. }), "{error}");
            assert!(
                error.to_string().contains(&alignment.to_string()),
                "{error}"
            );
        }
    }
    for bytes in [0, 255] {
        let limits = wgpu::Limits {
            max_storage_buffer_binding_size: bytes,
            ..defaults.clone()
        };
        let error = DeviceCaps::from_limits(&limits).expect_err("refused");
        let expected = Error::DeviceTooSmall {
            limit: "max_storage_buffer_binding_size",
            given: bytes,
            need: 256,
        };
        assert_eq!(error, expected);
    }
}

#[test]
fn uploads_are_checked_when_a_context_is_told_to() {
    let context = Context::dry_run(DeviceCaps::webgpu_defaults());
    assert!(!context.checks_finite());
    context.set_check_finite(true);
    assert!(context.checks_finite());
    let refused = context.recorder("nan").upload("x", &[1], &[f32::NAN]);
    assert!(
        matches!(refused, Err(Error::NotFinite { .. })),
        "{refused:?}"
    );
}

#[test]
fn a_queue_of_another_device_is_refused() {
    let [one, other] = [(), ()].map(|()| context_with(&ContextOptions::default()));
    let error = Context::from_device(one.device().clone(), other.queue().clone());
    let Err(Error::InvalidConfig { what, .. }) = error else {
        panic!("{error:?}");
    };
    assert_eq!(what, "the queue");
    // Its own is taken, also while work is under way.
    for _ in 0..3 {
        one.recorder("empty").submit().unwrap();
        Context::from_device(one.device().clone(), one.queue().clone()).unwrap();
    }
}

/// What wgpu makes of it is not known to the library in every case; here the numbers of buffers do not exist on the other device.
#[test]
fn an_encoder_of_another_device_is_an_error_and_loses_nothing() {
    let [one, other] = [(), ()].map(|()| context_with(&ContextOptions::default()));
    let mut recorder = one.recorder("numbers");
    let many: Vec<_> = (0..50)
        .map(|_| recorder.upload("x", &[4], &[1.0f32; 4]).unwrap())
        .collect();
    let sum = recorder.zeros("sum", &[4], DType::F32).unwrap();
    let download = recorder.download::<f32>(&sum).unwrap();
    let mut encoder = other.device().create_command_encoder(&Default::default());
    let error = recorder.encode(&mut encoder).unwrap_err();
    assert!(matches!(error, Error::Validation { .. }), "{error}");
    drop(encoder);
    let error = download.wait().unwrap_err();
    assert!(
        matches!(
            error,
            Error::DownloadAbandoned { .. } | Error::NotSubmitted { .. }
        ),
        "{error}"
    );
    drop((many, sum, download));
    // Both go on.
    for context in [&one, &other] {
        let mut recorder = context.recorder("again");
        let x = recorder.upload("x", &[2], &[3.0f32, 4.0]).unwrap();
        let download = recorder.download::<f32>(&x).unwrap();
        recorder.submit().unwrap();
        assert_eq!(download.wait().unwrap(), [3.0, 4.0]);
    }
    assert_eq!(one.pool().stats().leases.current, 0);
}
