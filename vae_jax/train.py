"""Training: one step, many steps in one scan, and the loop around them."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import struct
from jax import Array, lax

from vae_jax import parallel
from vae_jax.checkpoint import Checkpoints, Which, fingerprint
from vae_jax.compute import cast_networks, networks_in, rematerialized
from vae_jax.conditional import GIVEN, given, labels_of
from vae_jax.cpu import threefry
from vae_jax.data import BINARIZATION_SEED, Data, batch_indices, index_keys, prefetched
from vae_jax.data.augment import augmented
from vae_jax.errors import Interrupted, VaeJaxError
from vae_jax.evaluation.bounds import make_evaluator
from vae_jax.experiment import Experiment, Origin, read_module
from vae_jax.objectives.base import Metrics, Objective
from vae_jax.processes import signals
from vae_jax.progress import Progress
from vae_jax.run import Run, RunFolder, jsonable
from vae_jax.vae import fold_in_each

# What a key is folded with, so that no two uses of a seed share noise.
INIT, STEP = 0, 1
PROTOCOL, POSTERIOR, AUGMENT = 0, 1, 2

# Of one chunk of streamed images in a process's memory: one more is being made meanwhile.
STREAMED_BYTES = 2**26
Batches = tuple[Array, Array | None]


@struct.dataclass
class TrainState:
    """All that training carries from step to step; seed, data and step give everything else.

    Attributes:
        step: steps taken, skipped ones counted.
        params: the parameters.
        model_state: the model's other variable collections.
        ema_params: running average of the parameters, or None.
        opt_state: optax's.
        skipped: steps skipped because the loss or a gradient was not finite.
        skipped_in_a_row: those since the last good step.
    """

    step: Array
    params: Any
    model_state: Any
    ema_params: Any
    opt_state: Any
    skipped: Array
    skipped_in_a_row: Array

    @property
    def variables(self) -> dict[str, Any]:
        """The model's variables to evaluate with: the running average where one is kept."""
        params = self.params if self.ema_params is None else self.ema_params
        return {"params": params, **self.model_state}


def loss_and_metrics(
    model: nn.Module, objective: Objective, x: Array, keys: Array, step: Array
) -> tuple[Array, Metrics]:
    """The objective at the model's Terms for images `[B, H, W, C]` and keys `[B]`.

    Runs in the scope of the model, so that the objective can call its parts.
    """
    return objective(model(x, keys, objective.num_samples), step, model)


def init_state(experiment: Experiment, seed: Array | int) -> TrainState:
    """The state before the first step, a function of the seed alone."""
    key = jax.random.fold_in(threefry.key(seed), INIT)
    x = jnp.zeros((1, *experiment.data.image_shape))
    step = jnp.zeros((), jnp.int32)
    init = nn.init(loss_and_metrics, experiment.model)  # which also calls a critic
    variables = dict(init(key, experiment.objective, x, key[None], step))
    params = variables.pop("params")
    variables.pop(GIVEN, None)
    return TrainState(
        step=step,
        params=params,
        model_state=variables,
        ema_params=None if experiment.ema_decay is None else jax.tree.map(jnp.copy, params),
        opt_state=experiment.optimizer.init(params),
        skipped=jnp.zeros((), jnp.int32),
        skipped_in_a_row=jnp.zeros((), jnp.int32),
    )


def loss_and_gradients(
    experiment: Experiment, state: TrainState, images: Array, indices: Array, seed: Array
) -> tuple[Array, Metrics, Any, Any]:
    """Loss, metrics, model state and gradients of one batch, the same on every device.

    One device's view: `images` `[b, H, W, C]` uint8 are its share of the batch, `indices` `[b]`
    their rows in the training split. An example's noise depends on the seed, the step and its place
    in the global batch.
    """
    place = parallel.batch_offset(len(indices)) + jnp.arange(len(indices))
    step_key = jax.random.fold_in(jax.random.fold_in(threefry.key(seed), STEP), state.step)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(step_key, place)
    protocol = experiment.data.protocol
    if protocol.resampled:
        x_keys = fold_in_each(keys, PROTOCOL)
    else:
        x_keys = index_keys(BINARIZATION_SEED, "train", indices)
    images = augmented(experiment.augment, images, fold_in_each(keys, AUGMENT))
    x = protocol.apply(images, x_keys)

    apply = nn.apply(loss_and_metrics, experiment.model, mutable=list(state.model_state))

    def loss_of(
        params: Any, x: Array, keys: Array, labels: Array | None
    ) -> tuple[Array, tuple[Metrics, Any]]:
        params = cast_networks(params, experiment.compute_dtype)
        variables = given({"params": params, **state.model_state}, labels)
        with networks_in(experiment.compute_dtype), rematerialized(experiment.remat):
            (loss, metrics), model_state = apply(
                variables, experiment.objective, x, keys, state.step
            )
        return loss, (metrics, model_state)

    def differentiated(part: Any) -> Any:
        (loss, (metrics, model_state)), gradients = jax.value_and_grad(loss_of, has_aux=True)(
            state.params, *part
        )
        return loss, metrics, model_state, gradients

    labels = labels_of(experiment.model, experiment.data.train, indices)
    batch = x, fold_in_each(keys, POSTERIOR), labels
    if experiment.accumulate == 1:
        return parallel.batch_mean(differentiated(batch))
    parts = jax.tree.map(lambda a: a.reshape(experiment.accumulate, -1, *a.shape[1:]), batch)
    zeros = jax.tree.map(
        lambda a: jnp.zeros(a.shape, a.dtype),
        jax.eval_shape(differentiated, jax.tree.map(lambda a: a[0], parts)),
    )

    def add(total: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, differentiated(part)), None

    total, _ = lax.scan(add, zeros, parts)
    return parallel.batch_mean(jax.tree.map(lambda a: a / experiment.accumulate, total))


def train_step(
    experiment: Experiment, state: TrainState, images: Array, indices: Array, seed: Array
) -> tuple[TrainState, Metrics]:
    """One optimizer step; a step whose loss or gradients are not finite changes no parameter."""
    loss, metrics, model_state, gradients = loss_and_gradients(
        experiment, state, images, indices, seed
    )
    gradient_norm = optax.tree.norm(gradients)
    finite = jnp.isfinite(loss) & jnp.isfinite(gradient_norm)

    def updated() -> tuple[Any, Any, Any, Any]:
        updates, opt_state = experiment.optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema_params
        if experiment.ema_decay is not None:
            ema = optax.incremental_update(params, ema, 1 - experiment.ema_decay)
        return params, model_state, ema, opt_state

    old = (state.params, state.model_state, state.ema_params, state.opt_state)
    if jax.default_backend() == "cpu":  # a branch works in place, where a choice copies
        changed = lax.cond(finite, updated, lambda: old)
    else:  # where a branch is the slower one
        changed = jax.tree.map(partial(jnp.where, finite), updated(), old)
    state = TrainState(
        state.step + 1,
        *changed,
        skipped=state.skipped + ~finite,
        skipped_in_a_row=jnp.where(finite, 0, state.skipped_in_a_row + 1),
    )
    counters = {"skipped": state.skipped, "skipped_in_a_row": state.skipped_in_a_row}
    return state, metrics | counters | {"loss": loss, "gradient_norm": gradient_norm}


def make_train_chunk(experiment: Experiment, layout: parallel.Layout) -> parallel.OnDevices:
    """Many steps in one call: scanned over steps, mapped over seeds, on every device.

    Returns:
        A function of state `[D, S, ...]` (donated), the training images `[D, N, H, W, C]` or None,
        the rows `[D, S, steps, b]` of each batch with their images `[D, S, steps, b, H, W, C]` or
        None, and seeds `[D, S]`, to the new state and each step's metrics `[D, S, steps]`; D
        devices, S seeds on each.
    """

    def chunk(state: TrainState, images: Array | None, batches: Batches, seed: Array):
        def step(state: TrainState, batch: Batches):
            indices, own = batch
            taken = images[indices] if own is None else own  # pyright: ignore[reportOptionalSubscript]
            return train_step(experiment, state, taken, indices, seed)

        return lax.scan(step, state, batches)

    def every_seed(state: TrainState, images: Array | None, batches: Batches, seed: Array):
        if len(seed) > 1:
            if jax.default_backend() != "cpu":
                return jax.vmap(chunk, (0, None, 0, 0))(state, images, batches, seed)
            # A core is busy with one seed's products; small ones of many seeds take longer.
            each = (state, batches, seed)
            return lax.map(lambda one: chunk(one[0], images, *one[1:]), each)
        # An axis of one costs a few percent in products of small matrices.
        state, batches, seed = jax.tree.map(lambda leaf: leaf[0], (state, batches, seed))
        return jax.tree.map(lambda leaf: leaf[None], chunk(state, images, batches, seed))

    return layout.on_every_device(every_seed, donate_argnums=(0,))


def is_streamed(data: Data) -> bool:
    """Whether training images are better left on the disk than put into the devices' memory."""
    return data.train.images.nbytes > parallel.memory() // 4


def chunks(
    experiment: Experiment, layout: parallel.Layout, seeds: np.ndarray, step: int, streamed: bool
) -> Iterator[Batches]:
    """The batches of one chunk of steps after the other, from `step` on, on the devices.

    A function of seed and step alone. A chunk ends where metrics are logged; chunks of streamed
    images sooner, where they would be larger than `STREAMED_BYTES`.
    """
    images, batch = experiment.data.train.images, experiment.batch_size
    longest = experiment.log_every
    if streamed:
        step_bytes = len(seeds) * batch * images[0].nbytes // jax.process_count()
        fitting = max(1, STREAMED_BYTES // step_bytes)
        longest = max(n for n in range(1, longest + 1) if longest % n == 0 and n <= fitting)
    while step < experiment.num_steps:
        stop = min((step // longest + 1) * longest, experiment.num_steps)
        if experiment.shuffle:
            rows = [batch_indices(int(s), step, stop - step, len(images), batch) for s in seeds]
        else:
            in_order = np.arange(step * batch, stop * batch, dtype=np.int64) % len(images)
            rows = [in_order.astype(np.int32).reshape(-1, batch)] * len(seeds)
        own = layout.rows(np.stack(rows))
        yield parallel.put(own), parallel.put(images[own]) if streamed else None
        step = stop


def make_validation(experiment: Experiment) -> Callable[[TrainState], dict[str, np.ndarray]]:
    """From a state on the devices to the validation split's mean bounds, nats per image, `[S]`.

    The KL weighs one, whatever beta training is at; `valid_nll` has the objective's K. Where the
    model has no bound on the likelihood, the distortion alone; where there is no validation split,
    nothing.
    """
    if len(experiment.data.valid) == 0:
        return lambda state: {}
    evaluator = make_evaluator(experiment, "valid", experiment.objective.num_samples)

    def validate(state: TrainState) -> dict[str, np.ndarray]:
        result = evaluator(state.variables)
        names = ("neg_elbo", "nll") if "nll" in result else ("distortion",)
        return {f"valid_{name}": result[name].mean(1) for name in names}

    return validate


def over_steps(metrics: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A chunk's metrics `[S, steps]` to `[S]`: means over the finite steps; counters at the end."""
    counters = ("skipped", "skipped_in_a_row")
    return {
        name: values[:, -1]
        if name in counters
        else np.ma.masked_invalid(values).mean(1).filled(np.nan)
        for name, values in metrics.items()
    }


def log(run_folder: RunFolder, progress: Progress, step: int, row: dict[str, np.ndarray]) -> None:
    """One line of metrics.jsonl and of the progress display."""
    if parallel.is_main_process():
        run_folder.append_metrics({"step": step, "time": time.time()} | row)
        progress.update(step, float(row["loss"].mean()))


def save(
    run_folder: RunFolder,
    checkpoints: Checkpoints,
    step: int,
    state: TrainState,
    validation: dict[str, np.ndarray],
) -> None:
    """Starts writing a checkpoint, and logs its validation."""
    if parallel.is_main_process():
        if validation:
            run_folder.append_metrics({"step": step, "time": time.time()} | validation)
        # The last one: the NLL, or the distortion where there is none.
        score = float(list(validation.values())[-1].mean()) if validation else None
        checkpoints.save(step, state, score)


def train(
    experiment: Experiment,
    folder: str | Path,
    *,
    seed: int = 0,
    num_seeds: int = 1,
    origin: Origin | None = None,
    streamed: bool | None = None,
) -> Run:
    """Trains, or goes on training, in a run folder.

    Args:
        experiment: what to train.
        folder: the run folder; an unfinished run of the same experiment in it is resumed.
        seed: of the first replica.
        num_seeds: replicas with seeds `seed`, `seed + 1`, ..., trained in one program.
        origin: the experiment's file and arguments, so that the folder alone can bring it back.
        streamed: whether training images come from the disk batch by batch, and not once into the
            devices' memory; None asks `is_streamed`. The run is the same to the bit.

    Returns:
        The finished run.

    Raises:
        VaeJaxError: the folder holds another experiment or cannot be written, the devices (or
            `accumulate` on each) do not divide the batch, or the loss stayed non-finite.
        Interrupted: SIGTERM or SIGINT came; the state was saved.
    """
    if num_seeds < 1 or not 0 <= seed <= 2**32 - num_seeds:
        raise VaeJaxError(
            f"seed {seed} and {num_seeds} seeds: seeds go from 0 to 2^32 - 1, and one is the least."
        )
    layout = parallel.Layout.of(num_seeds, experiment.batch_size, experiment.accumulate)
    streamed = is_streamed(experiment.data) if streamed is None else streamed
    seeds = np.arange(seed, seed + num_seeds, dtype=np.uint32)
    run_folder = RunFolder(Path(folder))
    run_folder.claim(experiment, seed, num_seeds, origin)
    parallel.largest(0)  # nobody writes there before it is claimed
    initial_state = jax.jit(jax.vmap(partial(init_state, experiment)))
    with (
        run_folder.lock(),
        Checkpoints(run_folder.checkpoints, experiment.keep_checkpoints) as checkpoints,
        Progress(experiment.num_steps, experiment.batch_size * num_seeds) as progress,
        signals() as received,
    ):
        restored = checkpoints.restore(jax.eval_shape(initial_state, seeds))
        if restored is None:
            state = jax.tree.map(np.asarray, initial_state(seeds))
        else:
            state, warnings = restored
            for warning in warnings:
                progress.say(warning)
        state = parallel.from_main_process(state)
        step = int(state.step[0])
        if parallel.largest(run_folder.read_summary() is not None) and step == experiment.num_steps:
            progress.say(f"{run_folder.path} is finished ({step} steps); there is nothing to do.")
            return Run(run_folder, experiment, state, "latest")
        if step > 0:
            progress.say(f"Going on from step {step} of {run_folder.path}.")
        if parallel.is_main_process():
            checkpoints.clean_up(step)
            run_folder.truncate_metrics(step)

        train_chunk = make_train_chunk(experiment, layout)
        validate = make_validation(experiment)
        images = None if streamed else parallel.replicate(experiment.data.train.images)
        device_seeds = layout.place(seeds)
        device_state = layout.place(state)
        host_work: list[Callable[[], None]] = []
        unlogged: list[Any] = []
        stopped_by = 0
        for batches in prefetched(chunks(experiment, layout, seeds, step, streamed)):
            device_state, metrics = train_chunk(device_state, images, batches, device_seeds)
            # The devices are busy: time for the host's work on the chunk before.
            for work in host_work:
                work()
            host_work = []
            step += batches[0].shape[2]
            unlogged.append(layout.collect(metrics))
            if step % experiment.log_every and step < experiment.num_steps:
                continue
            row = over_steps(jax.tree.map(lambda *parts: np.concatenate(parts, 1), *unlogged))
            unlogged = []
            host_work.append(partial(log, run_folder, progress, step, row))
            if row["skipped_in_a_row"].max() >= experiment.max_nonfinite:
                raise VaeJaxError(
                    f"The loss or its gradients were not finite in the {experiment.max_nonfinite} "
                    f"steps before step {step}: lower the learning rate or clip the gradients; the "
                    f"last good checkpoint stays in {run_folder.checkpoints}."
                )
            stopped_by = parallel.largest(max(received, default=0))
            due = step % experiment.checkpoint_every == 0 or step == experiment.num_steps
            if due or stopped_by:
                state = layout.collect(device_state)
                validation = validate(parallel.replicate(state)) if due else {}
                host_work.append(partial(save, run_folder, checkpoints, step, state, validation))
            if stopped_by:
                break
        for work in host_work:
            work()
        checkpoints.wait()
        if stopped_by and step < experiment.num_steps:
            raise Interrupted(stopped_by, step)

        final = validate(parallel.replicate(state))
        run_folder.write_summary(
            {
                "step": step,
                "params_sha256": fingerprint(state.params),
                "images_per_second": progress.images_per_second,
                "skipped_steps": jsonable(state.skipped),
            }
            | {name: jsonable(values) for name, values in final.items()}
        )
        return Run(run_folder, experiment, state, "latest")


def train_file(
    file: str | Path,
    folder: str | Path,
    arguments: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
    num_seeds: int = 1,
    streamed: bool | None = None,
) -> Run:
    """Trains the experiment of a file with arguments of its `experiment` function; see `train`."""
    source, _ = read_module(Path(file))
    origin = Origin(str(file), source, dict(arguments or {}))
    return train(
        origin.make(), folder, seed=seed, num_seeds=num_seeds, origin=origin, streamed=streamed
    )


def load_run(
    folder: str | Path, checkpoint: Which = "latest", experiment: Experiment | None = None
) -> Run:
    """A run from its folder.

    Args:
        folder: the run folder.
        checkpoint: the latest, or the best by validation.
        experiment: needed when the run was started from Python and not from an experiment file.

    Raises:
        VaeJaxError: it is no run folder, has no such checkpoint, or its data are not the same.
    """
    run_folder = RunFolder(Path(folder))
    record = run_folder.read_record()
    if experiment is None:
        if record["source"] is None:
            raise VaeJaxError(
                f"{run_folder.path} was trained from Python, not from an experiment file: call "
                "load_run(folder, experiment=...)."
            )
        arguments = record["experiment"]["arguments"]
        experiment = Origin(record["file"], record["source"], arguments).make()
    if experiment.data.fingerprint != record["data"]["fingerprint"]:
        raise VaeJaxError(
            f"{run_folder.path} was trained on other data than {experiment.data.name} has now "
            "(the fingerprints differ)."
        )
    seeds = np.arange(record["num_seeds"], dtype=np.uint32)
    like = jax.eval_shape(jax.vmap(lambda seed: init_state(experiment, seed)), seeds)
    with Checkpoints(run_folder.checkpoints) as checkpoints:
        restored = checkpoints.restore(like, checkpoint)
    if restored is None:
        raise VaeJaxError(f"{run_folder.path} has no {checkpoint} checkpoint yet.")
    state, warnings = restored
    for warning in warnings:
        print(warning, file=sys.stderr)
    return Run(run_folder, experiment, state, checkpoint)
