"""Every kind of model of the experiment files: killed and resumed on real images, to the byte.

The experiments are those of the files, with fewer steps. Those on colour images need the files of
`cifar10_4k` in VAE_JAX_MANUAL_DIR.
"""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from running import ROOT, checkpoint_steps, finish, start, summary, wait_until

from vae_jax import VaeJaxError, load

# File, folder, arguments in JSON: the file's experiment for 30 steps.
SHORT = (
    "-c",
    "import sys, json, dataclasses; from pathlib import Path; "
    "from vae_jax.experiment import read_module; from vae_jax.train import train; "
    "made = read_module(Path(sys.argv[1]))[1].experiment(**json.loads(sys.argv[3])); "
    "train(dataclasses.replace(made, num_steps=30, log_every=5, checkpoint_every=10), sys.argv[2])",
)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "vampprior": ("vampprior", {"prior": "vamp", "dataset": "mnist_5k", "epochs": 2}),
    "flow_prior": ("flows", {"prior": "realnvp", "dataset": "mnist_5k", "epochs": 2}),
    "sylvester": ("flows", {"posterior": "sylvester", "dataset": "mnist_5k", "epochs": 2}),
    "mixture_of_logistics": ("cifar", {"dataset": "cifar10_4k"}),
    "vqvae": ("vqvae", {"dataset": "mnist_5k"}),
    "vaegan": ("vaegan", {"dataset": "mnist_5k"}),
    "patch_gan": ("vaegan", {"dataset": "mnist_5k", "objective": "patch_gan", "start": 5}),
    "hyperspherical": ("hyperspherical", {"dataset": "mnist_5k", "epochs": 2}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_killed_run_ends_in_the_same_bytes(name: str, tmp_path: Path) -> None:
    """SIGKILL after the first checkpoint, the same command again, against a run never killed."""
    file, arguments = MODELS[name]
    try:
        load(arguments["dataset"])
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
