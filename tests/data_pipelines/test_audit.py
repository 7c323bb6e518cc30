"""What an audit says of corpora."""

import json
from dataclasses import replace

import numpy as np
import pytest
from fakes import FakeSource, plausible, write_folder, write_tif
from skies import Few

from data_pipelines.audit import audit
from data_pipelines.modalities import LAND_COVER, MODALITIES
from data_pipelines.sources import open_source
from data_pipelines.sources.procedural import ProceduralEarth


@pytest.fixture(scope="module")
def clean():
    return ProceduralEarth(24, 72, seed=3)[22]  # green, clear


def quiet(_):
    pass


def test_real_tiles_are_as_the_notes_say(fixtures_dir):
    report = audit(open_source("geotiff", path=str(fixtures_dir / "tiles")), threads=2, say=quiet).as_json()
    found = {s["key"]: {n: one["offset"] for n, one in s["modalities"].items()} for s in report["samples"]}
    assert {key: (one["S2L1C"], one["S2L2A"]) for key, one in found.items()} == {
        "282D_485L_3_3": (1000, 0), "38D_378R_2_3": (0, 0), "433D_629L_3_1": (1000, 1000),
    }  # fmt: skip
    assert all(one[name] is None for one in found.values() for name in one if name not in ("S2L1C", "S2L2A"))
    assert report["summary"]["flags"] == {"S2L1C offset": 2, "S2L2A offset": 1, "NDVI ndvi": 1}
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    for sample in report["samples"]:
        for one in sample["modalities"].values():
            assert {"offset", "unit", "flags"} <= one.keys()
            assert (one["offset"] is None) == ("reason" in one)


def test_a_corpus_with_doubles_and_gaps(clean):
    gap = replace(clean, key="gap", rasters={n: r for n, r in clean.rasters.items() if n not in ("DEM", "S1GRD")})
    moved = replace(gap, key="moved", transform=(10.0, 0.0, 123_000.0, 0.0, -10.0, 60.0))
    report = audit(Few([clean, replace(clean, key="twin"), gap, moved]), say=quiet)
    told = {finding.key: list(finding.flags) for finding in report.samples}
    assert told[clean.key] == [] and told["twin"] == [f"duplicate: the pixels of {clean.key}"]
    assert told["gap"] == ["missing: DEM", f"duplicate: place and time of {clean.key}"]
    assert told["moved"] == ["missing: DEM", "duplicate: the pixels of gap"]
    summary = report.summary()
    assert summary["duplicates"]["pixels"] == [[clean.key, "twin"], ["gap", "moved"]]
    assert summary["modalities"]["DEM"]["missing"] == 2 and summary["samples"] == 4
    assert abs(sum(summary["land_cover"].values()) - 1) < 1e-3 and set(summary["land_cover"]) == set(LAND_COVER)


def test_what_cannot_be_read_is_a_finding():
    report = audit(FakeSource(4, unreadable=(2,)), say=quiet).as_json()
    assert report["samples"][2]["flags"] == ["unreadable: s2.tif cannot be read; copy it again"]
    assert report["summary"]["flags"]["unreadable"] == 1
    assert json.dumps(report, allow_nan=False)


def test_threads_do_not_change_what_is_found():
    source = ProceduralEarth(6, 48, seed=4)
    assert audit(source, threads=1, say=quiet).as_json() == audit(source, threads=3, say=quiet).as_json()


def test_files_that_training_refuses_are_described(tmp_path):
    root = write_folder(tmp_path, modalities=("S2L2A", "S1RTC", "DEM"))
    holes = plausible("S1RTC", 24)
    holes[0, :6] = np.nan
    write_tif(root / "S1RTC" / "a.tif", holes)
    write_tif(root / "S2L2A" / "b.tif", plausible("S2L2A", 24).astype(np.float32) / 10_000)
    (root / "DEM" / "c.tif").write_bytes((root / "DEM" / "c.tif").read_bytes()[:300])
    samples = {s["key"]: s for s in audit(open_source("geotiff", path=str(root)), say=quiet).as_json()["samples"]}
    assert samples["a"]["modalities"]["S1RTC"]["flags"][0] == "no_data: 25.00% of VV"
    assert samples["b"]["modalities"]["S2L2A"]["unit"] == "reflectance"
    damaged = samples["c"]["modalities"]["DEM"]
    assert damaged["offset"] is None and damaged["reason"] == "it cannot be read" and damaged["unit"] is None
    assert "c.tif cannot be read" in damaged["flags"][0]
    assert set(samples["c"]["modalities"]) == {"S2L2A", "S1RTC", "DEM"} <= set(MODALITIES)
