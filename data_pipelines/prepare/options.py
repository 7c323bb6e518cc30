"""Options of `terra-jax prepare`; what runs is imported when it runs."""

import argparse

_SHARD, _SHARD_OF_CELLS = 256, 32  # samples, and cells, for a few hundred megabytes

SUMMARY = "Write a corpus as records, which are read fast and at random, or go on where the output folder stands."

EPILOG = """\
    Killed or broken off, the same command goes on. Several machines may share --out with --process; Apache Beam
    (pip install "terra_jax[beam]") shares the work out where --runner names one of its runners, and takes what stands
    after --. Samples that cannot be read are named in quarantine.json. Train on the result with
    --config.data.source=records --config.data.path=DIR.
    examples:
      terra-jax prepare --source geotiff --path tiles --harmonise --out records
      terra-jax prepare --source terramesh --path s3://bucket/TerraMesh/train --out records --dry-run
      terra-jax prepare --source majortom --path Major-TOM --recipe terrafm --landcover WorldCover --out terrafm
      terra-jax prepare --source terramesh --path gs://mine/TerraMesh --out gs://mine/records \\
          --runner DataflowRunner -- --project=mine --region=europe-west1 --temp_location=gs://mine/tmp"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options beside those of the source and `--process`."""
    add = parser.add_argument
    add("--out", required=True, metavar="DIR", help="folder or URL of the records")
    add("--workers", type=int, metavar="N", help="processes of this machine (default: one for every 4 cores)")
    add("--runner", default="", metavar="NAME", help="of Apache Beam: DirectRunner, DataflowRunner, FlinkRunner, ...")
    add("--dry-run", action="store_true", help="read a few samples, say what it takes, write nothing")
    add(
        "--harmonise",
        nargs="?",
        const="",
        metavar="AUDIT",
        help="take Sentinel-2's offset off where the pixels show one, or where a .json of terra-jax audit says so",
    )
    add("--recipe", default="", metavar="NAME", help="terrafm: four tiles of each cell of Major TOM")
    add("--landcover", default="", metavar="DIR", help="with --recipe: GeoTIFFs of ESA WorldCover")
    add("--ocean", type=float, default=0.02, metavar="SHARE", help="with --landcover: of sea tiles, kept (0.02)")
    add(
        "--frequent",
        type=float,
        default=0.5,
        metavar="SHARE",
        help="of samples that the classes named frequent in land_cover.json make up (default 0.5)",
    )
    add("--modality", action="append", dest="modalities", metavar="NAME", help="only these; repeat (default: all)")
    add("--tile", type=int, metavar="PIXELS", help="side of drawn tiles and of a recipe's, or least side of others")
    add("--seed", type=int, default=0, help="of a drawn source (default 0)")
    add("--series", action="store_true", help="all dates of a place in one sample (ssl4eo)")
    add("--keep-nodata", action="store_true", help="take samples with no data in them")
    add("--archive", action="store_true", help="smaller and slower to read: zstd instead of lz4")
    add("--licence", default="", metavar="TEXT", help="of the data, kept with them")
    add(
        "--shard-size",
        type=int,
        metavar="N",
        help=f"samples a file; a kill costs a worker at most one (default {_SHARD}; with --recipe {_SHARD_OF_CELLS})",
    )
    add("--strict", action="store_true", help="stop at a sample that cannot be read")
    add("--broken", type=int, default=16, metavar="N", help="unreadable samples in a row that stop it; 0: none do")
    add("--retry", action="store_true", help="make shards with samples left out again")


def run(options: argparse.Namespace, drawn_tile: int) -> None:
    """Do what was asked for.

    Args:
        options: parsed; `passed_on` are options of the runner.
        drawn_tile: side of drawn tiles where none is named.
    """
    from data_pipelines.prepare.plan import DRAWN, Plan
    from data_pipelines.prepare.run import dry_run, prepare

    same = (
        "source out path samples seed series keep_nodata recipe landcover ocean frequent licence threads strict broken"
    )
    drawn = options.source in DRAWN and not options.recipe
    plan = Plan(
        **{name: getattr(options, name) for name in same.split()},
        modalities=tuple(options.modalities) if options.modalities else None,
        tile=drawn_tile if drawn and options.tile is None else options.tile,
        harmonise=options.harmonise is not None,
        audit=options.harmonise or "",
        shard_size=size if (size := options.shard_size) is not None else _SHARD_OF_CELLS if options.recipe else _SHARD,
        compression="zstd" if options.archive else "lz4",
    )
    process = options.process or (0, 1)
    if options.dry_run:
        print("\n".join(dry_run(plan, workers=options.workers, process=process)))
        return
    prepare(
        plan,
        workers=options.workers,
        process=process,
        runner=options.runner,
        flags=options.passed_on,
        retry=options.retry,
    )
