"""PyTorch's side of `benchmark.py terrafm`: one row in one process, its figures as one line of JSON.

Started by benchmark.py; the argument is the row's settings as JSON.
"""

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
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
    """Seconds of every repeat after two untimed runs, and the process's peak memory."""
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(0)
    wrap = torch.compile if settings["variant"] == "compile" else lambda function: function
    run = (forward if settings["row"] == "forward" else step)(settings, wrap)
    start = time.perf_counter()
    run()
    first = time.perf_counter() - start
    if settings["repeats"] > 1:
        run()
    times = []
    for _ in range(settings["repeats"]):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return {
        "seconds": statistics.median(times),
        "times": times,
        "first_call_seconds": first,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "versions": {"torch": torch.__version__},
    }


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
