"""The seal of a checkpoint: size and checksum of every file, by which damage is found."""

import json
import os
import zlib
from pathlib import Path

SEAL = "checksums.json"


def seal(folder: Path) -> None:
    """Write the checksums of a step's files."""
    aside = folder / f"{SEAL}.tmp"
    aside.write_text(json.dumps(_checksums(folder)))
    os.replace(aside, folder / SEAL)


def fault(folder: Path) -> str | None:
    """What is wrong with a step's files, None if they are as they were written.

    A process killed between Orbax's commit and the seal leaves a step without checksums; it is taken on trust.
    """
    if not (folder / "commit_success.txt").exists():
        return "it was never finished"
    if not (folder / SEAL).exists():
        return None
    try:
        sealed = json.loads((folder / SEAL).read_text())
    except ValueError:
        return f"{SEAL} is unreadable"
    for name, (size, crc) in sealed.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
        if _crc(path) != crc:
            return f"{name} has another checksum"
    return None


def _checksums(folder: Path) -> dict[str, list[int]]:
    """Size and CRC-32 of every file of a step, by relative path."""
    sums = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith(SEAL):
            sums[path.relative_to(folder).as_posix()] = [path.stat().st_size, _crc(path)]
    return sums


def _crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return crc
