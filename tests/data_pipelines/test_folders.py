"""Files appear whole or not at all, on this machine and behind URLs."""

import uuid

import pytest

from data_pipelines.errors import DataError
from data_pipelines.folders import Folder


@pytest.fixture(params=["path", "memory"])
def folder(request, tmp_path) -> Folder:
    return Folder(tmp_path / "deep" / "f" if request.param == "path" else f"memory://{uuid.uuid4()}/f")


def test_files_are_written_listed_read_and_removed(folder):
    assert folder.make() == [] and not folder.has("b.json")
    folder.write_text("b.json", "one")
    folder.write_text("a.json", "two")
    folder.write_text("b.json", "three")
    assert (
        folder.make() == ["a.json", "b.json"] and folder.read_text("b.json") == "three" and folder.size("a.json") == 3
    )
    with folder.open("a.json") as stream:
        assert stream.read() == b"two"
    folder.remove("a.json")
    folder.remove("a.json")
    assert folder.make() == ["b.json"]
    for fails in (folder.size, folder.read_text, folder.open):
        with pytest.raises(OSError):
            fails("a.json")


def test_what_fails_half_way_is_not_there(folder):
    folder.make()
    with pytest.raises(KeyboardInterrupt), folder.aside("a") as path:
        path.write_bytes(b"half")
        raise KeyboardInterrupt
    assert folder.make() == [] and not path.exists()


def test_orphans_of_killed_processes_are_cleared(tmp_path):
    folder = Folder(tmp_path)
    for name in (".shard-00001.parquet.ab12.part", ".job.json.77.part", "shard-00002.parquet"):
        (tmp_path / name).write_text("half")
    folder.clear("shard-")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".job.json.77.part", "shard-00002.parquet"]


def test_unknown_urls_are_one_line():
    with pytest.raises(DataError, match=r"abc://x cannot be opened: Protocol not known: abc") as error:
        Folder("abc://x")
    assert "\n" not in str(error.value)


def test_where_it_lies(tmp_path):
    assert Folder(tmp_path).path == tmp_path and Folder("memory://x").path is None
    assert str(Folder(tmp_path)) == str(tmp_path)
