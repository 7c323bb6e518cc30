"""PyTorch's side of `benchmark.py tokenizers`: one row in one process, its figures as one line of JSON.

Started by benchmark.py; the argument is the row's settings as JSON.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from benchmark_timing import timed
from pytorch_terramind_tokenizer import SIZES, Tokenizer

NAMES = {"base": "s2l2a", "nano": "s2l2a_nano"}


def work(settings: dict[str, Any]) -> Callable[[], Any]:
    """A row's work, ready to run."""
    name, batch, pixels = NAMES[settings["size"]], settings["batch"], settings["pixels"]
    size, model = SIZES[name], Tokenizer(name).eval()
    if settings["variant"] == "compile":  # what is called once a batch, or once a step
        model.encoder.compile()
        model.decoder.compile()
    image = torch.randn(batch, size.channels, pixels, pixels)
    grid = pixels // size.patch
    ids = torch.randint(int(model.levels.prod()), (batch, grid, grid))

    def run() -> None:
        with torch.inference_mode():
            if "steps" in settings:
                model.decode_tokens(ids, image, settings["steps"])
            else:
                model.tokenize(image)

    return run


def measure(settings: dict[str, Any]) -> dict[str, Any]:
    """Seconds of every repeat after an untimed run, and the process's peak memory."""
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(0)
    return {**timed(work(settings), settings["repeats"]), "versions": {"torch": torch.__version__}}


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
