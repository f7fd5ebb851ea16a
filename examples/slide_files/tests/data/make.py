#!/usr/bin/env python3
"""Makes the HDF5 files beside it, with h5py, in the layouts that CLAM and TRIDENT write: see ../reading.rs."""

import pathlib

import h5py
import numpy as np

HERE = pathlib.Path(__file__).parent
FEATURES = (np.arange(5 * 6).reshape(5, 6) / 8 - 1).astype(np.float32)
COORDS = np.array([[256 * i, 512 * i + 1] for i in range(5)], dtype=np.int64)

with h5py.File(HERE / "clam.h5", "w") as file:
    # Appended to tile by tile: without bound along the first dimension, a chunk each.
    for name, values in (("features", FEATURES), ("coords", COORDS)):
        shape = (None,) + values.shape[1:]
        file.create_dataset(name, data=values, maxshape=shape, chunks=(1,) + values.shape[1:])
    file["coords"].attrs["patch_size"] = 256
    file["coords"].attrs["name"] = "a slide"

with h5py.File(HERE / "trident.h5", "w") as file:
    file.create_dataset("features", data=FEATURES[None].astype(np.float16), compression="gzip", shuffle=True)
    file.create_dataset("coords", data=COORDS[None].astype(np.int32))
    file["features"].attrs["encoder"] = "gigapath"

with h5py.File(HERE / "latest.h5", "w", libver="latest") as file:
    file["features"] = FEATURES.astype(np.float64)
    file["coords"] = COORDS.astype(np.float32)

with h5py.File(HERE / "others.h5", "w") as file:
    file["features"] = FEATURES.astype(">f4")
    file["coords"] = COORDS
    file.create_group("coords_of_contours")

with h5py.File(HERE / "empty_space.h5", "w") as file:
    # Says that it has a terabyte of features, of which none was written.
    file.create_dataset("features", shape=(1 << 36, 6), chunks=(1 << 12, 6), dtype=np.float32)
    file["coords"] = COORDS

# The same twelve tiles of 256 pixels at 20x, of a slide scanned at 20x and of one scanned at 40x.
CELLS = np.array([[4 + i % 4, 2 + i // 4] for i in range(12)], dtype=np.int64)
OF_CELLS = (np.arange(12 * 6).reshape(12, 6) / 8 - 1).astype(np.float32)
for scanned in (20, 40):
    scale = scanned // 20
    with h5py.File(HERE / f"trident_{scanned}x.h5", "w") as file:
        file["features"] = OF_CELLS
        file["features"].attrs.update({"encoder": "gigapath", "name": "a slide", "savetodir": "features_gigapath"})
        file["coords"] = CELLS * 256 * scale
        file["coords"].attrs.update({
            "patch_size": 256, "patch_size_level0": 256 * scale, "level0_magnification": scanned,
            "target_magnification": 20, "overlap": 0, "name": "a slide", "savetodir": ".", "level0_width": 40_000,
            "level0_height": 30_000,
        })
    with h5py.File(HERE / f"clam_{scanned}x.h5", "w") as file:
        file.create_dataset("features", data=OF_CELLS, maxshape=(None, 6), chunks=(32, 6))
        file.create_dataset("coords", data=CELLS * 256 * scale, maxshape=(None, 2), chunks=(32, 2))
        file["coords"].attrs.update({
            "patch_size": 256, "patch_level": scale - 1, "downsample": (float(scale), float(scale)),
            "downsampled_level_dim": (40_000 // scale, 30_000 // scale), "level_dim": (40_000 // scale, 30_000 // scale),
            "name": "a slide", "save_path": "patches",
        })

with h5py.File(HERE / "filters.h5", "w") as file:
    # Chunks that reach beyond the array.
    file.create_dataset("features", data=FEATURES, chunks=(2, 4), compression="lzf", shuffle=True, fletcher32=True)
    file.create_dataset("coords", data=COORDS, chunks=(3, 2), scaleoffset=0)

with h5py.File(HERE / "lzf.h5", "w") as file:
    # Chunks of one coordinate are stored as they are: LZF cannot make them smaller.
    file.create_dataset("features", data=FEATURES, chunks=(5, 6), compression="lzf")
    file.create_dataset("coords", data=COORDS, chunks=(1, 1), compression="lzf")

with h5py.File(HERE / "groups.h5", "w") as file:
    file["features/gigapath"] = FEATURES
    file["coords"] = COORDS
