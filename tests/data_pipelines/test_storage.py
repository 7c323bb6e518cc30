import fsspec
import pytest

from data_pipelines.errors import DataError
from data_pipelines.storage import Storage


@pytest.fixture(params=["local", "memory"])
def folder(request, tmp_path):
    if request.param == "local":
        return str(tmp_path / "data")
    return f"memory://{tmp_path.name}"


def test_files_ranges_and_folders(folder):
    filesystem, root = fsspec.core.url_to_fs(folder)
    filesystem.makedirs(f"{root}/sub/deep.zarr", exist_ok=True)
    for name, data in (("a.bin", b"0123456789"), ("sub/b.bin", b"xyz"), ("sub/deep.zarr/c.bin", b"")):
        filesystem.pipe_file(f"{root}/{name}", data)
    storage = Storage(folder)
    found = storage.files(depth=2)
    assert [path.removeprefix(storage.root + "/") for path in found] == ["a.bin", "sub/b.bin"]
    assert [size for size, _ in found.values()] == [10, 3]
    path = next(iter(found))
    assert storage.read(path) == b"0123456789" and storage.read(path, 2, 3) == b"234" and storage.size(path) == 10
    assert storage.is_file(path) and not storage.is_file(path + "x")
    with storage.reader(path) as read, storage.open(path) as file:
        assert bytes(read(4, 2)) == b"45" and file.read(2) == b"01"
    with pytest.raises(DataError, match=r"a\.bin is truncated: it ends before byte 12"):
        storage.read(path, 2, 10)
    with pytest.raises(DataError, match=r"nothing\.bin cannot be read"):
        storage.read(f"{storage.root}/nothing.bin")
    assert Storage(f"{folder}/sub").folders(".zarr") == [f"{storage.root}/sub/deep.zarr"]
    assert storage.name(path).replace(":///", "://") == f"{folder}/a.bin"


@pytest.mark.parametrize("url", ["nosuch://bucket/x", "/no/such/folder"])
def test_what_cannot_be_opened_is_named(url):
    with pytest.raises(DataError, match=url) as error:
        Storage(url).files(1)
    assert "\n" not in str(error.value)
