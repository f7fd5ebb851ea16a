//! Every format gives the same tiles; what is wrong is told with file and array; hostile files neither panic nor take memory
//! that they do not have.

use std::io::Write;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use proptest::prelude::*;
use safetensors::tensor::{Dtype, TensorView};
use slide_files::{Error, Tiles, write_npy};
use zip::CompressionMethod;
use zip::write::{SimpleFileOptions, ZipWriter};

#[path = "../../../benches/counting_allocator.rs"]
#[allow(dead_code, reason = "bytes are asked for, not allocations")]
mod counting_allocator;

const TILES: usize = 5;
const DIM: usize = 6;

/// Values that every type has exactly.
fn features() -> Vec<f32> {
    (0..TILES * DIM).map(|i| i as f32 / 8.0 - 1.0).collect()
}

fn coords() -> Vec<[f32; 2]> {
    (0..TILES)
        .map(|i| [256.0 * i as f32, 512.0 * i as f32 + 1.0])
        .collect()
}

fn expected() -> Tiles {
    Tiles {
        features: features(),
        coords: coords(),
    }
}

/// A folder of its own, removed in the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("slide-files-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder for tests");
        Self(path)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, bytes).expect("a file for tests");
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // A folder left behind is no failure.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

type Encode = fn(f32) -> Vec<u8>;

/// NumPy's name, that of safetensors, and an element's bytes.
const FLOATS: [(&str, Dtype, Encode); 3] = [
    ("<f2", Dtype::F16, |x| f16::from_f32(x).to_le_bytes().into()),
    ("<f4", Dtype::F32, |x| x.to_le_bytes().into()),
    ("<f8", Dtype::F64, |x| f64::from(x).to_le_bytes().into()),
];

const INTEGERS: [(&str, Dtype, Encode); 4] = [
    ("<i4", Dtype::I32, |x| (x as i32).to_le_bytes().into()),
    ("<i8", Dtype::I64, |x| (x as i64).to_le_bytes().into()),
    ("<u4", Dtype::U32, |x| (x as u32).to_le_bytes().into()),
    ("<u8", Dtype::U64, |x| (x as u64).to_le_bytes().into()),
];

fn bytes_of(values: &[f32], encode: Encode) -> Vec<u8> {
    values.iter().copied().flat_map(encode).collect()
}

fn safetensors_of(tensors: &[(&str, Dtype, &[usize], Vec<u8>)]) -> Vec<u8> {
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        let view = TensorView::new(*dtype, shape.to_vec(), bytes).expect("consistent");
        (*name, view)
    });
    safetensors::serialize(views, None).expect("serializable")
}

/// As NumPy writes it.
fn npy_of(descr: &str, order: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let mut header = format!("{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}");
    while (10 + header.len() + 1) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

fn npz_of(arrays: &[(&str, Vec<u8>)], method: CompressionMethod) -> Vec<u8> {
    let mut writer = ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(method);
    for (name, bytes) in arrays {
        writer
            .start_file(format!("{name}.npy"), options)
            .expect("an entry");
        writer.write_all(bytes).expect("its bytes");
    }
    writer.finish().expect("an archive").into_inner()
}

fn plain_safetensors() -> Vec<u8> {
    let (_, float, encode) = FLOATS[1];
    let flat = coords().concat();
    safetensors_of(&[
        ("coords", float, &[TILES, 2], bytes_of(&flat, encode)),
        (
            "features",
            float,
            &[TILES, DIM],
            bytes_of(&features(), encode),
        ),
    ])
}

fn plain_npys() -> [Vec<u8>; 2] {
    let encode = FLOATS[1].2;
    let of = |shape, values: &[f32]| npy_of("'<f4'", "False", shape, &bytes_of(values, encode));
    [of("(5, 6)", &features()), of("(5, 2)", &coords().concat())]
}

fn plain_npz(method: CompressionMethod) -> Vec<u8> {
    let [features, coords] = plain_npys();
    npz_of(&[("features", features), ("coords", coords)], method)
}

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name)
}

#[test]
fn safetensors_of_every_type_are_read() {
    let folder = Folder::new("safetensors");
    let brain: (&str, Dtype, Encode) =
        ("", Dtype::BF16, |x| bf16::from_f32(x).to_le_bytes().into());
    for (_, float, encode) in FLOATS.into_iter().chain([brain]) {
        // Coordinates have more bits than half precision.
        for (_, number, encode_coords) in FLOATS.into_iter().skip(1).chain(INTEGERS) {
            for leading in [&[][..], &[1][..]] {
                let shape = |rest: &[usize]| [leading, rest].concat();
                let bytes = safetensors_of(&[
                    (
                        "coords",
                        number,
                        &shape(&[TILES, 2]),
                        bytes_of(&coords().concat(), encode_coords),
                    ),
                    (
                        "features",
                        float,
                        &shape(&[TILES, DIM]),
                        bytes_of(&features(), encode),
                    ),
                    ("others", Dtype::U8, &[3], vec![1, 2, 3]),
                ]);
                let path = folder.write("tiles.safetensors", &bytes);
                let read = Tiles::read(path, DIM).expect("readable");
                assert_eq!(read, expected(), "{float} {number}");
                assert_eq!(read.count(), TILES);
            }
        }
    }
}

#[test]
fn npy_and_npz_of_every_type_are_read() {
    let folder = Folder::new("npy");
    for (float, _, encode) in FLOATS {
        for (number, _, encode_coords) in FLOATS.into_iter().skip(1).chain(INTEGERS) {
            for (rows, pairs) in [("(5, 6)", "(5, 2)"), ("(1, 5, 6)", "(1,5,2,)")] {
                let features = bytes_of(&features(), encode);
                let features = npy_of(&format!("'{float}'"), "False", rows, &features);
                let coords = bytes_of(&coords().concat(), encode_coords);
                let coords = npy_of(&format!("\"{number}\""), "False", pairs, &coords);
                let paths = [
                    folder.write("features.npy", &features),
                    folder.write("coords.npy", &coords),
                ];
                let read = Tiles::read_pair(&paths[0], &paths[1], DIM).expect("readable");
                assert_eq!(read, expected(), "{float} {number}");
                for method in [CompressionMethod::Stored, CompressionMethod::Deflated] {
                    let arrays = [("features", features.clone()), ("coords", coords.clone())];
                    let path = folder.write("tiles.npz", &npz_of(&arrays, method));
                    let read = Tiles::read(path, DIM).expect("readable");
                    assert_eq!(read, expected(), "{float} {number} {method:?}");
                }
            }
        }
    }
}

#[test]
fn what_is_written_is_read_again() {
    let folder = Folder::new("written");
    let paths = ["features.npy", "coords.npy"].map(|name| folder.0.join(name));
    write_npy(&paths[0], &[TILES, DIM], &features()).expect("writable");
    write_npy(&paths[1], &[1, TILES, 2], &coords().concat()).expect("writable");
    let read = Tiles::read_pair(&paths[0], &paths[1], DIM).expect("readable");
    assert_eq!(read, expected());
    let bytes = std::fs::read(&paths[0]).expect("written");
    assert_eq!(bytes, plain_npys()[0], "as NumPy writes it");
    let error = write_npy(&paths[0], &[7, 7], &features()).expect_err("49 are not 30");
    assert!(matches!(error, Error::Shape { .. }), "{error}");
    let error = write_npy(folder.0.join("no/x.npy"), &[30], &features()).expect_err("no folder");
    assert!(
        error.to_string().contains("could not be written"),
        "{error}"
    );
}

#[test]
fn drawn_tiles_are_the_same_each_time_and_in_cells_of_their_own() {
    let tiles = Tiles::drawn(50, 3).expect("small");
    assert_eq!(tiles, Tiles::drawn(50, 3).expect("small"));
    assert_eq!(tiles.features.len(), 150);
    assert!(tiles.features.iter().all(|x| (-1.0..1.0).contains(x)));
    let mean = tiles.features.iter().sum::<f32>() / 150.0;
    assert!(mean.abs() < 0.2, "{mean}");
    let mut cells: Vec<_> = tiles
        .coords
        .iter()
        .map(|xy| xy.map(|at| at as u32))
        .collect();
    cells.sort();
    cells.dedup();
    assert_eq!(cells.len(), 50);
    let error = Tiles::drawn(usize::MAX / 2, 1536).expect_err("too many");
    assert!(matches!(error, Error::TooManyTiles { .. }), "{error}");
}

#[cfg(feature = "h5")]
#[test]
fn hdf5_as_clam_and_trident_write_it_is_read() {
    for name in ["clam.h5", "trident.h5", "latest.h5"] {
        let read = Tiles::read(data(name), DIM);
        assert_eq!(read.expect(name), expected(), "{name}");
    }
}

#[cfg(feature = "h5")]
#[test]
fn what_is_wrong_with_hdf5_is_told() {
    let refusal = |name: &str, dim| Tiles::read(data(name), dim).expect_err(name).to_string();
    for (name, dim, needles) in [
        ("others.h5", DIM, ["features of", "BigEndian"]),
        ("clam.h5", 1536, ["features of", "[5, 6]; (tiles, 1536)"]),
        (
            "empty_space.h5",
            DIM,
            ["features of", "1649267441664 bytes"],
        ),
    ] {
        let told = refusal(name, dim);
        for needle in needles.into_iter().chain([name]) {
            assert!(told.contains(needle), "{told}");
        }
    }
}

#[cfg(not(feature = "h5"))]
#[test]
fn without_the_feature_hdf5_is_refused_with_the_way_to_it() {
    let error = Tiles::read(data("clam.h5"), DIM).expect_err("not built in");
    assert!(matches!(error, Error::WithoutH5 { .. }));
    assert!(
        error.to_string().contains("--features slide-files/h5"),
        "{error}"
    );
}

#[test]
fn what_is_wrong_is_told_with_file_and_array() {
    let folder = Folder::new("wrong");
    let [features, coords] = plain_npys();
    let wrong = |descr: &str, order: &str, shape: &str, bytes: usize| {
        let features = npy_of(descr, order, shape, &vec![0; bytes]);
        let arrays = [("features", features), ("coords", coords.clone())];
        npz_of(&arrays, CompressionMethod::Deflated)
    };
    let tensor = |dtype, shape: &[usize], bytes: usize| {
        safetensors_of(&[
            ("features", dtype, shape, vec![0; bytes]),
            ("coords", Dtype::F32, &[TILES, 2], vec![0; TILES * 8]),
        ])
    };
    let one = |name: &str| npz_of(&[(name, features.clone())], CompressionMethod::Stored);
    let huge = "(4000000000, 6)";
    let cut = plain_safetensors();
    let cut = &cut[..cut.len() - 1];
    let cases: Vec<(&str, &[&str], Vec<u8>)> = vec![
        ("a.tiff", &["a.tiff is no .safetensors"], vec![]),
        ("plain", &["plain is no .safetensors"], vec![]),
        ("a.npy", &["second .npy"], features.clone()),
        ("empty.npz", &["no whole .npz file"], vec![]),
        ("empty.safetensors", &["no whole safetensors file"], vec![]),
        ("long.safetensors", &["header would have"], vec![0xff; 64]),
        (
            "text.safetensors",
            &["no whole safetensors"],
            [&[2, 0, 0, 0, 0, 0, 0, 0][..], b"[]"].concat(),
        ),
        ("cut.safetensors", &["would take", "cut"], cut.to_vec()),
        (
            "coords.npz",
            &["coords.npz has no coords; it has features"],
            one("features"),
        ),
        (
            "features.npz",
            &["features.npz has no coords; it has feats"],
            one("feats"),
        ),
        (
            "i4.npz",
            &["features of", "type I32", "F16, BF16, F32 or F64"],
            wrong("'<i4'", "False", "(5, 6)", 120),
        ),
        (
            "big.npz",
            &["features of", "type >f4"],
            wrong("'>f4'", "False", "(5, 6)", 120),
        ),
        (
            "object.npz",
            &["features of", "type |O"],
            wrong("'|O'", "False", "(5, 6)", 120),
        ),
        (
            "record.npz",
            &["not that of a plain array"],
            wrong("[('x', '<f4')]", "False", "(5, 6)", 120),
        ),
        (
            "fortran.npz",
            &["features of", "Fortran order", "ascontiguousarray"],
            wrong("'<f4'", "True", "(5, 6)", 120),
        ),
        (
            "rank1.npz",
            &["features of", "[30]; (tiles, 6)"],
            wrong("'<f4'", "False", "(30,)", 120),
        ),
        (
            "rank0.npz",
            &["features of", "[]; (tiles, 6)"],
            wrong("'<f4'", "False", "()", 120),
        ),
        (
            "batch.npz",
            &["features of", "[2, 5, 6]"],
            wrong("'<f4'", "False", "(2, 5, 6)", 240),
        ),
        (
            "width.npz",
            &["features of", "[6, 5]"],
            wrong("'<f4'", "False", "(6, 5)", 120),
        ),
        (
            "huge.npz",
            &["features of", "96000000000 bytes"],
            wrong("'<f4'", "False", huge, 120),
        ),
        (
            "overflow.npz",
            &["features of", "the shape"],
            wrong("'<f8'", "False", "(18446744073709551615, 6)", 120),
        ),
        (
            "more.npz",
            &["not that of a plain array"],
            wrong("'<f4'", "False", "(99999999999999999999, 6)", 120),
        ),
        (
            "negative.npz",
            &["not that of a plain array"],
            wrong("'<f4'", "False", "(-5, 6)", 120),
        ),
        (
            "less.npz",
            &["features of", "would take 120 bytes"],
            wrong("'<f4'", "False", "(5, 6)", 119),
        ),
        (
            "fewer.npz",
            &["fewer.npz has features of 4 tiles", "of 5"],
            wrong("'<f4'", "False", "(4, 6)", 96),
        ),
        (
            "bool.safetensors",
            &["features of", "type BOOL"],
            tensor(Dtype::BOOL, &[TILES, DIM], TILES * DIM),
        ),
        (
            "u64.safetensors",
            &["features of", "type U64"],
            tensor(Dtype::U64, &[TILES, DIM], TILES * DIM * 8),
        ),
        (
            "rank.safetensors",
            &["features of", "[1, 1, 5, 6]"],
            tensor(Dtype::F32, &[1, 1, 5, 6], 120),
        ),
        (
            "missing.safetensors",
            &["has no coords; it has features"],
            safetensors_of(&[("features", Dtype::F32, &[0, 6], vec![])]),
        ),
    ];
    for (name, needles, bytes) in cases {
        let path = folder.write(name, &bytes);
        let error = Tiles::read(&path, DIM).expect_err(name);
        let told = error.to_string();
        for needle in needles.iter().chain([&name]) {
            assert!(told.contains(needle), "{name}: {told}");
        }
    }
    let upper = folder.write("TILES.SAFETENSORS", &plain_safetensors());
    assert_eq!(Tiles::read(upper, DIM).expect("readable"), expected());
    let told = |path: &Path| Tiles::read(path, DIM).expect_err("no file").to_string();
    assert!(told(&folder.0.join("none.npz")).contains("none.npz could not be opened"));
    std::fs::create_dir_all(folder.0.join("folder.npz")).expect("a folder");
    assert!(told(&folder.0.join("folder.npz")).contains("no regular file"));
}

/// Files of all formats that are right; those of HDF5 in a build that reads them.
fn right_files() -> Vec<(&'static str, Vec<u8>)> {
    let mut files = vec![
        ("safetensors", plain_safetensors()),
        ("npz", plain_npz(CompressionMethod::Stored)),
        ("npz", plain_npz(CompressionMethod::Deflated)),
        ("npy", plain_npys()[0].clone()),
    ];
    if cfg!(feature = "h5") {
        for name in ["clam.h5", "trident.h5", "latest.h5", "empty_space.h5"] {
            files.push(("h5", std::fs::read(data(name)).expect("it is there")));
        }
    }
    files
}

/// Reads the file; the result, when what was allocated is little.
fn read_within_bounds(folder: &Folder, extension: &str, bytes: &[u8]) -> Result<Tiles, Error> {
    // Threads of tests do not share a file.
    let thread = format!("{:?}.{extension}", std::thread::current().id());
    let path = folder.write(&thread, bytes);
    let before = counting_allocator::bytes_allocated_by_this_thread();
    let read = match extension {
        "npy" => {
            let coords = folder.write("coords.npy", &plain_npys()[1]);
            Tiles::read_pair(path, coords, DIM)
        }
        _ => Tiles::read(path, DIM),
    };
    let allocated = counting_allocator::bytes_allocated_by_this_thread() - before;
    // All together, freed or not. Numbers of entries in HDF5 have 16 bits, whose tables are made before they are read.
    let most = if extension == "h5" {
        64 << 20
    } else {
        16 << 20
    };
    let size = bytes.len();
    assert!(allocated < most, "{allocated} bytes for a file of {size}");
    read
}

#[test]
fn files_that_were_cut_off_anywhere_are_refused() {
    let folder = Folder::new("cut");
    for (extension, bytes) in right_files() {
        for end in 0..bytes.len() {
            let read = read_within_bounds(&folder, extension, &bytes[..end]);
            // Of HDF5, free space at the end may be missing; what is read must be right.
            if let Ok(tiles) = read {
                assert_eq!(extension, "h5", "{end} of {} bytes", bytes.len());
                assert_eq!(tiles, expected());
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    #[test]
    fn changed_files_are_read_or_refused(
        which in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        let files = right_files();
        let (extension, bytes) = which.get(&files);
        let mut bytes = bytes.clone();
        for (place, value) in changes {
            // Half of the changes go into the first bytes, where headers are.
            let most = if value % 2 == 0 { bytes.len() } else { bytes.len().min(200) };
            bytes[place.index(most)] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let folder = Folder::new("changed");
        if let Err(error) = read_within_bounds(&folder, extension, &bytes) {
            let told = error.to_string();
            prop_assert!(!told.is_empty() && told.len() < 4096, "{} bytes of text", told.len());
        }
    }
}
