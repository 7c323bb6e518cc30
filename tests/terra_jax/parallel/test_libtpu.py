import os

import pytest

from terra_jax.parallel import libtpu


@pytest.mark.parametrize(
    ("noted", "present", "absent"), [(True, False, True), (True, True, False), (False, False, False)]
)
def test_only_where_jax_found_none_is_a_tpu_known_to_be_absent(monkeypatch, noted, present, absent):
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)
    if noted:
        monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setattr(libtpu, "has_tpu", lambda: present)
    assert libtpu.known_to_be_absent() is absent


def test_what_the_user_says_is_kept(monkeypatch):
    monkeypatch.setattr(os, "environ", {"TPU_WORKER_ID": "3"})
    libtpu.keep_quiet()
    assert os.environ["TPU_WORKER_ID"] == "3" and os.environ["TPU_MIN_LOG_LEVEL"] == "3"
