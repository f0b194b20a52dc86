"""What `vae-jax train --dry-run` prints."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from vae_jax.cli.flags import TrainOptions
from vae_jax.experiment import Origin, read_module
from vae_jax.grid import chosen, unfinished_programs
from vae_jax.progress import Waiting
from vae_jax.report.memory import needs


def print_needs(file: Path, options: TrainOptions, cells: Sequence[Mapping[str, object]]) -> None:
    """Print the memory that each program of `cells` needs, if it is not finished.

    Raises:
        VaeJaxError: as in `needs` and `unfinished_programs`.
    """
    source, _ = read_module(file)
    by_name, programs = {"": cells[0]}, [[""]]
    if len(cells) > 1:
        how = options.workdir, cells, options.seed, options.seeds, options.cells
        by_name, programs = chosen(cells, ()), unfinished_programs(file, *how)
    for names in programs:
        experiment = Origin(str(file), source, dict(by_name[names[0]])).make()
        with Waiting("Compiling a chunk of steps"):
            needed = needs(
                experiment,
                num_seeds=options.seeds * len(names),
                streamed=options.streamed,
                shard=options.shard,
            )
        print(", ".join(names), needed, sep="\n" if len(cells) > 1 else "")
