"""The experiment files: their docstrings; their models killed and resumed on real images.

The experiments that are resumed are those of the files, with fewer steps, and end in the same
bytes. Those on colour images need the files of `cifar10_4k` in VAE_JAX_MANUAL_DIR.
"""

import ast
import inspect
import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from running import ROOT, checkpoint_steps, finish, script, start, summary, wait_until

from vae_jax import VaeJaxError, load
from vae_jax.experiment import read_module

# File, folder, arguments in JSON: the file's experiment for 30 steps.
SHORT = (
    "-c",
    "import sys, json, dataclasses; from pathlib import Path; "
    "from vae_jax.experiment import read_module; from vae_jax.train import train; "
    "made = read_module(Path(sys.argv[1]))[1].experiment(**json.loads(sys.argv[3])); "
    "train(dataclasses.replace(made, num_steps=30, log_every=5, checkpoint_every=10), sys.argv[2])",
)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "vampprior": ("vampprior", {"prior": "vamp", "data": "mnist_5k", "epochs": 2}),
    "flow_prior": ("flows", {"prior": "realnvp", "data": "mnist_5k", "epochs": 2}),
    "sylvester": ("flows", {"posterior": "sylvester", "data": "mnist_5k", "epochs": 2}),
    "mixture_of_logistics": ("cifar", {"data": "cifar10_4k"}),
    "vqvae": ("vqvae", {"data": "mnist_5k"}),
    "vaegan": ("vaegan", {"data": "mnist_5k"}),
    "patch_gan": ("vaegan", {"data": "mnist_5k", "objective": "patch_gan", "critic_start": 5}),
    "tokenizer": (
        "tokenizer",
        {"data": "mnist_5k", "latents": "vq", "critic_weight": 0.5, "quick": True},
    ),
    "vdvae": ("vdvae", {"data": "mnist_5k", "layers": 3, "num_steps": 100}),
    "hyperspherical": ("hyperspherical", {"data": "mnist_5k", "epochs": 2}),
}


@pytest.mark.parametrize("file", sorted((ROOT / "experiments").glob("*.py")), ids=lambda f: f.stem)
def test_docstrings_hold_command_published_number_and_ours(file: Path) -> None:
    """Ours with date, hardware and seeds, or "not yet run". `test_commands_parse` runs the rest."""
    text = ast.get_docstring(ast.parse(file.read_text())) or ""
    assert re.search(rf"^    vae-jax (train|figures) experiments/{file.name}", text, re.MULTILINE)
    published, ours = text.index("Published"), text.index("Ours")
    assert published < ours
    found = text[ours:]
    if "not yet run" not in found.split(".")[0]:
        for needed in (r"\d{4}-\d\d-\d\d", r"CPU cores|NVIDIA", r"[Ss]eeds? ", r"\d\.\d|\d of \d"):
            assert re.search(needed, text[published:]), needed


def test_runs_here_and_of_same_numbers_have_the_arguments_of_their_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They train for long; a name that has changed shows at once."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    of_script = [run[:2] for run in script("same_numbers").RUNS.values()]
    for file, arguments in [*MODELS.values(), *of_script]:
        _, module = read_module(ROOT / "experiments" / f"{file}.py")
        inspect.signature(module.experiment).bind(**arguments)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_killed_run_ends_in_the_same_bytes(name: str, tmp_path: Path) -> None:
    """SIGKILL after the first checkpoint, the same command again, against a run never killed."""
    file, arguments = MODELS[name]
    try:
        load(arguments["data"])
    except VaeJaxError as error:
        pytest.skip(str(error))

    def run(folder: Path):
        return start(SHORT, ROOT / "experiments" / f"{file}.py", folder, json.dumps(arguments))

    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = run(killed)
    wait_until(lambda: (killed / "checkpoints" / "10").exists(), process)
    process.send_signal(signal.SIGKILL)
    finish(process)
    assert not (killed / "summary.json").exists()
    for folder in (killed, whole):
        done = finish(run(folder))
        assert done.returncode == 0, done.stderr
    assert "Going on from step" not in done.stderr
    assert summary(killed) == summary(whole)
    assert checkpoint_steps(killed)[-1] == 30
