"""Encoder, decoder and sampler as programs in files, which run without this package."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, export

from vae_jax import parallel, random, storage
from vae_jax.distributions import Distribution
from vae_jax.errors import VaeJaxError
from vae_jax.interfaces import Layers
from vae_jax.run.latents import as_pictures, moments
from vae_jax.run.run import Run

PLATFORMS = ("cpu", "cuda", "tpu")


def save_programs(run: Run, folder: Path) -> list[Path]:
    """Write a run's encoder, decoder and sampler with the parameters of its first seed.

    Each is StableHLO in the container of `jax.export`, for CPUs, CUDA and TPUs, and for any number
    n of examples. In a conditional model each also takes the classes int32 `[n]`, at the end.

    - `encoder.jax`: images float32 `[n, H, W, C]` in the form of the data's protocol, to the means
      and the standard deviations of q(z|x), each a tuple with an entry for each layer.
    - `decoder.jax`: latents `[n, *event]` of each layer from which pictures are decoded, to
      pictures `[n, H, W, C]`.
    - `sampler.jax`: a seed uint32 `[]` and the positions int32 `[n]` of pictures, to those at these
      positions among those that `Run.sample` draws with this seed.

    Args:
        run: the trained model.
        folder: a new folder.

    Returns:
        The files.

    Raises:
        VaeJaxError: the folder is there already, or cannot be written.

    Example:
        >>> decoder = jax.export.deserialize(Path("programs/decoder.jax").read_bytes())
        >>> pictures = decoder.call(z)
    """
    if folder.exists():
        raise VaeJaxError(f"{folder} is there already: name a folder that is not.")
    model, variables = run.experiment.model, run.seed_variables
    (n,) = export.symbolic_shape("n")

    def each(*shape: int, dtype: object = np.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((n, *shape), dtype)

    def encoder(x: Array, y: Array | None = None) -> tuple[Layers, Layers]:
        key = random.purpose(random.image_keys("given", jnp.zeros(1, jnp.int32), 0), "encode")
        mean, std, _ = moments(model, variables, x, key, y)
        return mean, std

    def decoder(*layers: Array) -> Array:
        *zs, y = layers if model.labels is not None else (*layers, None)
        px = cast(Distribution, model.apply(variables, tuple(zs), y, method="decode"))
        return as_pictures(px, jnp.uint32(0), jnp.zeros(1, jnp.int32))

    def drawn(seed: Array, number: Array, y: Array | None = None) -> Array:
        keys = random.indexed(random.purpose(random.key(seed), "samples"), number)
        found = model.apply(variables, keys, y, method="sample")
        return as_pictures(cast("tuple[Layers, Distribution]", found)[1], seed, number)

    def sampler(seed: Array, *batch: Array) -> Array:
        return one_by_one(lambda *one: drawn(seed, *one))(*batch)

    classes = () if model.labels is None else (each(dtype=np.int32),)
    shapes = model.latent_shapes(variables)[: model.decoded_layers]
    programs = {
        "encoder": (one_by_one(encoder), (each(*model.image_shape), *classes)),
        "decoder": (one_by_one(decoder), (*(each(*shape) for shape in shapes), *classes)),
        "sampler": (sampler, (jax.ShapeDtypeStruct((), np.uint32), each(dtype=np.int32), *classes)),
    }
    with storage.writing(folder), storage.whole_folder(folder) as made:
        for name, (function, arguments) in programs.items():
            with jax.default_matmul_precision("float32"):
                program = export.export(parallel.jit(function), platforms=PLATFORMS)(*arguments)
            (made / f"{name}.jax").write_bytes(program.serialize())
    return [folder / f"{name}.jax" for name in programs]


def one_by_one(function: Callable[..., object]) -> Callable[..., Array]:
    """A function of batches of one, mapped over a batch of unknown size."""

    def of_one(*arguments: Array) -> object:
        results = function(*(argument[None] for argument in arguments))
        return jax.tree.map(lambda result: result[0], results)

    return cast("Callable[..., Array]", jax.vmap(of_one))
