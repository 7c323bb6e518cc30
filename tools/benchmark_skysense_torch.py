"""PyTorch's side of `benchmark.py skysense`: one row in one process, its figures as one line of JSON.

Started by benchmark.py; the argument is the row's settings as JSON.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from benchmark_timing import timed
from pytorch_skysense import Fusion, SwinV2
from torch import Tensor


def work(settings: dict[str, Any]) -> Callable[[], Any]:
    """A row's work, ready to run: outputs, the mean of their squares, and all gradients, those of the input too."""
    if settings["row"] == "fusion":
        width = settings["width"]
        model: Any = Fusion(width, width, settings["depth"], settings["heads"])
        x = torch.randn(settings["positions"], settings["frames"], width)
    else:
        model = SwinV2(settings["widths"], settings["depths"], settings["stage_heads"], extra_norm=0)
        x = torch.randn(settings["images"], 3, settings["pixels"], settings["pixels"])
    x.requires_grad_()

    def loss(x: Tensor) -> Tensor:
        outputs = model(x)
        outputs = [outputs] if isinstance(outputs, Tensor) else outputs
        return sum((output.square().mean() for output in outputs), torch.zeros(()))

    loss_of = torch.compile(loss) if settings["variant"] == "compile" else loss

    def run() -> None:
        x.grad = None
        model.zero_grad(set_to_none=True)
        loss_of(x).backward()

    return run


def measure(settings: dict[str, Any]) -> dict[str, Any]:
    """Seconds of every repeat after untimed runs, and the process's peak memory."""
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(0)
    run = work(settings)
    # the second call of a compiled function may compile once more, as gradients are there no longer
    figures = timed(run, settings["repeats"], untimed=2 if settings["repeats"] > 1 else 1)
    return {**figures, "versions": {"torch": torch.__version__}}


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
