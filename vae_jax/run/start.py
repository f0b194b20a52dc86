"""Training that begins where another run ended, with its parameters."""

from collections.abc import Callable
from dataclasses import replace

import jax
import numpy as np

from vae_jax.errors import VaeJaxError
from vae_jax.experiment import Experiment
from vae_jax.progress import say
from vae_jax.run.folder import RunFolder
from vae_jax.run.run import load_run
from vae_jax.step import TrainState


def first_run(experiment: Experiment, folder: RunFolder) -> RunFolder | None:
    """The folder of the run whose parameters begin an `experiment` in `folder`, or None."""
    return None if experiment.start is None else RunFolder(folder.path.parent / experiment.start)


def begun(
    experiment: Experiment, folder: RunFolder, seeds: np.ndarray
) -> Callable[[TrainState], TrainState] | None:
    """The map from the initial state to one with the parameters of `experiment.start`.

    Each replica takes those of the replica with its seed. The optimizer's state is new, and a
    running average begins with the parameters.

    Args:
        experiment: the experiment that begins.
        folder: its run folder.
        seeds: the seeds of its replicas, `[S]`.

    Returns:
        The map, which reads the other run and raises a VaeJaxError if that is not finished, has
        other seeds or other parameters; None if the experiment begins with random ones.
    """
    first = first_run(experiment, folder)
    if first is None:
        return None

    def start(state: TrainState) -> TrainState:
        where = f"{folder.path} begins with the parameters of {first.path}"
        if not first.record.exists():
            raise VaeJaxError(
                f"{where}, which is no run folder: give its path seen from {folder.path.parent}, "
                "or the whole path."
            )
        record = first.read_record()
        if not first.is_finished(record):
            raise VaeJaxError(f"{where}, which is not finished: train it to its end first.")
        theirs = np.arange(record["num_seeds"], dtype=np.uint32) + np.uint32(record["seed"])
        if not np.array_equal(theirs, seeds):
            raise VaeJaxError(
                f"{where}, which has seed {record['seed']} and {record['num_seeds']} replicas, not "
                f"{seeds[0]} and {len(seeds)}: train with its --seed and --seeds."
            )
        found = load_run(first.path, "latest" if record.get("patience") is None else "best").state
        taken = {"params": found.params, "model_state": found.model_state}
        for name, theirs in taken.items():
            if _shapes(theirs) != _shapes(getattr(state, name)):
                raise VaeJaxError(
                    f"{where}, whose model has other parameters: train the same model."
                )
        say(f"{where}, step {int(found.step[0]):,}.")
        params = jax.tree.map(np.asarray, found.params)
        opt_state = jax.tree.map(np.asarray, jax.vmap(experiment.optimizer.init)(params))
        ema = None if state.ema_params is None else jax.tree.map(np.copy, params)
        return replace(state, **taken, ema_params=ema, opt_state=opt_state)

    return start


def _shapes(tree: object) -> object:
    """The names, shapes and types in a tree."""
    return jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), tree)
