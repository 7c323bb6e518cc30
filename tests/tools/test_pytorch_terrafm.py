"""The PyTorch side of benchmarks is itself held against the public model's outputs."""

import importlib.util
import json
import sys

import numpy as np
import pytest


@pytest.fixture(scope="module")
def pytorch_terrafm(torch, repository):
    spec = importlib.util.spec_from_file_location("pytorch_terrafm", repository / "tools" / "pytorch_terrafm.py")
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up while it is being executed
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_equals_the_public_model(pytorch_terrafm, torch, fixtures_dir, named_weights):
    golden = json.loads((fixtures_dir / "golden" / "terrafm_base.json").read_text())
    manifest = json.loads((fixtures_dir / "manifests" / "terrafm" / "terrafm_base.json").read_text())
    model, seed = pytorch_terrafm.TerraFM("base").eval(), golden["seed"]
    state = {k: torch.from_numpy(named_weights.named_weight(k, v["shape"], seed)) for k, v in manifest.items()}
    model.load_state_dict(state, strict=True)
    for tag, shape in golden["inputs"].items():
        x = torch.from_numpy(named_weights.named_input(tag, shape, seed))
        stem = tag.removesuffix("_96")
        maps = {name: int(name.rsplit("_", 1)[1]) for name in golden["outputs"] if name.startswith(f"{tag}/feature_")}
        with torch.no_grad():
            outputs = {tag: model(x, stem)}
            outputs |= dict(zip(maps, model.feature_maps(x, stem, list(maps.values())), strict=True))
        for name, output in outputs.items():
            expected = np.array(golden["outputs"][name]["values"])
            found = output.numpy().ravel()[golden["outputs"][name]["points"]]
            assert np.abs(found - expected).max() <= 3e-5 * np.sqrt(np.mean(expected**2)), name


def test_a_step_moves_student_teacher_and_centres(pytorch_terrafm, torch):
    torch.manual_seed(0)
    trainer = pytorch_terrafm.DINOTrainer("nano", prototypes=64, hidden=32, bottleneck=16, drop_path=0.0)
    optimiser = trainer.optimiser(learning_rate=1e-3)
    pixels = pytorch_terrafm.SIZES["nano"].image
    views, local = torch.randn(2, 3, 12, pixels, pixels), torch.randn(4, 3, 12, pixels // 2, pixels // 2)
    before = [p.clone() for p in trainer.teacher.parameters()]
    losses = []
    for _ in range(12):
        loss, logits = trainer.loss(views, local, "s2_l2a")
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    trainer.after_update(logits, torch.tensor([True, False, False]))
    assert losses[-1] < losses[0]
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.teacher.parameters(), strict=True))
    torch.testing.assert_close(trainer.centre, 0.1 * logits.mean((0, 1)))
    torch.testing.assert_close(trainer.frequent_centre, 0.1 * logits[:, 0].mean(0))
