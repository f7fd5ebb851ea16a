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
