"""The notebooks: each half of a pair says the same, and all run from top to bottom."""

import ast
import os
import re
from functools import partial
from pathlib import Path
from typing import Any

import jax
import pytest
from running import ROOT

from vae_jax.step import init_state

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))

SWAPPED = {
    "likelihood": ("MixtureOfLogistics(5)", "CategoricalPixels()", "OptimalGaussian()"),
    "prior": ("VampPrior(20)", "GaussianMixture(10, 4)", "RealNVP(4)"),
}
every_notebook = pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)


def cells(file: Path) -> list[str]:
    """The code of a notebook's cells."""
    _, *found = re.split(r"^# %%", file.read_text(), flags=re.MULTILINE)
    return [cell.partition("\n")[2].strip() for cell in found if not cell.startswith(" [markdown]")]


@every_notebook
def test_the_halves_of_a_pair_are_the_same(file: Path):
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(file.with_suffix(".ipynb"), as_version=4)
    assert [cell.source for cell in notebook.cells if cell.cell_type == "code"] == cells(file)


def test_an_own_model_of_an_own_array_takes_at_most_fifteen_lines():
    """The likelihood and the prior a line each."""
    _, code, *_ = cells(ROOT / "notebooks" / "own_images.py")
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    assert {"import optax", "import vae_jax as vj"} <= {*code.splitlines()}
    for part in ("likelihood", "prior"):
        (line,) = (line for line in code.splitlines() if line.strip().startswith(f"{part}="))
        assert ast.parse(f"dict({line})")  # the whole of it


def test_its_likelihood_and_its_prior_are_swapped_in_one_line_each():
    """The fifteen lines with another line in place of one, traced rather than trained."""
    array, code, *_ = cells(ROOT / "notebooks" / "own_images.py")
    made, _, trained = code.rpartition("run = vj.train(")
    assert trained
    for part, others in SWAPPED.items():
        for other in others:
            swapped, count = re.subn(
                rf"^    {part}=.*$", f"    {part}=vj.{other},", made, flags=re.M
            )
            assert count == 1
            names: dict[str, Any] = {}
            exec(f"{array}\n{swapped}", names)
            experiment = names["experiment"]
            state = jax.eval_shape(partial(init_state, experiment), 0)
            assert jax.tree.leaves(state.params)
            assert type(getattr(experiment.model, part)).__name__ == other.partition("(")[0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Jupyter's own
@every_notebook
def test_a_notebook_runs(
    file: Path, tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    jupytext = pytest.importorskip("jupytext")
    client = pytest.importorskip("nbclient")
    monkeypatch.setenv("VAE_JAX_DATA_DIR", str(data_dir))
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.delenv("XLA_FLAGS")
    notebook = jupytext.read(file)
    client.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    outputs = [each for cell in notebook.cells for each in cell.get("outputs", [])]
    assert any("image/png" in each.get("data", {}) for each in outputs) or "table" in file.stem
    assert any("<progress" in str(each.get("data", {})) for each in outputs)  # a bar that ended
