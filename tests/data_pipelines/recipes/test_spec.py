import numpy as np
import pytest

from data_pipelines.errors import DataError
from data_pipelines.recipes.spec import ArraySpec, check_batch

SPEC = {"x": ArraySpec((2, 3), "int16", "dn10000"), "mask": ArraySpec((), "bool")}
BATCH = {"x": np.zeros((4, 2, 3), np.int16), "mask": np.zeros(4, bool)}


def test_a_batch_that_fits_passes():
    check_batch(BATCH, SPEC, (4,))
    check_batch({name: array[0] for name, array in BATCH.items()}, SPEC)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x": np.zeros((4, 2, 2), np.int16)}, r"batch\['x'\] has shape \(4, 2, 2\), expected \(4, 2, 3\)"),
        ({"x": np.zeros((4, 2, 3), np.int32)}, r"batch\['x'\] is int32, expected int16"),
        ({"y": np.zeros(4)}, "batch has 'y'"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    with pytest.raises(DataError, match=message):
        check_batch(BATCH | change, SPEC, (4,))


def test_what_is_missing_is_named():
    with pytest.raises(DataError, match="lacks 'mask'"):
        check_batch({"x": BATCH["x"]}, SPEC, (4,))
