//! Checkpoints of the slide encoder that were cut off, damaged or made to harm: each loads or is an error that says why, and
//! the pool has everything back.

use std::collections::BTreeSet;

use dilated_attention::models::StagedModel;
use dilated_attention::models::gigapath::{Slide, SlideEncoder, SlideOutput, SlideOutputs};
use dilated_attention::nn::Parameters;
use dilated_attention::{Context, DeviceCaps};
use proptest::prelude::*;
use proptest::sample::Index;
use testing::counting_allocator::bytes_allocated_by_this_thread;
use testing::fuzzing::checkpoint::{encoder, run};

use crate::support::contexts::contexts;
use crate::support::models::draw;
use crate::support::numbers::uniform;

/// A tensor of a file to be made, and what its header says of it.
#[derive(Clone, Debug)]
struct Entry {
    name: String,
    stored_type: String,
    shape: Vec<u64>,
    offsets: [u64; 2],
}

/// Header and data of a checkpoint.
#[derive(Clone, Debug)]
struct Checkpoint {
    entries: Vec<Entry>,
    data: Vec<u8>,
}

impl Checkpoint {
    /// One that is right.
    fn of(encoder: &SlideEncoder) -> Self {
        let list = encoder.parameters();
        let (mut entries, mut data) = (Vec::new(), Vec::new());
        for (spec, values) in list.specs().iter().zip(draw(list, 5)) {
            let begin = data.len() as u64;
            data.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            entries.push(Entry {
                name: spec.name.clone(),
                stored_type: "F32".to_owned(),
                shape: spec.shape.iter().map(|dim| *dim as u64).collect(),
                offsets: [begin, data.len() as u64],
            });
        }
        Self { entries, data }
    }

    fn bytes(&self) -> Vec<u8> {
        let entries: Vec<_> = self
            .entries
            .iter()
            .map(|entry| {
                let Entry { name, stored_type, shape, offsets } = entry;
                format!(
                    r#"{name:?}:{{"dtype":"{stored_type}","shape":{shape:?},"data_offsets":{offsets:?}}}"#
                )
            })
            .collect();
        let json = format!("{{{}}}", entries.join(","));
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend(json.as_bytes());
        bytes.extend(&self.data);
        bytes
    }
}

/// What is done to a checkpoint: to its header while that is still one, or to its bytes.
#[derive(Clone, Debug)]
enum Change {
    Remove(Index),
    Twice(Index),
    Swap(Index, Index),
    Rename(Index, String),
    Type(Index, &'static str),
    Dimension(Index, Index, u64),
    Reshape(Index, Vec<u64>),
    Offset(Index, bool, u64),
    Byte(Index, u8),
    Insert(Index, Vec<u8>),
    Delete(Index, usize),
    Length(u64),
    Cut(Index),
}

fn any_number() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..300u64,
        any::<u64>(),
        (0..64u32, 0..3u64).prop_map(|(bit, less)| (1u64 << bit).wrapping_sub(less)),
    ]
}

fn any_change() -> impl Strategy<Value = Change> {
    let index = any::<Index>;
    const TYPES: [&str; 9] = [
        "F32", "F16", "BF16", "F64", "I64", "BOOL", "F4", "F8_E4M3", "X",
    ];
    prop_oneof![
        index().prop_map(Change::Remove),
        index().prop_map(Change::Twice),
        (index(), index()).prop_map(|(a, b)| Change::Swap(a, b)),
        (index(), "\\PC{0,40}").prop_map(|(at, name)| Change::Rename(at, name)),
        (index(), prop::sample::select(&TYPES)).prop_map(|(at, name)| Change::Type(at, name)),
        (index(), index(), any_number()).prop_map(|(at, dim, n)| Change::Dimension(at, dim, n)),
        (index(), prop::collection::vec(any_number(), 0..6))
            .prop_map(|(at, shape)| Change::Reshape(at, shape)),
        (index(), any::<bool>(), any_number()).prop_map(|(at, end, n)| Change::Offset(at, end, n)),
        (index(), any::<u8>()).prop_map(|(at, byte)| Change::Byte(at, byte)),
        (index(), prop::collection::vec(any::<u8>(), 1..20))
            .prop_map(|(at, bytes)| Change::Insert(at, bytes)),
        (index(), 1..100usize).prop_map(|(at, count)| Change::Delete(at, count)),
        any_number().prop_map(Change::Length),
        index().prop_map(Change::Cut),
    ]
}

impl Change {
    fn apply_to_header(&self, entries: &mut Vec<Entry>) {
        if entries.is_empty() {
            return;
        }
        let count = entries.len();
        let at = |index: &Index| index.index(count);
        match self {
            Self::Remove(index) => drop(entries.remove(at(index))),
            Self::Twice(index) => entries.push(entries[at(index)].clone()),
            Self::Swap(a, b) => {
                let name = entries[at(a)].name.clone();
                entries[at(a)].name = std::mem::replace(&mut entries[at(b)].name, name);
            }
            Self::Rename(index, name) => entries[at(index)].name.clone_from(name),
            Self::Type(index, name) => entries[at(index)].stored_type = (*name).to_owned(),
            Self::Dimension(index, dim, number) => {
                let shape = &mut entries[at(index)].shape;
                if !shape.is_empty() {
                    let dim = dim.index(shape.len());
                    shape[dim] = *number;
                }
            }
            Self::Reshape(index, shape) => entries[at(index)].shape.clone_from(shape),
            Self::Offset(index, end, number) => {
                entries[at(index)].offsets[usize::from(*end)] = *number;
            }
            _ => {}
        }
    }

    fn apply_to_bytes(&self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        let length = bytes.len();
        let at = |index: &Index| index.index(length);
        match self {
            Self::Byte(index, byte) => bytes[at(index)] = *byte,
            Self::Insert(index, more) => {
                bytes.splice(at(index)..at(index), more.iter().copied());
            }
            Self::Delete(index, count) => {
                bytes.drain(at(index)..length.min(at(index) + count));
            }
            Self::Length(number) => bytes
                .iter_mut()
                .zip(number.to_le_bytes())
                .for_each(|(byte, new)| *byte = new),
            Self::Cut(index) => bytes.truncate(at(index)),
            _ => {}
        }
    }
}

fn changed(checkpoint: &Checkpoint, changes: &[Change]) -> Vec<u8> {
    let mut checkpoint = checkpoint.clone();
    for change in changes {
        change.apply_to_header(&mut checkpoint.entries);
    }
    let mut bytes = checkpoint.bytes();
    for change in changes {
        change.apply_to_bytes(&mut bytes);
    }
    bytes
}

/// That the context's pool has everything back; what a device was working on, after a moment.
fn nothing_is_leased(context: &Context) {
    for _ in 0..100 {
        let _ = context.poll();
        let stats = context.pool().stats();
        if (stats.leases.current, stats.pending.current) == (0, 0) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    panic!("{}", context.pool().stats());
}

fn encode(context: &Context, encoder: &SlideEncoder, weights: &Parameters) -> SlideOutput {
    let (features, coords) = (uniform(3, 4 * 20), [[300.0, 7.0]; 20]);
    let slide = Slide {
        features: &features,
        coords: &coords,
    };
    let slides = [slide];
    let run = encoder.run(context, weights, &slides, &SlideOutputs::default());
    run.expect("a right slide").blocking().expect("runs")
}

#[test]
fn a_checkpoint_cut_off_anywhere_is_refused() {
    let dry_run = Context::dry_run(DeviceCaps::webgpu_defaults());
    let encoder = encoder(&dry_run);
    let bytes = Checkpoint::of(&encoder).bytes();
    assert!(run(&dry_run, &encoder, &bytes).is_some());
    for end in 0..bytes.len() {
        assert!(
            run(&dry_run, &encoder, &bytes[..end]).is_none(),
            "{end} bytes"
        );
    }
    nothing_is_leased(&dry_run);
}

#[test]
fn a_checkpoint_without_one_of_its_tensors_or_with_one_more_is_refused() {
    let dry_run = Context::dry_run(DeviceCaps::webgpu_defaults());
    let encoder = encoder(&dry_run);
    let right = Checkpoint::of(&encoder);
    let mut refusals = BTreeSet::new();
    for index in 0..right.entries.len() {
        for change in ["missing", "unknown", "misshapen", "of a type"] {
            let mut checkpoint = right.clone();
            let entry = &mut checkpoint.entries[index];
            match change {
                // Its bytes stay, under another name.
                "missing" => entry.name.push('_'),
                "unknown" => {
                    let end = right.data.len() as u64;
                    checkpoint.entries.push(Entry {
                        name: format!("{}.more", right.entries[index].name),
                        stored_type: "F32".to_owned(),
                        shape: vec![0],
                        offsets: [end, end],
                    });
                }
                "misshapen" => entry.shape.push(1),
                _ => entry.stored_type = "I32".to_owned(),
            }
            let file = dilated_attention::WeightFile::from_bytes(checkpoint.bytes());
            let file = file.expect("a right file of another model");
            let told = encoder.load(&dry_run, &file).expect_err(change).to_string();
            let name = &right.entries[index].name;
            assert!(told.contains(change) && told.contains(name), "{told}");
            refusals.insert(told);
        }
    }
    assert_eq!(refusals.len(), 4 * right.entries.len());
    nothing_is_leased(&dry_run);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn a_damaged_checkpoint_loads_or_is_refused(
        changes in prop::collection::vec(any_change(), 1..6),
    ) {
        thread_local! {
            static PLANNED: (Context, SlideEncoder) = {
                let dry_run = Context::dry_run(DeviceCaps::webgpu_defaults());
                let encoder = encoder(&dry_run);
                (dry_run, encoder)
            };
        }
        PLANNED.with(|(dry_run, encoder)| {
            let bytes = changed(&Checkpoint::of(encoder), &changes);
            let before = bytes_allocated_by_this_thread();
            let weights = run(dry_run, encoder, &bytes);
            let allocated = bytes_allocated_by_this_thread() - before;
            assert!(allocated < 8 << 20, "{allocated} bytes for a file of {}", bytes.len());
            drop(weights);
            nothing_is_leased(dry_run);
        });
    }
}

/// On devices: after every refusal and every load the pool has everything back, and the next right checkpoint gives the same
/// embedding to the bit.
#[test]
fn damaged_checkpoints_leave_a_device_as_it_was() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    for (_, context) in contexts() {
        let encoder = encoder(&context);
        let right = Checkpoint::of(&encoder);
        let weights = run(&context, &encoder, &right.bytes()).expect("a right checkpoint");
        let expected = encode(&context, &encoder, &weights);
        assert!(expected.cls.iter().all(|value| value.is_finite()));
        drop(weights);
        nothing_is_leased(&context);
        let mut runner = TestRunner::deterministic();
        let strategy = prop::collection::vec(any_change(), 1..4);
        let (mut loaded, mut refused) = (0, 0);
        for _ in 0..150 {
            let changes = strategy.new_tree(&mut runner).expect("changes").current();
            let bytes = changed(&right, &changes);
            // Damaged data loads: only numbers change. What a run makes of them is no error.
            match run(&context, &encoder, &bytes) {
                None => refused += 1,
                Some(weights) => {
                    encode(&context, &encoder, &weights);
                    loaded += 1;
                }
            }
            nothing_is_leased(&context);
        }
        assert!(
            loaded > 5 && refused > 50,
            "{loaded} loaded, {refused} refused"
        );
        let weights = run(&context, &encoder, &right.bytes()).expect("a right checkpoint");
        assert_eq!(encode(&context, &encoder, &weights), expected);
        drop(weights);
        nothing_is_leased(&context);
    }
}
