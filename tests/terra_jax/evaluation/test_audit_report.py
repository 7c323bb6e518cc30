"""An audit as text and as a page, of corpora large, small and empty of what a plot shows."""

import copy

import pytest

from terra_jax.evaluation.audit_report import audit_table, draw_audit


def modality(offset=None, **further):
    entry = {"offset": offset, "unit": "dn10000", "flags": [], "evidence": {"b10_low": 12.0, "swir_intercept": -20.0}}
    return entry | ({"reason": "no S2L1C"} if offset is None else {}) | further


def sample(i, **further):
    modalities = {"S2L1C": modality(1000 if i % 2 else 0), "S2L2A": modality(0 if i % 3 else None)}
    modalities["S1RTC"] = modality(unit="db", evidence={"vv_median": -12.0, "vh_median": -18.0})
    modalities["NDVI"] = modality(unit="index", evidence={"error": 0.0})
    return {"key": f"s{i}", "lon": 3.0 * i - 90, "lat": 40.0, "time": f"20{18 + i % 5}-05-01T00:00:00",
            "modalities": modalities, "flags": ["duplicate: the pixels of s0"] if i == 1 else []} | further  # fmt: skip


def report(count, **further):
    tally = {"samples": count, "missing": 0, "unit": {"dn10000": count}, "resampled": 0}
    entries = {name: tally | {"offset": {"0": count, "1000": 0, "unknown": 0}} for name in ("S2L1C", "S2L2A")}
    entries["S1RTC"] = {"samples": count, "missing": 2, "unit": {"db": count - 1, "linear": 1}}
    summary = {
        "samples": count, "with_flags": 1, "modalities": entries, "flags": {"duplicate": 1},
        "cells": count, "regions": 2, "land_cover": {"nodata": 0.0, "water": 0.25, "trees": 0.75},
    }  # fmt: skip
    return {"source": "geotiff", "summary": summary | further, "samples": [sample(i) for i in range(count)]}


def test_the_table_names_every_sample_of_a_few():
    text = audit_table(report(4))
    assert "4 samples of geotiff: 1 with flags, in 4 grid cells and 2 regions" in text
    assert "db (3), linear (1)" in text and "trees 75.0%, water 25.0%" in text
    rows = {line.split()[0]: line for line in text.splitlines() if line.startswith("s") and line[1:2].isdigit()}
    assert set(rows) == {"s0", "s1", "s2", "s3"}
    assert rows["s0"].split()[1:3] == ["0", "?"] and "S2L2A offset unknown: no S2L1C" in rows["s0"]
    assert "duplicate: the pixels of s0" in rows["s1"] and rows["s2"].endswith("-")
    assert max(map(len, text.splitlines())) <= 120


def test_the_table_of_many_names_those_with_flags():
    large = report(300)
    text = audit_table(large)
    assert "and 61 more with flags; --json lists them all" in text and "\ns2 " not in text
    assert len(text.splitlines()) < 120


@pytest.mark.parametrize("count", [0, 1, 500])
def test_a_page_is_drawn_whatever_there_is(count, tmp_path):
    given = report(count) if count else report(0, modalities={}, land_cover=None, flags={})
    before = copy.deepcopy(given)
    draw_audit(given, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG" and given == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_samples_without_place_time_or_rasters(tmp_path):
    given = report(3)
    given["samples"][0] |= {"lon": None, "lat": None, "time": None, "modalities": {}, "flags": ["unreadable: x.tif"]}
    draw_audit(given, tmp_path / "a.png")
    assert "unreadable: x.tif" in audit_table(given)
