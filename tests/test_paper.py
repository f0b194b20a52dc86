"""A paper's table by one command: what is missing, budgets, rows of the document, quick forms."""

import inspect
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from running import CLI, ROOT, TINY, on_devices, summary

from vae_jax import GaussianMixture, VaeJaxError, fit_prior, load, load_run, train_file
from vae_jax.budget import Budget, within
from vae_jax.checkpoint import fingerprint
from vae_jax.cli import main
from vae_jax.cli.paper import Asked, with_starts
from vae_jax.experiment import read_module
from vae_jax.grid import names_of
from vae_jax.report.results import END, HEADER, write_rows
from vae_jax.run import RunFolder

FILE = '''
"""Bars: a table of one row a beta.

More text.
"""
import dataclasses, pathlib, optax, tiny

def experiment(*, hidden: int = 8, beta: float = 1.0, num_steps: int = 40):
    made = tiny.experiment(hidden=hidden, beta=beta, num_steps=num_steps)
    return dataclasses.replace(made, optimizer=optax.adam(1e-2))

def table(*, quick: bool = False):
    return [{"beta": beta} for beta in ((1.0,) if quick else (1.0, 2.0))]

def published(*, beta, **_):
    return {1.0: "12.5 nats"}[beta]
'''


DRAWN = """
def figures(*, workdir: pathlib.Path = pathlib.Path("runs")):
    import json
    from vae_jax import train_file, train_grid
    runs = {"alone": train_file(__file__, workdir / "alone")}
    runs |= train_grid(__file__, workdir / "grid", table())
    steps = {name: int(run.state.step[0]) for name, run in runs.items()}
    (workdir / "steps.json").write_text(json.dumps(steps))
    return [workdir / "steps.json"]
"""


@pytest.fixture(scope="module", autouse=True)
def one_device() -> Iterator[None]:
    with on_devices(1):
        yield


# Budgets


def test_a_budget_is_epochs_or_hours() -> None:
    epochs = Budget.of("2.5epochs")
    assert [epochs.is_spent(each) for each in (0, 2.4, 2.5, 3)] == [False, False, True, True]
    assert Budget.of("1 epoch").is_spent(1)
    assert Budget.of("0h").is_spent(0)
    assert not Budget.of("1h").is_spent(1e9)
    assert not Budget.of(None).is_spent(1e9)
    for text in ("3", "h", "-1h", "1 day", "epochs", "1e3h"):
        with pytest.raises(VaeJaxError, match="give epochs or hours, as 40epochs or"):
            Budget.of(text)


# Documents


def row(run: str, value: str) -> str:
    return f"| `{run}` | {value} | | | | | |"


def test_rows_replace_those_of_the_same_run_and_nothing_else(tmp_path: Path) -> None:
    document = tmp_path / "results.md"
    document.write_text("# Results\n\nWritten by hand.\n")
    write_rows(document, "a.py", "One paper", [row("a 1", "1"), row("a 2", "2")])
    write_rows(document, "b.py", "Another", [row("b 1", "3")])
    text = document.read_text().replace("\n\n## Another", "\n\nA miss and its cause.\n\n## Another")
    document.write_text(text)
    write_rows(document, "a.py", "One paper", [row("a 2", "2.5"), row("a 3", "4")])
    table_a = [row("a 1", "1"), row("a 2", "2.5"), row("a 3", "4")]
    assert document.read_text() == "\n".join(
        [
            "# Results\n\nWritten by hand.\n\n## One paper\n",
            "<!-- vae-jax table a.py -->",
            *(HEADER, *table_a, END),
            "\nA miss and its cause.\n\n## Another\n",
            "<!-- vae-jax table b.py -->",
            *(HEADER, row("b 1", "3"), END, ""),
        ]
    )


@pytest.mark.parametrize("first", ["a.py", "a.py --quick"])
def test_a_paper_has_one_section(first: str, tmp_path: Path) -> None:
    """The full form above the quick one, whichever was written first, and the text below each."""
    document = tmp_path / "results.md"
    write_rows(document, first, "One paper", [row(first, "1")])
    write_rows(document, "b.py", "Another", [row("b 1", "3")])
    text = document.read_text().replace("\n\n## Another", "\n\nA miss.\n\n## Another")
    document.write_text(text)
    (second,) = {"a.py", "a.py --quick"} - {first}
    write_rows(document, second, "One paper", [row(second, "2")])
    lines = [line for line in document.read_text().splitlines() if line[:1] not in ("", "<", "|")]
    miss = lines.index("A miss.")
    expected = ["# Results", "## One paper", "### Quick form", "## Another"]
    expected.insert(miss, "A miss.")
    assert lines == expected
    assert miss == (2 if first == "a.py" else 3)
    rows = [line for line in document.read_text().splitlines() if line.startswith("| `")]
    assert [line.split("`")[1] for line in rows] == ["a.py", "a.py --quick", "b 1"]


def test_a_table_without_an_end_is_left_as_it_is(tmp_path: Path) -> None:
    document = tmp_path / "results.md"
    write_rows(document, "a.py", "One paper", [row("a 1", "1")])
    text = document.read_text().replace(END, "Text by hand.")
    document.write_text(text)
    with pytest.raises(VaeJaxError, match=r"table of a\.py in .* has no end: put a line <!-- end"):
        write_rows(document, "a.py", "One paper", [row("a 2", "2")])
    assert document.read_text() == text


def test_the_results_have_a_table_for_each_file_named() -> None:
    """And every row of it names that file, so that the next command finds it."""
    text = (ROOT / "docs" / "results.md").read_text()
    parts = text.split("<!-- vae-jax table ")[1:]
    assert len(parts) >= 4
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert len({*headings}) == len(headings)
    for part in parts:
        words, rest = part.split(" -->", 1)
        file, *quick = words.split()
        assert quick in ([], ["--quick"])
        assert (ROOT / file).exists()
        header, _, *rows = rest.split(END)[0].strip().splitlines()
        assert header == HEADER.splitlines()[0]
        assert rows
        assert all(line.startswith(f"| `vae-jax train {file} ") for line in rows)


# The command


@pytest.mark.slow
def test_a_table_trains_what_is_missing_as_far_as_the_budget_goes(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file, runs, document = tmp_path / "bars.py", tmp_path / "runs", tmp_path / "results.md"
    file.write_text(FILE)
    command = ["table", str(file), "--workdir", str(runs), "--num-samples", "3"]
    with pytest.raises(SystemExit):
        main([*command, "--no-train"])
    said = capfd.readouterr().err
    assert "beta=1.0 is missing: it has not begun. It needs 40 steps of 16 images, 7.11" in said
    assert "No cell of" in said
    # 90 images in batches of 16: three epochs are over after 16.9 steps, so at the line of step 20.
    main([*command, "--budget", "3epochs"])
    said = capfd.readouterr().err
    both = f"{runs}/beta=1.0, {runs}/beta=2.0"
    assert f"The budget is spent for {both}. Run the same command to continue." in said
    assert f"{runs}/beta=1.0 is not finished: step 20 of 40." in said
    assert not (runs / "beta=1.0" / "summary.json").exists()
    main([*command, "--budget", "3epochs"])
    capfd.readouterr()
    evaluations = runs / "beta=1.0" / "evaluation.json"
    assert len(json.loads(evaluations.read_text())) == 1  # the state is the one that it is of
    main([*command, "--results", str(document), "--out", str(tmp_path / "table.md")])
    assert "not finished" not in capfd.readouterr().err
    for beta in (1.0, 2.0):
        alone = tmp_path / "alone" / str(beta)
        train_file(file, alone, {"hidden": 8, "beta": beta, "num_steps": 40})
        expected = pytest.approx(summary(alone)["valid_nll"], rel=1e-5)
        assert summary(runs / f"beta={beta}")["valid_nll"] == expected
    first, second = json.loads(evaluations.read_text())
    assert (first["checkpoint"], second["checkpoint"]) == ("latest, step 20", "latest, step 40")
    lines = [line for line in document.read_text().splitlines() if line.startswith("| `")]
    assert [line.split(" | ")[1] for line in lines] == ["12.5 nats", "no number"]
    assert f"`vae-jax train {file} --hidden 8 --beta 1.0 --num-steps 40 --seed 0" in lines[0]
    assert "## Bars: a table of one row a beta\n" in document.read_text()
    shown = (tmp_path / "table.md").read_text().splitlines()
    assert shown[0].startswith("| --beta | NLL |")
    assert shown[0].endswith("| published |")
    # A document of the same runs by their folders is the same.
    main(["table", str(runs), "--results", str(tmp_path / "again.md")])
    assert (tmp_path / "again.md").read_text() == document.read_text()


@pytest.mark.slow
def test_flags_hold_for_all_cells(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One that makes cells equal leaves one of them; the quick form has its own."""
    file, runs = tmp_path / "bars.py", tmp_path / "runs"
    file.write_text(FILE)
    command = ["table", str(file), "--workdir", str(runs), "--num-steps", "5"]
    with pytest.raises(SystemExit):
        main([*command, "--no-train", "--budget", "3 weeks"])
    assert "--budget is 3 weeks" in capfd.readouterr().err
    main([*command, "--num-samples", "2", "--hidden", "5"])
    records = [RunFolder(path).read_record() for path in sorted(runs.iterdir())]
    arguments = [record["experiment"]["arguments"] for record in records]
    assert arguments == [{"hidden": 5, "beta": beta, "num_steps": 5} for beta in (1.0, 2.0)]
    with pytest.raises(SystemExit):  # what makes the two cells one leaves that one
        main([*command, "--no-train", "--beta", "3.0", "--workdir", str(tmp_path / "other")])
    assert capfd.readouterr().err.count("is missing: it has not begun") == 1
    file.write_text(FILE.replace("def table", "def no_table"))
    with pytest.raises(SystemExit):
        main(command)
    assert "has no function `table(*, quick=False)`" in capfd.readouterr().err


@pytest.mark.slow
def test_figures_are_drawn_from_runs_as_far_as_the_budget_goes(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of single runs and of grids; the same command, without a budget, trains them to their end."""
    file, runs = tmp_path / "bars.py", tmp_path / "runs"
    file.write_text(FILE + DRAWN)
    command = ["figures", str(file), "--workdir", str(runs)]

    def drawn(*flags: str) -> tuple[dict[str, int], str]:
        main([*command, *flags])
        said = capfd.readouterr()
        assert said.out.split() == [str(runs / "steps.json")]
        return json.loads((runs / "steps.json").read_text()), said.err

    steps, said = drawn("--budget", "3epochs")
    assert steps == {"alone": 20, "beta=1.0": 20, "beta=2.0": 20}
    assert f"The budget is spent for {runs}/alone. Run the same command to continue." in said
    state = load_run(runs / "alone").state
    again, _ = drawn("--budget", "3 epochs")  # nothing more is trained, even after the hours
    assert again == steps
    assert drawn("--budget", "0h")[0] == steps
    assert fingerprint(load_run(runs / "alone").state.params) == fingerprint(state.params)
    assert drawn()[0] == dict.fromkeys(steps, 40)
    assert drawn("--budget", "0h")[0] == dict.fromkeys(steps, 40)
    whole = train_file(file, tmp_path / "whole", {"num_steps": 40}).state
    assert fingerprint(load_run(runs / "alone").state.params) == fingerprint(whole.params)
    for budget, message in (("0h", f"spent before {tmp_path}/b/alone began"), ("1", "40epochs or")):
        with pytest.raises(SystemExit):
            main([*command[:-1], str(tmp_path / "b"), "--budget", budget])
        assert message in capfd.readouterr().err


@pytest.mark.slow
def test_a_prior_is_not_fitted_to_a_run_that_a_budget_has_ended(tmp_path: Path) -> None:
    with within(Budget(epochs=1)):
        first = train_file(TINY, tmp_path / "first")
        with pytest.raises(VaeJaxError, match="second fits a prior, is not finished"):
            fit_prior(first, GaussianMixture(2, 3), tmp_path / "second", num_steps=3)
    assert int(first.state.step[0]) < first.experiment.num_steps


CONTINUED = """
'Bars that go on.'
import dataclasses, tiny, vae_jax

def experiment(*, beta: float = 1.0, steps: int = 5, start: str | None = None):
    made = tiny.experiment(beta=beta, num_steps=steps)
    return dataclasses.replace(made, start=start)

def table(*, quick: bool = False):
    first = {"beta": 1.0, "steps": 6}
    return [first, {"beta": 1.0, "steps": 7}, {"beta": 2.0, "steps": 6, "start": first}]

def evaluation(*, quick: bool = False):
    annealing = vae_jax.AIS(2, 2, 1)
    return {"num_samples": 4 if quick else 3, "num_images": 5, "ais": annealing, "gaps": True}
"""


@pytest.mark.slow
def test_a_cell_waits_for_the_one_with_which_it_begins(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Then begins with its parameters; its flags have no value that is None.

    A flag makes two cells equal and the names of the others' folders shorter.
    """
    file, runs, document = tmp_path / "bars.py", tmp_path / "runs", tmp_path / "results.md"
    file.write_text(CONTINUED)
    command = ["table", str(file), "--workdir", str(runs), "--steps", "5"]
    with pytest.raises(SystemExit):
        main([*command, "--budget", "0epochs"])
    then = "beta=2.0,start=beta%3D1.0"
    said = capfd.readouterr().err
    assert f"{then} begins with {runs}/beta=1.0, which is not finished" in said
    main([*command, "--quick", "--results", str(document)])
    assert f"begins with the parameters of {runs}/beta=1.0, step 5" in capfd.readouterr().err
    entries = [
        json.loads((runs / name / "evaluation.json").read_text()) for name in ("beta=1.0", then)
    ]
    assert [(entry["num_samples"], entry["num_images"]) for (entry,) in entries] == [(4, 5)] * 2
    text = document.read_text()
    assert "## Bars that go on\n\n### Quick form\n\n" in text
    assert f"<!-- vae-jax table {file} --quick -->" in text
    first, second = (line for line in text.splitlines() if line.startswith("| `"))
    assert "--start" not in first
    assert "--beta 2.0 --steps 5 --start beta=1.0 --seed 0" in second
    rate, distortion = (np.mean(entries[0][0]["mean"][name]) for name in ("kl", "distortion"))
    assert f" = {rate:.2f} + {distortion:.2f}; gaps: " in first
    assert "0.888889 epochs (5 steps)" in first  # 5 batches of 16 of 90 images
    both = [
        (mean["nll_ais"], *(mean[f"{name}_gap"] for name in ("approximation", "amortization")))
        for mean in (entry[0]["mean"] for entry in entries)
    ]
    for line, (annealed, approximation, amortization) in zip((first, second), both, strict=True):
        assert f"; annealed {annealed:.2f} ± " in line
        assert (
            f"; gaps: approximation {approximation:.2f}, amortization {amortization:.2f} |" in line
        )
    with pytest.raises(SystemExit):
        main([*command, "--start", "None", "--no-train", "--workdir", str(tmp_path / "alone")])
    said = capfd.readouterr().err
    assert [f"alone/beta={beta} is missing" in said for beta in (1.0, 2.0)] == [True, True]


# Papers

TABLES = [
    file
    for file in sorted((ROOT / "experiments").glob("*.py"))
    if "\ndef table" in file.read_text()
]


def named(module: ModuleType, quick: bool) -> list[str]:
    """The folders of a table's cells, arguments in the order in which `experiment` has them."""
    order = inspect.signature(module.experiment).parameters
    cells = with_starts(module.table(quick=quick))
    return names_of([{name: cell[name] for name in order if name in cell} for cell in cells])


@pytest.mark.parametrize("file", TABLES, ids=lambda file: file.stem)
def test_cells_are_arguments_and_published_numbers_are_of_the_full_form(file: Path) -> None:
    """A cell may begin with the run of another."""
    _, module = read_module(file)
    signature = inspect.signature(module.experiment)
    for quick in (False, True):
        cells = module.table(quick=quick)
        assert len({repr(cell) for cell in cells}) == len(cells) > 1
        for cell in cells:
            assert cell.get("start", cell) in cells
            bound = signature.bind(**cell)
            bound.apply_defaults()
            try:
                told = module.published(**bound.arguments)
                assert not quick or told.endswith("exact")
            except (AttributeError, LookupError):
                pass
        if hasattr(module, "evaluation"):
            Asked(**{"num_samples": 1, **module.evaluation(quick=quick)})


TABLE_1 = """
| 1 | 1 | 86.76 (19) | 86.76 (19) |
| 1 | 5 | 86.47 (20) | 85.54 (22) |
| 1 | 50 | 86.35 (20) | 84.78 (25) |
| 2 | 1 | 85.33 (16+5) | 85.33 (16+5) |
| 2 | 5 | 85.01 (17+5) | 83.89 (21+5) |
| 2 | 50 | 84.78 (17+5) | 82.90 (26+7) |
"""
TABLE_3 = """
| 1 | 1 | 88.71 (19) | 88.71 (19) |
| 1 | 5 | 88.83 (19) | 87.63 (22) |
| 1 | 50 | 89.05 (20) | 87.10 (24) |
| 2 | 1 | 88.08 (16+5) | 88.08 (16+5) |
| 2 | 5 | 87.63 (17+5) | 86.17 (21+5) |
| 2 | 50 | 87.86 (17+6) | 85.32 (24+7) |
"""


def published(file: str) -> Callable[..., str]:
    """The function `published` of an experiment with the defaults of its arguments."""
    module = read_module(ROOT / "experiments" / f"{file}.py")[1]

    def told(**arguments: object) -> str:
        bound = inspect.signature(module.experiment).bind(**arguments)
        bound.apply_defaults()
        return module.published(**bound.arguments)

    return told


def test_the_numbers_of_burda_et_al_are_theirs() -> None:
    """Tables 1 and 3 in the paper's layout, layers, k, VAE and IWAE; Table 2 in its text."""
    iwae = published("iwae")
    for data, text in (("mnist", TABLE_1), ("binarized_mnist", TABLE_3)):
        for line in text.strip().splitlines():
            layers, k, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            for objective, cell in zip(("vae", "iwae"), cells, strict=True):
                told = iwae(objective=objective, layers=int(layers), k=int(k), data=data)
                assert told == f"{cell.replace(' (', ' nats (')[:-1]} active), 3,280 epochs"
    after_vae = iwae(objective="iwae", k=50, start="objective=vae,k=1")
    assert after_vae == "84.88 nats (22 active), 2,187 epochs more"
    after_iwae = iwae(objective="vae", k=1, start="objective=iwae,k=50")
    assert after_iwae == "86.02 nats (23 active), 2,187 epochs more"
    dreg = [iwae(objective="dreg", k=k) for k in (1, 5, 50)]
    assert [float(told.split()[0]) for told in dreg] == [86.08, 84.90, 84.32]
    for unpublished in ({"layers": 2}, {"data": "binarized_mnist"}, {"data": "mnist_5k"}):
        for other in ({"objective": "dreg"}, {"start": "objective=vae,k=1"}):
            with pytest.raises(LookupError):
                iwae(**unpublished, **other)


def test_the_numbers_of_others_are_theirs() -> None:
    vampprior = published("vampprior")
    told = [vampprior(layers=layers, prior=p) for layers in (1, 2) for p in ("standard", "vamp")]
    numbers = ["84.45 ± 0.12", "82.43 ± 0.06", "82.39 ± 0.11", "81.56 ± 0.09"]
    assert told == [f"{number} nats, up to 2,000 epochs" for number in numbers]
    assert vampprior(data="binarized_mnist").startswith("85.57 nats, read in a sec")
    for unpublished in ({"data": "frey_faces"}, {"data": "binarized_mnist", "prior": "standard"}):
        with pytest.raises(LookupError):
            vampprior(**unpublished)
    miwae = published("miwae")
    told = [miwae(objective=name, beta=0.05) for name in ("miwae", "piwae", "ciwae")]
    assert [each.split(" nats")[0] for each in told] == [
        *("84.97 ± 0.10", "84.46 ± 0.06", "84.57 ± 0.09")
    ]
    with pytest.raises(LookupError):
        miwae(objective="ciwae", beta=0.5)
    assert published("hyperspherical")(latent_dim=10).startswith("93.16 ± 0.31 nats")


def test_the_exact_number_of_active_units_is_that_of_the_covariance() -> None:
    """Of images without pixels that vary, none; its limits, against NumPy in float64."""
    x = load("mnist_5k", "grey").train.images.reshape(4000, -1) / 255
    values = np.linalg.eigvalsh(np.cov(x.T, bias=True))[::-1]
    linear_vae = published("linear_vae")
    for variance in (0.1, 1.0, 3.0, 1e3):
        expected = int((values[:20] > variance).sum())
        assert linear_vae(latent_dim=20, variance=variance) == f"{expected} active of 20, exact"


# Quick forms: cells and their quantities, from the smallest to the largest.
AT_K_50 = "k=50,objective=iwae"
QUICK: dict[str, list[list[tuple[str, str]]]] = {
    "aevb": [[("objective=elbo", "neg_elbo"), ("objective=wake_sleep", "neg_elbo")]],
    "flows": [
        [(f"posterior={name}", "neg_elbo"), ("posterior=gaussian", "neg_elbo")]
        for name in ("iaf", "triangular_sylvester")
    ],
    "hyperspherical": [[("latents=sphere", "nll"), ("latents=gaussian", "nll")]],
    "inference_gaps": [
        [
            ("posterior=diagonal,encoder_layers=2", "approximation_gap"),
            ("posterior=diagonal,encoder_layers=2", "amortization_gap"),
            ("posterior=diagonal,encoder_layers=0", "amortization_gap"),
        ],
        [
            ("posterior=full_covariance,encoder_layers=2", "approximation_gap"),
            ("posterior=diagonal,encoder_layers=2", "approximation_gap"),
        ],
    ],
    "iwae": [
        [(AT_K_50, "nll"), ("k=1,objective=vae", "nll")],
        [(f"{AT_K_50},start=k%3D1%2Cobjective%3Dvae", "nll"), ("k=1,objective=vae", "nll")],
    ],
    "lagging_inference": [
        [("encoder_steps=0,num_steps=200", "kl"), ("encoder_steps=5,num_steps=1200", "kl")]
    ],
    "linear_vae": [[(f"variance={variance}", "kl") for variance in (6.0, 2.0, 0.3)]],
    "miwae": [
        [
            ("objective=elbo,m=1,k=50", "neg_elbo"),
            ("objective=miwae,m=5,k=10", "neg_elbo"),
            ("objective=iwae,m=1,k=50", "neg_elbo"),
        ]
    ],
    "rate_distortion": [
        [(f"beta={beta}", "distortion") for beta in (0.3, 1.0, 3.0)],
        [(f"beta={beta}", "kl") for beta in (3.0, 1.0, 0.3)],
    ],
    "vampprior": [[("prior=vamp", "nll"), ("prior=standard", "nll")]],
}


def test_each_table_has_an_order_of_its_quick_form() -> None:
    assert {file.stem for file in TABLES} == {*QUICK}
    for name, orders in QUICK.items():
        module = read_module(ROOT / "experiments" / f"{name}.py")[1]
        cells = named(module, quick=True)
        assert {cell for order in orders for cell, _ in order} <= {*cells}


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_quick_forms_have_the_published_order(name: str, tmp_path: Path) -> None:
    """As a user runs them, with the compiler's optimizations, which the tests do without."""
    flags = "--quick", "--workdir", str(tmp_path)
    command = [sys.executable, *CLI, "table", str(ROOT / "experiments" / f"{name}.py"), *flags]
    subprocess.run(command, env=os.environ | {"XLA_FLAGS": ""}, check=True)

    def last(cell: str) -> dict[str, Any]:
        return json.loads((tmp_path / cell / "evaluation.json").read_text())[-1]

    for order in QUICK[name]:
        values = [last(cell)["mean"][quantity] for cell, quantity in order]
        assert values == sorted(values)
    if name == "linear_vae":  # whose latents may share a dimension that they have not settled yet
        for cell in tmp_path.iterdir():
            active = last(cell.name)["active_units"][0]
            arguments = RunFolder(cell).read_record()["experiment"]["arguments"]
            exact = int(published(name)(**arguments).split()[0])
            assert exact <= active <= exact + 1


# The table on a GPU


def copied_script(folder: Path) -> Path:
    """The script and its one table, in a folder that receives its runs."""
    (folder / "experiments").mkdir()
    (folder / "scripts").mkdir()
    shutil.copy(ROOT / "experiments" / "iwae.py", folder / "experiments")
    return Path(shutil.copy(ROOT / "scripts" / "gpu.sh", folder / "scripts"))


def test_a_gpu_trains_into_the_cells_of_the_table(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And evaluates these; a Python that notes its arguments stands for the real one."""
    file = copied_script(tmp_path)
    python, notes = tmp_path / "python", tmp_path / "notes"
    python.write_text(f'#!/bin/sh\nshift 2\necho "$@" >>{notes}\n')
    python.chmod(0o700)
    for tool in ("dirname", "timeout"):  # but no MPS
        (tmp_path / tool).symlink_to(str(shutil.which(tool)))
    command, env = [shutil.which("bash") or "", str(file)], {"PATH": str(tmp_path)}
    subprocess.run([*command, "iwae"], check=True, env=env | {"PYTHON": str(python)})
    trained = {line.split()[-1]: line.split()[:-2] for line in notes.read_text().splitlines()}
    assert {int(words[-1]) for words in trained.values()} == {1, 5, 50}
    assert all(f"/k={words[-1]}," in folder for folder, words in trained.items())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["table", "experiments/iwae.py", "--workdir", "runs/gpu/iwae", "--no-train"])
    said = capfd.readouterr().err
    for folder in trained:
        assert f"{folder} is missing: it has not begun." in said
        Path(folder).mkdir(parents=True)
    notes.unlink()
    subprocess.run([*command, "evaluate"], check=True, env=env | {"PYTHON": str(python)})
    assert {line.split()[1] for line in notes.read_text().splitlines()} == set(trained)


@pytest.mark.slow
def test_a_cell_that_a_gpu_finished_is_not_left(tmp_path: Path) -> None:
    script = copied_script(tmp_path)

    def left() -> int:
        env = os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
        command = ["bash", str(script), "next"]
        said = subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout
        count, _, rest = said.partition(" ")
        assert rest == "cells of experiments/iwae.py are left: scripts/gpu.sh table iwae\n"
        return int(count)

    every = left()
    run = tmp_path / "runs" / "gpu" / "iwae" / "k=5,objective=iwae,layers=1,data=mnist"
    with on_devices(1):
        train_file(ROOT / "tests" / "tiny.py", run, {"num_steps": 5})
    assert left() == every  # it is not evaluated
    main(["evaluate", str(run), "--num-samples", "2"])
    assert left() == every - 1
