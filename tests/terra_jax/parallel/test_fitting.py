from ml_collections import ConfigDict

from terra_jax.parallel.fitting import compile_report

GIB = 2**30
KEPT = {"none": 8.0, "dots": 3.0, "full": 1.0}


def config(**values):
    mesh = {"data": -1, "fsdp": 1, "tensor": 1}
    return ConfigDict({"batch_size": 64, "accumulation": 1, "remat": "none", "mesh": mesh, **values})


def compiler(state, activations, devices=16):
    """A compiler for which memory is state / fsdp + activations x what remat keeps / accumulation, in GiB."""
    seen = []

    def compile_config(config):
        data, fsdp = config.mesh.data, config.mesh.fsdp
        seen.append((config.remat, config.accumulation, fsdp))
        peak = state / fsdp + activations * KEPT[config.remat] / config.accumulation
        return {
            "run": {"mesh": {"data": devices // fsdp if data == -1 else data, "fsdp": fsdp, "tensor": 1}},
            "argument_bytes": state / fsdp * GIB,
            "peak_bytes": peak * GIB,
            "hbm_bytes": 16 * GIB,
            "fits": peak < 16,
            "mfu_upper_bound": 0.5,
        }

    return compile_config, seen


def would_fit(state, activations, **values):
    compile_config, seen = compiler(state, activations)
    said = []
    report = compile_report(config(**values), compile_config, said.append)
    assert len(said) == len(seen) - 1
    return report.get("would_fit", "fits"), seen


def test_what_fits_is_left_alone():
    assert would_fit(2, 1) == ("fits", [("none", 1, 1)])


def test_the_weakest_recomputation_that_suffices_is_named():
    found, seen = would_fit(2, 3)
    assert found == {"change": {"remat": "dots"}, "peak_bytes": 11 * GIB, "mfu_upper_bound": 0.5}
    assert seen == [("none", 1, 1), ("dots", 1, 1)]
    assert would_fit(2, 10)[0]["change"] == {"remat": "full"}


def test_then_as_many_micro_batches_as_are_needed():
    found, seen = would_fit(2, 40, remat="full")
    assert found["change"] == {"accumulation": 4}
    assert seen == [("full", 1, 1), ("full", 4, 1)]  # 2 would not do, which is known without compiling
    assert would_fit(2, 40, remat="full", batch_size=16)[0] is None  # one example a device cannot be divided


def test_a_state_that_does_not_fit_is_sharded():
    found, seen = would_fit(40, 2, remat="full")
    assert found["change"] == {"mesh.data": 4, "mesh.fsdp": 4}
    assert seen == [("full", 1, 1), ("full", 1, 4)]


def test_nothing_is_promised_where_nothing_helps():
    found, seen = would_fit(1000, 1000)
    assert found is None and len(seen) <= 7
