"""The `terra-jax` command: thin; each subcommand imports what it needs when it runs."""

import argparse
import sys
import textwrap
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from data_pipelines.errors import DataError
from terra_jax.errors import TerraJaxError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; a user's mistake is one line on stderr and status 2."""
    parser, commands = _parser()
    options, rest = parser.parse_known_args(arguments)
    if options.command is None:
        parser.print_help()
        return 0
    overrides = [item for item in rest if item.startswith("--config.")]
    if unknown := [item for item in rest if item not in overrides]:
        commands[options.command].error(f"unknown option {unknown[0]!r}")
    if overrides and not hasattr(options, "config"):
        commands[options.command].error(f"{overrides[0]!r}: terra-jax {options.command} takes no config")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
            options.run(options, [item.removeprefix("--") for item in overrides])
    except (TerraJaxError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _train(options: argparse.Namespace, overrides: list[str]) -> None:
    from terra_jax import registry
    from terra_jax.training.config import load_config
    from terra_jax.training.loop import train

    config = load_config(options.config, overrides)
    train(registry.experiment(config), config, options.workdir)


def _evaluate(options: argparse.Namespace, overrides: list[str]) -> None:
    from terra_jax import registry
    from terra_jax.evaluation.table import scores_table
    from terra_jax.training.config import load_config, write_json

    config = load_config(options.config, overrides)
    params, reports = registry.load_params(config.model, options.weights, copy=options.copy)
    for report in reports:
        print(report)
    result = registry.family(config.model).evaluate(config, params, options.split)
    print(scores_table(result))
    if options.json:
        write_json(options.json, result)


def _convert(options: argparse.Namespace, _: list[str]) -> None:
    from terra_jax import registry
    from terra_jax.weights.convert import convert

    convert(
        registry.family(options.model).spec(options.model),
        options.sources,
        options.to,
        weights=options.copy,
        overwrite=options.overwrite,
        load_workdir=registry.training_folder_reader(options.model),
    )


def _models(options: argparse.Namespace, _: list[str]) -> None:
    from terra_jax import registry

    counts = registry.list_models()
    for name, count in counts.items():
        print(f"{name:<{max(map(len, counts))}}  {count:>13,} parameters")


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line, as all others are."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    parser = _Parser(
        prog="terra-jax", description="Pretrain, convert and evaluate Earth-observation foundation models."
    )
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    commands: dict[str, argparse.ArgumentParser] = {}

    def command(name: str, run: Callable[..., None], summary: str, example: str) -> argparse.ArgumentParser:
        commands[name] = subparsers.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=textwrap.dedent(example),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        commands[name].set_defaults(run=run)
        return commands[name]

    train = command(
        "train",
        _train,
        "Train from a config, or go on where the working folder stands.",
        """\
        examples:
          terra-jax train --config terrafm/nano --workdir runs/nano
          terra-jax train --config terrafm/base --workdir runs/base --config.data.source=geotiff \\
              --config.data.path=tiles --config.init=TerraFM-B.pth""",
    )
    train.add_argument("--workdir", required=True, metavar="DIR", help="folder that takes all output")
    _add_config(train)

    evaluate = command(
        "evaluate",
        _evaluate,
        "Score weights on a config's data, on unseen regions and beside two baselines.",
        """\
        example:
          terra-jax evaluate --config terrafm/nano --weights runs/nano --split test""",
    )
    _add_config(evaluate)
    evaluate.add_argument(
        "--weights",
        required=True,
        action="append",
        metavar="[PART=]PATH",
        help="a .pt, .pth or .safetensors file, a params folder, or a working folder of terra-jax train",
    )
    evaluate.add_argument("--copy", choices=("teacher", "student", "ema"), help="which copy a training folder gives")
    evaluate.add_argument("--split", choices=("val", "test"), default="test", help="unseen regions (default: test)")
    evaluate.add_argument("--json", type=Path, metavar="FILE", help="also write all figures there")

    convert = command(
        "convert",
        _convert,
        "Carry weights between PyTorch files, params folders and training folders.",
        """\
        The direction follows from the ends.
        examples:
          terra-jax convert --model terrafm_base --from TerraFM-B.pth --to terrafm_base
          terra-jax convert --model terrafm_nano --from runs/nano --to nano.safetensors""",
    )
    convert.add_argument("--model", required=True, metavar="NAME", help="see terra-jax models")
    convert.add_argument(
        "--from",
        required=True,
        action="append",
        dest="sources",
        metavar="[PART=]PATH",
        help="a weight file, a params folder, a working folder or one of its steps; repeat for several parts",
    )
    convert.add_argument("--to", required=True, metavar="PATH", help="a .pt, .pth, .safetensors file, or a new folder")
    convert.add_argument(
        "--weights",
        dest="copy",
        choices=("teacher", "student", "ema"),
        help="which copy a training folder gives (default: the family's)",
    )
    convert.add_argument("--overwrite", action="store_true", help="replace an earlier result at PATH")

    command("models", _models, "List the models and their sizes.", "example:\n  terra-jax models")
    return parser, commands


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        required=True,
        metavar="NAME",
        help="a config by name (terrafm/nano) or the path of a .py; change keys with --config.KEY=VALUE",
    )


if __name__ == "__main__":
    sys.exit(main())
