"""The Colab notebook's cells, run in order at a small size."""

import json

import pytest
from command_line import TINY, quick_compilation

SMALL = repr([*TINY, "--config.batch_size=8"])  # one example for each forced device


def cells(notebook):
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


@pytest.mark.slow
def test_the_notebook_trains_shows_and_converts(repository, tmp_path, monkeypatch):
    notebook = json.loads((repository / "tools" / "colab" / "nano.ipynb").read_text())
    assert notebook["nbformat"] == 4 and not any(cell.get("outputs") for cell in notebook["cells"])
    shown = []
    monkeypatch.chdir(tmp_path)
    names = {"Image": lambda path: path, "display": shown.append}
    for number, text in enumerate(cells(notebook)):
        if number == 0:
            assert "CHANGES = []" in text
            text = text.replace("CHANGES = []", f"CHANGES = {SMALL}")
        text = text.replace("from IPython.display import Image, display", "")  # what Colab has
        with quick_compilation():
            exec(compile(text, f"cell {number}", "exec"), names)
    assert names["report"]["steps"] == 4
    assert shown == ["runs/nano/report.png"] and (tmp_path / shown[0]).is_file()
    assert (tmp_path / "terrafm_nano.pt").is_file()
