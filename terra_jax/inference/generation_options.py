"""What `terra-jax generate` is told: its options, apart from the models so that the command starts at once."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from terra_jax.errors import ConfigError


def add(parser: argparse.ArgumentParser) -> None:
    """Give a parser the options of a generation."""
    parser.add_argument("--model", required=True, metavar="NAME", help="a generator; see terra-jax models")
    parser.add_argument(
        "--weights",
        required=True,
        action="append",
        metavar="[PART=]PATH",
        help="model=PATH and MODALITY=PATH of each tokenizer that is needed, coords=FILE of a vocabulary; repeat",
    )
    parser.add_argument(
        "--in",
        required=True,
        action="append",
        dest="inputs",
        metavar="MODALITY=FILE",
        help="a GeoTIFF of what is known; repeat; coords alone adds the place of the rasters",
    )
    parser.add_argument(
        "--outputs", required=True, metavar="A,B", help="what is generated, in this order: each is seen by the next"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder that takes MODALITY.tif")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn (default 0)")
    parser.add_argument("--steps", type=int, default=1, help="in which an image's tokens are decided (default 1)")
    parser.add_argument("--order", default="roar", help="which tokens a step decides: roar (default) or maskgit")
    parser.add_argument("--schedule", default="linear", help="tokens a step: linear (default) or cosine")
    parser.add_argument(
        "--temperature", type=float, default=1.0, help="of what is drawn (default 1); 0: the most probable tokens"
    )
    parser.add_argument(
        "--cooling", default="constant", help="of the temperature: constant (default), linear, onex:LEAST:POWER"
    )
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="draw from so many tokens (default 0: all)")
    parser.add_argument(
        "--top-p", type=float, default=0.8, metavar="P", help="draw from tokens of this probability (default 0.8)"
    )
    parser.add_argument(
        "--guidance", type=float, default=1.0, metavar="SCALE", help="away from what knows no input (default 1: off)"
    )
    parser.add_argument("--samples", type=int, default=1, metavar="N", help="of which the mean is given (default 1)")
    parser.add_argument("--unchained", action="store_true", help="make each output from the inputs alone")
    parser.add_argument("--diffusion-steps", type=int, default=10, metavar="N", help="of the decoders (default 10)")
    parser.add_argument("--clip", choices=("unit", "none"), help="bound of the decoded images (default: as trained)")
    parser.add_argument("--window", type=int, metavar="PIXELS", help="side of a window (default: the model's image)")
    parser.add_argument("--overlap", type=int, metavar="PIXELS", help="of windows (default: a quarter of one)")
    parser.add_argument("--batch-size", type=int, default=4, metavar="B", help="windows a device (default 4)")
    parser.add_argument("--overwrite", action="store_true", help="replace earlier results")


def rasters(texts: Sequence[str]) -> dict[str, Path | None]:
    """Read "MODALITY=FILE" arguments, and "coords".

    Raises:
        ConfigError: one that is neither, or is given twice.
    """
    given: dict[str, Path | None] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if bool(path) == (name == "coords") or bool(equals) != bool(path):
            raise ConfigError(f"--in {text} is unclear; write MODALITY=FILE, or coords for the place of the rasters")
        if name in given:
            raise ConfigError(f"--in {name} is given twice; give it once")
        given[name] = Path(path) if path else None
    return given
