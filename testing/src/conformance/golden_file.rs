//! One golden file: a safetensors file whose header says how its tensors were made.
//!
//! A file may come from anywhere, so every access checks what it needs and says what is wrong otherwise.

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

/// A parsed file.
pub struct GoldenFile<'a> {
    tensors: SafeTensors<'a>,
    /// What the tensors were computed from and with.
    pub config: Value,
    /// Per tensor: largest difference between a float32 run and the float64 run of the code that made the file.
    pub f32_noise: Value,
    /// Samples and checksums of generated inputs.
    pub generator_check: Value,
}

impl<'a> GoldenFile<'a> {
    /// Reads header and tensors.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, String> {
        let unreadable = |error| format!("not a safetensors file: {error}");
        let tensors = SafeTensors::deserialize(bytes).map_err(unreadable)?;
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(unreadable)?;
        let entry = |key: &str| match header.metadata().as_ref().and_then(|map| map.get(key)) {
            None => Ok(Value::Null),
            Some(text) => serde_json::from_str(text)
                .map_err(|error| format!("header entry {key} is not JSON: {error}")),
        };
        Ok(Self {
            config: entry("config")?,
            f32_noise: entry("f32_noise")?,
            generator_check: entry("generator_check")?,
            tensors,
        })
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> Vec<&str> {
        let mut names = self.tensors.names();
        names.sort_unstable();
        names
    }

    /// Whether there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.names().contains(&name)
    }

    /// Shape of a tensor of `RANK` dimensions.
    pub fn shape<const RANK: usize>(&self, name: &str) -> Result<[usize; RANK], String> {
        let view = self.tensors.tensor(name);
        let view = view.map_err(|error| format!("tensor {name}: {error}"))?;
        view.shape().try_into().map_err(|_| {
            format!(
                "tensor {name} has shape {:?}, need {RANK} dimensions",
                view.shape()
            )
        })
    }

    /// A float32 tensor of a known shape; float64 is rounded.
    pub fn f32s(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, String> {
        if let Ok(data) = self.bytes(name, Dtype::F64, shape) {
            let (values, _) = data.as_chunks();
            return Ok(values
                .iter()
                .map(|b| f64::from_le_bytes(*b) as f32)
                .collect());
        }
        let data = self.bytes(name, Dtype::F32, shape)?;
        let values = data.chunks_exact(4);
        Ok(values
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect())
    }

    /// An int32 tensor of a known shape.
    pub fn i32s(&self, name: &str, shape: &[usize]) -> Result<Vec<i32>, String> {
        let data = self.bytes(name, Dtype::I32, shape)?;
        let values = data.chunks_exact(4);
        Ok(values
            .map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect())
    }

    /// A uint8 tensor of a known shape.
    pub fn u8s(&self, name: &str, shape: &[usize]) -> Result<&'a [u8], String> {
        self.bytes(name, Dtype::U8, shape)
    }

    fn bytes(&self, name: &str, dtype: Dtype, shape: &[usize]) -> Result<&'a [u8], String> {
        let view = self.tensors.tensor(name);
        let view = view.map_err(|error| format!("tensor {name}: {error}"))?;
        if view.dtype() != dtype || view.shape() != shape {
            return Err(format!(
                "tensor {name} is {:?} {:?}, need {dtype:?} {shape:?}",
                view.dtype(),
                view.shape()
            ));
        }
        Ok(view.data())
    }

    /// Whether the configuration is causal; a file that does not say is not.
    pub fn causal(&self) -> bool {
        self.config["causal"] == true
    }

    /// Segment lengths and dilation rates, under the names of either package. A segment length beyond 32 bits is cut:
    /// segments end with the sequence anyway.
    pub fn branches(&self) -> Result<(Vec<usize>, Vec<usize>), String> {
        let list = |names: [&str; 2]| {
            let given = names.iter().find_map(|name| self.config[*name].as_array());
            let given =
                given.ok_or_else(|| format!("config has no list {}", names.join(" or ")))?;
            let numbers = given.iter().map(|number| {
                let number = number.as_u64();
                number.map(|number| usize::try_from(number).unwrap_or(usize::MAX))
            });
            numbers
                .collect::<Option<Vec<usize>>>()
                .ok_or_else(|| format!("config: {} holds what is no size", names.join(" or ")))
        };
        Ok((
            list(["segment_length", "segment_lengths"])?,
            list(["dilated_ratio", "dilation_rates"])?,
        ))
    }
}
