"""A paper's table by one command: what is missing, budgets, rows of the document, quick forms."""

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running import ROOT, on_devices, summary

from vae_jax import VaeJaxError, train_file
from vae_jax.cli import main
from vae_jax.cli.paper import Budget
from vae_jax.experiment import read_module
from vae_jax.report.results import END, HEADER, write_rows
from vae_jax.run import RunFolder

FILE = '''
"""Bars: a table of one row a beta.

More text.
"""
import dataclasses, optax, tiny

def experiment(*, hidden: int = 8, beta: float = 1.0, num_steps: int = 40):
    made = tiny.experiment(hidden=hidden, beta=beta, num_steps=num_steps)
    return dataclasses.replace(made, optimizer=optax.adam(1e-2))

def table(*, quick: bool = False):
    return [{"beta": beta} for beta in ((1.0,) if quick else (1.0, 2.0))]

def published(*, beta, **_):
    return {1.0: "12.5 nats"}[beta]
'''


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
    for part in parts:
        file, rest = part.split(" -->", 1)
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
    assert "beta=1.0 is missing: it has not begun." in said
    assert "No cell of" in said
    # 90 images in batches of 16: three epochs are over after 16.9 steps, so at the line of step 20.
    main([*command, "--budget", "3epochs"])
    said = capfd.readouterr().err
    assert "The budget is spent for beta=1.0, beta=2.0. The same command goes on." in said
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


# Papers

TABLES = [
    file
    for file in sorted((ROOT / "experiments").glob("*.py"))
    if "\ndef table" in file.read_text()
]


@pytest.mark.parametrize("file", TABLES, ids=lambda file: file.stem)
def test_cells_are_arguments_and_published_numbers_are_of_the_full_form(file: Path) -> None:
    _, module = read_module(file)
    signature = inspect.signature(module.experiment)
    for quick in (False, True):
        cells = module.table(quick=quick)
        assert len({repr(cell) for cell in cells}) == len(cells) > 1
        for cell in cells:
            bound = signature.bind(**cell)
            bound.apply_defaults()
            try:
                module.published(**bound.arguments)
                assert not quick
            except (AttributeError, LookupError):
                pass


def test_published_numbers_are_the_papers() -> None:
    """A few, copied here by hand."""
    module = read_module(ROOT / "experiments" / "iwae.py")[1]
    assert len(module.table()) == 24
    told = module.published(objective="iwae", layers=2, k=50, data="mnist")
    assert told == "82.90 nats (26+7 active), 3,280 epochs"
    told = module.published(objective="vae", layers=1, k=50, data="binarized_mnist")
    assert told == "89.05 nats (20 active), 3,280 epochs"
    module = read_module(ROOT / "experiments" / "vampprior.py")[1]
    assert module.published(prior="vamp", layers=2).startswith("81.56 ± 0.09 nats")


QUICK = {  # the cells of the quick form, from the smallest number to the largest
    "vampprior": ("nll", ["prior=vamp", "prior=standard"]),
    "rate_distortion": ("distortion", ["beta=0.3", "beta=1.0", "beta=3.0"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_quick_forms_have_the_published_order(name: str, tmp_path: Path) -> None:
    quantity, order = QUICK[name]
    main(["table", str(ROOT / "experiments" / f"{name}.py"), "--quick", "--workdir", str(tmp_path)])
    found: dict[str, Any] = {
        cell: json.loads((tmp_path / cell / "evaluation.json").read_text())[-1]["mean"]
        for cell in order
    }
    values = [found[cell][quantity] for cell in order]
    assert values == sorted(values)
    if name == "rate_distortion":
        assert [found[cell]["kl"] for cell in order[::-1]] == sorted(
            m["kl"] for m in found.values()
        )
