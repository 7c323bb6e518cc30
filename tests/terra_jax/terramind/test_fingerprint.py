import sys
from dataclasses import asdict
from pathlib import Path

import jax.numpy as jnp

sys.path.insert(0, str(Path(__file__).parent))
from small_tokenizers import small_tokenizer, small_variant

from terra_jax.registry import export_torch, load
from terra_jax.terramind.fingerprint import fingerprint


def test_the_same_weights_have_the_same_fingerprint_whatever_file_they_come_from(tmp_path):
    tokenizer = small_tokenizer("lulc")
    export_torch(tokenizer, tmp_path / "w.safetensors")
    sizes = {
        name: value for name, value in vars(small_variant("lulc")).items() if name in asdict(small_variant("lulc"))
    }
    again = load("terramind_v1_tokenizer_lulc_nano", tmp_path / "w.safetensors", **sizes)
    assert fingerprint(again) == fingerprint(tokenizer) and len(fingerprint(tokenizer)) == 32


def test_what_changes_tokens_changes_the_fingerprint_and_nothing_else_does():
    tokenizer = small_tokenizer("s1rtc")
    same = small_tokenizer("s1rtc", clip="unit")
    assert fingerprint(same) == fingerprint(tokenizer)
    others = [small_tokenizer("s1rtc", 1), small_tokenizer("s1grd"), small_tokenizer("s1rtc", statistics="ssl4eo_s12")]
    nudged = small_tokenizer("s1rtc")
    nudged.encoder.out.bias[...] = jnp.nextafter(nudged.encoder.out.bias[...], 1)
    assert len({fingerprint(t) for t in [tokenizer, nudged, *others]}) == 5
