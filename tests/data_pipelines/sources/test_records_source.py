import json
import threading
from dataclasses import replace

import numpy as np
import pytest
from fakes import elevation_sample, same, write_folder

from data_pipelines import records, sampling
from data_pipelines.errors import DataError
from data_pipelines.modalities import Unit
from data_pipelines.sample import Raster
from data_pipelines.sources.geotiff import GeoTiffSource
from data_pipelines.sources.records import RecordsSource


def write(path, size=5, shard_size=2, pixels=200):
    with records.RecordWriter(path, shard_size=shard_size) as writer:
        for i in range(size):
            writer.write(elevation_sample(i, pixels), scene=1)
    return path


def test_random_access_returns_what_was_written(tmp_path):
    source = RecordsSource(write(tmp_path))
    assert len(source) == 5 and source.index.keys.tolist() == [f"s{i}" for i in range(5)]
    assert set(source.index.split) == {"train"} and source.index.scene.tolist() == [1] * 5
    for i in (4, 0, 3, 3, 1, -1):
        assert same(source[i], elevation_sample(i % 5, 200))
    assert len(RecordsSource(tmp_path, samples=2)) == 2
    with pytest.raises(IndexError):
        source[5]


def test_threads_may_share_a_source(tmp_path):
    source, wrong = RecordsSource(write(tmp_path)), []

    def read(seed: int):
        for i in np.random.default_rng(seed).integers(0, 5, 40):
            if not same(source[int(i)], elevation_sample(int(i), 200)):
                wrong.append(i)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_tiles_become_records_exactly(tmp_path):
    tiles = GeoTiffSource(write_folder(tmp_path / "tiles"))
    with records.RecordWriter(tmp_path / "records") as writer:
        for i in range(len(tiles)):
            writer.write(tiles[i], split=str(tiles.index.split[i]))
    source = RecordsSource(tmp_path / "records")
    assert all(same(source[i], tiles[i]) for i in range(len(tiles)))
    for name, column in tiles.index.own.items():
        assert np.array_equal(getattr(source.index, name), column), name
    assert list(RecordsSource(tmp_path / "records", modalities=("DEM", "S2L2A"))[0].rasters) == ["S2L2A", "DEM"]


def test_a_corrupt_record_is_named_and_others_are_read(tmp_path):
    file = write(tmp_path) / "shard-00001.arrayrecord"
    data = bytearray(file.read_bytes())
    data[data.index(b'"key":"s3"') + 8] ^= 1
    file.write_bytes(data)
    source = RecordsSource(tmp_path)
    with pytest.raises(DataError, match=r"shard-00001.arrayrecord record 1.*restore") as error:
        source[3]
    assert "\n" not in str(error.value)
    assert same(source[2], elevation_sample(2, 200))


def _truncate(root):
    file = root / "shard-00001.arrayrecord"
    file.write_bytes(file.read_bytes()[:-1000])


def _newer(root):
    manifest = json.loads((root / "manifest.json").read_text())
    (root / "manifest.json").write_text(json.dumps(manifest | {"version": 9}))


@pytest.mark.parametrize(
    "damage, message",
    [
        (_truncate, r"shard-00001.arrayrecord has \d+ of \d+ bytes: it is truncated"),
        (lambda root: (root / "shard-00002.arrayrecord").unlink(), "shard-00002.arrayrecord is missing"),
        (lambda root: (root / "shard-00000.parquet").write_bytes(b"PAR1"), "shard-00000.parquet cannot be read"),
        (lambda root: (root / "manifest.json").unlink(), "unfinished"),
        (lambda root: (root / "manifest.json").write_text("{"), "manifest.json is not a manifest"),
        (lambda root: (root / "manifest.json").write_text("[]"), "manifest.json is not a manifest"),
        (_newer, "version 9.*upgrade"),
    ],
)
def test_a_damaged_dataset_is_refused_on_opening(tmp_path, damage, message):
    damage(write(tmp_path))
    with pytest.raises(DataError, match=message) as error:
        RecordsSource(tmp_path)
    assert "\n" not in str(error.value)


def test_a_foreign_shard_of_the_right_size_is_refused_on_reading(tmp_path):
    file = write(tmp_path) / "shard-00000.arrayrecord"
    file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(DataError, match=r"shard-00000.arrayrecord record 0"):
        RecordsSource(tmp_path)[0]


def test_what_the_samples_lack_is_refused_on_opening(tmp_path):
    write(tmp_path / "d")
    with pytest.raises(DataError, match=r"s0 \(and 4 others\) has no S1RTC"):
        RecordsSource(tmp_path / "d", modalities=("S1RTC",))
    with pytest.raises(DataError, match="smaller than 224 x 224"):
        RecordsSource(tmp_path / "d", tile=224)
    with pytest.raises(DataError, match="is not a folder"):
        RecordsSource(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no dataset of records"):
        RecordsSource(tmp_path)
    with records.RecordWriter(tmp_path / "empty"):
        pass
    with pytest.raises(DataError, match="holds no samples"):
        RecordsSource(tmp_path / "empty")


def test_the_index_knows_what_filters_and_evaluations_ask_for(tmp_path):
    with records.RecordWriter(tmp_path) as writer:
        for i, shares in enumerate(((0, 4, 96), (50, 40, 10), (100, 0, 0))):
            sample = elevation_sample(i, 10)
            classes = np.repeat(np.array([0, 2, 4], np.uint8), shares).reshape(1, 10, 10)
            cover = {"LULC": Raster({10: classes}, Unit.CLASS)}
            known = {"cloud_fraction": 0.25} if i == 0 else {}
            writer.write(replace(sample, rasters={**sample.rasters, **cover}, attributes=known))
    index = RecordsSource(tmp_path).index
    assert index.scene.tolist() == [4, 2, -1]  # the land cover that takes up most; no data is none
    assert index.column("cloud")[0] == 25 and np.isnan(index.column("cloud")[1:]).all()
    assert index.column("cover_crops")[0] == pytest.approx(0.96) and index.column("height").tolist() == [10] * 3
    assert sampling.select(index, matching="cloud < 30 and scene == crops and LULC > 0").tolist() == [0]
