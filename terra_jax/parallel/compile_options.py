"""What `terra-jax compile` is told: its options, apart from the compiler so that the command starts at once."""

import argparse
from pathlib import Path

SUMMARY = "Compile a config's train step for TPUs that need not be there: does it fit, how fast can it be."

EPILOG = """\
Takes minutes of one CPU; a table, "DOES NOT FIT" included, is no error. Figures are of one device and
one step. It needs no data, only libtpu: pip install "terra_jax[tpu]".
examples:
  terra-jax compile --config terrafm/base --topology v5e:16x16
  terra-jax compile --config skysense/huge --topology v5p:4x4x4 --slices 2 --mesh data=16,fsdp=8 \\
      --out huge.json --config.remat=dots"""


def add(parser: argparse.ArgumentParser) -> None:
    """Give a parser the options of a compilation."""
    parser.add_argument(
        "--topology", required=True, metavar="NAME", help="generation and shape: v5e:2x4, v5p:4x4x4, v6e:16x16 ..."
    )
    parser.add_argument("--slices", type=int, default=1, metavar="N", help="of that topology (default 1)")
    parser.add_argument(
        "--mesh",
        type=_mesh,
        default=[],
        metavar="AXIS=N,...",
        help="of data, fsdp, tensor, short for --config.mesh.AXIS=N; -1 takes what is left",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write all figures there, a .json")


def _mesh(text: str) -> list[str]:
    items = [item.partition("=") for item in text.split(",")]
    if not all(axis in ("data", "fsdp", "tensor") and size.removeprefix("-").isdecimal() for axis, _, size in items):
        raise argparse.ArgumentTypeError(f"{text!r} is no mesh; write data=32,fsdp=8 (axes: data, fsdp, tensor)")
    return [f"mesh.{axis}={size}" for axis, _, size in items]
