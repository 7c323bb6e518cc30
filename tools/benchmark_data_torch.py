"""PyTorch's side of `benchmark.py data`: a DataLoader over GeoTIFFs by rasterio, or over zarr zips by zarr-python.

Started by benchmark.py; the arguments are "torch" and the settings as JSON. Written as such datasets usually are: files
of a sample are opened when it is asked for, arrays become tensors in the types that they are stored in.
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

MODALITIES = ("S2L2A", "S1RTC", "DEM", "LULC")


class Tiles(Dataset):
    """One file a modality and sample.

    Args:
        root: folder of the modalities.
        reads: path -> array.
        suffix: of the files.
    """

    def __init__(self, root: Path, reads: Any, suffix: str):
        self.root, self.reads, self.suffix = root, reads, suffix
        self.keys = sorted(path.name.removesuffix(suffix) for path in (root / MODALITIES[0]).iterdir())

    def __len__(self) -> int:
        """Samples."""
        return len(self.keys)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        """All modalities of a sample."""
        paths = {name: self.root / name / (self.keys[i] + self.suffix) for name in MODALITIES}
        return {name: torch.from_numpy(np.ascontiguousarray(self.reads(path))) for name, path in paths.items()}


def geotiff(path: Path) -> np.ndarray:
    """All bands of a file."""
    import rasterio

    with rasterio.open(path) as file:
        return file.read()


def zarr_zip(path: Path) -> np.ndarray:
    """The array `bands` of a zipped group."""
    import zarr

    store = zarr.storage.ZipStore(path, mode="r")
    try:
        group: Any = zarr.open_consolidated(store, mode="r", zarr_format=2)
        return group["bands"][0]
    finally:
        store.close()


def main(settings: dict[str, Any]) -> dict[str, Any]:
    """Time the loader in this process: workers would share the one core."""
    torch.set_num_threads(1)
    reads, suffix = {"geotiff": (geotiff, ".tif"), "zarr": (zarr_zip, ".zarr.zip")}[settings["option"]]
    tiles = Tiles(Path(settings["path"]), reads, suffix)
    size = min(settings["batch"], len(tiles))
    batches = DataLoader(tiles, batch_size=size, shuffle=True, drop_last=True)
    first = next(iter(batches))
    done, faults = 0, resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    cpu, began = time.process_time(), time.perf_counter()
    while done < len(tiles) or time.perf_counter() - began < settings["seconds"]:
        for _ in batches:
            done += size
            if done >= len(tiles) and time.perf_counter() - began > settings["seconds"]:
                break
    passed, used = time.perf_counter() - began, time.process_time() - cpu
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    held = sum(tensor.nbytes for tensor in first.values()) // size
    return {"samples_per_second": done / passed, "cpu_ms": 1e3 * used / done, "faults": faults / done, "bytes": held}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[2]))))
