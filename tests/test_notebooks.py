"""Each notebook is the one that its source makes, and runs from top to bottom."""

import re
import shutil
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "experiments" / "notebooks"
NOTEBOOKS = sorted(path.stem for path in FOLDER.glob("*.py"))


def read(path):
    jupytext = pytest.importorskip("jupytext")
    return jupytext.read(path)


def cells(notebook):
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def test_every_notebook_has_a_source():
    assert NOTEBOOKS
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == NOTEBOOKS


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_notebook_is_what_its_source_makes(name):
    notebook = read(FOLDER / f"{name}.ipynb")
    assert cells(notebook) == cells(read(FOLDER / f"{name}.py")), "run `make notebooks`"
    assert all(not cell.get("outputs") for cell in notebook.cells), "outputs are not kept"
    assert "colab.research.google.com" in notebook.cells[0].source


def run(name, folder, monkeypatch, model):
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("TCIRCUITS_NOTEBOOK_MODEL", model)
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parent.parent))
    shutil.copy(FOLDER / f"{name}.py", folder)
    notebook = read(folder / f"{name}.py")
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": folder}}
    ).execute()
    printed = [o.text for cell in notebook.cells for o in cell.get("outputs", []) if o.output_type == "stream"]
    shown = [o.data for cell in notebook.cells for o in cell.get("outputs", []) if o.output_type == "execute_result"]
    return "".join(printed), shown


@pytest.mark.slow
def test_first_circuit_runs_on_the_small_model(tmp_path, monkeypatch):
    pytest.importorskip("glassllm")
    printed, shown = run("first_circuit", tmp_path, monkeypatch, "glassllm")
    assert "4 layers, 1364 neurons" in printed
    assert any("<iframe" in data.get("text/html", "") for data in shown), "the pruned graph shows its page"


@pytest.mark.slow
@pytest.mark.smollm2
def test_first_circuit_finds_paris(tmp_path, monkeypatch):
    printed, _ = run("first_circuit", tmp_path, monkeypatch, "smollm2-135m")
    lines = printed.splitlines()
    assert "0.7725 ' Paris'" in lines
    both = next(re.findall(r"\d+\.\d+", line) for line in lines if line.startswith("sum of the row"))
    assert [float(x) for x in both] == pytest.approx([19.2295, 19.2295], abs=1e-3)  # computed once with NumPy alone
    without = {line.split(" ")[1]: float(line.split()[-1]) for line in lines if line.startswith("without")}
    assert without["its"] < 0.5 < without["eight"]
