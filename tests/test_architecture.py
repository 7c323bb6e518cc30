"""Who may import whom, what lies where, and what an import costs."""

import ast
import subprocess
import sys
import time
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOP_LEVEL = {
    ".ci", ".gitignore", "BUILD.md", "LICENSE", "README.md", "configs", "data_pipelines", "pyproject.toml", "setup.py",
    "terra_jax", "tests", "tools",
}  # fmt: skip
SHARED_ROOMS = {"nn", "selfsupervised", "weights", "parallel", "training", "evaluation", "inference"}
KNOW_FAMILIES = {"registry", "cli", "configs"}
HEAVY = {"torch", "tensorflow"}


def families() -> set[str]:
    return {path.parent.name for path in ROOT.glob("configs/*/__init__.py")}


def modules(*folders: str) -> list[tuple[str, Path]]:
    """Dotted name and file of every module below some folders; configs by their installed name."""
    found = []
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(part for part in parts if part != "__init__")
            found.append((f"terra_jax.{name}" if folder == "configs" else name, path))
    return found


def imported(path: Path) -> Iterator[str]:
    """Dotted names that a module imports anywhere in it; `from a import b` gives a.b."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(name: str) -> str:
    """Second part of a dotted name: the room of terra_jax that it lies in."""
    return f"{name}.".split(".")[1]


LIBRARY = modules("terra_jax", "data_pipelines", "configs")


@pytest.mark.parametrize(("name", "path"), LIBRARY, ids=[name for name, _ in LIBRARY])
def test_imports_go_one_way(name, path):
    tops = {target.split(".")[0] for target in imported(path)}
    assert not tops & HEAVY, "the library works without PyTorch and TensorFlow"
    if name.startswith("data_pipelines"):
        assert not tops & {"terra_jax", "jax", "jaxlib", "flax"}, "the host side knows nothing of the device side"
        return
    known = {room(target) for target in imported(path) if target.startswith("terra_jax.")} & families()
    if room(name) not in KNOW_FAMILIES:
        assert known <= {room(name)}, f"{name} must not know {known}"


def test_every_room_is_known():
    rooms = {room(name) for name, _ in modules("terra_jax")} - {""}
    assert rooms <= SHARED_ROOMS | families() | {"registry", "cli", "errors"}
    assert families() <= rooms


def test_nothing_lies_outside_the_agreed_top_level():
    ignored = [line.strip("/") for line in (ROOT / ".gitignore").read_text().split()]
    entries = [path.name for path in ROOT.iterdir() if not any(fnmatch(path.name, pattern) for pattern in ignored)]
    assert set(entries) - {".git"} == TOP_LEVEL


def test_files_are_short():
    lengths = {path: path.read_text().count("\n") for _, path in modules(*TOP_LEVEL - {".gitignore"})}
    assert not {str(path): length for path, length in lengths.items() if length >= 600}


def test_importing_is_fast_and_light():
    program = (
        "import sys, terra_jax, data_pipelines; print(*{'jax', 'torch', 'tensorflow', 'numpy'} & set(sys.modules))"
    )
    seconds = []
    for _ in range(3):  # the fastest of three: others may be at work on the machine
        began = time.perf_counter()
        result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - began)
        assert not result.stdout.strip()
    assert min(seconds) < 2


def test_public_names_are_there():
    import terra_jax

    assert set(terra_jax.__all__) <= set(dir(terra_jax))
    for name in terra_jax.__all__:
        assert callable(getattr(terra_jax, name))
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        terra_jax.lod  # noqa: B018
