import numpy as np
import pytest

from terra_jax.evaluation import knn, report
from terra_jax.evaluation.page import smoothed

NAMES = ["water", "trees", "crops"]


def scores(seed):
    rng = np.random.default_rng(seed)
    labels, query_labels = rng.integers(0, 3, 90), rng.integers(0, 3, 30)
    centres = rng.standard_normal((3, 5))
    bank, queries = centres[labels] + rng.standard_normal((90, 5)), centres[query_labels] + rng.standard_normal((30, 5))
    return knn.evaluate_knn(bank, labels, queries, query_labels, names=NAMES)


def history(steps):
    return [
        {"step": str(i), "loss": str(5 - i / 100), "teacher_entropy": "" if i % 2 else "3.1", "centre_norm": i / 10}
        for i in range(1, steps + 1)
    ]


def page(path):
    from matplotlib.image import imread

    return imread(path)


@pytest.mark.parametrize(
    ("steps", "count", "evaluated"), [(0, 0, False), (1, 1, True), (120, 6, True), (120, 0, True), (120, 6, False)]
)
def test_every_kind_of_run_has_a_page(tmp_path, steps, count, evaluated):
    rng = np.random.default_rng(0)
    path = tmp_path / "report.png"
    report.report_png(
        path,
        history=history(steps),
        evaluations=[{"step": s, "scores": scores(s)} for s in (0, 50, 100)] if evaluated else [],
        baselines={"random initialisation": scores(7), "band mean and std": scores(8)},
        images=[rng.integers(0, 255, (32, 32, 3)).astype(np.uint8)] * count,
        features=[rng.standard_normal((4, 4, 8)).astype(np.float32)] * count,
        note="every tile lies in one region",
    )
    assert page(path).shape[1] == 1430
    assert [p.name for p in tmp_path.iterdir()] == ["report.png"]


def test_a_failed_page_leaves_the_old_one(tmp_path):
    path = tmp_path / "report.png"
    path.write_bytes(b"old")
    with pytest.raises(ValueError):
        report.report_png(path, history=history(3), images=[np.zeros((4, 4, 3))], features=[np.full((2, 2, 5), np.nan)])
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["report.png"]


def test_pca_shows_alike_patches_alike_over_all_maps():
    rng = np.random.default_rng(0)
    kinds = rng.standard_normal((3, 16)) * 3
    maps = [rng.integers(0, 3, (5, 7)), rng.integers(0, 3, (4, 4))]
    colours = report.pca_colours([kinds[m] for m in maps])
    assert [c.shape for c in colours] == [(5, 7, 3), (4, 4, 3)]
    assert all(((c >= 0) & (c <= 1)).all() for c in colours)
    flat = np.concatenate([c.reshape(-1, 3) for c in colours])
    kind = np.concatenate([m.ravel() for m in maps])
    assert len({tuple(c.round(4)) for c in flat}) == 3
    for k in range(3):
        np.testing.assert_allclose(flat[kind == k], flat[kind == k][:1].repeat((kind == k).sum(), 0), atol=1e-6)


def test_pca_of_constant_features_is_grey():
    np.testing.assert_array_equal(report.pca_colours([np.ones((3, 3, 8))])[0], 0.5)


def test_smoothing_keeps_constants_and_length():
    np.testing.assert_allclose(smoothed(np.full(10, 2.5), 5), 2.5)
    np.testing.assert_allclose(smoothed(np.arange(5.0), 3), [0.5, 1, 2, 3, 3.5])
