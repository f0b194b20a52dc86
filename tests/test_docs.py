"""The documents: every reference resolves, every quotation is true, every block of code runs."""

import ast
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from running import on_devices, script
from scipy import stats

from vae_jax import (
    ELBO,
    IWAE,
    Beta,
    Data,
    Experiment,
    Terms,
    VaeJaxError,
    evaluate,
    generate,
    parallel,
    train,
)
from vae_jax.cli import commands
from vae_jax.cli import flags as options_of
from vae_jax.cli.paper import PaperOptions
from vae_jax.experiment import read_module, shipped
from vae_jax.grid import cells_of_flags
from vae_jax.likelihoods.beta import BetaDistribution
from vae_jax.train import init_state

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
REFERENCE = re.compile(r"`([\w./]+\.py)::([\w.]+)`")

every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


# --- References ---------------------------------------------------------------------------------


def names_of(statement: ast.stmt) -> set[str]:
    """What a statement of a module's or a class's body defines."""
    match statement:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            return {name}
        case ast.Assign(targets=targets):
            found = [node for target in targets for node in ast.walk(target)]
        case ast.AnnAssign(target=target):
            found = [target]
        case _:
            found = []
    return {node.id for node in found if isinstance(node, ast.Name)}


@cache
def source_of(path: str, name: str) -> str | None:
    """The text that defines a qualified name; None if the file does not define it."""
    text = (ROOT / path).read_text()
    scope: Any = ast.parse(text)
    for part in name.split("."):
        found = [node for node in getattr(scope, "body", []) if part in names_of(node)]
        if not found:
            return None
        scope = found[-1]
    return ast.get_source_segment(text, scope)


@every_document
def test_references_resolve(document: Path):
    """`path::qualified.name` is a file of the repository, and defined there."""
    references = REFERENCE.findall(document.read_text())
    missing = [
        f"{path}::{name}"
        for path, name in references
        if not (ROOT / path).is_file() or source_of(path, name) is None
    ]
    assert not missing
    assert references or document.name not in ("math.md", "extending.md")


def test_an_unresolved_reference_is_noticed():
    assert source_of("vae_jax/objectives/elbo.py", "ELBO.__call__") is not None
    assert source_of("vae_jax/objectives/elbo.py", "ELBO.nothing") is None
    assert source_of("vae_jax/random.py", "DATA_SEED") is not None


@every_document
def test_paths_exist(document: Path):
    """A file of the repository in backquotes is there."""
    pattern = r"`((?:vae_jax|experiments|scripts|tests|docs)/[\w./]*\.\w+)`"
    paths = re.findall(pattern, document.read_text())
    assert not [path for path in paths if not (ROOT / path).exists()]


@every_document
def test_relative_links_exist(document: Path):
    text = document.read_text()
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    files = [link.split("#")[0] for link in links if not re.match(r"\w+:", link)]
    assert not [file for file in files if not (document.parent / file).exists()]


def test_code_lines_in_math_are_those_of_the_code():
    """In a table's last column, code beside a reference stands in what is referred to."""
    rows = re.findall(r"^\|(.*)\|$", (ROOT / "docs/math.md").read_text(), re.MULTILINE)
    quoted = 0
    for row in rows:
        cells = row.split("|")
        assert len(cells) == 4, row
        is_head = cells[-1].strip() == "Code" or not cells[-1].strip("-")
        assert is_head or REFERENCE.search(cells[-1]), row
        sources = [" ".join(str(source_of(*r)).split()) for r in REFERENCE.findall(cells[-1])]
        for line in re.findall(r"`([^`]+)`", REFERENCE.sub("", cells[-1])):
            assert any(line in source for source in sources), line
            quoted += 1
    assert quoted > 25


# --- Commands -----------------------------------------------------------------------------------


def docstring_of(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text())) or ""


def commands_in(text: str) -> list[str]:
    """Commands on a line of their own or in backquotes, those without arguments left out."""
    pattern = r"(?:^[ \t]*|`)((?:vae-jax|python scripts/)[^`\n]* [^`\n]*)"
    return re.findall(pattern, re.sub(r"\\\n\s*", " ", text), re.MULTILINE)


def parse(command: str) -> None:
    """Parses a command's flags as the program does, and runs nothing.

    Raises:
        SystemExit: they do not suit it.
    """
    match shlex.split(command, comments=True):
        case ["vae-jax", "train" | "figures" as name, str(file), *_] if (
            "experiments/" not in file
            and file not in shipped()
            and (name == "train" or file.endswith(".py"))
        ):
            pass  # the reader's own
        case ["vae-jax", "train", str(file), *flags]:
            options = options_of.TrainOptions(workdir=Path("runs")), options_of.DataOptions()
            for cell in cells_of_flags(module_of(file).experiment, flags):
                options_of.parse(module_of(file).experiment, "train", cell, *options)
        case ["vae-jax", "figures", str(file), *flags] if commands.is_of_a_paper(file):
            options = options_of.DataOptions(), options_of.FigureOptions()
            options_of.parse(module_of(file).figures, "figures", flags, *options)
        case ["vae-jax", "table", str(file), *flags] if commands.is_of_a_paper(file):
            options = PaperOptions(workdir=Path("runs")), options_of.DataOptions()
            options_of.parse(module_of(file).experiment, "table", flags, *options)
        case ["vae-jax", "experiments"]:
            pass
        case ["vae-jax", "data" | "experiments" as group, str(name), *flags]:
            options_of.parse(getattr(commands, f"{group}_{name}"), f"{group} {name}", flags)
        case ["vae-jax", str(name), *flags] if name in commands.PICTURES:
            options = options_of.PictureOptions, options_of.StyleOptions()
            options_of.parse(getattr(generate, name), name, flags, *options, given=["run"])
        case ["vae-jax", str(name), *flags]:
            options_of.parse(function_of(name), name, flags)
        case ["python", str(file), *flags]:
            main = script(Path(file).stem).main
            if inspect.signature(main).parameters:
                options_of.parse(main, file, flags)


def function_of(command: str) -> Any:
    return getattr(commands, {"list": "list_runs"}.get(command, command).replace("-", "_"))


@cache
def module_of(file: str) -> Any:
    return read_module(shipped().get(file, ROOT / file))[1]


COMMANDS = [
    (path.relative_to(ROOT), command)
    for path, text in (
        *((path, path.read_text()) for path in DOCUMENTS),
        *((path, docstring_of(path)) for path in sorted((ROOT / "experiments").glob("*.py"))),
        *((path, docstring_of(path)) for path in sorted((ROOT / "scripts").glob("*.py"))),
    )
    for command in commands_in(text)
    if len(command.split()) > 2
]


def is_refused(command: str) -> bool:
    try:
        parse(command)
    except SystemExit as ended:
        return bool(ended.code)
    except VaeJaxError:
        return True
    return False


def test_commands_parse(monkeypatch: pytest.MonkeyPatch):
    """In documents and docstrings: names, flags and their values are those of today's programs."""
    monkeypatch.syspath_prepend(ROOT / "scripts")  # as Python does that runs one of them
    assert len(COMMANDS) > 100
    assert not [(str(path), command) for path, command in COMMANDS if is_refused(command)]


def test_a_command_that_does_not_parse_is_noticed():
    (command,) = commands_in("So:\n    vae-jax train experiments/aevb.py \\\n  --epochs 3  # so\n")
    assert command.split()[1:4] == ["train", "experiments/aevb.py", "--epochs"]
    assert is_refused(command)
    with pytest.raises(AttributeError):
        parse("vae-jax evaluates runs/demo")


class Launched(NamedTuple):
    """A training by several processes: the devices that its launcher asks for, and its words."""

    devices: int
    words: list[str]


def launched_in(document: str) -> list[Launched]:
    """The trainings that a document's blocks of commands start as several processes."""
    found = []
    for block in re.findall(r"^```sh\n(.*?)^```", document, re.MULTILINE | re.DOTALL):
        text = re.sub(r"\\\n\s*", " ", block)
        job = " ".join(re.findall(r"^#SBATCH (.*)$", text, re.MULTILINE))
        pattern = r'^([^#\n].*?)"?(vae-jax train [^"\n]*--distributed[^"\n]*)'
        for launcher, command in re.findall(pattern, text, re.MULTILINE):
            found.append(Launched(devices_asked_for(f"{job} {launcher}"), shlex.split(command)))
    return found


def devices_asked_for(launcher: str) -> int:
    """By Slurm's flags, or one for each process; 1 where the number of processes is not said."""

    def number(name: str) -> int:
        match = re.search(rf"{name}[ =](\d+)", launcher)
        return int(match[1]) if match else 0

    if "srun" in launcher:
        by_task = number("--ntasks-per-node") * number("--gpus-per-task")
        return number("--nodes") * (by_task or number("--gpus-per-node"))
    return number("-np") or number("JAX_NUM_PROCESSES") or 1


def test_batches_divide_over_the_devices_that_commands_ask_for(monkeypatch: pytest.MonkeyPatch):
    """And the flags of these commands are those of today's program."""
    launched = [each for path in DOCUMENTS for each in launched_in(path.read_text())]
    assert [devices for devices, _ in launched] == [16, 16, 16, 16, 1, 2, 64, 16]
    for devices, (_, _, file, *flags) in launched:
        module = module_of(file)
        made_by = module.experiment
        options = options_of.TrainOptions(workdir=Path("runs")), options_of.ProcessOptions()
        (cell,) = cells_of_flags(made_by, flags)
        _, processes, arguments = options_of.parse(made_by, "train", cell, *options)
        assert processes.distributed
        monkeypatch.setattr(jax, "device_count", lambda devices=devices: devices)
        batch_size = arguments.get("batch_size") or module.OF_VDVAE[arguments["data"]][0]
        assert parallel.share_of(batch_size) * devices == batch_size


def test_the_timeouts_of_processes_are_those_of_the_program():
    """And the time for all to connect is JAX's own."""
    text = (ROOT / "docs" / "scaling.md").read_text()
    said = dict(re.findall(r"^\| `--(\w+-timeout)` \| (\d+)", text, re.MULTILINE))
    options = options_of.ProcessOptions()
    assert len(said) == 3
    for flag, seconds in said.items():
        assert float(seconds) == getattr(options, flag.replace("-", "_"))
    connecting = inspect.signature(jax.distributed.initialize).parameters["initialization_timeout"]
    assert options.start_timeout == connecting.default


def test_a_batch_that_does_not_divide_is_noticed(monkeypatch: pytest.MonkeyPatch):
    """As the README's once was: 20 images on 16 devices."""
    text = "```sh\nsrun --nodes 2 --ntasks-per-node 8 --gpus-per-task 1 \\\n    {}\n```\n"
    command = "vae-jax train experiments/iwae.py --batch-size 20 --distributed"
    assert launched_in(text.format(command)) == [Launched(16, shlex.split(command))]
    monkeypatch.setattr(jax, "device_count", lambda: 16)
    with pytest.raises(VaeJaxError, match="A batch of 20 does not divide over 16 devices"):
        parallel.share_of(20)


# --- Blocks of code -----------------------------------------------------------------------------


class Block(NamedTuple):
    """A fenced block, the heading above it, and the HTML comment right before it."""

    heading: str
    mark: str
    language: str
    text: str


def blocks(document: str) -> list[Block]:
    pattern = r"^## ([^\n]+)$|(?:^<!-- ([^\n]+) -->\n)?^```(\w*)\n(.*?)^```$"
    heading, found = "", []
    for match in re.finditer(pattern, (ROOT / document).read_text(), re.MULTILINE | re.DOTALL):
        if match[1]:
            heading = match[1]
        else:
            found.append(Block(heading, match[2] or "", match[3], match[4]))
    return found


EXTENDING = blocks("docs/extending.md")


@cache
def namespace(heading: str) -> dict[str, Any]:
    """What the Python of a section defines, its blocks run in order."""
    names: dict[str, Any] = {"__name__": "extending"}
    for block in EXTENDING:
        if block.heading.startswith(heading) and block.language == "python" and not block.mark:
            exec(compile(block.text, f"docs/extending.md, {heading}", "exec"), names)
    return names


def stripped(text: str) -> str:
    return "\n".join(line.strip() for line in text.splitlines())


def test_quotations_are_verbatim():
    """Blocks marked `verbatim`, but for indentation and what `...` leaves out."""
    quotations = [block for block in EXTENDING if block.mark.startswith("verbatim: ")]
    assert len(quotations) >= 6
    for block in quotations:
        file = stripped((ROOT / block.mark.removeprefix("verbatim: ")).read_text())
        for part in stripped(block.text).split("\n...\n"):
            assert part
            assert part in file


def imports_of(tree: ast.AST) -> set[str]:
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    return {alias.asname or alias.name for node in found for alias in node.names}


def test_every_block_imports_what_it_uses():
    """What no block of its section defines, it imports itself; `squares.py` is one block."""
    headings = {block.heading for block in EXTENDING}
    for heading in headings:
        texts = [b for b in EXTENDING if b.heading == heading and b.language == "python"]
        trees = [ast.parse(block.text) for block in texts if not block.mark]
        imported = set().union(*map(imports_of, trees))
        for tree in trees:
            names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
            assert not (names & imported) - imports_of(tree), heading


def test_every_block_is_run_or_compared():
    marks = {block.mark.split(":")[0] for block in EXTENDING}
    assert marks == {"", "verbatim", "file"}
    assert {block.language for block in EXTENDING if not block.mark} == {"python", "sh"}


def test_the_beta_density_is_scipys():
    """At modes and concentrations of every size, and the samples by Kolmogorov-Smirnov."""
    generator = np.random.default_rng(0)
    mode, value = generator.uniform(0.001, 0.999, (2, 5, 4, 3, 2)).astype(np.float32)
    concentration = (10 ** generator.uniform(-3, 3, mode.shape)).astype(np.float32)
    p = BetaDistribution(jnp.asarray(mode), jnp.asarray(concentration), event_ndims=3)
    alpha, beta = (1 + concentration * m.astype(np.float64) for m in (mode, 1 - mode))
    expected = stats.beta.logpdf(value, alpha, beta).sum((1, 2, 3))
    np.testing.assert_allclose(p.log_prob(value), expected, rtol=1e-4)
    keys = jax.random.split(jax.random.key(0), 5)
    samples = np.asarray(jax.jit(lambda p: p.sample(keys, (100,)))(p), np.float64)
    assert stats.kstest(stats.beta.cdf(samples, alpha, beta).ravel(), "uniform").pvalue > 1e-4
    np.testing.assert_array_equal(p.log_prob(0 * value), p.log_prob(0 * value + 2.0**-24))


def test_the_logistic_density_is_scipys():
    distribution = namespace("A prior")["LogisticDistribution"]
    generator = np.random.default_rng(0)
    loc, value = generator.normal(size=(2, 5, 3)).astype(np.float32)
    scale = generator.uniform(0.1, 2.0, loc.shape).astype(np.float32)
    p = distribution(jnp.asarray(loc), jnp.asarray(scale))
    expected = stats.logistic.logpdf(value, loc, scale).sum(-1)
    np.testing.assert_allclose(p.log_prob(value), expected, rtol=1e-5)
    samples = np.asarray(p.sample(jax.random.key(0), (2000,)))
    assert stats.kstest(((samples - loc) / scale).ravel(), stats.logistic.cdf).pvalue > 1e-4


def test_the_shared_tests_find_the_beta_likelihood():
    """By its being public alone."""
    import test_likelihoods

    assert Beta in test_likelihoods.ALL
    assert "Beta" not in Path(test_likelihoods.__file__).read_text()


def tiny_data(protocol: str) -> Data:
    """Bars, upright and lying, of 28 by 28 pixels."""
    splits = (
        tiny.images(count, seed).repeat(7, 1).repeat(7, 2) for seed, count in ((0, 64), (1, 9))
    )
    train, test = splits
    return Data.from_arrays("bars", train, test=test, protocol=protocol)


@pytest.mark.parametrize(
    "heading", ["A likelihood", "A prior", "A network: a residual", "A network of NNX"]
)
def test_the_models_fit_together(heading):
    """Each section's model maps images `[3, 28, 28, 1]` to Terms; traced, not run."""
    x, keys = jnp.zeros((3, 28, 28, 1)), jax.random.split(jax.random.key(0), 3)
    model = namespace(heading)["model"].clone(image_shape=(28, 28, 1))

    def shapes():
        terms, variables = model.init_with_output(keys[0], x, keys)
        assert (terms.kl is None) == (heading == "A prior")
        return terms.log_w, variables

    log_w, _ = jax.eval_shape(shapes)
    assert log_w.shape == (1, 3)


@pytest.mark.slow
def test_the_new_parts_train_together(tmp_path):
    """The loss falls, every parameter moves, and evaluation finds the quantities it should."""
    network = partial(namespace("A network: a residual MLP")["ResidualMLP"], width=16, num_blocks=1)
    model = namespace("A likelihood")["model"].clone(
        encoder=network(), decoder=network(), prior=namespace("A prior")["Logistic"](8)
    )
    experiment = Experiment(
        data=tiny_data("dequantize"),
        model=model,
        objective=ELBO(),
        optimizer=optax.adam(3e-3),
        num_steps=20,
        batch_size=16,
        log_every=10,
        checkpoint_every=20,
    )
    with on_devices(1):
        run = train(experiment, tmp_path / "run")
        result = evaluate(run, num_samples=4)
        before = jax.jit(lambda: init_state(experiment, 0).params)()
    first, last = (line["loss"] for line in run.folder.read_metrics())
    assert last < first
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), before, run.seed_variables["params"])
    assert all(jax.tree.leaves(moved)), moved
    assert moved["likelihood"].keys() == {"mode", "concentration"}
    assert moved["prior"].keys() == {"loc", "log_scale"}
    assert set(result.mean) == {"nll", "neg_elbo", "distortion", "kl_sampled"}
    assert all(np.isfinite(values).all() for values in result.mean.values())
    assert result.bits_per_dim is not None


def test_networks_of_nnx_train_and_are_those_of_the_module(tmp_path):
    """swish(W x + b) by NumPy from the run's parameters, which have moved."""
    model = namespace("A network of NNX")["model"]
    experiment = Experiment(
        data=tiny_data("dequantize"),
        model=model.clone(likelihood=Beta()),
        objective=ELBO(),
        optimizer=optax.adam(3e-3),
        num_steps=2,
        batch_size=16,
        log_every=2,
    )
    with on_devices(1):
        run = train(experiment, tmp_path / "run")
        before = jax.jit(lambda: init_state(experiment, 0).params)()
    params = run.seed_variables["params"]
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), before, params)
    assert all(jax.tree.leaves(moved)), moved
    x = np.random.default_rng(0).uniform(size=(3, 28, 28, 1)).astype(np.float32)
    features = model.encoder.apply({"params": params["encoder"]}, x)
    dense = {name: np.float64(each) for name, each in params["encoder"]["dense"].items()}
    h = x.reshape(3, -1) @ dense["kernel"] + dense["bias"]
    np.testing.assert_allclose(features, h / (1 + np.exp(-h)), rtol=1e-4, atol=1e-5)


def test_vr_max_is_above_the_iwae():
    """ln max w - ln K <= ln mean w <= ln max w; the value by NumPy."""
    objective = namespace("An objective")["VRMax"]
    log_p = np.random.default_rng(0).normal(size=(3, 6, 4)).astype(np.float32)
    nothing: Any = None
    terms = Terms(
        x=nothing,
        y=None,
        keys=nothing,
        z=nothing,
        path=nothing,
        log_px=jnp.asarray(log_p[0]),
        log_pz=jnp.asarray(log_p[1:2]),
        log_qz=jnp.asarray(log_p[2:]),
        kl=None,
        q=nothing,
        p=nothing,
        reconstruction=nothing,
    )
    iwae, names = IWAE(6)(terms, jnp.int32(0), tiny.model())
    loss, metrics = objective(6)(terms, jnp.int32(0), nothing)
    assert metrics.keys() <= names.keys()
    assert loss == pytest.approx(-(log_p[0] + log_p[1] - log_p[2]).max(0).mean(), rel=1e-6)
    assert iwae - np.log(6) < loss < iwae


# --- As a user runs it: a process of its own, on the machine's own devices ----------------------


def as_a_user(command: list[str], folder: Path, **variables: str) -> None:
    """Runs a command in a folder, warnings being errors."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONWARNINGS": "error",
        **variables,
    }
    del environment["XLA_FLAGS"]  # the eight devices of conftest.py
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_experiment_file_runs(tmp_path):
    """The blocks of `squares.py` in one file, and the commands below them."""
    file = [block.text for block in EXTENDING if block.mark == "file: squares.py"]
    assert len(file) == 2
    (tmp_path / "squares.py").write_text("\n\n".join(file))
    (commands,) = (block.text for block in EXTENDING if block.language == "sh")
    as_a_user(["bash", "-e", "-c", commands], tmp_path)
    record = json.loads((tmp_path / "runs/squares/experiment.json").read_text())
    assert record["experiment"]["arguments"] == {"latent_dim": 3, "k": 5, "num_steps": 500}
    (evaluation,) = json.loads((tmp_path / "runs/squares/evaluation.json").read_text())
    assert evaluation["num_images"] == 200
    assert evaluation["mean"]["nll"] < 60  # 104 nats: each pixel on in 36/256 of the images


def test_the_readmes_python_runs(tmp_path, data_dir):
    """Its blocks as they stand, but for fewer steps: training, the six lines of use, the table."""
    python = [block.text for block in blocks("README.md") if block.language == "python"]
    assert python, "README.md has no Python block"
    training, use, table = python
    shorter, count = re.subn(r"num_steps=\d+", "num_steps=50", training)
    assert count == 1
    assert len(use.splitlines()) == 6
    checks = "assert pictures.shape == images.shape and lines.shape == (4, 11, 28, 28, 1)\n"
    checks += "assert log_px.shape == (8,) and q.std.min() > 0 and q.sample.shape == q.mean.shape\n"
    assert len(table.splitlines()) == 4
    table += "assert metrics.step.iloc[-1] == 50 and (metrics.neg_elbo.dropna() > 0).all()\n"
    (tmp_path / "readme.py").write_text(shorter + use + checks + table)
    as_a_user([sys.executable, "readme.py"], tmp_path, VAE_JAX_DATA_DIR=str(data_dir))
    assert list(tmp_path.glob("runs/*/summary.json"))
