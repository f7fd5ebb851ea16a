//! Any bytes, as a file of weights: they load or are refused, and what loads is consistent, also by the safetensors crate.

use dilated_attention::weights::{StoredType, WeightFile, WeightsError};
use safetensors::SafeTensors;

/// Reads everything there is in a file of `bytes`; whether it is one.
pub fn run(bytes: &[u8]) -> bool {
    let file = match WeightFile::from_bytes(bytes.to_vec()) {
        Ok(file) => file,
        Err(WeightsError::InvalidFile { reason, .. }) => {
            assert!(!reason.is_empty());
            assert!(reason.len() < 4096, "{} bytes of reason", reason.len());
            return false;
        }
        Err(error) => panic!("{error}"),
    };
    // What is accepted here, that crate accepts: this one is the stricter, and the same on all else.
    let theirs = SafeTensors::deserialize(bytes).expect("valid");
    let (_, header) = SafeTensors::read_metadata(bytes).expect("valid");
    let metadata = header.metadata().clone().unwrap_or_default();
    assert!(
        file.metadata().iter().eq(metadata
            .iter()
            .collect::<std::collections::BTreeMap<_, _>>())
    );
    assert_eq!(file.names().count(), theirs.len());
    let mut data_bytes = 0;
    for name in file.names() {
        let tensor = file.get(name).expect("named");
        let same = theirs.tensor(name).expect("named");
        assert_eq!(tensor.name(), name);
        assert_eq!(tensor.shape(), same.shape());
        assert_eq!(tensor.stored_type().name(), same.dtype().to_string());
        let stored = tensor.to_bytes(0..same.data().len()).expect("reads");
        assert_eq!(stored, same.data());
        assert_eq!(tensor.num_bytes(), stored.len() as u64);
        assert_eq!(
            tensor.num_elements() * same.dtype().bitsize(),
            stored.len() * 8
        );
        data_bytes += stored.len();
        let all = 0..tensor.num_elements();
        match (tensor.stored_type(), tensor.to_f32(all.clone())) {
            (StoredType::Other(_), Err(WeightsError::WrongStoredType { .. })) => {}
            (_, values) => assert_eq!(values.expect("a float type").len(), all.end),
        }
        assert!(tensor.to_f32(all.end..all.end + 1).is_err());
    }
    assert!(data_bytes <= bytes.len());
    true
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;
    use crate::counting_allocator::bytes_allocated_by_this_thread;
    use crate::weight_files::{file_of, file_with, tensor};

    fn small_file() -> Vec<u8> {
        let json = format!(
            r#"{{"__metadata__":{{"format":"pt"}},{},{},{}}}"#,
            tensor("a", "F32", &[2, 2], [0, 16]),
            tensor("b", "F16", &[3], [16, 22]),
            tensor("c", "I64", &[], [22, 30]),
        );
        file_of(&json, &(0..30).collect::<Vec<u8>>())
    }

    #[test]
    fn all_types_of_the_format_are_known() {
        use safetensors::Dtype::*;
        for stored in [
            BOOL,
            F4,
            F6_E2M3,
            F6_E3M2,
            U8,
            I8,
            F8_E5M2,
            F8_E4M3,
            F8_E8M0,
            F8_E4M3FNUZ,
            F8_E5M2FNUZ,
            I16,
            U16,
            F16,
            BF16,
            I32,
            U32,
            F32,
            C64,
            F64,
            I64,
            U64,
        ] {
            let data = vec![0u8; stored.bitsize()];
            let bytes = file_with(&[("t", &stored.to_string(), &[2, 4], &data)]);
            assert!(run(&bytes), "{stored}");
        }
    }

    #[test]
    fn a_file_cut_at_any_byte_is_refused() {
        let bytes = small_file();
        for length in 0..bytes.len() {
            assert!(!run(&bytes[..length]), "{length} bytes");
        }
        assert!(!run(&[&bytes[..], &[0]].concat()));
    }

    /// Reading and refusing cost at most a small multiple of the header, whatever it says.
    #[test]
    fn a_hostile_header_allocates_little() {
        let zeros = "0,".repeat(200_000);
        let tensors: Vec<String> = (0..5000)
            .map(|i| tensor(&format!("t{i}"), "F32", &[0], [0, 0]))
            .collect();
        let huge = r#""shape":[18446744073709551615],"data_offsets":[0,18446744073709551615]"#;
        for json in [
            format!("{{{}}}", tensors.join(",")),
            format!(r#"{{"a":{{"dtype":"F32","data_offsets":[0,0],"shape":[{zeros}0]}}}}"#),
            format!(
                r#"{{"a":{{"dtype":"F32","unknown":[{zeros}0],"shape":[0],"data_offsets":[0,0]}}}}"#
            ),
            format!(r#"{{"a":{}"#, "[".repeat(400_000)),
            format!(r#"{{"a":{{"dtype":"U8",{huge}}}}}"#),
            format!(r#"{{"__metadata__":{{"a":"{}"}}}}"#, "x".repeat(400_000)),
        ] {
            let bytes = file_of(&json, &[]);
            let limit = 16 * bytes.len() as u64 + 4096;
            let before = bytes_allocated_by_this_thread();
            let _ = WeightFile::from_bytes(bytes);
            let allocated = bytes_allocated_by_this_thread() - before;
            assert!(allocated <= limit, "{allocated} bytes for {}", json.len());
        }
        // A header that claims more than is there costs nothing.
        let bytes = [&99_999_999u64.to_le_bytes()[..], b"{"].concat();
        let before = bytes_allocated_by_this_thread();
        assert!(WeightFile::from_bytes(bytes).is_err());
        assert!(bytes_allocated_by_this_thread() - before < 4096);
    }

    #[test]
    fn golden_files_read_as_that_crate_reads_them() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden");
        for name in [
            "ts_encoder_prenorm",
            "ts_encoder_xpos",
            "ts_core_n1",
            "big_core_tiny_ln",
        ] {
            let path = golden.join(format!("{name}.safetensors"));
            let bytes = std::fs::read(&path).expect("read");
            assert!(SafeTensors::deserialize(&bytes).is_ok());
            assert!(run(&bytes), "{name}");
            let file = WeightFile::open(&path).expect("valid");
            assert!(file.tensors().count() > 0 && file.metadata().contains_key("source"));
        }
    }

    proptest! {
        #[test]
        fn flipped_bytes_never_panic(
            flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
            cut in prop::option::of(any::<prop::sample::Index>()),
        ) {
            let mut bytes = small_file();
            for (index, value) in &flips {
                let index = index.index(bytes.len());
                bytes[index] = *value;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            run(&bytes);
        }

        /// Numbers in their places, so that more than the parser is met.
        #[test]
        fn any_numbers_never_panic(
            tensors in prop::collection::vec(
                (prop::collection::vec(0u64..5, 0..3), 0u64..40, 0u64..40, 0usize..4),
                0..5,
            ),
            huge in prop::option::of((any::<prop::sample::Index>(), any::<u64>())),
            data_bytes in 0usize..100,
        ) {
            let types = ["F32", "F16", "BF16", "U8"];
            let mut numbers = tensors;
            if let Some((index, value)) = huge && !numbers.is_empty() {
                let index = index.index(numbers.len());
                numbers[index].1 = value;
                numbers[index].0.push(value);
            }
            let entries: Vec<String> = numbers.iter().enumerate().map(|(i, (shape, from, to, kind))| {
                format!(r#""t{i}":{{"dtype":"{}","shape":{shape:?},"data_offsets":[{from},{to}]}}"#, types[*kind])
            }).collect();
            run(&file_of(&format!("{{{}}}", entries.join(",")), &vec![1; data_bytes]));
        }

        /// What that crate writes, loads here.
        #[test]
        fn files_of_that_crate_are_read(
            shapes in prop::collection::btree_map("[a-z.\\\\\"\u{0}é]{1,6}", (prop::collection::vec(0usize..4, 0..4), 0usize..3), 0..6),
            metadata in prop::option::of(prop::collection::hash_map(".{0,5}", ".{0,5}", 0..3)),
        ) {
            use safetensors::Dtype;
            use safetensors::tensor::TensorView;
            let types = [Dtype::F32, Dtype::F16, Dtype::I64];
            let data = [3u8; 8 * 64];
            let views: Vec<(String, TensorView)> = shapes.into_iter().map(|(name, (shape, kind))| {
                let bytes = shape.iter().product::<usize>() * types[kind].bitsize() / 8;
                (name, TensorView::new(types[kind], shape, &data[..bytes]).expect("fits"))
            }).collect();
            // Of no tensor with metadata of no string, its version 0.8 writes what is no JSON.
            let metadata = metadata.filter(|strings| !strings.is_empty());
            let bytes = safetensors::serialize(views, metadata).expect("writes");
            prop_assert!(run(&bytes));
        }
    }
}
