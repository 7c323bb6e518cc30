"""PyTorch's side of `benchmark.py terrafm`: one row in one process, its figures as one line of JSON.

Started by benchmark.py; the argument is the row's settings as JSON.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from benchmark_timing import timed
from pytorch_terrafm import SIZES, DINOTrainer, TerraFM


def forward(settings: dict[str, Any], wrap: Callable) -> Callable[[], Any]:
    """Class tokens of a batch, without gradients."""
    pixels = SIZES[settings["size"]].image
    model = wrap(TerraFM(settings["size"]).eval())
    x = torch.randn(settings["batch"], 12, pixels, pixels)

    def run() -> None:
        with torch.inference_mode():
            model(x, "s2_l2a")

    return run


def step(settings: dict[str, Any], wrap: Callable) -> Callable[[], Any]:
    """Loss, gradients, AdamW, teacher and centres, with as many local views as the row has."""
    pixels, batch = SIZES[settings["size"]].image, settings["batch"]
    trainer = DINOTrainer(settings["size"], prototypes=settings["prototypes"]).train()
    trainer.teacher.eval()
    optimiser = trainer.optimiser()
    loss_of = wrap(trainer.loss)
    views = torch.randn(2, batch, 12, pixels, pixels)
    small = settings["local_pixels"]
    local = torch.randn(settings["local_views"], batch, 12, small, small) if settings["local_views"] else None
    frequent = torch.arange(batch) % 2 == 0

    def run() -> None:
        loss, logits = loss_of(views, local, "s2_l2a")
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        trainer.after_update(logits, frequent)
        loss.item()

    return run


def measure(settings: dict[str, Any]) -> dict[str, Any]:
    """Seconds of every repeat after untimed runs, and the process's peak memory."""
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(0)
    wrap = torch.compile if settings["variant"] == "compile" else lambda function: function
    run = (forward if settings["row"] == "forward" else step)(settings, wrap)
    # the second call of a compiled step may compile once more, as gradients are there no longer
    figures = timed(run, settings["repeats"], untimed=2 if settings["repeats"] > 1 else 1)
    return {**figures, "versions": {"torch": torch.__version__}}


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
