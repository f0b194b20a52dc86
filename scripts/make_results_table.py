"""Writes the evaluations of run folders into the generated table of docs/results.md.

    python scripts/make_results_table.py runs/demo runs/iwae/*/

Rows of the same training command are replaced, the others stay.
"""

import json
import sys
from pathlib import Path
from typing import Any

from vae_jax.experiment import read_module
from vae_jax.run import RunFolder

RESULTS = Path(__file__).parents[1] / "docs" / "results.md"
BEGIN, END = "<!-- generated: begin -->", "<!-- generated: end -->"
HEADER = (
    "| run | published | ours: NLL ± s.e., or ± sd over seeds (K, test images) | -ELBO | "
    "active units | training | evaluation |\n|---|---|---|---|---|---|---|"
)


def per_seed(values: float | list[float], digits: int = 2) -> str:
    """The value of one seed, or mean ± sd over the seeds."""
    if not isinstance(values, list):
        return f"{values:.{digits}f}"
    mean = sum(values) / len(values)
    sd = (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5
    return f"{mean:.{digits}f} ± {sd:.{digits}f} (sd of {len(values)} seeds)"


def row(folder: RunFolder, evaluation: dict[str, Any]) -> str:
    """One row of the table."""
    record = folder.read_record()
    summary = json.loads(folder.summary.read_text())
    arguments = record["experiment"]["arguments"]
    _, module = read_module(Path(record["file"]))
    published = module.published(**arguments) if hasattr(module, "published") else "no number"
    flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in arguments.items())
    images = record["num_steps"] * record["batch_size"] * record["num_seeds"]
    seconds = images / summary["images_per_second"]
    mean = evaluation["mean"]
    error = "" if record["num_seeds"] > 1 else f" ± {evaluation['standard_error']['nll']:.2f}"
    devices = evaluation["devices"]
    return " | ".join(
        [
            f"| `vae-jax train {record['file']} {flags} --seed {record['seed']} "
            f"--seeds {record['num_seeds']}`",
            published,
            f"{per_seed(mean['nll'])}{error} nats (K = "
            f"{evaluation['num_samples']:,}, {evaluation['num_images']:,})",
            per_seed(mean["neg_elbo"]),
            " + ".join(per_seed(units, 0) for units in evaluation["active_units"]),
            f"{seconds:,.0f} s at {summary['images_per_second']:,.0f} images/s, "
            f"{record['started'][:10]}, {record['devices']['devices']} x {devices['kind']}",
            f"`{evaluation['command']}`, {evaluation['checkpoint']}, "
            f"{evaluation['seconds']:.0f} s, {evaluation['date'][:10]} |",
        ]
    )


def main() -> None:
    """Writes a row for each evaluation of each run folder given."""
    rows = []
    for path in sys.argv[1:]:
        folder = RunFolder(Path(path))
        rows += [row(folder, found) for found in json.loads(folder.evaluation.read_text())]
    before, rest = RESULTS.read_text().split(BEGIN)
    table, after = rest.split(END)
    trained = {line.split(" | ")[0] for line in rows}
    kept = [line for line in table.strip().splitlines()[2:] if line.split(" | ")[0] not in trained]
    RESULTS.write_text("\n".join([before + BEGIN, HEADER, *kept, *rows, END + after]))


if __name__ == "__main__":
    main()
