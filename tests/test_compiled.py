"""Compiled programs against the same operations one by one, at the sizes that are used.

jaxlib 0.10.2 computes some fusions of a product and a sum wrongly from 32,768 elements on, on CPUs
and without a word: so reflections were off by 4.4 in evaluation and right in training.
"""

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import combinations
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from combinations import LIKELIHOODS, POSTERIORS, PRIORS, SUPPORTS, prior_fits

import vae_jax as vj
from vae_jax import networks, random
from vae_jax.cpu import compiler

Size = tuple[int, int, int]  # K, B, d
SIZES: list[Size] = list(itertools.product((1, 5, 64), (20, 100, 128), (10, 40, 200)))
FAILED: Size = (64, 20, 35)  # at which reflections were wrong
IMAGE_SHAPE = (8, 8, 1)


# --- The compiler's options ---------------------------------------------------------------------


def reflected(x: Any, v: Any) -> Any:
    """What jaxlib 0.10.2 computes wrongly, as a user might write it."""
    return x - 2 * v * (v * x).sum(-1, keepdims=True)


def test_a_users_own_program_is_right():
    generator = np.random.default_rng(0)
    x, v = generator.normal(size=(64, 20, 32)), generator.normal(size=(20, 32))
    v /= np.linalg.norm(v, axis=-1, keepdims=True)
    of_floats = jax.jit(reflected)(x.astype(np.float32), v.astype(np.float32))
    np.testing.assert_allclose(of_floats, reflected(x, v), atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 0.03)])
@pytest.mark.parametrize("seed", range(4))
def test_products_of_arrays_are_right(seed, dtype, tolerance):
    """Ten random ones of up to eight axes each; YNNPACK computes them where it is right."""
    generator = np.random.default_rng(seed)
    for _ in range(10):
        counts = generator.integers((0, 1, 0, 0), 3)  # of shared, summed, left and right axes
        shared, summed, left, right = np.split(np.array(list("abcdefgh")), np.cumsum(counts))[:4]
        axes = dict.fromkeys("abcdefgh"[: sum(counts)], 1)
        while (np.prod([*axes.values()]) < 2**20) and max(axes.values()) < 200:
            axes[generator.choice([*axes])] += int(generator.integers(1, 40))
        terms = [
            generator.permutation(np.concatenate(kinds))
            for kinds in ((shared, summed, left), (shared, summed, right), (shared, left, right))
        ]
        x, y = (generator.normal(size=[axes[axis] for axis in term]) for term in terms[:2])
        x, y = jnp.asarray(x, dtype), jnp.asarray(y, dtype)
        subscripts = "{},{}->{}".format(*map("".join, terms))
        found = jax.jit(partial(jnp.einsum, subscripts))(x, y)
        exact = partial(np.einsum, subscripts, optimize=True)
        x, y = np.asarray(x, float), np.asarray(y, float)
        error = np.abs(np.asarray(found, float) - exact(x, y)) / np.sqrt(exact(x**2, y**2))
        assert error.max() < tolerance, (subscripts, axes)


@pytest.mark.parametrize(
    ("jaxlib", "flags", "expected"),
    [
        ("0.10.2", None, f"--{compiler.YNNPACK}={compiler.PRODUCTS}"),
        ("0.12.0.1", "--xla_a=1", f"--xla_a=1 --{compiler.YNNPACK}="),
        ("0.10.3", None, f"--{compiler.YNNPACK}={compiler.PRODUCTS}"),
        ("0.11.0", None, f"--{compiler.YNNPACK}="),
        ("0.10.1", None, None),  # where every version knows the flag, these are right
        ("0.13.0", "--xla_a=1", "--xla_a=1"),  # an unknown flag would end the process
        ("0.10.2", f"--{compiler.YNNPACK}=dot", f"--{compiler.YNNPACK}=dot"),
    ],
)
def test_fusions_that_are_compiled_wrongly_are_left_out(monkeypatch, jaxlib, flags, expected):
    """On the versions that need it, and where the user has said nothing else."""
    monkeypatch.setattr(compiler, "version", lambda name: jaxlib)
    monkeypatch.setattr(compiler, "_began", lambda: False)
    monkeypatch.delenv("XLA_FLAGS")
    if flags is not None:
        monkeypatch.setenv("XLA_FLAGS", flags)
    compiler.restrict_ynnpack()
    assert os.environ.get("XLA_FLAGS") == expected


LATE = """
import sys
import jax, jax.numpy as jnp, numpy as np
jax.devices()
sys.path.insert(0, sys.argv[1])
from vae_jax import parallel
from test_compiled import reflected

x, v = jax.random.normal(jax.random.key(0), (64, 20, 32)), jnp.full((20, 32), 32**-0.5)
one_by_one = reflected(x, v)
np.testing.assert_allclose(parallel.jit(reflected)(x, v), one_by_one, atol=1e-5)
on_devices = parallel.on_every_device(reflected)(x[None], v[None])
np.testing.assert_allclose(on_devices[0], one_by_one, atol=1e-5)
"""


def test_where_jax_began_before_the_package_its_own_programs_are_right_and_others_are_warned_of():
    environment = {name: os.environ[name] for name in os.environ if name != "XLA_FLAGS"}
    child = subprocess.run(
        [sys.executable, "-c", LATE, str(Path(__file__).parent)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    if compiler.YNNPACK in os.environ["XLA_FLAGS"]:
        assert "Import vae_jax first, or set XLA_FLAGS=--xla_cpu_experimental" in child.stderr


# --- Every part ---------------------------------------------------------------------------------


def models() -> Iterator[tuple[str, str, str]]:
    """Posterior, prior and likelihood, so that each occurs: those that have occurred least."""
    used = dict.fromkeys([*POSTERIORS, *PRIORS, *LIKELIHOODS], 0)
    fitting = [pair for pair in itertools.product(POSTERIORS, PRIORS) if prior_fits(*pair)]
    while min(used[part] for part in [*POSTERIORS, *PRIORS]) == 0:
        q, p = min(fitting, key=lambda pair: sorted(used[part] for part in pair))
        likelihood = min(LIKELIHOODS, key=lambda part: used[part])
        for part in (q, p, likelihood):
            used[part] += 1
        yield q, p, likelihood


def made(parts: tuple[str, str, str], size: Size) -> tuple[Any, Any, Any, Any]:
    """The model with d latents, its variables, and the images and labels of a batch."""
    _, b, d = size
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"D": d, "N": d // 5, "C": 5}.items():
            patch.setattr(combinations, name, value)
        model, _, protocol = combinations.build((*parts, "ELBO"))
    grid = 2 if model.posterior.space == "codes" else 8
    model = model.clone(image_shape=(2 * grid, 2 * grid, 1) if grid == 2 else IMAGE_SHAPE)
    levels = np.random.default_rng(0).integers(0, 256, (b, *model.image_shape))
    scaled = {"binary": levels % 2, "uint8": levels / 255, "unit": (levels + 0.5) / 256}
    x = jnp.asarray(scaled[SUPPORTS[protocol]], jnp.float32)
    y = None if model.labels is None else jnp.arange(b) % 8
    keys = jax.random.split(jax.random.key(0), b)
    variables = jax.jit(lambda: model.init(jax.random.key(0), x, keys, 1, y))()
    return model, variables, x, y


def assert_same(compiled: Any, one_by_one: Any) -> None:
    """Within float32's precision, of the largest number of each array."""

    def same(path: Any, actual: Any, expected: Any) -> None:
        name, scale = jax.tree_util.keystr(path), 1 + np.abs(expected).max()
        assert np.isfinite(expected).all(), name
        error = np.abs(np.subtract(actual, expected)).max() / scale
        assert error < 1e-4, f"{name}: {error}"

    jax.tree_util.tree_map_with_path(same, compiled, one_by_one)


def compare(parts: tuple[str, str, str], size: Size, gradients: bool) -> None:
    model, variables, x, y = made(parts, size)
    keys = jax.random.split(jax.random.key(1), len(x))
    fixed, params = {k: v for k, v in variables.items() if k != "params"}, variables["params"]

    def evaluate(params: Any) -> Any:
        terms = model.apply({"params": params, **fixed}, x, keys, size[0], y)
        told = terms.z, terms.log_px, terms.log_pz, terms.log_qz, terms.kl, terms.reconstruction
        return terms.log_w.mean() / 10, told

    function = jax.grad(evaluate, has_aux=True) if gradients else evaluate
    assert_same(jax.jit(function)(params), function(params))


@pytest.mark.parametrize(
    "posterior",
    [
        *("DiagonalGaussian", "FullCovarianceGaussian", "PlanarFlow", "HouseholderFlow"),
        *("InverseAutoregressiveFlow", "GumbelSoftmax"),
    ],
)
def test_a_posterior_compiled_is_that_one_by_one(posterior):
    """The usual ones, where reflections were wrong; all parts and sizes are slow."""
    k, b, d = FAILED
    q = getattr(vj, posterior)(*((d // 5, 5, 0.5) if posterior == "GumbelSoftmax" else (d,)))
    features = jnp.asarray(np.random.default_rng(0).normal(size=(b, 4)), jnp.float32)
    variables = jax.jit(q.init)(jax.random.key(0), features)

    def evaluate(variables: Any) -> Any:
        return q.apply(variables, features).sample_and_log_prob(random.key(0), (k,))

    assert_same(jax.jit(evaluate)(variables), evaluate(variables))


@pytest.mark.slow
@pytest.mark.parametrize("parts", list(models()), ids="-".join)
def test_values_and_gradients_of_a_model_compiled_are_those_one_by_one(parts):
    compare(parts, FAILED, gradients=True)


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("parts", list(models()), ids="-".join)
def test_a_model_of_any_size_compiled_is_that_one_by_one(parts, size):
    compare(parts, size, gradients=False)


# --- Networks -----------------------------------------------------------------------------------

IMAGES = (32, 32, 3)
STAGES, XCEPTION = ((16, 16), (32,)), ((8, 16), (16, 32), 1, (32, 48, 64))
TRANSFORMER: Any = {"width": 32, "num_layers": 2, "num_heads": 4}
ATTENTION = networks.AxialAttention(num_layers=1, num_heads=2)
# Each network and the shape of its input, of images or of latents.
NETWORKS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "MLP": (networks.MLP((300, 300)), IMAGES),
    "GatedMLP": (networks.GatedMLP((300, 300)), IMAGES),
    "Conv": (networks.ConvEncoder((32, 64), dense=256, residual_blocks=1), IMAGES),
    "VGG": (networks.VGGEncoder(STAGES), IMAGES),
    "ResNet": (networks.ResNetEncoder((2, 2), width=32), IMAGES),
    "VQGAN": (networks.VQGANEncoder((16, 32), blocks=1), IMAGES),
    "Xception": (networks.XceptionEncoder(*XCEPTION), IMAGES),
    "ViT": (networks.ViTEncoder(**TRANSFORMER), IMAGES),
    "GPT": (networks.GPTEncoder(**TRANSFORMER), IMAGES),
    "axial": (networks.HorizontalEncoder(ATTENTION, 16), IMAGES),
    "MLP of latents": (networks.MLP((300, 300)), (40,)),
    "Conv of latents": (networks.ConvDecoder((64, 32), dense=256, residual_blocks=1), (40,)),
    "VGG of latents": (networks.VGGDecoder(STAGES), (16, 16, 8)),
    "ResNet of latents": (networks.ResNetDecoder((2, 2), width=32), (16, 16, 8)),
    "VQGAN of latents": (networks.VQGANDecoder((16, 32), blocks=1), (16, 16, 8)),
    "Xception of latents": (networks.XceptionDecoder(*XCEPTION), (40,)),
    "ViT of latents": (networks.ViTDecoder(8, **TRANSFORMER), (40,)),
    "GPT of latents": (networks.GPTDecoder(8, **TRANSFORMER), (40,)),
    "axial of latents": (networks.HorizontalDecoder(ATTENTION, 8, 16), (8, 8, 16)),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n != "MLP")) for n in NETWORKS]
)
def test_a_network_compiled_is_that_one_by_one(name):
    network, shape = NETWORKS[name]
    x = jnp.asarray(np.random.default_rng(0).normal(size=(20, *shape)), jnp.float32)
    more = (IMAGES,) if shape != IMAGES and "MLP" not in name else ()

    def init() -> Any:
        return network.init(jax.random.key(0), x, *more)

    variables = jax.jit(init)()

    def evaluate(variables: Any) -> Any:
        return network.apply(variables, x, *more)

    assert_same(jax.jit(evaluate)(variables), evaluate(variables))
