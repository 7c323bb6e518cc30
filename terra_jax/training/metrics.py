"""Where a run's numbers go: one CSV row a step, TensorBoard, and a line that people read."""

import csv
import errno
import io
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

LINE_EVERY = 10.0
"""Seconds between two lines when the output is not a terminal."""


class CsvLog:
    """A CSV table with at most one row a step, whatever was killed.

    Rows beyond `step` and a torn last line are cut when it is opened, by writing the table anew and renaming it.

    Args:
        path: the file.
        step: the step that the run goes on from.
    """

    def __init__(self, path: Path, step: int = 0):
        self._path = path
        self._columns, self._rows = _read(path, step)
        if path.exists():
            self._rewrite()
        self._file = path.open("ab", buffering=0)

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row; columns that are new are added to the whole table.

        Raises:
            OSError: it cannot be written; the table is as it was.
        """
        new = [name for name in row if name not in self._columns]
        if new:
            self._file.close()
            self._columns, self._rows = _read(self._path)
            self._columns += new
            self._rewrite()
            self._file = self._path.open("ab", buffering=0)
        line = _line(row.get(name, "") for name in self._columns).encode()
        end = self._file.seek(0, os.SEEK_END)
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
        except OSError:
            self._file.truncate(end)  # a row is there or it is not
            raise

    def sync(self) -> None:
        """Make sure that what was written outlives the machine."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _rewrite(self) -> None:
        aside = self._path.with_name(self._path.name + ".tmp")
        with aside.open("w", newline="") as file:
            if self._columns:
                file.write(_line(self._columns))
            file.writelines(_line(row.get(name, "") for name in self._columns) for row in self._rows)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, self._path)
        self._rows = []


def read_csv(path: Path) -> list[dict[str, Any]]:
    """Rows of a table that `CsvLog` wrote, numbers as numbers."""
    return [
        {name: int(value) if name == "step" else float(value) for name, value in row.items() if value not in ("", None)}
        for row in _read(path)[1]
    ]


def _line(values: Any) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(values)
    return buffer.getvalue()


def _read(path: Path, last: int | None = None) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and whole rows up to step `last`, the first of each step only."""
    if not path.exists():
        return [], []
    text = path.read_text()
    lines = text[: text.rfind("\n") + 1].splitlines()  # what follows the last line break is torn
    reader = csv.DictReader(lines)
    rows: dict[int, dict[str, str]] = {}
    for row in reader:
        step = row.get("step") or ""
        if step.isdigit() and None not in row and (last is None or int(step) <= last):
            rows.setdefault(int(step), row)
    return list(reader.fieldnames or []), list(rows.values())


class TensorBoard:
    """Scalars for TensorBoard under `WORKDIR/tensorboard`; points after the step resumed from are hidden."""

    def __init__(self, directory: Path, step: int):
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(directory), purge_step=step + 1 if step else None)

    def write(self, step: int, values: Mapping[str, float], prefix: str = "") -> None:
        """Write each value as a scalar."""
        for name, value in values.items():
            self._writer.add_scalar(prefix + name, value, step)

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


class Progress:
    """Loss, samples/s, data wait and time left: a bar on a terminal, otherwise a line every few seconds.

    Args:
        steps: of the whole run.
        start: the step that the run goes on from.
        batch_size: of the global batch.
        shown: False on all processes but the first.
    """

    def __init__(self, steps: int, start: int, batch_size: int, shown: bool = True):
        self._steps, self._batch_size, self._shown = steps, batch_size, shown
        self._is_terminal = shown and _is_terminal()
        self._last_line = -math.inf
        self._seconds = self._waited = 0.0
        self._bar = tqdm(
            total=steps,
            initial=start,
            unit="step",
            dynamic_ncols=True,
            file=sys.stdout,
            disable=not self._is_terminal,
        )

    def update(self, step: int, loss: float, seconds: float, waited: float) -> None:
        """Show a finished step.

        Args:
            step: its number, counted from 1.
            loss: of this step.
            seconds: it took.
            waited: of them for data.
        """
        keep = 0.9 if self._seconds else 0.0  # smooth over about ten steps
        self._seconds = keep * self._seconds + (1 - keep) * seconds
        self._waited = keep * self._waited + (1 - keep) * waited
        speed = self._batch_size / max(self._seconds, 1e-9)
        share = min(self._waited / max(self._seconds, 1e-9), 1.0)  # of a batch that was waited for a step earlier
        text = f"loss {loss:.4f}  {speed:.1f} samples/s  data wait {share:.0%}"
        if self._is_terminal:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(1)
        elif self._shown and (step == self._steps or time.monotonic() - self._last_line > LINE_EVERY):
            self._last_line = time.monotonic()
            left = tqdm.format_interval(self._seconds * (self._steps - step))
            print(f"step {step}/{self._steps}  {text}  left {left}", flush=True)

    def say(self, message: str) -> None:
        """Print a line without tearing the bar."""
        if self._is_terminal:
            self._bar.write(message, file=sys.stdout)
        elif self._shown:
            print(message, flush=True)

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()


def _is_terminal() -> bool:
    """Whether a bar can be drawn; a terminal of unknown size (docker exec -t) takes lines instead."""
    return sys.stdout.isatty() and os.get_terminal_size(sys.stdout.fileno()).lines > 0
