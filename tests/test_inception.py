"""Inception-v3 on weights drawn here, against torchvision's network and its published size."""

import math
import re
import subprocess
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from running import ROOT

from vae_jax import VaeJaxError, metrics
from vae_jax.metrics.inception import InceptionV3

# torchvision 0.28.0's inception_v3 without its classifiers: 27,161,264 parameters in its list of
# weights, less the 3,326,696 of AuxLogits and the 2,049,000 of fc.
PARAMETERS, CONVOLUTIONS = 21_785_568, 94

TORCHVISION = """
import sys
from functools import partial
import numpy as np
import torch
import torch.nn.functional as F
# Inception has none of the operators that a torchvision built for CUDA misses beside a torch that
# is not.
torch.library.register_fake = lambda *args, **kwargs: lambda function: function
from torchvision.models import inception_v3

weights, images, answers = sys.argv[1:]
network = inception_v3(weights=None, aux_logits=False, init_weights=False)
network.fc = torch.nn.Identity()
arrays = {name: torch.from_numpy(array) for name, array in np.load(weights).items()}
del arrays["fc.weight"]
network.load_state_dict(arrays)
F.avg_pool2d = partial(F.avg_pool2d, count_include_pad=False)
network.Mixed_7c.register_forward_pre_hook(lambda *_: setattr(F, "avg_pool2d", F.max_pool2d))
network.double().eval()
x = torch.from_numpy(np.load(images)).permute(0, 3, 1, 2).double() / 255
x = F.interpolate(x, size=(299, 299), mode="bilinear", align_corners=False)
with torch.no_grad():
    np.save(answers, network(2 * x - 1).numpy())
"""

# Features 0, 100, ..., 2000 of `pictures(1)`, which the slow test compares with the program above.
KNOWN = [
    3.041021,
    0.000000,
    11.190278,
    0.010830,
    6.762277,
    12.635712,
    0.472912,
    3.557528,
    1.940421,
    1.977719,
    3.639348,
    4.721189,
    0.000000,
    13.225090,
    4.062176,
    5.486222,
    2.721258,
    1.537501,
    0.351711,
    0.204352,
    0.000000,
]


def shapes() -> dict[str, tuple[int, ...]]:
    image = jax.ShapeDtypeStruct((1, 299, 299, 3), np.float32)
    tree = jax.eval_shape(InceptionV3().init, jax.random.key(0), image)["params"]
    return {
        ".".join(part.key for part in path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def drawn() -> dict[str, Any]:
    """Arrays that keep the features' size from layer to layer."""
    generator = np.random.RandomState(0)  # whose numbers never change
    arrays = {}
    for name, shape in sorted(shapes().items()):
        if name.endswith("conv.weight"):
            array = generator.standard_normal(shape) * math.sqrt(2 / math.prod(shape[1:]))
        elif name.endswith(("bn.weight", "running_var")):
            array = generator.uniform(0.5, 1.5, shape)
        else:
            array = generator.uniform(-0.2, 0.2, shape)
        arrays[name] = array.astype(np.float32)
    return arrays


def pictures(count: int, side: int = 40) -> np.ndarray:
    return np.random.RandomState(1).randint(0, 256, (count, side, side, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("inception") / "weights.npz"
    classifier: dict[str, Any] = {"fc.weight": np.zeros((1008, 2048))}
    np.savez(file, **drawn(), **classifier)
    return file


def test_the_arrays_are_those_of_the_published_network() -> None:
    learned = {name: shape for name, shape in shapes().items() if "running" not in name}
    assert sum(map(math.prod, learned.values())) == PARAMETERS
    assert len(shapes()) == 5 * CONVOLUTIONS
    assert shapes()["Mixed_7c.branch3x3dbl_3a.conv.weight"] == (384, 384, 1, 3)


def test_every_array_is_used() -> None:
    """Followed back from the features through the program's equations."""
    image = jax.ShapeDtypeStruct((1, 299, 299, 3), np.float32)
    variables = jax.eval_shape(InceptionV3().init, jax.random.key(0), image)
    program = jax.make_jaxpr(InceptionV3().apply)(variables, image).jaxpr
    used = set(map(id, program.outvars))
    for equation in reversed(program.eqns):
        if used & set(map(id, equation.outvars)):
            used |= set(map(id, equation.invars))
    assert len(program.invars) == 5 * CONVOLUTIONS + 1
    assert all(id(array) in used for array in program.invars)


def test_features_are_torchvisions(weights: Path) -> None:
    """One image; a grey image has the features of its three equal channels."""
    (space,) = metrics.load_features(str(weights)).values()
    image = pictures(1)
    found = space(image)
    assert found.shape == (1, 2048)
    np.testing.assert_allclose(found[0, ::100], KNOWN, rtol=1e-4, atol=2e-4)
    np.testing.assert_array_equal(space(image), found)
    grey = image[..., :1]
    np.testing.assert_array_equal(space(grey), space(np.repeat(grey, 3, -1)))


@pytest.mark.slow
@pytest.mark.parametrize("side", [40, 320])  # made larger, and smaller without antialiasing
def test_all_features_are_torchvisions(side: int, weights: Path, tmp_path: Path) -> None:
    """torchvision computes in float64, in the peers' environment of `make bench`, and is added by
    `.venv-peers/bin/pip install --no-deps torchvision==0.28.0`.
    """
    python = ROOT / ".venv-peers/bin/python"
    if not python.exists():
        pytest.skip("there is no .venv-peers: make .venv-peers/installed")
    images = pictures(3, side)
    np.save(tmp_path / "images.npy", images)
    files = (weights, tmp_path / "images.npy", tmp_path / "answers.npy")
    command = [python, "-W", "ignore", "-c", TORCHVISION, *files]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if "No module named 'torch" in done.stderr:
        pytest.skip("there is no torchvision in .venv-peers")
    assert not done.returncode, done.stderr
    expected = np.load(tmp_path / "answers.npy")
    if side == 40:
        np.testing.assert_allclose(expected[0, ::100], KNOWN, rtol=0, atol=1e-6)
    found = metrics.inception_features(weights)(images)
    print(f"difference {np.abs(found - expected).max():.1e} of {expected.max():.1f} at most")
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-4)


@pytest.mark.slow
def test_what_is_no_network_is_refused(tmp_path: Path) -> None:
    """Each refusal names the file, and the array if one is at fault."""
    name, other = "Mixed_6b.branch7x7_2.conv.weight", "Mixed_7c.branch_pool.bn.running_var"
    arrays: dict[str, Any] = {name: np.zeros(shape, np.float32) for name, shape in shapes().items()}
    wrong: Any = np.zeros((128, 128, 7, 1), np.float32)
    file = tmp_path / "weights.npz"
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({n: a for n, a in arrays.items() if n != other}, f"have no {other}"),
        (arrays | {name: wrong}, f"have {name} as float32 (128, 128, 7, 1): give floats"),
        (arrays | {other: np.zeros(192, int)}, f"have {other} as int64 (192,)"),
    )
    for damaged, said in cases:
        np.savez(file, **damaged)
        with pytest.raises(VaeJaxError, match=re.escape(f"The weights {file} {said}")):
            metrics.load_features(str(file))
    whole = file.read_bytes()
    for content in (b"", b"no archive", whole[: len(whole) // 2]):
        file.write_bytes(content)
        with pytest.raises(VaeJaxError, match=re.escape(f"The weights {file} cannot be read")):
            metrics.load_features(str(file))
    file.unlink()
    with pytest.raises(VaeJaxError, match="No such file"):
        metrics.load_features(str(file))
