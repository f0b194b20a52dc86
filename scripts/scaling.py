"""The time and memory of evaluation as functions of the number of images and of K.

    python scripts/scaling.py

Each point is a separate process that evaluates the benchmark's MLP (`scripts/contenders/ours.py`)
once to compile and then three times; the time is the shortest of the three, the memory is the peak
of the process. Writes docs/scaling.png and prints the table behind it, with the slope of each curve
on logarithmic axes, which is 1 if the cost is proportional.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from vae_jax import plots

ROOT = Path(__file__).parents[1]
REPETITIONS = 3
IMAGES = (100, 300, 1000, 3000, 10_000)  # with K = SOME_SAMPLES
SAMPLES = (64, 192, 640, 1920, 6400)  # of SOME_IMAGES images
SOME_SAMPLES, SOME_IMAGES = 64, 100


def measure(num_images: int, num_samples: int) -> dict[str, float]:
    """Seconds and MiB of one point, in this process."""
    sys.path.insert(0, str(ROOT / "scripts" / "contenders"))
    import jax
    from ours import experiment  # pyright: ignore[reportMissingImports]

    from vae_jax.evaluation.bounds import make_bounds_evaluator
    from vae_jax.step import init_state

    this = experiment(work="mlp")
    evaluate = make_bounds_evaluator(this, "train", num_samples, num_images)
    state: Any = jax.tree.map(lambda leaf: np.asarray(leaf)[None], init_state(this, 0))
    seconds = []
    for _ in range(1 + REPETITIONS):
        start = time.perf_counter()
        assert np.isfinite(evaluate(state.variables)["nll"]).all()
        seconds.append(time.perf_counter() - start)
    status = Path("/proc/self/status").read_text().split()
    return {"seconds": min(seconds[1:]), "MiB": int(status[status.index("VmHWM:") + 1]) / 1024}


def in_a_process(num_images: int, num_samples: int) -> dict[str, float]:
    """`measure` in a process that does nothing else."""
    point = [str(num_images), str(num_samples)]
    done = subprocess.run(
        [sys.executable, __file__, "--point", *point],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def plot(curves: dict[str, tuple[tuple[int, ...], list[dict[str, float]]]], out: Path) -> None:
    """Time and memory against the number of pairs of an image and a sample."""
    seconds: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    memory: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, (counts, points) in curves.items():
        pairs = np.array(counts) * (SOME_SAMPLES if counts == IMAGES else SOME_IMAGES)
        seconds[name] = pairs, np.array([point["seconds"] for point in points])
        memory[name] = pairs, np.array([point["MiB"] for point in points]) / 1024
    pairs, last = [*seconds.values()][-1]
    seconds["in proportion"] = pairs, last[-1] * pairs / pairs[-1]
    panels = {"seconds": seconds, "peak memory [GiB]": memory}
    figure = plots.scaling(panels, xlabel="images x samples K of each")
    largest = max(values.max() for _, values in memory.values())
    figure.axes[1].set(yscale="linear", ylim=(0, 1.1 * largest))
    plots.save(figure, out)


def main(point: tuple[int, int] | None = None, out: Path = ROOT / "docs" / "scaling.png") -> None:
    """Measure all points, or one.

    Args:
        point: the number of images and K of one point, whose seconds and MiB are printed; None
            measures all.
        out: the path of the figure.
    """
    if point is not None:
        print(json.dumps(measure(*point)))
        return
    more_images = [in_a_process(count, SOME_SAMPLES) for count in IMAGES]
    more_samples = [in_a_process(SOME_IMAGES, count) for count in SAMPLES]
    curves = {
        f"more images, K = {SOME_SAMPLES}": (IMAGES, more_images),
        f"larger K, {SOME_IMAGES} images": (SAMPLES, more_samples),
    }
    plot(curves, out)
    table = Table("", "", "seconds", "peak MiB")
    for name, (counts, points) in curves.items():
        slope = np.polyfit(np.log(counts), np.log([p["seconds"] for p in points]), 1)[0]
        for count, each in zip(counts, points, strict=True):
            table.add_row(name, f"{count:,}", f"{each['seconds']:.3f}", f"{each['MiB']:,.0f}")
        table.add_row("", "slope", f"{slope:.2f}", "", end_section=True)
    Console(width=100).print(table)
    print(out)


if __name__ == "__main__":
    tyro.cli(main)
