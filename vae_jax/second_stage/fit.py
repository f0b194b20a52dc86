"""Fit a prior to the latents of a trained model, in a run folder."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vae_jax.budget import current_budget
from vae_jax.checkpoint import fingerprint
from vae_jax.errors import VaeJaxError
from vae_jax.experiment import Experiment
from vae_jax.fitted_priors import check_replaced, latents_of, location_and_scale
from vae_jax.given import Count, Positive, Seed, checked
from vae_jax.interfaces import Labels, Prior
from vae_jax.optimizers import by_group
from vae_jax.priors.standardized import Standardized
from vae_jax.progress import Waiting
from vae_jax.run import Run, RunFolder
from vae_jax.second_stage.objective import FitPrior
from vae_jax.step import TrainState
from vae_jax.train import train

WARMUP = 0.02  # of the steps
AVERAGED = 0.05  # of the steps, for the running average of the parameters


@checked
def fit_prior(
    run: Run,
    prior: Prior,
    folder: str | Path,
    *,
    num_steps: Count = 20_000,
    batch_size: Count = 256,
    learning_rate: Positive = 1e-3,
    seed: Seed = 0,
) -> Run:
    """Fit a prior to q(z|x) of the training images, or resume the fit, in a run folder.

    It is a run like any other, of the model with the new prior: it is resumed, sampled from and
    evaluated by its folder, without that of the first stage. Everything but the prior comes from
    the first seed of `run` and is held fixed. Real latents are standardized by their mean and
    standard deviation over the training images.

    Args:
        run: the trained model, the first stage.
        prior: the prior; one of classes p(z|y) may be fitted to a model without labels.
        folder: the run folder of the second stage.
        num_steps: the number of Adam's steps, with a warm-up and then a cosine decay.
        batch_size: the number of images in a batch, each with one draw from its q(z|x).
        learning_rate: the largest learning rate; gradients are clipped to a norm of one.
        seed: the seed of the initial parameters, the order of images and all noise.

    Returns:
        The finished run.

    Raises:
        VaeJaxError: the prior does not fit the latents or would replace a p(z|y), the folder is
            that of another run, a budget ended `run` early, or as in `train`.

    Example:
        >>> second = fit_prior(run, Diffusion((8, 8, 4)), "runs/diffusion")
        >>> pictures = second.sample(64)
    """
    check_replaced(run, prior)
    if current_budget().is_limited and not run.folder.is_finished(run.folder.read_record()):
        raise VaeJaxError(
            f"{run.folder.path}, to which {folder} fits a prior, is not finished: give a larger "
            "--budget, or the same again if it is in hours."
        )
    first = run.experiment
    fitted_to = fingerprint(run.seed_variables)
    _check_folder(RunFolder(Path(folder)), run, fitted_to)
    labels = first.model.labels
    if labels is None and prior.label_classes is not None:
        labels = Labels(prior.label_classes)
    is_real = first.model.posteriors[-1].space == "real"
    model = first.model.clone(
        prior=Standardized(prior) if is_real else prior, critic=None, labels=labels
    )
    warmup = max(1, round(WARMUP * num_steps))
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, warmup, num_steps)
    adam = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    experiment = Experiment(
        data=first.data,
        model=model,
        objective=FitPrior(fitted_to=fitted_to),
        optimizer=by_group(optax.set_to_zero(), prior=adam),
        num_steps=num_steps,
        batch_size=batch_size,
        ema_decay=max(0.0, 1 - 1 / (AVERAGED * num_steps)),
        validate_images=min(1000, len(first.data.valid)) or None,
    )

    def start(state: TrainState) -> TrainState:
        """The first stage around the new prior."""
        stage = jax.tree.map(lambda leaf: np.asarray(leaf)[None], run.seed_variables)
        params = {**state.params}
        params |= {name: stage["params"][name] for name in params if name in stage["params"]}
        params["prior"] = state.params.get("prior", {})
        if is_real:
            with Waiting(f"Encoding the training images by {run.folder.path}"):
                loc, scale = location_and_scale(latents_of(run, seed))
            params["prior"] = {**params["prior"], "loc": loc[None], "scale": scale[None]}
        collections = {name: stage.get(name, tree) for name, tree in state.model_state.items()}
        ema = jax.tree.map(jnp.copy, params)
        return replace(state, params=params, ema_params=ema, model_state=collections)

    return train(experiment, folder, seed=seed, begin_with=start)


def _check_folder(folder: RunFolder, run: Run, fitted_to: str) -> None:
    """Check that a folder is new, or the second stage of this run.

    Raises:
        VaeJaxError: the folder is that of another run.
    """
    if not folder.record.exists() and not folder.record_copy.exists():
        return
    match folder.read_record():
        case {"objective": {"fitted_to": str(found)}} if found != fitted_to:
            raise VaeJaxError(
                f"{folder.path} holds a prior fitted to another run than {run.folder.path}, or to "
                "another checkpoint of it: choose another --workdir."
            )
