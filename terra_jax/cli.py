"""The `terra-jax` command: thin; each subcommand imports what it needs when it runs."""

import argparse
import sys
import textwrap
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from data_pipelines.errors import DataError
from data_pipelines.prepare import options as prepare_options
from terra_jax.errors import ConfigError, MissingProcessError, TerraJaxError
from terra_jax.inference import generation_options
from terra_jax.parallel import compile_options, libtpu

DRAWN_TILE = 264
"""Side of the tiles that `tokenize` draws where none is named: that of TerraMesh."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; a user's mistake is one line on stderr and status 2."""
    parser, commands = _parser()
    words = list(sys.argv[1:] if arguments is None else arguments)
    end = words.index("--") if "--" in words else len(words)
    options, rest = parser.parse_known_args(words[:end])
    if options.command is None:
        parser.print_help()
        return 0
    options.passed_on = words[end + 1 :]
    if options.passed_on and not hasattr(options, "runner"):
        commands[options.command].error(f"{options.passed_on[0]!r}: terra-jax {options.command} passes nothing on")
    overrides = [item for item in rest if item.startswith("--config.")]
    if unknown := [item for item in rest if item not in overrides]:
        commands[options.command].error(f"unknown option {unknown[0]!r}")
    if overrides and not hasattr(options, "config"):
        commands[options.command].error(f"{overrides[0]!r}: terra-jax {options.command} takes no config")
    if libtpu.known_to_be_absent():
        libtpu.keep_quiet()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
            options.run(options, [item.removeprefix("--") for item in overrides])
    except (TerraJaxError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 3 if isinstance(error, MissingProcessError) else 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _train(options: argparse.Namespace, overrides: list[str]) -> None:
    from data_pipelines.memory import keep_freed_memory
    from terra_jax import registry
    from terra_jax.parallel import distributed, processes
    from terra_jax.training.config import load_config
    from terra_jax.training.loop import train

    config = load_config(options.config, overrides)
    keep_freed_memory()
    with distributed.joined(processes.find(options.coordinator, options.processes, options.process), options.wait):
        train(registry.experiment(config), config, options.workdir)


def _evaluate(options: argparse.Namespace, overrides: list[str]) -> None:
    from terra_jax import registry
    from terra_jax.training.config import load_config, write_json

    config = load_config(options.config, overrides)
    params, reports = registry.load_params(config.model, options.weights, copy=options.copy)
    for report in reports:
        print(report)
    family = registry.family(config.model)
    result = family.evaluate(config, params, options.split)
    print(family.scores_table(result))
    if options.json:
        write_json(options.json, result)


def _convert(options: argparse.Namespace, _: list[str]) -> None:
    from terra_jax import registry
    from terra_jax.weights.convert import convert

    for model, sources, target in registry.conversions(options.model, options.sources, options.to):
        convert(
            registry.spec_of(model, sources),
            sources,
            target,
            weights=options.copy,
            overwrite=options.overwrite,
            load_workdir=registry.training_folder_reader(model),
        )


def _tokenize(options: argparse.Namespace, _: list[str]) -> None:
    import jax

    from data_pipelines.sources import open_source
    from terra_jax import registry
    from terra_jax.terramind.tokenise import common_size, parse_models, tokenise
    from terra_jax.terramind.variants import TOKENIZERS

    weights, coordinates = parse_models(options.models)
    variants = {name: TOKENIZERS[name] for name in weights}
    size = common_size(variants, options.size)
    drawn = options.source == "procedural"
    tile = max(options.tile or (DRAWN_TILE if drawn else 0), size)
    source = open_source(
        options.source,
        path=options.path,
        modalities=None if options.partial else [variant.modality for variant in variants.values()],
        tile=tile,
        samples=options.samples,
        seed=options.seed,
    )
    tokenise(
        {name: registry.load(name, path, copy=options.copy) for name, path in weights.items()},
        source,
        options.out,
        coordinates=coordinates,
        origin={"tile": tile} if drawn else None,
        settings=options.settings,
        scale=options.scale,
        seed=options.seed,
        size=size,
        batch_size=options.batch_size,
        shard_size=options.shard_size,
        process=options.process or (jax.process_index(), jax.process_count()),
        threads=options.threads,
        partial=options.partial,
        strict=options.strict,
    )


def _reconstruct(options: argparse.Namespace, _: list[str]) -> None:
    from terra_jax import registry
    from terra_jax.inference.reconstruct import reconstruct
    from terra_jax.terramind.fingerprint import fingerprint
    from terra_jax.terramind.variants import TOKENIZERS

    if options.model not in TOKENIZERS:
        raise ConfigError(f"{options.model} is no image tokenizer; use one of {', '.join(TOKENIZERS)}")
    tokenizer = registry.load(options.model, options.weights, copy=options.copy)
    reconstruct(
        tokenizer,
        options.input,
        options.out,
        model=options.model,
        fingerprint=fingerprint(tokenizer),
        steps=options.steps,
        seed=options.seed,
        clip=options.clip,
        overwrite=options.overwrite,
    )
    print(f"-> {options.out}")


def _generate(options: argparse.Namespace, _: list[str]) -> None:
    from terra_jax import registry
    from terra_jax.inference.generate import Tiling, generate_rasters
    from terra_jax.terramind.composites import GENERATORS
    from terra_jax.terramind.generation import Decoding

    if options.model not in GENERATORS:
        raise ConfigError(f"{options.model} generates nothing; use one of {', '.join(GENERATORS)}")
    sources = generation_options.rasters(options.inputs)
    decoding = Decoding(
        order=options.order,
        steps=options.steps,
        schedule=options.schedule,
        temperature=options.temperature,
        cooling=options.cooling,
        top_k=options.top_k,
        top_p=options.top_p,
        guidance=options.guidance,
    )
    generator = registry.load_sources(options.model, options.weights, copy=options.copy)
    written = generate_rasters(
        generator,
        sources,
        options.outputs.split(","),
        options.out,
        seed=options.seed,
        tiling=Tiling(options.window, options.overlap, options.batch_size),
        overwrite=options.overwrite,
        tags={"model": options.model, "steps": options.steps, "samples": options.samples},
        decoding=decoding,
        samples=options.samples,
        chained=not options.unchained,
        diffusion_steps=options.diffusion_steps,
        clip=options.clip,
    )
    for path in written:
        print(f"-> {path}")


def _audit(options: argparse.Namespace, _: list[str]) -> None:
    from data_pipelines.audit import audit
    from data_pipelines.sources import open_source
    from terra_jax.evaluation.audit_report import audit_table, draw_audit
    from terra_jax.training.config import write_json

    _check_outputs(options.json, options.png)
    _check_counts(options)
    source = open_source(options.source, path=options.path, samples=options.samples, keep_nodata=True, check=False)
    report = audit(source, threads=options.threads).as_json()
    print(audit_table(report))
    if options.json:
        write_json(options.json, report)
    if options.png:
        draw_audit(report, options.png)


def _stats(options: argparse.Namespace, _: list[str]) -> None:
    from data_pipelines.harmonise import harmonised
    from data_pipelines.sources import open_source
    from data_pipelines.statistics import count_share, remove_shares, statistics_table, write_set

    _check_outputs(options.out, None)
    _check_counts(options)
    if not options.process[0] < options.process[1]:
        index, number = options.process
        raise ConfigError(f"--process {index}/{number} does not exist; count from 0, as in 0/2 and 1/2")
    source = open_source(options.source, path=options.path, samples=options.samples)
    origin = {"source": options.source, "path": options.path, "samples": len(source), "harmonised": options.harmonise}
    counts = count_share(
        harmonised(source) if options.harmonise else source,
        options.out,
        origin,
        options.process,
        threads=options.threads,
        strict=options.strict,
    )
    if counts is None:
        print(f"{options.out}: this share is counted, others are not; the last one writes the statistics")
        return
    print(statistics_table(write_set(options.out, options.name or options.out.stem, counts, origin)))
    remove_shares(options.out)


def _prepare(options: argparse.Namespace, _: list[str]) -> None:
    prepare_options.run(options, DRAWN_TILE)


def _check_outputs(json: Path | None, png: Path | None) -> None:
    """Refuse before the work what could not be written after it."""
    for path, suffix in ((json, ".json"), (png, ".png")):
        if path is not None and path.suffix.lower() != suffix:
            raise ConfigError(f"{path} does not end in {suffix}; choose another name")
        if path is not None and not path.parent.is_dir():
            raise ConfigError(f"{path.parent} is no folder; make it, or choose another place for {path.name}")


def _check_counts(options: argparse.Namespace) -> None:
    for name in ("threads", "samples"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name} {value} is too small; use 1 or more")


def _doctor(options: argparse.Namespace, overrides: list[str]) -> None:
    from terra_jax import registry
    from terra_jax.training.config import load_config, write_json
    from terra_jax.training.doctor import diagnose, diagnosis_table

    _check_outputs(options.json, None)
    config = load_config(options.config, overrides)
    diagnosis = diagnose(registry.experiment(config), config)
    print(diagnosis_table(diagnosis))
    if options.json:
        write_json(options.json, diagnosis.as_json())


def _compile(options: argparse.Namespace, overrides: list[str]) -> None:
    from functools import partial

    from terra_jax import registry
    from terra_jax.parallel.apart import compile_apart
    from terra_jax.parallel.compile_table import compile_table
    from terra_jax.parallel.fitting import compile_report
    from terra_jax.training.config import load_config, write_json

    _check_outputs(options.out, None)
    config = load_config(options.config, [*overrides, *options.mesh])
    target, say = (options.topology, options.slices), partial(print, file=sys.stderr, flush=True)
    report = compile_report(config, partial(compile_apart, target=target, objective=registry.objective, say=say), say)
    print(compile_table(report))
    if options.out:
        write_json(options.out, report)


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
              --config.data.path=tiles --config.init=TerraFM-B.pth
        The same command runs on every host of a TPU pod; elsewhere, on host I of N, add
          --coordinator HOST:PORT --processes N --process I""",
    )
    train.add_argument(
        "--workdir", required=True, metavar="DIR", help="folder that takes all output; one that all hosts see"
    )
    _add_config(train)
    _add_processes(train)

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
    evaluate.add_argument(
        "--split",
        choices=("val", "test", "all"),
        default="test",
        help="unseen regions (default: test); all, for data that training has not seen: every tile (tokenizers only)",
    )
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

    tokenize = command(
        "tokenize",
        _tokenize,
        "Turn a corpus into tokens, or go on where the output folder stands.",
        """\
        Several processes may share the output: each makes its own part, and a killed one is continued by the same
        command. Pixels cut by a record's box and flip align with its tokens.
        examples:
          terra-jax tokenize --model terramind_v1_tokenizer_s2l2a=TerraMind_Tokenizer_S2L2A.pt --model coords \\
              --source geotiff --path tiles --settings 10 --out tokens
          terra-jax tokenize --model terramind_v1_tokenizer_lulc_nano=runs/lulc --source procedural --samples 1000 \\
              --tile 96 --out tokens --process 0/2""",
    )
    tokenize.add_argument(
        "--model",
        required=True,
        action="append",
        dest="models",
        metavar="NAME=WEIGHTS",
        help="a tokenizer; repeat for several modalities. coords, or coords=FILE, adds the places' tokens",
    )
    tokenize.add_argument("--source", required=True, metavar="KIND", help="procedural, geotiff or records")
    tokenize.add_argument("--path", default="", metavar="DIR", help="folder of the data, where there is one")
    tokenize.add_argument("--out", required=True, metavar="DIR", help="folder of the tokens")
    tokenize.add_argument(
        "--settings", type=int, default=1, metavar="N", help="crops a sample: the centre, then random (default 1)"
    )
    tokenize.add_argument("--scale", type=float, default=0.8, help="least area of a random crop (default 0.8)")
    tokenize.add_argument("--seed", type=int, default=0, help="of the crops, and of a drawn source (default 0)")
    tokenize.add_argument("--size", type=int, metavar="PIXELS", help="side of the images (default: the tokenizers')")
    tokenize.add_argument("--samples", type=int, metavar="N", help="take, or draw, only so many")
    tokenize.add_argument(
        "--tile", type=int, metavar="PIXELS", help=f"side of drawn tiles (default {DRAWN_TILE}), or least of others"
    )
    tokenize.add_argument("--batch-size", type=int, default=32, metavar="B", help="samples at once (default 32)")
    tokenize.add_argument(
        "--shard-size",
        type=int,
        default=256,
        metavar="N",
        help="samples a file; a kill costs at most one (default 256)",
    )
    tokenize.add_argument(
        "--process", type=_share, metavar="I/N", help="this process among those that share --out (default: JAX's)"
    )
    tokenize.add_argument("--threads", type=int, default=4, metavar="N", help="that read samples (default 4)")
    tokenize.add_argument(
        "--partial", action="store_true", help="samples may lack modalities: tokenise those that each has"
    )
    tokenize.add_argument("--strict", action="store_true", help="stop at a sample that cannot be read")
    _add_copy(tokenize)

    reconstruct = command(
        "reconstruct",
        _reconstruct,
        "Send a GeoTIFF through a tokenizer: its tokens, or the image that they stand for.",
        """\
        examples:
          terra-jax reconstruct --model terramind_v1_tokenizer_s2l2a --weights TerraMind_Tokenizer_S2L2A.pt \\
              --in tiles/S2L2A/a.tif --out a.tif
          terra-jax reconstruct --model terramind_v1_tokenizer_lulc_nano --weights runs/lulc --in a.tif --out a.npz
          terra-jax reconstruct --model terramind_v1_tokenizer_lulc_nano --weights runs/lulc --in a.npz --out b.tif""",
    )
    reconstruct.add_argument("--model", required=True, metavar="NAME", help="a tokenizer; see terra-jax models")
    reconstruct.add_argument("--weights", required=True, metavar="PATH", help="as of terra-jax evaluate")
    reconstruct.add_argument("--in", required=True, dest="input", metavar="FILE", help="a .tif, or tokens (.npz)")
    reconstruct.add_argument("--out", required=True, metavar="FILE", help="a .tif, or tokens (.npz)")
    reconstruct.add_argument("--steps", type=int, default=10, help="of the diffusion (default 10)")
    reconstruct.add_argument("--seed", type=int, default=0, help="of its noise (default 0)")
    reconstruct.add_argument(
        "--clip", choices=("unit", "none"), help="bound of the predicted image (default: as the weights say)"
    )
    reconstruct.add_argument("--overwrite", action="store_true", help="replace an earlier result")
    _add_copy(reconstruct)

    generate = command(
        "generate",
        _generate,
        "Generate modalities of a scene from others: GeoTIFFs in, GeoTIFFs in the same place out.",
        """\
        Larger scenes are cut into overlapping windows. The same seed gives the same bytes on any number of devices.
        examples:
          terra-jax generate --model terramind_v1_base_generate --weights model=TerraMind_v1_base.pt \\
              --weights LULC=TerraMind_Tokenizer_LULC.pt --weights NDVI=TerraMind_Tokenizer_NDVI.pt \\
              --in S2L2A=tiles/S2L2A/a.tif --outputs LULC,NDVI --out generated
          terra-jax generate --model terramind_v1_nano_generate --weights model=runs/tm --weights LULC=runs/lulc \\
              --in S2L2A=a.tif --in S1GRD=b.tif --in coords --outputs LULC --steps 4 --samples 8 --out generated""",
    )
    generation_options.add(generate)
    _add_copy(generate)

    audit = command(
        "audit",
        _audit,
        "Look for what is wrong with a corpus: radiometric offsets, units, bands, gaps, doubles.",
        """\
        Sentinel-2 comes with and without an offset of 1000 digital numbers, and no date tells; the pixels do.
        examples:
          terra-jax audit --source geotiff --path tiles --json audit.json --png audit.png
          terra-jax audit --source procedural --samples 20""",
    )
    _add_source(audit)
    audit.add_argument("--json", type=Path, metavar="FILE", help="write all findings there")
    audit.add_argument("--png", type=Path, metavar="FILE", help="draw a page of plots there")

    stats = command(
        "stats",
        _stats,
        "Mean, deviation and quantiles of a corpus, saved as a set that configs name by its path.",
        """\
        Exact, whatever the number of workers. Several processes may share the work with --process.
        examples:
          terra-jax stats --source geotiff --path tiles --harmonise --out tiles.json
          terra-jax train --config terrafm/nano --workdir runs/own --config.data.source=geotiff \\
              --config.data.path=tiles --config.encoder.statistics=tiles.json""",
    )
    _add_source(stats)
    stats.add_argument("--out", type=Path, required=True, metavar="FILE", help="a .json; replaced if it exists")
    stats.add_argument("--name", default="", metavar="NAME", help="of the set (default: that of the file)")
    stats.add_argument("--harmonise", action="store_true", help="take Sentinel-2's offset off where there is one")
    stats.add_argument(
        "--process", type=_share, default=(0, 1), metavar="I/N", help="this process among those that share --out"
    )
    stats.add_argument("--strict", action="store_true", help="stop at a sample that cannot be read")

    doctor = command(
        "doctor",
        _doctor,
        "Measure every stage of a run on this machine: which one holds it up, and what to change.",
        """\
        Reads, transforms, copies and steps with the config's own data, model and batch; nothing is written.
        examples:
          terra-jax doctor --config terrafm/nano
          terra-jax doctor --config terrafm/small --json doctor.json --config.data.source=geotiff \\
              --config.data.path=tiles""",
    )
    _add_config(doctor)
    doctor.add_argument("--json", type=Path, metavar="FILE", help="also write all figures there")

    prepare = command("prepare", _prepare, prepare_options.SUMMARY, prepare_options.EPILOG)
    _add_source(prepare)
    prepare.add_argument("--process", type=_share, metavar="I/N", help="this run among those that share --out")
    prepare_options.add_options(prepare)

    compiled = command("compile", _compile, compile_options.SUMMARY, compile_options.EPILOG)
    _add_config(compiled)
    compile_options.add(compiled)

    command("models", _models, "List the models and their sizes.", "example:\n  terra-jax models")
    return parser, commands


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--source", required=True, metavar="KIND", help="geotiff, records, terramesh, procedural, ...")
    parser.add_argument("--path", default="", metavar="DIR", help="folder of the data, where there is one")
    parser.add_argument("--samples", type=int, metavar="N", help="take, or draw, only so many")
    parser.add_argument("--threads", type=int, default=4, metavar="N", help="that read samples (default 4)")


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        required=True,
        metavar="NAME",
        help="a config by name (terrafm/nano) or the path of a .py; change keys with --config.KEY=VALUE",
    )


def _add_processes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0; TPU hosts find it by themselves")
    parser.add_argument("--processes", type=int, metavar="N", help="of the run, one a host; 1 for this host alone")
    parser.add_argument("--process", type=int, metavar="I", help="which one this is, from 0")
    parser.add_argument(
        "--wait", type=float, default=50, metavar="SECONDS", help="for the other hosts at the start (default 50)"
    )


def _add_copy(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--copy", choices=("student", "ema"), help="which copy a training folder gives")


def _share(text: str) -> tuple[int, int]:
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is no share of processes; write 0/2 for the first of two")
    return int(index), int(count)


if __name__ == "__main__":
    sys.exit(main())
