"""Unlucky situations: one sentence that says what to do, and the state afterwards."""

import dataclasses
import importlib
import pkgutil
from pathlib import Path

import flax.linen as nn
import hostile
import pytest
from hostile import Row
from hostile.constructors import CONSTRUCTORS

import vae_jax as vj
from vae_jax import VaeJaxError

TABLES = [module.name for module in pkgutil.iter_modules(hostile.__path__)]
ROWS = {name: importlib.import_module(f"hostile.{name}").ROWS for name in TABLES}


@pytest.mark.hostile
@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=f"{name}: {row.situation}", marks=[pytest.mark.slow] * row.slow)
        for name, rows in ROWS.items()
        for row in rows
    ],
)
def test_a_situation_is_met(row: Row, tmp_path: Path) -> None:
    if row.sentence:
        with pytest.raises(VaeJaxError) as refusal:
            row.act(tmp_path)
        sentence = str(refusal.value)
        assert row.sentence in sentence
        assert sentence.endswith(".")
        assert "\n" not in sentence
    else:
        row.act(tmp_path)
    row.after(tmp_path)


@pytest.mark.hostile
def test_there_are_hundreds_of_situations() -> None:
    rows = [row for rows in ROWS.values() for row in rows]
    assert len(rows) >= 300
    assert len({row.situation for row in rows}) == len(rows)


# What a user is given rather than makes.
RESULTS = {"Evaluation", "Report", "Run", "Terms"}


def test_every_field_of_every_public_part_is_tried() -> None:
    """So that a new part, or a new field, cannot go without a check."""
    parts = {
        part
        for name in dir(vj)
        if name not in RESULTS and dataclasses.is_dataclass(part := getattr(vj, name))
    }
    assert parts <= CONSTRUCTORS.keys()
    for part, (_, tried) in CONSTRUCTORS.items():
        fields = {field.name for field in dataclasses.fields(part) if field.init}
        linen = {"parent", "name"} if issubclass(part, nn.Module) else set()
        assert fields - linen == tried.keys(), part
