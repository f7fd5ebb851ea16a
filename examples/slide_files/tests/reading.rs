//! Every format gives the same tiles; what is wrong is told with file and array; hostile files neither panic nor take memory
//! that they do not have.

use std::io::Write;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use proptest::prelude::*;
use safetensors::tensor::{Dtype, TensorView};
use slide_files::{Error, TileSizeChoice, Tiles, write_npy};
use testing::counting_allocator::{CountingAllocator, bytes_allocated_by_this_thread};
use zip::CompressionMethod;
use zip::write::{SimpleFileOptions, ZipWriter};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

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

/// The arrays of tiles.
type Parts = (Vec<f32>, Vec<[f32; 2]>);

fn parts(tiles: Tiles) -> Parts {
    (tiles.features, tiles.coords)
}

fn expected() -> Parts {
    (features(), coords())
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
                assert_eq!(read.count(), TILES);
                assert_eq!(parts(read), expected(), "{float} {number}");
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
                assert_eq!(parts(read), expected(), "{float} {number}");
                for method in [CompressionMethod::Stored, CompressionMethod::Deflated] {
                    let arrays = [("features", features.clone()), ("coords", coords.clone())];
                    let path = folder.write("tiles.npz", &npz_of(&arrays, method));
                    let read = Tiles::read(path, DIM).expect("readable");
                    assert_eq!(parts(read), expected(), "{float} {number} {method:?}");
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
    assert_eq!(parts(read), expected());
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
    for name in ["clam.h5", "trident.h5", "latest.h5", "lzf.h5", "filters.h5"] {
        let read = Tiles::read(data(name), DIM);
        assert_eq!(parts(read.expect(name)), expected(), "{name}");
    }
}

#[cfg(feature = "h5")]
#[test]
fn what_is_wrong_with_hdf5_is_told() {
    let refusal = |name: &str, dim| Tiles::read(data(name), dim).expect_err(name).to_string();
    for (name, dim, needles) in [
        ("others.h5", DIM, ["features of", "type F32, big-endian;"]),
        (
            "clam.h5",
            1536,
            ["are 6 wide", "1536 wide: GigaPath's tile encoder"],
        ),
        ("trident_40x.h5", 384, ["6 wide (by gigapath,", "384 wide"]),
        (
            "groups.h5",
            DIM,
            ["features of", "is a group, not an array; it has gigapath"],
        ),
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

#[cfg(feature = "h5")]
#[test]
fn filters_that_are_unknown_are_named_with_the_way_out() {
    let folder = Folder::new("filters");
    let lzf = std::fs::read(data("lzf.h5")).expect("it is there");
    // The number of LZF, and a name behind it that begins so.
    let at: Vec<usize> = (0..lzf.len() - 2)
        .filter(|at| lzf[*at..].starts_with(&[0, 0x7d]))
        .collect();
    assert_eq!(at.len(), 2, "of two datasets");
    for (number, name) in [(32_001u16, "Blosc (32001)"), (32_123, "lzf (32123)")] {
        let mut bytes = lzf.clone();
        for at in &at {
            bytes[*at..at + 2].copy_from_slice(&number.to_le_bytes());
        }
        let path = folder.write("filtered.h5", &bytes);
        let told = Tiles::read(path, DIM).expect_err(name).to_string();
        for needle in [
            name,
            "coords of",
            "h5repack -f GZIP=4",
            "compression=\"gzip\"",
        ] {
            assert!(told.contains(needle), "{told}");
        }
    }
}

/// One slide of twelve tiles, scanned at 20x and at 40x, as TRIDENT and CLAM write them, and without a word on the scan.
#[cfg(feature = "h5")]
#[test]
fn tiles_of_20x_and_40x_scans_lie_in_the_same_cells() {
    let cells = |name: &str, choice| {
        let tiles = Tiles::read(data(name), DIM).expect(name);
        let size = tiles.tile_size(choice, 256);
        let pixels = size.as_ref().map_or(256, |size| size.pixels) as f32;
        let cell = |xy: &[f32; 2]| xy.map(|at| (at / pixels).floor() as u32);
        let cells: Vec<[u32; 2]> = tiles.coords.iter().map(cell).collect();
        (cells, size.map_err(|error| error.to_string()))
    };
    let plain: Vec<[u32; 2]> = (0..12).map(|i| [4 + i % 4, 2 + i / 4]).collect();
    for (name, pixels, by) in [
        ("trident_20x.h5", 256, "by patch_size_level0 256"),
        ("trident_40x.h5", 512, "by patch_size_level0 512"),
        ("clam_20x.h5", 256, "by patch_size 256 at downsample 1"),
        ("clam_40x.h5", 512, "by patch_size 256 at downsample 2"),
    ] {
        let (found, size) = cells(name, TileSizeChoice::OfFile);
        assert_eq!(found, plain, "{name}");
        let told = size.expect(name).to_string();
        assert_eq!(told, format!("{pixels} pixels of level 0, {by}"), "{name}");
        let wrong = TileSizeChoice::Given(768 - pixels);
        let told = cells(name, wrong).1.expect_err("contradicts the file");
        for needle in [
            &format!("--tile-size is {}, but", 768 - pixels),
            by.trim_start_matches("by "),
        ] {
            assert!(told.contains(needle), "{told}");
        }
        assert_eq!(cells(name, TileSizeChoice::Given(pixels)).0, plain);
    }
    let forced = cells("trident_40x.h5", TileSizeChoice::Forced(256)).0;
    assert_eq!(forced[1], [10, 4], "every second cell");
    Tiles::read(data("trident_40x.h5"), DIM)
        .expect("readable")
        .expect_encoder("gigapath")
        .expect("it is");
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
    let hdf5 = std::fs::read(data("clam.h5")).expect("it is there");
    let lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n".to_vec();
    let mut torch = ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    torch
        .start_file("slide/data.pkl", options)
        .expect("an entry");
    let torch = torch.finish().expect("an archive").into_inner();
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
            &[
                "features of",
                "are 5 wide; this model wants features 6 wide",
            ],
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
    // What a file is that has another's name.
    let cases = cases.into_iter().chain([
        (
            "an.h5",
            &["a safetensors file: give it the extension"][..],
            plain_safetensors(),
        ),
        (
            "a.safetensors",
            &["an .npz file"],
            plain_npz(CompressionMethod::Stored),
        ),
        (
            "hdf5.safetensors",
            &["an HDF5 file: give it the extension .h5"],
            hdf5,
        ),
        ("an.npz", &["an .npy file"], plain_npys()[0].clone()),
        ("lfs.h5", &["Git LFS pointer", "git lfs pull"], lfs.clone()),
        ("lfs.npz", &["Git LFS pointer", "git lfs pull"], lfs),
        (
            "page.safetensors",
            &["a web page"],
            b"<!doctype html>".to_vec(),
        ),
        ("slide.pt", &["a pickle of Python", "numpy.savez"], torch),
        ("slide.svs", &["a TIFF image"], b"II*\0\x10\0\0\0".to_vec()),
    ]);
    for (name, needles, bytes) in cases {
        let path = folder.write(name, &bytes);
        let error = Tiles::read(&path, DIM).expect_err(name);
        let told = error.to_string();
        for needle in needles.iter().chain([&name]) {
            assert!(told.contains(needle), "{name}: {told}");
        }
    }
    let upper = folder.write("TILES.SAFETENSORS", &plain_safetensors());
    let read = Tiles::read(upper, DIM).expect("readable");
    assert_eq!(parts(read), expected());
    let told = |path: &Path| Tiles::read(path, DIM).expect_err("no file").to_string();
    assert!(told(&folder.0.join("none.npz")).contains("none.npz could not be opened"));
    std::fs::create_dir_all(folder.0.join("folder.npz")).expect("a folder");
    assert!(told(&folder.0.join("folder.npz")).contains("no regular file"));
}

/// As TRIDENT's attributes would be in formats that have none: a slide scanned at 40x.
#[test]
fn metadata_and_small_arrays_say_the_size_of_tiles() {
    let folder = Folder::new("metadata");
    let (_, float, encode) = FLOATS[1];
    let coords: Vec<f32> = (0..12)
        .flat_map(|i| [(i % 4 * 512) as f32, (i / 4 * 512) as f32])
        .collect();
    let features = vec![0.5f32; 12 * DIM];
    let (coords, features) = (bytes_of(&coords, encode), bytes_of(&features, encode));
    let safetensors = |metadata: &[(&str, &str)]| {
        let view = |shape: &[usize], bytes| TensorView::new(float, shape.to_vec(), bytes);
        let views = [
            ("coords", view(&[12, 2], &coords).expect("consistent")),
            ("features", view(&[12, DIM], &features).expect("consistent")),
        ];
        let own = |(name, text): &(&str, &str)| (name.to_string(), text.to_string());
        let metadata = metadata.iter().map(own).collect();
        let bytes = safetensors::serialize(views, Some(metadata)).expect("serializable");
        let path = folder.write("tiles.safetensors", &bytes);
        Tiles::read(path, DIM).expect("readable")
    };
    let said = |tiles: &Tiles| {
        let size = tiles.tile_size(TileSizeChoice::OfFile, 256);
        size.map(|size| size.pixels)
            .map_err(|error| error.to_string())
    };
    assert_eq!(said(&safetensors(&[("patch_size_level0", "512")])), Ok(512));
    let clam = [
        ("patch_size", "256"),
        ("patch_level", "1"),
        ("downsample", "(2.0, 2.0)"),
    ];
    assert_eq!(said(&safetensors(&clam)), Ok(512));
    let told = said(&safetensors(&[])).expect_err("256 is not 512");
    assert!(told.contains("tiles lie 512 apart"), "{told}");
    assert!(told.contains("--tile-size 512"), "{told}");
    let told = said(&safetensors(&[("patch_size_level0", "no")])).expect_err("no number");
    assert!(told.contains("patch_size_level0 \"no\""), "{told}");
    let other = safetensors(&[("encoder", "uni_v2")]).expect_encoder("gigapath");
    let told = other.expect_err("another's").to_string();
    assert!(told.contains("computed by \"uni_v2\""), "{told}");

    let number = |descr: &str, shape: &str, bytes: &[u8]| npy_of(descr, "False", shape, bytes);
    let text: Vec<u8> = "virchow2"
        .chars()
        .flat_map(|c| (c as u32).to_le_bytes())
        .collect();
    for (entry, value, pixels) in [
        (
            "patch_size_level0",
            number("'<i8'", "()", &512i64.to_le_bytes()),
            Some(512),
        ),
        (
            "patch_size_level0",
            number("'<f4'", "(1,)", &512f32.to_le_bytes()),
            Some(512),
        ),
        ("encoder", number("'<U8'", "()", &text), None),
        ("overlap", number("'<i8'", "(3,)", &[0; 24]), None),
        ("overlap", number("'|O'", "()", &[0; 24]), None),
        ("overlap", number("'<i8'", "()", &[0; 7]), None),
    ] {
        let arrays = [
            ("features", npy_of("'<f4'", "False", "(12, 6)", &features)),
            ("coords", npy_of("'<f4'", "False", "(12, 2)", &coords)),
            (entry, value),
        ];
        let bytes = npz_of(&arrays, CompressionMethod::Deflated);
        let read = Tiles::read(folder.write("tiles.npz", &bytes), DIM);
        match (entry, pixels) {
            (_, Some(pixels)) => assert_eq!(said(&read.expect("readable")), Ok(pixels)),
            ("encoder", _) => {
                let told = read.expect("readable").expect_encoder("gigapath");
                assert!(
                    told.expect_err("another's")
                        .to_string()
                        .contains("virchow2")
                );
            }
            _ => {
                let told = read.expect_err("no number").to_string();
                assert!(told.contains("overlap: "), "{told}");
            }
        }
    }
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
        let names = [
            "clam.h5",
            "trident.h5",
            "latest.h5",
            "empty_space.h5",
            "lzf.h5",
            "filters.h5",
        ];
        for name in names {
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
    let before = bytes_allocated_by_this_thread();
    let read = match extension {
        "npy" => {
            let coords = folder.write("coords.npy", &plain_npys()[1]);
            Tiles::read_pair(path, coords, DIM)
        }
        _ => Tiles::read(path, DIM),
    };
    let allocated = bytes_allocated_by_this_thread() - before;
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
        // Of large files not everywhere, for the sake of time.
        let step = if bytes.len() > 4096 { 13 } else { 1 };
        for end in (0..bytes.len()).step_by(step) {
            let read = read_within_bounds(&folder, extension, &bytes[..end]);
            // Of HDF5, free space at the end may be missing; what is read must be right.
            if let Ok(tiles) = read {
                assert_eq!(extension, "h5", "{end} of {} bytes", bytes.len());
                assert_eq!(parts(tiles), expected());
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
        let mut files = right_files();
        if cfg!(feature = "h5") {
            for name in ["trident_40x.h5", "clam_40x.h5"] {
                files.push(("h5", std::fs::read(data(name)).expect("it is there")));
            }
        }
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
        let read = read_within_bounds(&folder, extension, &bytes);
        let size = read.and_then(|tiles| tiles.tile_size(TileSizeChoice::OfFile, 256));
        if let Err(error) = size {
            let told = error.to_string();
            prop_assert!(!told.is_empty() && told.len() < 4096, "{} bytes of text", told.len());
        }
    }
}
