//! From parameters to files.

use std::path::Path;

use dilated_attention::nn::Parameters;
use dilated_attention::weights::{StoredType, WeightFile, WeightWriter, WeightsError};
use dilated_attention::{Context, Error};
use half::{bf16, f16};
use proptest::prelude::*;
use safetensors::SafeTensors;
use testing::fuzzing::weights as weight_reading;
use testing::weight_files::{f32_bytes, file_with};

use super::{Directory, bits, list, read};
use crate::support::contexts::{context_with, contexts};
use crate::support::numbers::uniform;

/// Parameters of one tensor for each of `values`, called `p0`, `p1`, ...
fn parameters(context: &Context, values: &[Vec<f32>]) -> Parameters {
    let names: Vec<String> = (0..values.len()).map(|i| format!("p{i}")).collect();
    let bytes: Vec<Vec<u8>> = values.iter().map(|values| f32_bytes(values)).collect();
    let shapes: Vec<[usize; 1]> = values.iter().map(|values| [values.len()]).collect();
    let tensors: Vec<(&str, &str, &[usize], &[u8])> = (0..values.len())
        .map(|i| (names[i].as_str(), "F32", &shapes[i][..], &bytes[i][..]))
        .collect();
    let file = WeightFile::from_bytes(file_with(&tensors)).expect("valid");
    let of_list: Vec<(&str, &[usize])> = tensors
        .iter()
        .map(|(name, _, shape, _)| (*name, *shape))
        .collect();
    file.all().load(context, &list(&of_list)).expect("loads")
}

#[test]
fn what_is_saved_comes_back_bit_for_bit() {
    let directory = Directory::new("round-trip");
    let path = directory.file("weights.safetensors");
    for (limits, context) in contexts() {
        // NaN with a payload, infinities, -0; none; a piece and a bit; more tensors than one submission reads.
        let mut values = vec![
            vec![f32::from_bits(0x7fc1_2345), f32::NEG_INFINITY, -0.0, 1e-45],
            vec![],
            uniform(1, (4 << 20) + 3),
        ];
        values.extend((0..300).map(|i| uniform(i, 5)));
        let weights = parameters(&context, &values);
        let moments = parameters(&context, &[uniform(7, 10), vec![0.0; 3]]);
        let writer = WeightWriter::new()
            .with_part("weights.", &weights)
            .with_part("moment_1.", &moments)
            .with_metadata("step", "12")
            .with_metadata("a \"name\"\n", "é");
        writer.save(&context, &path).expect("saves");
        assert_eq!(directory.names(), ["weights.safetensors"]);

        let bytes = std::fs::read(&path).expect("read");
        assert!(weight_reading::run(&bytes));
        // By that crate: names, order of the bytes, metadata.
        let (json_bytes, header) = SafeTensors::read_metadata(&bytes).expect("valid");
        assert_eq!(json_bytes % 8, 0);
        let names = header.offset_keys();
        // The empty one may come on either side of what begins where it does.
        assert_eq!(names.len(), 305);
        assert_eq!(
            (names[0].as_str(), names[304].as_str()),
            ("weights.p0", "moment_1.p1")
        );
        let metadata = header.metadata().as_ref().expect("there");
        assert_eq!(metadata["step"], "12");
        assert_eq!(metadata["a \"name\"\n"], "é");

        let file = WeightFile::open(&path).expect("valid");
        for (prefix, saved) in [("weights.", &weights), ("moment_1.", &moments)] {
            let loaded = file
                .part(prefix)
                .load(&context, saved.list())
                .expect("loads");
            let [loaded, saved] = [&loaded, saved].map(|p| read(&context, p).expect("reads"));
            assert!(bits(&loaded) == bits(&saved), "{limits}");
        }
        assert_eq!(
            bits(&read(&context, &weights).expect("reads")),
            bits(&values)
        );
        // The same bytes each time, and without a file.
        let given = pollster::block_on(writer.to_bytes(&context)).expect("writes");
        assert!(given == bytes);
        drop((weights, moments, file));
        context.wait().expect("waits");
        let stats = context.pool().stats();
        assert_eq!(stats.leases.current, 0);
        assert!(stats.identities_hold(), "{stats}");
    }
}

#[test]
fn smaller_types_round_and_do_not_overflow() {
    let (_, context) = &contexts()[0];
    let values = [
        vec![1.0, -0.1, f32::INFINITY, 65504.0, 1e-8],
        uniform(3, 200_000),
    ];
    let weights = parameters(context, &values);
    let saved_as = |stored_type| {
        let writer = WeightWriter::new()
            .with_part("", &weights)
            .with_stored_type(stored_type);
        pollster::block_on(writer.to_bytes(context))
    };
    let loaded = |stored_type| {
        let bytes = saved_as(stored_type).expect("writes");
        assert!(weight_reading::run(&bytes));
        let file = WeightFile::from_bytes(bytes).expect("valid");
        assert!(
            file.tensors()
                .all(|tensor| tensor.stored_type() == stored_type)
        );
        let loaded = file.all().load(context, weights.list()).expect("loads");
        read(context, &loaded).expect("reads")
    };
    let rounded = |round: fn(f32) -> f32| {
        values
            .clone()
            .map(|values| values.into_iter().map(round).collect::<Vec<f32>>())
    };
    assert!(loaded(StoredType::F32) == values);
    assert!(loaded(StoredType::F16) == rounded(|value| f16::from_f32(value).to_f32()));
    assert!(loaded(StoredType::Bf16) == rounded(|value| bf16::from_f32(value).to_f32()));
    assert!(matches!(
        saved_as(StoredType::Other("I8")),
        Err(Error::Weights(WeightsError::CannotSave { .. }))
    ));
    let large = parameters(context, &[vec![1.0], vec![0.0, -70_000.0]]);
    let writer = WeightWriter::new()
        .with_part("w.", &large)
        .with_stored_type(StoredType::F16);
    let Err(error @ Error::Weights(WeightsError::ValueTooLarge { .. })) =
        pollster::block_on(writer.to_bytes(context))
    else {
        panic!("70000 is no f16");
    };
    assert_eq!(
        error.to_string(),
        "parameter p1 holds -70000, too large for F16: store it as F32"
    );
}

#[test]
fn names_are_those_of_one_tensor() {
    let (_, context) = &contexts()[0];
    let weights = parameters(context, &[vec![1.0]]);
    let twice = WeightWriter::new()
        .with_part("", &weights)
        .with_part("", &weights);
    let reserved = list(&[("metadata__", &[1])]);
    let mut recorder = context.recorder("zeros");
    let reserved = Parameters::zeros(&mut recorder, &reserved, "reserved").expect("leases");
    recorder.submit().expect("submits");
    let reserved = WeightWriter::new().with_part("__", &reserved);
    for (writer, name) in [(twice, "p0"), (reserved, "__metadata__")] {
        let Err(Error::Weights(WeightsError::CannotSave { given, .. })) =
            pollster::block_on(writer.to_bytes(context))
        else {
            panic!("saved {name}");
        };
        assert_eq!(given, name);
    }
    // Nothing is a file, too.
    let bytes = pollster::block_on(WeightWriter::new().to_bytes(context)).expect("writes");
    assert!(weight_reading::run(&bytes));
}

#[test]
fn the_old_file_is_replaced_whole_or_not_at_all() {
    let directory = Directory::new("atomic");
    let path = directory.file("w.safetensors");
    let (_, context) = &contexts()[0];
    let weights = parameters(context, &[uniform(1, 1000)]);
    let writer = WeightWriter::new().with_part("", &weights);
    let refused = |writer: &WeightWriter<'_>, path: &Path| match writer.save(context, path) {
        Err(Error::Weights(WeightsError::File {
            path: told,
            action,
            reason,
        })) => {
            assert_eq!((told.as_path(), action), (path, "saved"));
            reason
        }
        other => panic!("{other:?}"),
    };
    // No directory, a directory, no name at all.
    refused(&writer, &directory.file("missing/w.safetensors"));
    assert!(refused(&writer, &directory.0.clone()).contains("no regular file"));
    refused(&writer, Path::new(""));
    refused(&writer, Path::new("/"));
    refused(&writer, &directory.file(&"n".repeat(300)));
    assert_eq!(directory.names(), [""; 0]);

    writer.save(context, &path).expect("saves");
    let old = std::fs::read(&path).expect("read");
    // An old file that is open stays as it was for who opened it.
    let opened = WeightFile::open(&path).expect("valid");
    let other = parameters(context, &[vec![-1.0, 70_000.0]]);
    let other = WeightWriter::new().with_part("other.", &other);
    let failing = other.clone().with_stored_type(StoredType::F16);
    assert!(matches!(
        failing.save(context, &path),
        Err(Error::Weights(WeightsError::ValueTooLarge { .. }))
    ));
    assert!(std::fs::read(&path).expect("read") == old);
    assert_eq!(directory.names(), ["w.safetensors"]);

    // Read-only, also for root, whom the system would not stop.
    let set_readonly = |readonly| {
        let mut permissions = std::fs::metadata(&path).expect("there").permissions();
        permissions.set_readonly(readonly);
        std::fs::set_permissions(&path, permissions).expect("set");
    };
    set_readonly(true);
    assert!(refused(&other, &path).contains("read-only"));
    assert!(std::fs::read(&path).expect("read") == old);
    set_readonly(false);

    // Another device of the same model cannot save these.
    let elsewhere = context_with(&Default::default());
    assert!(matches!(
        other.save(&elsewhere, &path),
        Err(Error::ContextMismatch { .. })
    ));
    assert!(std::fs::read(&path).expect("read") == old);

    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("set");
        // A link stays one.
        let link = directory.file("link");
        std::os::unix::fs::symlink("w.safetensors", &link).expect("linked");
        other.save(context, &link).expect("saves");
        assert!(
            std::fs::symlink_metadata(&link)
                .expect("there")
                .is_symlink()
        );
        let mode = std::fs::metadata(&path)
            .expect("there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::remove_file(&link).expect("removed");
    }
    #[cfg(not(unix))]
    drop(opened);
    #[cfg(not(unix))]
    other.save(context, &path).expect("saves");
    let file = WeightFile::open(&path).expect("valid");
    assert_eq!(file.names().collect::<Vec<_>>(), ["other.p0"]);
    #[cfg(unix)]
    assert_eq!(
        opened
            .get("p0")
            .expect("there")
            .to_f32(0..1000)
            .expect("reads"),
        uniform(1, 1000)
    );
    assert_eq!(directory.names(), ["w.safetensors"]);
}

/// A rename would put a file in its place.
#[test]
#[cfg(unix)]
fn a_device_is_not_replaced_by_a_file() {
    let (_, context) = &contexts()[0];
    let saved = WeightWriter::new().save(context, "/dev/null");
    assert!(
        matches!(saved, Err(Error::Weights(WeightsError::File { .. }))),
        "{saved:?}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn any_bits_come_back(tensors in prop::collection::vec(prop::collection::vec(any::<u32>(), 0..20), 0..5)) {
        let context = &crate::support::kernel_contexts::kernel_contexts()[0].context;
        // That single precision keeps, NaN that signal are none: hardware may quiet them.
        let quiet = |bits: u32| if f32::from_bits(bits).is_nan() { bits | 1 << 22 } else { bits };
        let values: Vec<Vec<f32>> = tensors.into_iter()
            .map(|bits| bits.into_iter().map(|b| f32::from_bits(quiet(b))).collect())
            .collect();
        let weights = parameters(context, &values);
        let writer = WeightWriter::new().with_part("", &weights);
        let saved = pollster::block_on(writer.to_bytes(context)).expect("writes");
        let file = WeightFile::from_bytes(saved).expect("valid");
        let loaded = file.all().load(context, weights.list()).expect("loads");
        prop_assert_eq!(bits(&read(context, &loaded).expect("reads")), bits(&values));
    }
}
