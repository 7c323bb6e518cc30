import io
import os
import tarfile

import numpy as np
import pytest
from corpora import write_tar
from fakes import mutated

from data_pipelines.storage import Storage
from data_pipelines.tar_index import index_tar, index_tars

FUZZ = int(os.environ.get("TERRA_JAX_FUZZ", "300"))
NAMES = ["a.zarr.zip", "folder/b.zarr.zip", f"{'x' * 90}/{'y' * 60}.zarr.zip", f"{'z' * 200}.zarr.zip", "é.zarr.zip"]


def of(data: bytes):
    return index_tar(lambda start, length: data[start : start + length], len(data))


@pytest.fixture(params=[tarfile.PAX_FORMAT, tarfile.GNU_FORMAT], ids=["pax", "gnu"])
def tar(request, tmp_path):
    members = [(name, bytes([i]) * (300 * i)) for i, name in enumerate(NAMES)]
    return write_tar(tmp_path / "a.tar", members, format=request.param).read_bytes()


def test_members_are_where_tarfile_finds_them(tar):
    index = of(tar)
    with tarfile.open(fileobj=io.BytesIO(tar)) as plain:
        listed = [(m.name, m.offset_data, m.size) for m in plain if m.isfile()]
    assert list(zip(index.names, index.offsets.tolist(), index.sizes.tolist(), strict=True)) == listed
    assert index.names == NAMES and index.problem == ""


def test_folders_and_links_are_passed_over(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.USTAR_FORMAT) as file:
        for name, kind in (("d", tarfile.DIRTYPE), ("l", tarfile.SYMTYPE), ("f", tarfile.REGTYPE)):
            info = tarfile.TarInfo(name)
            info.type = kind
            file.addfile(info)
    assert of((tmp_path / "a.tar").read_bytes()).names == ["f"]


def test_a_truncated_tar_gives_what_is_before_the_cut(tar):
    whole = of(tar)
    cut = of(tar[: int(whole.offsets[3]) + 10])
    assert cut.names == NAMES[:4] and cut.problem.startswith("truncated: a member ends at byte")
    assert of(b"").problem.startswith("truncated")
    assert of(tar[: int(whole.offsets[1])]).problem


def test_a_damaged_header_ends_the_walk(tar):
    spoilt = bytearray(tar)
    spoilt[int(of(tar).offsets[1]) - 512 + 5] ^= 1
    index = of(bytes(spoilt))
    assert index.names == NAMES[:1] and "is damaged" in index.problem


def test_fuzz(tar):
    for seed in range(FUZZ):
        data = mutated(tar, np.random.default_rng([3, seed]))
        index = of(data)
        assert len(index.names) <= len(data) // 512 and (index.sizes >= 0).all()
        if not index.problem:
            assert all(o + s <= len(data) for o, s in zip(index.offsets, index.sizes, strict=True))


def test_indices_are_kept_and_made_again_when_a_tar_changes(tmp_path, monkeypatch):
    folder, cache = tmp_path / "tars", tmp_path / "cache"
    write_tar(folder / "a.tar", [("a", b"1")])
    storage = Storage(folder)

    def indexed():
        return index_tars(storage, [(p, *about) for p, about in storage.files(1).items()], cache)[0]

    first = indexed()
    monkeypatch.setattr("data_pipelines.tar_index.index_tar", lambda read, size: pytest.fail("walked again"))
    again = indexed()
    assert again.names == first.names and np.array_equal(again.offsets, first.offsets)
    monkeypatch.undo()
    write_tar(folder / "a.tar", [("b", b"1" * 20_000)])
    assert indexed().names == ["b"]
    next(cache.iterdir()).write_bytes(b"broken")
    assert indexed().names == ["b"]
