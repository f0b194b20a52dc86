"""The shape of the house: what a training step enters, how rooms lie above each other, who may
speak of keys and of devices.
"""

import ast
import re
from collections.abc import Callable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import checks
import pytest
from running import ROOT, finish, start

PACKAGE = ROOT / "vae_jax"
TREES = {path.relative_to(PACKAGE): ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}

# The files that a step of the plainest run enters: what has to be read to know what it does, ...
ROAD = {
    "data/pipeline.py",
    "distributions/base.py",
    "distributions/normal.py",
    "interfaces.py",
    "parallel.py",
    "random.py",
    "step.py",
    "vae.py",
}
# ... and the parts that the experiment's own file names, each a file.
PARTS = {
    "likelihoods/bernoulli.py",
    "networks/mlp.py",
    "objectives/elbo.py",
    "posteriors/gaussian.py",
    "priors/simple.py",
}
# The platform's room, behind its seams.
ROAD_ON_CPU = {"cpu/platform.py", "cpu/softplus.py", "cpu/sums.py", "cpu/threefry.py"}

# The house from the ground up: a room imports only from floors below its own.
FLOORS = (
    ("errors", "cpu"),
    ("budget", "given", "progress", "random"),
    ("identity", "interfaces", "optimizers", "parallel", "storage"),
    ("compute", "processes"),
    ("flows", "hmc", "checkpoint", "plots"),
    ("distributions", "data"),
    ("vae", "conditional", "networks", "posteriors"),
    ("bounds", "hierarchical", "likelihoods", "objectives"),
    ("deep", "priors"),
    ("compatibility",),
    ("experiment",),
    ("step",),
    ("run",),
    ("fitted_priors",),
    ("generate",),
    ("standard_figures", "metrics"),
    ("evaluation",),
    ("train",),
    ("report", "grid", "second_stage"),
    ("cli",),
)
# What looks upward, for the names of types alone.
UPWARD_TYPES = {
    "interfaces": {"distributions", "vae"},
}

KEYS = re.compile(r"jax\.random\.(key|PRNGKey|split|fold_in|clone|wrap_key_data|key_data)")
DEVICES = re.compile(
    r"jax\.(pmap|device\w*|local_device\w*|process_\w+|default_backend|distributed|sharding"
    r"|make_mesh|shard_map|experimental\.multihost_utils)\b"
)
WRITING = {"mkdir", "open_memmap", "savefig", "savez", "touch", "write_bytes", "write_text"}
ANYS = 60


# The road of a step


@pytest.fixture(scope="module")
def entered() -> set[str]:
    """As a process of its own says, for what was traced before is not entered again."""
    done = finish(start((str(ROOT / "scripts" / "trace_step.py"),)))
    assert done.returncode == 0, done.stderr
    return {line.partition(":")[0] for line in done.stdout.splitlines()[:-1]}


def test_a_step_enters_the_files_of_its_road(entered: set[str]) -> None:
    assert {file for file in entered if not file.startswith("cpu/")} == ROAD | PARTS
    assert len(ROAD) <= 8
    assert {file for file in entered if file.startswith("cpu/")} == ROAD_ON_CPU


@pytest.mark.parametrize(
    "station",
    ["compute.py", "optimizers.py", "conditional.py", "compatibility.py", "data/augment.py"],
)
def test_a_station_that_does_nothing_is_not_entered(station: str, entered: set[str]) -> None:
    assert (PACKAGE / station).exists()
    assert station not in entered


def test_a_step_does_not_enter_evaluation(entered: set[str]) -> None:
    assert not [file for file in entered if file.startswith("evaluation/")]


def function(file: str, name: str) -> ast.FunctionDef:
    (found,) = (
        node
        for node in TREES[Path(file)].body
        if isinstance(node, ast.FunctionDef) and node.name == name
    )
    return found


def lines(*nodes: ast.stmt) -> int:
    assert nodes[-1].end_lineno is not None
    return nodes[-1].end_lineno - nodes[0].lineno + 1


def test_the_step_is_read_on_one_screen() -> None:
    """The bodies of its functions, from the data to the new state, one after the other."""
    start, end = (function("step.py", name).lineno for name in ("train_step", "averaged"))
    every = [node for node in TREES[Path("step.py")].body if isinstance(node, ast.FunctionDef)]
    step = [node for node in every if start <= node.lineno < end]
    assert "value_and_grad" in "".join(map(ast.unparse, step))
    assert sum(lines(*node.body[1:]) for node in step) <= 45


def test_the_loop_is_read_at_a_glance() -> None:
    (loop,) = (
        node
        for node in ast.walk(function("train.py", "train_together"))
        if isinstance(node, ast.For) and "chunks" in ast.unparse(node.iter)
    )
    assert lines(loop) <= 25


# Rooms


def module_of(path: Path) -> str:
    """The dotted name of a file of the package."""
    parts = path.with_suffix("").parts
    return ".".join(["vae_jax", *(parts[:-1] if parts[-1] == "__init__" else parts)])


MODULES = {module_of(path): tree for path, tree in TREES.items()}


def imported(node: ast.AST, for_types: bool = False) -> Iterator[tuple[str, bool]]:
    """What of the package a module imports when it is itself imported, and whether for types."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, for_types) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0
            for alias in child.names:
                name = f"{child.module}.{alias.name}"
                yield (name if name in MODULES else str(child.module)), for_types
        elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            yield from imported(child, True)
        elif not isinstance(child, ast.FunctionDef):
            yield from imported(child, for_types)


def arrows(for_types: bool) -> dict[str, set[str]]:
    """The modules that each module imports; those within a package import the package first."""
    found: dict[str, set[str]] = {name: set() for name in MODULES}
    for name, tree in MODULES.items():
        for other, typed in imported(tree):
            while typed == for_types and other in MODULES and other != "vae_jax":
                if not f"{name}.".startswith(f"{other}."):
                    found[name].add(other)
                other = other.rpartition(".")[0]
    return found


def rooms(for_types: bool) -> dict[str, set[str]]:
    """`arrows` between rooms: the files and folders at the top of the package."""
    found: dict[str, set[str]] = {}
    for name, others in arrows(for_types).items():
        if name != "vae_jax":
            room = name.split(".")[1]
            found.setdefault(room, set()).update({other.split(".")[1] for other in others} - {room})
    return found


def test_the_graph_of_imports_is_that_of_the_package() -> None:
    assert "vae_jax.distributions" in arrows(False)["vae_jax.vae"]
    assert "vae_jax.distributions" in arrows(True)["vae_jax.interfaces"]
    assert "vae_jax.flows" in arrows(False)["vae_jax.priors.real_nvp"]
    assert "vae_jax.flows.base" in arrows(False)["vae_jax.flows.planar"]
    assert "vae_jax.flows" not in arrows(False)["vae_jax.flows.planar"]  # on its way already


def test_no_module_imports_itself_by_way_of_others() -> None:
    TopologicalSorter(arrows(False)).prepare()  # raises CycleError


def test_a_room_imports_only_from_floors_below() -> None:
    floor_of = {room: number for number, floor in enumerate(FLOORS) for room in floor}
    for room, others in rooms(False).items():
        assert not {other for other in others if floor_of[other] >= floor_of[room]}, room


def test_only_annotations_look_upward() -> None:
    assert {room: others for room, others in rooms(True).items() if others} == UPWARD_TYPES


def test_only_the_command_line_imports_within_functions() -> None:
    """Which would hide a circle; there it lets `--help` answer at once."""
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.Lambda) and path.parts[0] != "cli":
                within = [one for one in ast.walk(node) if isinstance(one, ast.ImportFrom)]
                assert not [one for one in within if "vae_jax" in str(one.module)], path


def test_the_top_level_has_at_most_25_modules() -> None:
    assert len({path for path in TREES if len(path.parts) == 1} - {Path("__init__.py")}) <= 25


def test_the_page_on_architecture_says_once_what_each_room_holds() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    first_cells = re.findall(r"^\| (`vae_jax/[^|]*) \|", page, re.MULTILINE)
    said = [room for cell in first_cells for room in re.findall(r"`vae_jax/(\w+)(?:\.py|/)`", cell)]
    assert sorted(said) == sorted(rooms(False))


# Who may speak of what


def names(tree: ast.AST) -> set[str]:
    """Dotted names in the code of a file, such as `jax.random.split`."""
    return {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def imported_names(tree: ast.AST) -> set[str]:
    """Dotted names that a file imports under shorter ones."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.asname}
    return found


def all_names(tree: ast.AST) -> set[str]:
    return names(tree) | imported_names(tree)


def files_with(name: Callable[[str], object], found: Callable[[ast.AST], set[str]]) -> set[str]:
    return {path.as_posix() for path, tree in TREES.items() if any(map(name, found(tree)))}


def test_every_program_is_compiled_with_the_options_that_make_it_right() -> None:
    """They are needed if JAX computed before vae_jax was imported; `cpu` has parts of programs."""
    compiled = [file for file in PACKAGE.rglob("*.py") if "jax.jit(" in file.read_text()]
    assert {file.parent.name for file in compiled} == {"vae_jax", "cpu"}
    [parallel] = [file for file in compiled if file.parent == PACKAGE]
    assert parallel.read_text().count("jax.jit(") == 1  # in `parallel.jit`


def test_no_module_is_longer_than_600_lines() -> None:
    for file in PACKAGE.rglob("*.py"):
        assert len(file.read_text().splitlines()) <= 600, file


def test_only_random_makes_folds_and_splits_keys() -> None:
    assert files_with(KEYS.fullmatch, names) == {"random.py", "cpu/threefry.py"}
    assert not files_with(re.compile(r"jax\.random(\..*)?").fullmatch, imported_names)
    for path in [*(ROOT / "experiments").glob("*.py"), *(ROOT / "scripts").glob("*.py")]:
        assert not list(filter(KEYS.fullmatch, names(ast.parse(path.read_text())))), path


def test_only_storage_renames_and_others_write_to_the_paths_that_it_gives() -> None:
    for path, tree in TREES.items():
        calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
        called = {call.attr for call in calls if isinstance(call, ast.Attribute)}
        if path.as_posix() != "storage.py":
            assert "rename" not in called, path
            if called & WRITING:
                assert "vae_jax.storage" in imported_names(tree), path


def test_only_parallel_knows_devices_and_processes() -> None:
    knowing = {file for file in files_with(DEVICES.match, all_names) if not file.startswith("cpu/")}
    # Processes meet before JAX connects them.
    assert knowing == {"parallel.py", "processes/together.py"}


def test_the_room_of_the_cpu_asks_whether_it_is_one_and_no_more() -> None:
    said = [all_names(tree) for path, tree in TREES.items() if path.parts[0] == "cpu"]
    assert set(filter(DEVICES.match, set().union(*said))) == {"jax.default_backend"}


def test_what_a_users_own_part_may_break_is_no_assertion() -> None:
    """Where models and objectives meet parts, a sentence says what one of them is not."""
    meeting = {"vae.py", "hierarchical", "deep.py", "objectives", "likelihoods", "posteriors"}
    for path, tree in TREES.items():
        if path.parts[0] in meeting:
            assert not [node for node in ast.walk(tree) if isinstance(node, ast.Assert)], path


def without_shape(hint: ast.AST) -> bool:
    """Whether an annotation speaks of an array alone; what a function takes is not checked."""
    match hint:
        case ast.Name(id="Array"):
            return True
        case ast.Subscript(value=ast.Name(id="Callable")):
            return False
        case ast.Subscript(slice=ast.Tuple(elts=[_, ast.Constant(value=str())])):
            return False
    return any(map(without_shape, ast.iter_child_nodes(hint)))


def test_every_array_has_a_shape() -> None:
    """Of the functions that the tests check."""
    for path, tree in TREES.items():
        if path.parts[0].removesuffix(".py") not in checks.ANNOTATED:
            continue
        for each in checks.functions(tree.body):
            taken = [node.annotation for node in ast.walk(each.args) if isinstance(node, ast.arg)]
            hints = [hint for hint in (*taken, each.returns) if hint is not None]
            bare = [ast.unparse(hint) for hint in hints if without_shape(hint)]
            assert not bare, f"{path}: {each.name}"


def test_few_types_cannot_be_said() -> None:
    found = [
        node
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and node.id == "Any"
    ]
    assert len(found) <= ANYS


@pytest.mark.parametrize("module", ["interfaces", "random", "storage", "step", "train"])
def test_the_types_of_the_main_road_are_strict(module: str) -> None:
    text = (PACKAGE / f"{module}.py").read_text()
    assert re.search(r"^# pyright: strict\b", text, re.MULTILINE)
