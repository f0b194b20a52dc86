"""The documentation site: nothing public is missing from it, and it is built without a warning."""

import ast
import inspect
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest
from running import ROOT, script

import vae_jax

PUBLIC = sorted({*dir(vae_jax)} - {"__version__"})
PAPERS = ("models", "posteriors", "priors", "networks", "likelihoods", "objectives")
"""The pages on which each name, as those in `PAPER_TOO` and metrics, has a paper, or is below."""
PAPER_TOO = {"AIS", "RandomShift", "evaluate"}
NO_PAPER = {
    # This project's own
    "AxialConvolution",
    "HorizontalDecoder",
    "HorizontalEncoder",
    "Labels",
    "LearnedPerceptual",
    "Pretrain",
    "Terms",
    "VerticalDecoder",
    "VerticalEncoder",
    # Textbook densities and networks
    "Beta",
    "Deterministic",
    "GaussianMixture",
    "Laplace",
    "MLP",
    "StandardLaplace",
    "StandardStudentT",
    "UniformCategorical",
    # Metrics without a paper, and what loads them or applies them
    "in_chunks",
    "learned_features",
    "load_features",
    "measure_quality",
    "nearest_pictures",
    "psnr",
    "standardized",
}
REFERENCE = re.compile(r'[^()"]+ \((?:19|20)\d\d\), "([^"]+)"(?:, .+)?\.')
"""Kingma & Welling (2013), "Auto-encoding variational Bayes", equation 9, for the posterior."""


@pytest.fixture(scope="module")
def pages():
    return script("pages")


def test_every_public_name_is_on_one_page_of_the_reference(pages) -> None:
    shown = [name for names in pages.public_names().values() for name in names]
    assert len({*shown}) == len(shown)
    assert {name.rpartition(".")[2] for name in shown} >= {*PUBLIC}
    for page, names in pages.public_names().items():
        text = pages.reference(page)
        assert all(f"::: {name}\n" in text for name in names)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_argument_of_a_public_class_is_explained(name: str) -> None:
    """In its docstring or that of a class that it is made from."""
    cls = getattr(vae_jax, name)
    if not inspect.isclass(cls) or issubclass(cls, Exception):
        return
    text = "\n".join(base.__doc__ or "" for base in cls.__mro__)
    fields = [each for each in inspect.signature(cls).parameters if each not in ("parent", "name")]
    missing = [each for each in fields if f"{each}:" not in text and f"{each}," not in text]
    assert not missing


def references(docstring: str) -> list[str]:
    """The entries of a docstring's block of references, each on one line."""
    block = re.search(r"^References:\n((?: {4}.*\n?)+)", inspect.cleandoc(docstring), re.MULTILINE)
    entries = re.split(r"^ {4}(?=\S)", block[1], flags=re.MULTILINE)[1:] if block else []
    return [" ".join(entry.split()) for entry in entries]


def test_every_part_names_its_paper(pages) -> None:
    named = {name.rpartition(".")[2] for page in PAPERS for name in pages.public_names()[page]}
    parts = {name: getattr(vae_jax, name) for name in named | PAPER_TOO}
    parts |= inspect.getmembers(vae_jax.metrics, inspect.isfunction)
    without = {name for name, part in parts.items() if not references(part.__doc__)}
    assert without == NO_PAPER


def test_references_have_one_form() -> None:
    """Author (year), "title", where in it; a title is nowhere shortened or spelled otherwise."""
    titles: set[str] = set()
    for file in (ROOT / "vae_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                docstring = ast.get_docstring(node) or ""
                found = [(entry, REFERENCE.fullmatch(entry)) for entry in references(docstring)]
                assert bool(found) == ("References:" in docstring), file
                assert not [entry for entry, match in found if match is None], file
                titles |= {match[1] for _, match in found if match is not None}
    assert len(titles) > 80
    spelled = sorted(f"{title.lower()}:" for title in titles)
    assert not [(a, b) for a, b in pairwise(spelled) if b.startswith(a)]


def test_every_experiment_and_notebook_has_a_page(pages) -> None:
    papers = {f"papers/{file.stem}.md" for file in (ROOT / "experiments").glob("*.py")}
    assert pages.papers().keys() == papers
    assert all(text.startswith("# ") for text in pages.papers().values())
    notebooks = {f"notebooks/{file.stem}.md" for file in (ROOT / "notebooks").glob("*.py")}
    assert pages.notebooks().keys() == notebooks
    assert all(text.startswith("# ") for text in pages.notebooks().values())


def test_the_first_page_has_links_of_the_site(pages) -> None:
    """And none of files that are not on it."""
    links = re.findall(r'(?:\]\(|src=")([^)"]*)', pages.first_page())
    files = [link.partition("#")[0] for link in links if "://" not in link]
    assert len(files) > 5
    assert all((ROOT / "docs" / file).exists() for file in files)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("mkdocs") is None, reason="needs the extra docs: make docs")
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    built = (tmp_path / "reference" / "models" / "index.html").read_text()
    assert "decoders" in built
    assert "language-pycon" in built  # examples are code
    assert "<math" in (tmp_path / "math" / "index.html").read_text()
    assert "VampPrior" in (tmp_path / "search" / "search_index.json").read_text()
