"""PyTorch's side of `benchmark.py terramind`: one row in one process, its figures as one line of JSON.

Started by benchmark.py; the argument is the row's settings as JSON.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import benchmark_terramind_batch as batches
import numpy as np
import torch
from benchmark_timing import Memory, timed
from pytorch_terramind import SIZES, TerraMind, unpacked


def work(settings: dict[str, Any]) -> tuple[Callable[[], Any], int]:
    """A row's work, ready to run, and the number of parameters."""
    size, tokens = SIZES[settings["size"]], settings["tokens"]
    inputs, outputs = batches.STREAMS[settings["modalities"]]
    slots, pixels = batches.draw(
        np.random.default_rng(0), inputs, outputs, settings["batch"], tokens, size.patch * size.grid, size.patch
    )
    taken, given = (tuple(batches.KEYS[name] for name in names) for names in (inputs, outputs))
    batch = unpacked(slots, {batches.KEYS[name]: image for name, image in pixels.items()}, taken, given, size.grid**2)
    model = TerraMind(size, taken, given)
    optimiser = model.optimiser()
    forward = torch.compile(model) if settings["variant"] == "compile" else model

    def gradients() -> None:
        optimiser.zero_grad(set_to_none=True)
        forward(batch, tokens, tokens)[0].backward()

    def step() -> None:
        gradients()
        optimiser.step()

    runs = {"step": step, "update": optimiser.step}
    if settings["row"] == "update":
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
    return runs.get(settings["row"], gradients), sum(parameter.numel() for parameter in model.parameters())


def measure(settings: dict[str, Any]) -> dict[str, Any]:
    """Seconds of every repeat after untimed runs, and memory."""
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(0)
    memory = Memory()
    run, parameters = work(settings)
    # the second call of a compiled step may compile once more, as gradients are there no longer
    figures = timed(run, settings["repeats"], untimed=2 if settings["repeats"] > 1 else 1, memory=memory)
    return {**figures, "parameters": parameters, "versions": {"torch": torch.__version__}}


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
