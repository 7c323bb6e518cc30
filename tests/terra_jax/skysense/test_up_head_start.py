import jax
import numpy as np

from terra_jax.nn.initialisation import initialise
from terra_jax.skysense.fusion import UpHead
from terra_jax.skysense.variants import SeriesSize


def test_no_chequered_pattern_at_the_start():
    head = initialise(lambda rngs: UpHead(SeriesSize("S2L2A", width=8, aligned=6, patch=4), rngs=rngs))
    maps = np.asarray(head(jax.random.normal(jax.random.key(0), (2, 3, 3, 8))))
    patches = maps.reshape(2, 3, 4, 3, 4, 6)
    assert np.ptp(patches, axis=(2, 4)).max() < 1e-6 and maps.std() > 0.1
