"""What is installed: the wheel, its experiments by name, its version; the lock by platform."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from running import CLI, ROOT

import vae_jax
from vae_jax import VaeJaxError
from vae_jax.cli import main
from vae_jax.experiment import find_file, shipped

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_version_is_that_of_the_project(capsys: pytest.CaptureFixture[str]):
    main(["--version"])
    assert capsys.readouterr().out == f"{PROJECT['version']}\n"
    assert vae_jax.__version__ == PROJECT["version"]


def test_experiments_are_listed_found_by_name_and_copied(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    names = {file.stem for file in (ROOT / "experiments").glob("*.py")}
    assert set(shipped()) == names
    main(["experiments"])
    listed = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in listed} == names
    assert all(line.endswith(".") for line in listed)
    main(["experiments", "copy", "iwae", str(tmp_path / "mine")])
    copied = tmp_path / "mine" / "iwae.py"
    assert capsys.readouterr().out.strip() == str(copied)
    assert copied.read_text() == (ROOT / "experiments" / "iwae.py").read_text()
    copied.write_text("# mine")
    with pytest.raises(SystemExit):
        main(["experiments", "copy", "iwae", str(tmp_path / "mine")])
    assert "is there already" in capsys.readouterr().err
    assert copied.read_text() == "# mine"


def test_a_file_is_meant_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert find_file("iwae").name == "iwae.py"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "iwae").write_text("")
    assert find_file("iwae") == Path("iwae")
    assert find_file("missing.py") == Path("missing.py")  # reading it says that it is missing
    with pytest.raises(VaeJaxError, match=r"no experiment of this name.*iwae, lagging_inference"):
        find_file("iwea")


PLATFORMS = pytest.mark.parametrize(
    ("system", "machine"), [("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64")]
)


def pinned_for(system: str, machine: str) -> tuple[dict[str, str], dict[str, str]]:
    """The environment of a platform's markers, and what the lock pins there."""
    platform = {**default_environment(), "sys_platform": system, "platform_machine": machine}
    pinned: dict[str, str] = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        pin = Requirement(line)
        if pin.marker is None or pin.marker.evaluate(platform):
            (version,) = pin.specifier
            assert version.operator == "=="
            pinned[re.sub(r"[-_.]+", "-", pin.name).lower()] = version.version
    return platform, pinned


@PLATFORMS
def test_the_lock_pins_what_the_project_needs_on_each_platform(system: str, machine: str):
    platform, pinned = pinned_for(system, machine)
    extras = PROJECT["optional-dependencies"]
    for line in [
        *PROJECT["dependencies"],
        *extras["prepare"],
        *extras["safetensors"],
        *extras["slurm"],
        *extras["tensorboard"],
        *extras["dev"],
    ]:
        needed = Requirement(line)
        name = re.sub(r"[-_.]+", "-", needed.name).lower()
        if name != "vae-jax" and (needed.marker is None or needed.marker.evaluate(platform)):
            assert needed.specifier.contains(pinned[name]), line


@pytest.mark.slow
@PLATFORMS
def test_what_the_lock_pins_has_wheels_for_each_platform(system: str, machine: str, tmp_path: Path):
    """Resolved by pip, all but `promise`, which is Python alone and has no wheel."""
    _, pinned = pinned_for(system, machine)
    del pinned["promise"]
    tags = [f"manylinux_2_{minor}_{machine}" for minor in range(12, 36)]
    tags = ["macosx_14_0_arm64"] if system == "darwin" else [f"manylinux2014_{machine}", *tags]
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
            *("--dry-run", "--no-deps", "--only-binary=:all:", "--python-version", "3.11"),
            *(f"--platform={tag}" for tag in tags),
            *("--target", str(tmp_path)),
            *(f"{name}=={version}" for name, version in pinned.items()),
        ],
        check=True,
    )


@pytest.mark.slow
def test_the_wheel_alone_trains_an_experiment_by_name(tmp_path: Path):
    """From an empty folder, with nothing of the clone on the path."""
    wheels, installed, data = (tmp_path / name for name in ("wheels", "installed", "data"))
    pip = sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", wheels, ROOT], check=True)
    (wheel,) = wheels.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", installed, wheel], check=True)
    assert (installed / "vae_jax" / "py.typed").exists()
    empty = tmp_path / "empty"
    empty.mkdir()

    def run(*arguments: str) -> str:
        return subprocess.run(
            [sys.executable, *CLI, *arguments],
            cwd=empty,
            env={
                **os.environ,
                "PYTHONPATH": str(installed),
                "VAE_JAX_DATA_DIR": str(data),
                "XLA_FLAGS": "",  # one device
            },
            text=True,
            check=True,
            capture_output=True,
        ).stdout

    assert "quickstart" in run("experiments")
    run("train", "quickstart", "--epochs", "1", "--hidden", "16")
    record = json.loads((empty / "runs" / "quickstart" / "experiment.json").read_text())
    assert str(installed) in json.dumps(record)
    assert "NLL" in run("evaluate", "runs/quickstart", "--num-samples", "8", "--num-images", "16")
    run("sample", "runs/quickstart", "--out", "samples.png")
    assert (empty / "samples.png").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("StudentT", "did you mean StandardStudentT?"),
        ("elbo", "did you mean ELBO"),
        ("Evaluater", "did you mean evaluate or Evaluation?"),
        ("VonMises", "did you mean VonMisesFisher?"),
        ("load_runs", "did you mean load_run"),
        ("xyzzy", "vae_jax has no 'xyzzy'."),
    ],
)
def test_a_name_that_is_none_asks_which_was_meant(name: str, said: str):
    with pytest.raises(AttributeError, match=re.escape(said)):
        getattr(vae_jax, name)
    assert not hasattr(vae_jax, name)


def test_every_public_name_misspelled_is_asked_for():
    """A letter left out, two exchanged, all small, one too many."""
    public = {*dir(vae_jax)} - {"__version__"}
    rooms = {path.stem for path in (ROOT / "vae_jax").iterdir()}  # of the package, once imported
    for name in public:
        middle = len(name) // 2
        wrong = {
            name[:middle] + name[middle + 1 :],
            name[: middle - 1] + name[middle] + name[middle - 1] + name[middle + 1 :],
            name.lower(),
            f"{name}s",
        }
        for each in wrong - public - rooms:
            with pytest.raises(AttributeError) as refusal:
                getattr(vae_jax, each)
            assert name in str(refusal.value), each


@pytest.mark.others_slow
@pytest.mark.parametrize(
    "imports",
    [
        "import vae_jax.train as t; import vae_jax as vj",
        "import vae_jax as vj; called = vj.train; import vae_jax.train as t; assert called is t",
        "import vae_jax as vj; from vae_jax import train as t",
    ],
)
def test_train_is_the_function_and_the_module_in_any_order(imports: str) -> None:
    """`vj.train(...)` trains, and `import vae_jax.train as t; t.load_run` finds its neighbours."""
    source = (
        f"{imports}\n"
        "import inspect\n"
        "assert vj.train is t\n"
        "assert (vj.load_run, vj.train_file) == (t.load_run, t.train_file)\n"
        "assert next(iter(inspect.signature(vj.train).parameters)) == 'experiment'\n"
        "try: vj.train(None, 'no-such-folder')\n"
        "except vj.VaeJaxError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert "give an Experiment" in done.stdout, done.stderr
