"""`vae-jax table` and `list`: numbers of run folders, against NumPy and readers of each format."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vae_jax import VaeJaxError
from vae_jax.cli import main
from vae_jax.evaluation.table import Number, crossed, of_runs, pooled, read, runs_in
from vae_jax.report import compared

SOURCE = """
def experiment(*, k=1, objective="iwae"):
    raise AssertionError("a table needs no experiment")

def published(*, k, objective):
    return {("iwae", 1): "86.76", ("iwae", 5): "85.54"}[objective, k]
"""


def write_run(
    path: Path,
    nll: float | list[float],
    *,
    source: str | None = SOURCE,
    seed: int = 0,
    **flags: Any,
) -> Path:
    """A run folder as `train` and `evaluate` leave it."""
    path.mkdir(parents=True)
    seeds = len(nll) if isinstance(nll, list) else 1
    record = {
        "experiment": {"arguments": flags},
        "data": {"fingerprint": "0"},
        "file": "experiments/iwae.py",
        "source": source,
        "num_seeds": seeds,
        "num_steps": 200,
        "seed": seed,
    }
    (path / "experiment.json").write_text(json.dumps(record))
    entry = {
        "num_samples": 50,
        "num_images": 100,
        "data": "MNIST, test split",
        "mean": {"nll": nll, "neg_elbo": np.add(nll, 4).tolist()},
        "standard_error": {"nll": [0.25] * seeds, "neg_elbo": [0.5] * seeds},
        "active_units": [[19] * seeds, [3] * seeds],
        "bits_per_dim": (np.array(nll) / (784 * np.log(2))).tolist(),
    }
    old = entry | {"mean": {"nll": 1000.0}}
    (path / "evaluation.json").write_text(json.dumps([old, entry]))
    return path


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """IWAE and VAE with k = 1 and 5; the IWAE with k = 5 as a run of two seeds and one of one."""
    return [
        write_run(tmp_path / "a", 86.5, k=1, objective="iwae"),
        write_run(tmp_path / "b", 86.5, k=1, objective="vae"),
        write_run(tmp_path / "c", [85.0, 86.0], k=5, objective="iwae"),
        write_run(tmp_path / "d", 88.0, seed=2, k=5, objective="iwae"),
        write_run(tmp_path / "e", 86.25, k=5, objective="vae"),
    ]


def test_a_row_for_each_run_with_the_flags_that_differ(runs: list[Path]):
    table = of_runs(pooled(map(read, runs)))
    assert table.header[:3] == ["--k", "--objective", "NLL"]
    assert table.header[-1] == "published"
    shown = [[str(cell) for cell in row] for row in table.rows]
    assert [row[:3] for row in shown] == [
        ["1", "iwae", "86.50 ± 0.25"],
        ["1", "vae", "86.50 ± 0.25"],
        ["5", "iwae", "86.33 ± 1.53"],  # 85, 86, 88: variance 7/3
        ["5", "vae", "86.25 ± 0.25"],
    ]
    assert [row[-1] for row in shown] == ["86.76", "", "85.54", ""]
    assert shown[0][table.header.index("active units")] == "22"
    assert "K = 50, 100 images. MNIST, test split." in table.caption


def test_two_flags_cross(runs: list[Path]):
    table = crossed(pooled(map(read, runs)), "k", "objective", "neg_elbo")
    iwae, vae = "--objective iwae", "--objective vae"  # for which nothing was published
    assert table.header == ["--k", iwae, f"{iwae} published", vae]
    assert [[str(cell) for cell in row] for row in table.rows] == [
        ["1", "90.50 ± 0.50", "86.76", "90.50 ± 0.50"],
        ["5", "90.33 ± 1.53", "85.54", "90.25 ± 0.50"],
    ]
    assert "Published numbers are of the quantity that the paper reports." in table.caption
    table = crossed(pooled(map(read, runs)), "objective", "k")
    assert table.header == ["--objective", "--k 1", "--k 1 published", "--k 5", "--k 5 published"]
    assert [[str(cell) for cell in row] for row in table.rows] == [
        ["iwae", "86.50 ± 0.25", "86.76", "86.33 ± 1.53", "85.54"],
        ["vae", "86.50 ± 0.25", "", "86.25 ± 0.25", ""],
    ]
    table = crossed(pooled(map(read, runs[1::3])), "k", "objective")  # VAEs alone
    assert table.header == ["--k", vae]
    assert "ublished" not in table.caption
    with pytest.raises(VaeJaxError, match=r"No run has a flag --kk: choose one of .*--k"):
        crossed(pooled(map(read, runs)), "kk", "objective")
    with pytest.raises(VaeJaxError, match="differ in --objective too"):
        crossed(pooled(map(read, runs)), "k", "experiment")


def test_each_format_is_read_back(runs: list[Path], tmp_path: Path, capsys: Any):
    for ending in ("md", "tex", "csv"):
        out = tmp_path / f"out.{ending}"
        main(["table", *map(str, runs), "--rows", "k", "--columns", "objective", "--out", str(out)])
        assert capsys.readouterr().out.splitlines()[-1] == str(out)
    markdown = (tmp_path / "out.md").read_text().splitlines()
    header = "| --k | --objective iwae | --objective iwae published | --objective vae |"
    assert markdown[0] == header
    assert markdown[3] == "| 5 | 86.33 ± 1.53 | 85.54 | 86.25 ± 0.25 |"
    latex = (tmp_path / "out.tex").read_text()
    assert r"\begin{tabular}{lrlr}" in latex
    assert r"5 & 86.33 $\pm$ 1.53 & 85.54 & 86.25 $\pm$ 0.25 \\" in latex
    (first, second) = csv.DictReader((tmp_path / "out.csv").read_text().splitlines())
    assert float(first["--objective iwae"]) == 86.5
    assert float(second["--objective iwae"]) == pytest.approx(np.mean([85, 86, 88]))
    assert float(second["--objective iwae error"]) == pytest.approx(np.std([85, 86, 88], ddof=1))
    assert second["--objective iwae seeds"] == "3"
    assert [line["--objective iwae published"] for line in (first, second)] == ["86.76", "85.54"]


def test_latex_and_markdown_take_any_flag(tmp_path: Path):
    runs = [write_run(tmp_path / name, 1.0, name=name) for name in ("50% a_b & c", "x|y")]
    table = of_runs(pooled(map(read, runs)))
    assert r"50\% a\_b \& c" in table.latex()
    assert r"x\|y" in table.markdown()


def test_numbers_without_an_error_have_none():
    assert str(Number(np.array([3.14159]), decimals=3)) == "3.142"


def test_damaged_and_missing_evaluations_are_a_sentence(tmp_path: Path):
    path = write_run(tmp_path / "run", 1.0, k=1, objective="iwae")
    for content in ("[]", '[{"mean": 3}]', '[{"mean": {"nll": "x"}}]', "{"):
        (path / "evaluation.json").write_text(content)
        with pytest.raises(VaeJaxError, match="damaged"):
            read(path)
    (path / "evaluation.json").unlink()
    with pytest.raises(VaeJaxError, match=r"was not evaluated yet: vae-jax evaluate "):
        read(path)


def test_runs_are_listed(runs: list[Path], tmp_path: Path):
    (runs[0] / "summary.json").write_text(json.dumps({"step": 200, "params_sha256": "0"}))
    (runs[1] / "metrics.jsonl").write_text(
        '{"step": 50, "loss": 1.0}\n{"step": 100, "loss": 1.0}\n'
    )
    (runs[1] / "evaluation.json").unlink()
    shown = [[str(cell) for cell in row] for row in runs_in(tmp_path).rows]
    assert shown[0] == [str(runs[0]), "iwae", "1", "finished", "86.50 ± 0.25"]
    assert shown[1] == [str(runs[1]), "iwae", "1", "step 100 of 200", ""]
    assert len(shown) == len(runs)
    with pytest.raises(VaeJaxError, match="no run folder in"):
        runs_in(runs[0] / "figures")


def test_code_that_fails_or_knows_no_number_publishes_nothing(tmp_path: Path):
    without = "def published(**_): ..."
    for name, source in enumerate(("raise ValueError", "def experiment(): ...", None, without)):
        path = write_run(tmp_path / str(name), 1.0, source=source, k=1, objective="iwae")
        assert read(path).published == ""


def test_compare_shows_what_differs_and_the_numbers(
    runs: list[Path], capsys: pytest.CaptureFixture[str]
):
    one, other = compared(runs[:2]), compared([runs[0], runs[0].parent / runs[1].name])
    assert one == other
    flags = [row for row in one.rows if str(row[0]).startswith("--")]
    arguments = [json.loads((run / "experiment.json").read_text()) for run in runs[:2]]
    expected = {
        f"--{name}": [str(each["experiment"]["arguments"][name]) for each in arguments]
        for name in ("k", "objective")
    }
    assert {str(row[0]): row[1:] for row in flags} == {
        name: values for name, values in expected.items() if values[0] != values[1]
    }
    nll = [row for row in one.rows if "importance-weighted" in str(row[0])]
    assert all("s.e." in str(cell) or "sd" in str(cell) for row in nll for cell in row[1:] if cell)
    assert nll
    main(["compare", *map(str, runs)])
    shown = capsys.readouterr().out
    assert all(run.name in shown for run in runs)
    with pytest.raises(VaeJaxError, match="at least two"):
        compared(runs[:1] * 2)
