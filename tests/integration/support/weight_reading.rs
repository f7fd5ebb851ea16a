//! Any bytes, as a file of weights: they load or are refused, and what loads is consistent, also by the safetensors crate.
//! The body of a property test and of a fuzz target.

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
