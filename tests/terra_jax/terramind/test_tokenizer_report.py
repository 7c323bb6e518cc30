import numpy as np
import pytest

from data_pipelines.modalities import LAND_COVER, modality
from terra_jax.terramind.tokenizer_report import Pictures, colour_pairs, error_pictures, tokenizer_report

NAMES = ("S2L2A", "S1RTC", "DEM", "NDVI", "LULC")


def pictures(name, count=3):
    rng = np.random.default_rng(0)
    codes = rng.random((count, 4, 4, 5)).astype(np.float32)
    if name == "LULC":
        truth = rng.integers(0, len(LAND_COVER), (count, 16, 16))
        return Pictures(truth, np.where(rng.random(truth.shape) < 0.8, truth, 1), codes)
    mean, std = modality(name).statistics_for("terramind_v1")
    truth = rng.normal(mean, std, (count, 16, 16, len(mean)))
    return Pictures(truth, truth + 0.1 * std, codes)


@pytest.mark.parametrize("name", NAMES)
def test_colours_are_of_equal_shape_and_in_range(name):
    shown = pictures(name)
    for colours in (*colour_pairs(name, shown.truth, shown.estimate), error_pictures(name, shown)[0]):
        assert np.shape(colours)[:3] == (3, 16, 16) and np.shape(colours)[3] in (3, 4)
        assert np.min(colours) >= 0 and np.max(colours) <= 1


def test_an_image_without_contrast_is_not_stretched_to_noise():
    flat = np.full((1, 16, 16, 1), 700.0)
    truth, estimate = colour_pairs("DEM", flat, flat + 0.01)
    np.testing.assert_allclose(truth, estimate, atol=0.05)


def result(name):
    if name == "LULC":
        scores = {"accuracy": 0.9, "miou": 0.7, "iou": {"water": 0.8, "flooded_vegetation": 0.6}}
    else:
        scores = {"mae": [1.0, 2.0], "psnr": [30.0, 31.0], "ssim": [0.9, 0.8]}
    book = {"tokens": 100, "used": 30, "dead": 70, "share": 0.3, "perplexity": 12.5}
    return {"names": ["VV", "VH"], "unit": str(modality(name).unit), "scores": {"reconstruction": scores},
            "baselines": {"trivial": scores}, "codebook": book}  # fmt: skip


@pytest.mark.parametrize(("name", "measure"), [("S1RTC", "mae"), ("LULC", "accuracy")])
def test_a_page_is_drawn(tmp_path, name, measure):
    from matplotlib.image import imread

    row = {f"reconstruction/{measure}": 0.5, "reconstruction/codes_used": 0.2}
    tokenizer_report(
        tmp_path / "report.png", name=name, history=[{"step": i, "loss": 1 / i} for i in range(1, 90)],
        evaluations=[{"step": 0, **row}, {"step": 9, **row}], result=result(name), pictures=pictures(name), title="t",
    )  # fmt: skip
    assert imread(tmp_path / "report.png").shape[1] > 1000
    assert [path.name for path in tmp_path.iterdir()] == ["report.png"]


def test_a_page_says_why_there_are_no_figures(tmp_path):
    tokenizer_report(
        tmp_path / "report.png", name="DEM", history=[], evaluations=[], result=None, pictures=pictures("DEM", 1),
        title="t", note="no unseen regions",
    )  # fmt: skip
    assert (tmp_path / "report.png").stat().st_size > 10_000
