"""A run in words: from experiment.json, metrics.jsonl and summary.json, without its code."""

import datetime
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

from vae_jax.run import Record, RunFolder

OF_MODEL = "model: "
CHAIN = {"chain", "named_chain", "with_extra_args_support", "partition", "masked"}


def facts(folder: RunFolder) -> dict[str, str]:
    """The facts about a run, each under its name.

    Args:
        folder: the run folder.

    Raises:
        VaeJaxError: the folder is no run folder.
    """
    record = folder.read_record()
    found = {"folder": str(folder.path), "command": command_of(record, folder)}
    found |= _progress(record, folder) | {"data": _description_of(record.get("data"))}
    model = record.get("model")
    if isinstance(model, dict):
        found["model"] = _short(str(model.get("is", "")))
        parts = {name: part for name, part in model.items() if name != "is" and part is not None}
        found |= {OF_MODEL + name.replace("_", " "): in_words(part) for name, part in parts.items()}
    found["objective"] = in_words(record.get("objective"))
    found["optimizer"] = ", ".join(dict.fromkeys(_steps_of(record.get("optimizer"))))
    names = ("batch_size", "accumulate", "augment", "ema_decay", "compute_dtype")
    found |= {name.replace("_", " "): in_words(record.get(name)) for name in names}
    first, count = record.get("seed"), record["num_seeds"]
    found["seeds"] = f"{first}" if count == 1 else f"{count}, the first is {first}"
    found |= {
        name: _listed(record.get(entry))
        for name, entry in (("hardware", "devices"), ("versions", "versions"))
    }
    found["commit"] = str(record.get("git_commit") or "")
    return {name: text for name, text in found.items() if text not in ("", "()", "None")}


def short_names(runs: Sequence[Path]) -> list[str]:
    """The ends of paths, just long enough to distinguish them."""
    parts = [path.resolve().parts for path in runs]
    for length in range(1, max(map(len, parts))):
        names = ["/".join(each[-length:]) for each in parts]
        if len({*names}) == len({*parts}):
            return names
    return [str(Path(*each)) for each in parts]


def command_of(record: Record, folder: RunFolder) -> str:
    """The command that trains a run of this `record` in `folder`, or the call from Python."""
    about = record["experiment"]
    if record["file"] is None or about is None:
        return "from Python: train(experiment, folder)"
    words = training_words(record)
    if record.get("seed"):
        words += ["--seed", str(record["seed"])]
    if record["num_seeds"] > 1:
        words += ["--seeds", str(record["num_seeds"])]
    return shlex.join([*words, "--workdir", str(folder.path)])


def training_words(record: Record) -> list[str]:
    """The words of the command that trains a run of this `record`, up to the experiment's flags."""
    words = ["vae-jax", "train", record["file"]]
    for name, value in record["experiment"]["arguments"].items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            several = value if isinstance(value, list) else [value]
            words += [f"--{flag}", *map(str, several)]
    return words


def in_words(value: object) -> str:
    """A `value` of `vae_jax.identity.describe` as Python code."""
    match value:
        case {"is": "dict", "of": dict(content)}:
            return f"{{{', '.join(f'{name}: {in_words(of)}' for name, of in content.items())}}}"
        case {"is": str(), "of": content}:
            return in_words(content)
        case {"is": str(name), **fields}:
            return f"{_short(name)}({', '.join(_arguments(fields))})"
        case {"import": str(name)}:
            return _short(name)
        case {"def": str(name), **closed}:
            numbers = {key: of for key, of in closed.items() if isinstance(of, int | float)}
            return f"{_short(name)}({', '.join(_arguments(numbers))})"
        case [one]:
            return f"({in_words(one)},)"
        case list():
            return f"({', '.join(map(in_words, cast('list[object]', value)))})"
        case float():
            return f"{value:g}"
        case _:
            return str(value)


def _arguments(fields: Mapping[str, object]) -> list[str]:
    """The arguments of a part from its fields: no initializers, and none that are None."""
    return [
        f"{name}={in_words(value)}"
        for name, value in fields.items()
        if value is not None and not name.endswith("_init") and not name.startswith("__")
    ]


def _short(name: str) -> str:
    """The name of a class or function without its module, or of the function that made it."""
    return name.partition(".<locals>")[0].rpartition(".")[2]


def _steps_of(optimizer: object) -> Iterator[str]:
    """The Optax functions, with their numbers, from which an optimizer is made."""
    match optimizer:
        case {"is": str(), "update": update}:
            yield from _steps_of(update)
        case {"def": str(name), **closed}:
            if _short(name) not in CHAIN and any(_arguments(closed)):
                simple = {key: of for key, of in closed.items() if isinstance(of, int | float)}
                if simple and not re.search(r"<lambda>$", name):
                    yield in_words({"def": name, **simple})
            for part in closed.values():
                yield from _steps_of(part)
        case {"is": str(), "of": content}:
            yield from _steps_of(content)
        case dict():
            for part in cast("dict[str, object]", optimizer).values():
                yield from _steps_of(part)
        case list():
            for part in cast("list[object]", optimizer):
                yield from _steps_of(part)


def _description_of(data: object) -> str:
    match data:
        case {"description": str(description)}:
            return description
    return ""


def _listed(entry: object) -> str:
    """Hardware or versions: names and values."""
    match entry:
        case {"platform": platform, "kind": kind, "devices": devices, "processes": processes}:
            kinds = dict.fromkeys((str(kind), str(platform)))
            counts = _count(devices, "device", "devices"), _count(processes, "process", "processes")
            return ", ".join([*kinds, *counts])
        case dict():
            return ", ".join(f"{name} {of}" for name, of in cast(Record, entry).items())
    return ""


def _count(number: object, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}" if isinstance(number, int) else ""


def _progress(record: Record, folder: RunFolder) -> dict[str, str]:
    """The progress of a run, its date, and its duration."""
    lines, summary = folder.read_metrics(), folder.read_summary()
    step = max((line["step"] for line in lines), default=0)
    steps = record.get("num_steps")
    aim = f"{steps:,}" if isinstance(steps, int) else "?"
    done = f"step {step:,} of {aim}"
    if folder.is_finished(record):
        early = summary is not None and summary["step"] != steps
        done = f"finished at {done}, by its validations" if early else f"finished, {aim} steps"
    found = {"training": done}
    if isinstance(started := record.get("started"), str):
        found["started"] = started
    times = [line["time"] for line in lines if isinstance(line.get("time"), int | float)]
    if len(times) > 1:
        passed = datetime.timedelta(seconds=round(max(times) - min(times)))
        found["time"] = f"{passed} from the first logged step to the last, pauses included"
    if summary and isinstance(speed := summary.get("images_per_second"), int | float):
        found["speed"] = f"{speed:,.0f} images/s"
    if summary:
        found["SHA-256 of the parameters"] = summary["params_sha256"]
    return found
