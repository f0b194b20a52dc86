"""A sharded optimizer (ZeRO, stage 1) and what a run needs of memory, by formula and as it is."""

import dataclasses
import re
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from running import CLI, ROOT, TINY, finish, interrupted_after, on_devices, rows, start
from test_parallel import assert_close
from test_processes import addresses

from vae_jax import MLP, load_run, parallel, train
from vae_jax.checkpoint import Checkpoints
from vae_jax.cli import main
from vae_jax.errors import Interrupted
from vae_jax.experiment import Experiment
from vae_jax.optimizers import by_group
from vae_jax.parallel import Layout
from vae_jax.report.memory import needs, state_bytes, state_of
from vae_jax.step import init_state, make_train_chunk
from vae_jax.train import chunks_of_batches


def clipped(num_steps: int = 20, **arguments: Any) -> Experiment:
    """An optimizer that looks at all gradients at once, and one of a group, with weight decay."""
    adam = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2, weight_decay=0.1))
    return dataclasses.replace(
        tiny.experiment(num_steps=num_steps, **arguments),
        optimizer=by_group(adam, decoder=optax.sgd(1e-2, momentum=0.9)),
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of eight devices with nothing sharded."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    return train(clipped(), folder).state, rows(folder)


def test_a_sharded_run_is_the_run(whole: Any, tmp_path: Path) -> None:
    """Validation, which needs the shared running average, too."""
    run = train(clipped(), tmp_path / "run", shard="optimizer")
    assert_close(run.state, whole[0], 1e-4)
    ours, theirs = rows(tmp_path / "run"), whole[1]
    assert [row.keys() for row in ours] == [row.keys() for row in theirs]
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(list(one.values()), list(other.values()), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "shard"), [(2, None), (4, "optimizer"), (1, "optimizer")], ids=str
)
def test_a_sharded_run_goes_on_anywhere(
    devices: int, shard: parallel.Shard | None, whole: Any, tmp_path: Path
) -> None:
    with pytest.raises(Interrupted), interrupted_after(5):
        train(clipped(), tmp_path / "run", shard="optimizer")
    with on_devices(devices):
        run = train(clipped(), tmp_path / "run", shard=shard)
    assert_close(run.state, whole[0], 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("streamed", [False, True])
def test_seeds_streams_and_parts_of_batches(
    accumulate: int, streamed: bool, tmp_path: Path
) -> None:
    experiment = dataclasses.replace(clipped(10), accumulate=accumulate)
    runs = [
        train(experiment, tmp_path / str(shard), num_seeds=2, streamed=streamed, shard=shard)
        for shard in (None, "optimizer")
    ]
    assert_close(runs[1].state, runs[0].state, 1e-4)


def times(tree: Any, number: int) -> Any:
    """A tree multiplied by a whole number."""
    return jax.tree.map(lambda x: (number * x).astype(x.dtype), tree)


@pytest.mark.slow
def test_shares_are_written_where_they_are_and_read_as_a_whole(tmp_path: Path) -> None:
    """The files, hashes and ways back of any other checkpoint."""
    layout = Layout.of(1, 16, shard="optimizer")
    experiment = clipped()
    state = jax.vmap(partial(init_state, experiment))(jnp.arange(1, dtype=jnp.uint32))
    placed = layout.place(jax.tree.map(np.asarray, state))
    divided = [leaf for leaf in jax.tree.leaves(placed) if not leaf.is_fully_replicated]
    assert len(divided) > 10
    multiplied, overwritten = jax.jit(times), jax.jit(times, donate_argnums=0)
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            own = multiplied(placed, step)
            checkpoints.save_shares(step, own, float(step), finite=True)
            overwritten(own, 0)  # as the next step does
        checkpoints.wait()
        assert checkpoints.steps() == [2, 1]  # the latest and the best
        file = max((tmp_path / "2").rglob("*"), key=lambda path: path.stat().st_size)
        file.write_bytes(file.read_bytes()[:-1] + b"?")
        (restored, said) = checkpoints.restore(state) or (None, [])
        assert "The checkpoint of step 2" in said[0]
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    assert not list(tmp_path.glob(".partial*"))


SHARED = """
import test_sharded
from vae_jax import Experiment

def experiment(*, num_steps: int = 20) -> Experiment:
    return test_sharded.clipped(num_steps)
"""


@pytest.mark.slow
def test_several_processes_share_a_state_and_go_on_as_others(whole: Any, tmp_path: Path) -> None:
    """Two processes of four devices, then four of two, then one: the run of eight devices."""
    (tmp_path / "shared.py").write_text(SHARED)
    path = {"pythonpath": f"{ROOT}:{ROOT / 'tests'}"}

    def trained(count: int, num_steps: int, folders: list[Path] | None = None) -> list[Any]:
        words = "train", "shared.py", "--distributed", "--shard", "optimizer", "--workdir", "run"
        begun = [
            start(
                CLI,
                *words,
                *("--num-steps", num_steps),
                devices=8 // count,
                cwd=folder,
                **path,
                **variables,
            )
            for variables, folder in zip(
                addresses(count), folders or [tmp_path] * count, strict=True
            )
        ]
        return [finish(process) for process in begun]

    for count, num_steps in ((2, 10), (4, 20)):
        done = trained(count, num_steps)
        assert [process.returncode for process in done] == [0] * count, done
    assert len(list((tmp_path / "run" / "checkpoints" / "20").glob("ocdbt.process_*"))) == 4
    assert_close(load_run(tmp_path / "run", trust=True).state, whole[0], 1e-4)
    ours, theirs = rows(tmp_path / "run"), whole[1]
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        np.testing.assert_allclose(list(one.values()), list(other.values()), rtol=1e-4)

    elsewhere = [tmp_path / "0", tmp_path / "1"]
    for folder in elsewhere:
        folder.mkdir()
        (folder / "shared.py").write_text(SHARED)
    done = trained(2, 5, elsewhere)
    assert done[1].returncode == 2, done[1]
    assert "is not the folder that process 0 writes" in done[1].stderr
    assert not list((elsewhere[1] / "run").rglob("*"))


def test_a_grid_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    flags = "--beta", "1", "2", "--shard", "optimizer", "--workdir", str(tmp_path / "grid")
    with pytest.raises(SystemExit):
        main(["train", str(TINY), *flags])
    assert "give each flag one value, or leave --shard out" in capsys.readouterr().err
    assert not (tmp_path / "grid").exists()


# The formula


def of_device(tree: Any, device: Any) -> int:
    """The bytes that one device holds of arrays."""
    every = [each for leaf in jax.tree.leaves(tree) for each in leaf.addressable_shards]
    return sum(each.data.nbytes for each in every if each.device == device)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("shard", [None, "optimizer"])
def test_the_formula_is_what_a_device_holds(devices: int, shard: parallel.Shard | None) -> None:
    experiment = tiny.experiment(hidden=64)
    with on_devices(devices):
        layout = Layout.of(1, 16, shard=shard)
        state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state_of(experiment))
        placed = layout.place(state)
        found = state_bytes(state_of(experiment), layout)
        last = jax.devices()[-1]
        assert found == {
            "parameters": of_device(placed.params, last),
            "other variables": 0,
            "optimizer's state": of_device(placed.opt_state, last),
            "running average": of_device(placed.ema_params, last),
        }
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert found["parameters"] == 4 * count
    if shard is not None and devices == 8:  # but for two vectors of two numbers, and counters
        assert count / 8 <= found["running average"] / 4 <= count / 8 + 4
        assert found["optimizer's state"] <= 2 * found["running average"] + 8
    else:
        assert found["running average"] == 4 * count


@pytest.mark.parametrize("shard", [None, "optimizer"])
def test_the_formula_is_the_compilers_account(shard: parallel.Shard | None) -> None:
    """Arguments that the compiler plans for are those of the formula; the rest is its own."""
    experiment = tiny.experiment(hidden=64)
    found = needs(experiment, shard=shard)
    layout, seeds = Layout.of(1, 16, shard=shard), np.arange(1, dtype=np.uint32)
    images = layout.shapes(experiment.data.train.images, everywhere=True)
    batches = next(chunks_of_batches(experiment, layout, seeds, 0, False, 5))
    arguments = layout.shapes(state_of(experiment)), images, batches, layout.place(seeds)
    program = make_train_chunk(experiment, layout).compiled(*arguments)
    analysis = program.memory_analysis()
    assert analysis is not None
    temporary = found.device["gradients"] + found.device["activations"]
    assert temporary == analysis.temp_size_in_bytes
    planned = sum(found.device.values()) - temporary
    small = 64  # the seed, the number of the step and of skipped steps
    assert 0 <= analysis.argument_size_in_bytes - planned <= small
    assert found.device["gradients"] == found.device["parameters"]
    state = jax.eval_shape(partial(init_state, experiment), 0)
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert found.host["a state"] == whole


def test_a_billion_parameters_fit_forty_gigabytes() -> None:
    """On eight devices, by their shapes: parameters, their gradients, and shares of the rest."""
    experiment = dataclasses.replace(
        tiny.experiment(),
        model=tiny.model().clone(encoder=MLP((22_000, 44_000)), decoder=MLP((64,))),
    )
    state = state_of(experiment)
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert count > 0.9e9
    whole, shared = (
        state_bytes(state, Layout.of(1, 16, shard=shard)) for shard in (None, "optimizer")
    )
    assert whole["parameters"] == shared["parameters"] == 4 * count
    assert sum(whole.values()) / count == pytest.approx(16, rel=1e-3)
    assert sum(shared.values()) / count == pytest.approx(4 + 12 / 8, rel=1e-2)
    assert sum(shared.values()) + shared["parameters"] < 40e9


def test_a_dry_run_trains_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    main(["train", str(TINY), "--dry-run", "--shard", "optimizer", "--workdir", str(workdir)])
    said = capsys.readouterr()
    for name in ("parameters", "optimizer's state", "running average", "training images"):
        assert name in said.out
    assert "loss" not in said.err
    assert not workdir.exists()


def test_a_dry_run_counts_all_cells_of_a_program(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Two rates share a program, which has the state of both; another width is another program.

    With `--cells` it counts these alone.
    """
    flags = "--latent-dim", "4", "8", "--learning-rate", "1e-3", "1e-2"
    quickstart = str(ROOT / "experiments/quickstart.py")
    images = np.random.default_rng(0).integers(0, 2, (200, 28, 28, 1)).astype(np.uint8)
    np.save(tmp_path / "images.npy", 255 * images)
    data = "--data", str(tmp_path / "images.npy")

    def parameters(*flags: str) -> list[float]:
        where = "--workdir", str(tmp_path / "grid")
        with on_devices(1):
            main(["train", quickstart, "--dry-run", *where, *data, *flags])
        printed = re.findall(r"^  parameters +(.+)$", capsys.readouterr().out, re.MULTILINE)
        return [float(number) for number in printed]

    alone = [*parameters("--latent-dim", "4"), *parameters("--latent-dim", "8")]
    assert parameters(*flags) == pytest.approx(2 * np.array(alone), abs=0.11)
    cell = "latent_dim=8,learning_rate=0.01"
    assert parameters(*flags, "--cells", cell) == [pytest.approx(alone[1], abs=0.11)]


@pytest.mark.parametrize("flags", [["--distributed"], ["--launch", "local"]])
def test_a_dry_run_is_in_one_process(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", str(TINY), "--dry-run", "--learning-rate", "1e-3", "1e-2", *flags])
    said = capsys.readouterr().err
    assert f"--dry-run computes the memory in one process: leave out {flags[0]}" in said
