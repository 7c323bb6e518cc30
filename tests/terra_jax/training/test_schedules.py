import jax.numpy as jnp
import numpy as np
import pytest

from terra_jax.training.schedules import cosine_ramp, linear_ramp


def test_ramps_start_end_and_stay():
    for ramp in (linear_ramp, cosine_ramp):
        values = [float(ramp(jnp.int32(s), 0.04, 0.06, 10)) for s in (0, 5, 10, 99)]
        np.testing.assert_allclose(values, [0.04, 0.05, 0.06, 0.06], rtol=1e-5)
    assert float(linear_ramp(jnp.int32(0), 0.04, 0.06, 0)) == pytest.approx(0.04)
