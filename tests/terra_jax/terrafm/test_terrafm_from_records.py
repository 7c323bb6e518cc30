import csv

import numpy as np
from command_line import TINY

from data_pipelines.records import RecordWriter
from data_pipelines.sources import open_source

TILES = {"samples": 40, "tile": 24, "modalities": ("S2L2A", "S1RTC")}
"""Those of a tiny run."""


def losses(workdir) -> list[str]:
    with open(workdir / "metrics.csv") as file:
        return [row["loss"] for row in csv.DictReader(file)]


def test_records_give_the_losses_of_their_source(terra_jax_command, tiny_run, tmp_path):
    earth = open_source("procedural", **TILES)
    with RecordWriter(tmp_path / "records") as writer:
        for i in range(len(earth)):
            writer.write(earth[i], split=str(earth.index.split[i]))
    result = terra_jax_command(
        "train", "--config", "terrafm/nano", "--workdir", tmp_path / "run", *TINY,
        "--config.data.source=records", f"--config.data.path={tmp_path / 'records'}",
    )  # fmt: skip
    assert result.status == 0, result.err
    assert losses(tmp_path / "run") == losses(tiny_run) and len(set(losses(tiny_run))) == 4


def test_a_mixture_trains_and_a_mistake_in_it_is_one_line(terra_jax_command, tmp_path):
    command = ["train", "--config", "terrafm/nano", "--workdir", tmp_path / "run", *TINY]
    result = terra_jax_command(*command, "--config.data.mixture=3 procedural; 1 procedural where climate == tropical")
    assert result.status == 0, result.err
    assert np.isfinite([float(loss) for loss in losses(tmp_path / "run")]).all()
    command[command.index("--workdir") + 1] = tmp_path / "other"
    result = terra_jax_command(*command, "--config.data.filter=clouds < 3")
    assert result.status == 2 and "there are key, lon, lat" in result.err and result.err.count("\n") == 1
