"""The time and memory of preparing pictures as functions of their number.

    python scripts/time_preparation.py

Each point writes that many JPEG files of noise, 64x64 in colour, into a temporary folder, and then
loads the folder in a separate process, which decodes them in further processes; the memory is the
largest peak of any of these. Each picture needs 30 KB of disk, which is freed afterwards.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tyro
from PIL import Image
from rich.console import Console
from rich.table import Table

SIZE = 64
LOAD = f"""
import sys
from vae_jax.data import load_folder
data = load_folder(sys.argv[1], {SIZE}, data_dir=sys.argv[2])
assert len(data.train) + len(data.valid) + len(data.test) == int(sys.argv[3])
"""


def write_pictures(folder: Path, count: int) -> None:
    """Write JPEG files, a thousand in each sub-folder."""
    generator = np.random.default_rng(0)
    for number in range(count):
        own = folder / f"{number // 1000:04d}"
        if number % 1000 == 0:
            own.mkdir(parents=True)
        pixels = generator.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
        Image.fromarray(pixels).save(own / f"{number:07d}.jpg")


def measure(count: int) -> tuple[float, float]:
    """Seconds and peak MiB of one point."""
    with tempfile.TemporaryDirectory() as root:
        pictures = Path(root) / "pictures"
        write_pictures(pictures, count)
        arguments = [str(pictures), str(Path(root) / "data"), str(count)]
        start = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-P", "-c", LOAD, *arguments])
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        return seconds, usage.ru_maxrss / 1024


def main(counts: tuple[int, ...] = (1000, 10_000, 100_000)) -> None:
    """Measure every point, and print them.

    Args:
        counts: the numbers of pictures.
    """
    table = Table("pictures", "seconds", "pictures/s", "peak MiB of a process")
    for count in counts:
        seconds, mebibytes = measure(count)
        rate = count / seconds
        table.add_row(f"{count:,}", f"{seconds:.1f}", f"{rate:,.0f}", f"{mebibytes:,.0f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    tyro.cli(main)
