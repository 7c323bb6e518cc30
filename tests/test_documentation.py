"""Every command and snippet of README.md and BUILD.md is run, at a small size, or is one that .ci/run runs."""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import TINY, TINY_EVALUATION, TINY_SKYSENSE, TINY_TOKENIZER, quick_compilation

import terra_jax
from terra_jax.weights.files import open_state

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CI = (ROOT / ".ci" / "run").read_text().replace('"$bin/', ".venv/bin/").replace('"', "").replace("--quiet", "-q")

SMALL = {"terrafm/base": "terrafm/nano", "terrafm_base": "terrafm_nano"}
"""What stands for the large models of the documents."""

IN_CI = (".venv/bin/ruff check .", ".venv/bin/ruff format --check .", ".venv/bin/mypy", ".venv/bin/python -m pytest")


def blocks(document: str) -> list[tuple[str, str]]:
    """(language, text) of each fenced block."""
    return BLOCK.findall((ROOT / document).read_text())


def commands(document: str) -> list[str]:
    return [line for language, text in blocks(document) if language == "sh" for line in text.splitlines()]


def kind(command: str) -> str:
    """How a command is checked."""
    if command.startswith("python3 -m venv .venv && "):
        return "set-up"
    if command.startswith("terra-jax "):
        return "run"
    if command.startswith(".venv/bin/python tools/"):
        return "tool"
    if command in IN_CI or command == ".ci/run":
        return "ci"
    return "tests" if " -m pytest " in command else "unchecked"


EVERY = [(document, line) for document in ("README.md", "BUILD.md") for line in commands(document)]
TOOL_COMMANDS = [line for _, line in EVERY if kind(line) == "tool"]


@pytest.mark.parametrize(("document", "command"), EVERY)
def test_no_command_is_unchecked(document, command):
    assert kind(command) != "unchecked"
    assert {language for language, _ in blocks(document)} <= {"sh", "python"}


def test_the_first_screen_has_two_commands_that_set_everything_up():
    train, test = (line for line in commands("README.md") if kind(line) == "set-up")
    assert [train, test] == commands("README.md")[:2]
    set_up, main_job = train.rsplit(" && ", 1)
    assert set_up == "python3 -m venv .venv && .venv/bin/pip install -q ."
    assert main_job == ".venv/bin/terra-jax train --config terrafm/nano --workdir runs/nano"  # the run of `workspace`
    smoke = (ROOT / ".ci" / "smoke.py").read_text()  # CI does so with the wheel of `.` in a fresh environment
    assert "pip wheel -q" in CI and '"train", "--config", "terrafm/nano"' in smoke
    for step in test.split(" && ")[1:]:
        assert step.replace(chr(34), "") in CI


def test_commands_of_ci_are_there():
    for command in (line for _, line in EVERY if kind(line) == "ci"):
        assert os.access(ROOT / command, os.X_OK) if command == ".ci/run" else command in CI


def test_commands_that_choose_tests(pytestconfig):
    for command in (line for _, line in EVERY if kind(line) == "tests"):
        words = shlex.split(command)
        marker = words[words.index("-m", 3) + 1].removeprefix("not ") if words.count("-m") > 1 else None
        if marker:
            assert any(line.startswith(f"{marker}:") for line in pytestconfig.getini("markers"))
        for path in (ROOT / word for word in words if word.startswith("tests/")):
            variables = [word.split("=")[0] for word in words if re.match(r"[A-Z_]+=", word)]
            assert all(f'"{variable}"' in path.read_text() for variable in variables)


@pytest.fixture(scope="module")
def workspace(tiny_run, tmp_path_factory) -> Path:
    """A folder with what the commands of README take: a finished run, PyTorch weights, tiles."""
    from terra_jax.registry import build, export_torch

    sys.path.insert(0, str(ROOT / "tests" / "data_pipelines"))
    from fakes import write_folder

    folder = tmp_path_factory.mktemp("workspace")
    shutil.copytree(tiny_run, folder / "runs" / "nano")
    export_torch(build("terrafm_nano", seed=1), folder / "TerraFM-B.pth")
    write_folder(folder / "tiles", modalities=("S2L2A", "S1RTC", "LULC"), pixels=24)
    return folder


def tiny(command: str) -> list[str]:
    """A terra-jax command's arguments at a small size."""
    words = [SMALL.get(word, word) for word in shlex.split(command)[1:]]
    if words[0] in ("train", "evaluate") and any(word.startswith("terramind/") for word in words):
        return [*words, *TINY_TOKENIZER]
    if words[0] in ("train", "evaluate") and any(word.startswith("skysense/") for word in words):
        return [*words, *TINY_SKYSENSE]
    extra = {
        "train": TINY,
        "evaluate": (*TINY, *TINY_EVALUATION),
        "tokenize": ("--samples", "4"),
        "doctor": TINY,
        "compile": TINY,
    }
    return [*words, *extra.get(words[0], ())]


def test_readme_runs_from_top_to_bottom(workspace, terra_jax_command, monkeypatch):
    monkeypatch.chdir(workspace)
    said: dict[str, str] = {}
    names: dict[str, Any] = {}
    for language, text in blocks("README.md"):
        if language == "python" and "import torch" not in text:
            with quick_compilation():
                exec(compile(text, "README.md", "exec"), names)
        for command in text.splitlines() if language == "sh" else ():
            if kind(command) == "run":
                result = terra_jax_command(*tiny(command))
                assert result.status == 0, f"{command}: {result.err}"
                said[command] = result.out
    check_outputs(said)
    check_names(names)


def check_outputs(said: Mapping[str, str]) -> None:
    def output(part: str) -> str:
        return next(out for command, out in said.items() if part in command)

    assert "left 3 fresh: encoder.patch_embed.fusion.key, encoder.patch_embed.fusion.pool" in output("--config.init")
    assert "not applicable" in Path("runs/own/report.json").read_text()
    assert output("terra-jax models").count("parameters") == len(terra_jax.list_models())
    assert "random encoder" in output("evaluate --config terrafm") and Path("scores.json").is_file()
    assert "accuracy" in output("evaluate --config terramind")
    assert "tokens: 8 records of 4 samples" in output("terra-jax tokenize")
    written = {path.name for path in Path("runs/nano").iterdir()}
    listed = re.findall(r"^\| `([\w.]+)/?\w*/?` \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert written == {name for name in listed if not name.startswith(("terra", "sky"))}


def check_names(names: Mapping[str, Any]) -> None:
    assert names["one"].shape == names["fused"].shape == names["few"].shape == (2, 64)
    assert names["public"].stems["S2L2A"] == "s2_l1c"
    assert [chart.shape for chart in names["maps"]] == [(2, 12, 12, 64)] * 2
    assert len(names["shapes"]) == 308
    assert names["ids"].shape == (1, 8, 8) and names["classes"].shape == (1, 64, 64)
    assert set(names["record"].ids) == {"LULC", "coords"}
    again, trained = open_state("again.safetensors"), open_state("terrafm_nano.pt")
    assert list(again) == list(trained)
    assert all(np.array_equal(again[key].read(), trained[key].read()) for key in trained)


def test_pytorch_loads_strictly_what_convert_writes(torch, workspace, terra_jax_command, monkeypatch):
    monkeypatch.chdir(workspace)
    variant = importlib.import_module("terra_jax.terrafm.variants").VARIANTS["terrafm_nano"]
    spec = importlib.util.spec_from_file_location("pytorch_terrafm", ROOT / "tools" / "pytorch_terrafm.py")
    public = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, public)
    spec.loader.exec_module(public)
    size = public.Size(variant.width, variant.depth, variant.heads, variant.patch, variant.image)
    names = {"model": public.TerraFM(size)}
    target = [*tiny("terra-jax convert --model terrafm_nano --from runs/nano --to terrafm_nano.pt"), "--overwrite"]
    assert terra_jax_command(*target).status == 0
    (snippet,) = (text for language, text in blocks("README.md") if language == "python" and "import torch" in text)
    exec(compile(snippet, "README.md", "exec"), names)
    assert len(names["state"]) > 0


def test_readme_lists_every_model():
    rows = re.findall(r"^\| `((?:terra|sky)\w+)` \| ([\d,]+) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert {name: int(count.replace(",", "")) for name, count in rows} == terra_jax.list_models()


def test_paths_that_the_documents_name_exist():
    for document in ("README.md", "BUILD.md"):
        text = BLOCK.sub("", (ROOT / document).read_text())
        named = re.findall(r"`((?:tests|tools|terra_jax|data_pipelines|configs|\.ci)/[\w./]*)`", text)
        assert named and not [path for path in named if not (ROOT / path).exists()]


SMALL_TOOLS = {
    "tools/earth_portrait.py": (("--samples", "1", "--statistics", "2", "--tile", "32"), "S2L2A"),
    "tools/series_portrait.py": (("--samples", "1"), ""),
    "tools/skysense_ledger.py": ((), "1,657,985,232"),
}
"""Tools that are run here: what makes them quick, and something that they print."""


@pytest.mark.parametrize("command", TOOL_COMMANDS)
def test_tools(command, tmp_path):
    """The portrait is drawn; what takes minutes is run by the tool's own test, here only its options are looked up."""
    program, *arguments = shlex.split(command)[1:]
    if program in SMALL_TOOLS:
        smaller, said = SMALL_TOOLS[program]
        assert said in run_tool(program, tmp_path, *arguments, *smaller)
        assert all((tmp_path / word).is_file() for word in arguments if word.endswith(".png"))
        return
    name = Path(program).stem
    tested = (ROOT / "tests" / "tools" / f"test_{name}.py").read_text()
    assert f"{name}.py" in tested and f'"{arguments[0]}"' in tested and "@pytest.mark.slow" in tested
    options = [word for word in arguments if word.startswith("--")]
    assert not [option for option in options if option not in run_tool(program, tmp_path, "--help")]


def run_tool(program: str, folder: Path, *arguments: str) -> str:
    """What a tool prints, run from an empty folder."""
    words = [sys.executable, str(ROOT / program), *arguments]
    result = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout
