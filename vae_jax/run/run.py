"""A trained model and its uses: NumPy arrays in, NumPy arrays out."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.typing import VariableDict
from jax import Array

from vae_jax import given, parallel, random
from vae_jax.bounds import SAMPLES_AT_ONCE, meaningful, per_image
from vae_jax.checkpoint import Checkpoint
from vae_jax.deep import DeepVAE
from vae_jax.distributions import Distribution
from vae_jax.errors import VaeJaxError
from vae_jax.experiment import Experiment
from vae_jax.given import Count, Seed, Share, Weight, checked
from vae_jax.interfaces import Layers
from vae_jax.priors.masked import MaskedCodes
from vae_jax.progress import Waiting
from vae_jax.run.folder import RunFolder
from vae_jax.run.inpainting import has_independent_pixels, inpainted, inpainted_by_codes
from vae_jax.run.latents import Encoded, as_pictures, between, centre, moments
from vae_jax.run.loaded import Classes, Loaded, as_rows, as_seed
from vae_jax.step import init_state
from vae_jax.vae import has_bound


@dataclass(frozen=True, repr=False)
class Run(Loaded):
    """A trained model with its experiment, state and folder.

    Its methods use the first seed (`replica` makes another the first), on all devices. Images are
    bytes, which go through the data's protocol, or floats in [0, 1] as the protocol makes them.
    Pictures are means of p(x|z), floats in [0, 1]; if pixels depend on each other, draws from
    p(x|z) instead.

    Attributes:
        folder: the run folder.
        experiment: the experiment.
        state: the training state, host arrays with a leading axis of seeds.
        checkpoint: the checkpoint that `state` is from, the latest or the best.
        first: the position of the first seed in `state` among the trained seeds.

    Example:
        >>> run = load_run("runs/readme")
        >>> z = run.encode(images).mean
        >>> pictures = run.decode(z)
    """

    @checked
    def encode(self, images: object, labels: Classes = None, *, seed: Seed = 0) -> Encoded:
        """The means and standard deviations of q(z|x), and a draw from it.

        Args:
            images: bytes or floats `[n, H, W, C]`.
            labels: their classes in a conditional model.
            seed: the seed of the draw.

        Raises:
            VaeJaxError: images or labels do not fit the model.
        """
        model = self.experiment.model

        def encoded(variables: VariableDict, x: Array, keys: Array, y: Array | None) -> object:
            return moments(model, variables, x, keys, y)

        found = self.of_images("encode", encoded, images, labels, seed)
        assert isinstance(found, tuple)
        mean, std, sample = cast("tuple[list[np.ndarray], ...]", tuple(map(list, found)))
        if len(mean) > 1:
            return Encoded(tuple(mean), tuple(std), tuple(sample))
        return Encoded(mean[0], std[0], sample[0])

    @checked
    def decode(self, z: object, labels: Classes = None, *, seed: Seed = 0) -> np.ndarray:
        """Pictures `[..., H, W, C]` of latents.

        Args:
            z: latents `[..., *event]`, or a tuple with an array for each layer. For a `DeepVAE` or
                a `SkipVAE`, the top n layers suffice: those below are then at the means of their
                priors. For a `HierarchicalVAE` or a `LadderVAE`, the bottom layer suffices.
            labels: their classes in a conditional model: one for all, or one for each position of
                the last axis of `[...]`.
            seed: the seed of the pixels if these are drawn.

        Raises:
            VaeJaxError: latents or labels do not fit the model.
        """
        model, variables = self.experiment.model, self.seed_variables
        several = z if isinstance(z, tuple | list) else ()
        layered = any(isinstance(each, np.ndarray | Array) for each in several)
        zs = tuple(several) if layered else (z,)
        from_top = len(zs) < model.decoded_layers
        method = "decode_top" if from_top else "decode"
        model.admit(variables, method, (zs,), {})  # values, which a compiled program cannot check
        layers = [np.asarray(layer, np.float32) for layer in zs]
        shapes = model.latent_shapes(variables)
        layers = layers if from_top else layers[: model.decoded_layers]
        shapes = shapes[-len(layers) :] if from_top else shapes[: len(layers)]
        batches = [each.shape[: each.ndim - len(s)] for each, s in zip(layers, shapes, strict=True)]
        if len({*batches}) > 1 or not math.prod(batches[0]):
            raise VaeJaxError(
                f"The layers of z have the leading axes {', '.join(map(str, batches))}: give all "
                "the same, and at least one z."
            )
        flat = [each.reshape(-1, *shape) for each, shape in zip(layers, shapes, strict=True)]
        y = self.classes(labels, len(flat[0]), (1, *batches[0])[-1])

        def decoded(
            variables: VariableDict, seed: Array, rows: Array, y: Array | None, *zs: Array
        ) -> Array:
            px = model.apply(variables, zs, y, method=method)
            return as_pictures(cast(Distribution, px), seed, rows)

        def batch(rows: np.ndarray) -> tuple[np.ndarray | None, ...]:
            return as_rows(rows), None if y is None else y[rows], *(each[rows] for each in flat)

        found = self.mapped((method, len(flat)), decoded, (as_seed(seed),), batch, len(flat[0]))
        flat_pictures = cast(np.ndarray, found)
        return flat_pictures.reshape(*batches[0], *flat_pictures.shape[1:])

    @checked
    def reconstruct(
        self, images: object, labels: Classes = None, *, top: int | None = None, seed: Seed = 0
    ) -> np.ndarray:
        """Pictures `[n, H, W, C]` of the latents at the centre of q(z|x); see `posterior_means`.

        Args:
            images: bytes or floats `[n, H, W, C]`.
            labels: their classes in a conditional model.
            top: the number of layers of a `DeepVAE` or a `SkipVAE`, from the top, that are encoded;
                those below are at the means of their priors. None encodes all.
            seed: the seed of the pixels if these are drawn.

        Raises:
            VaeJaxError: images or labels do not fit the model, or it has fewer layers.
        """
        top = self.layers_or_refuse("top", top)
        return self.decode(self.posterior_means(images, labels)[-top:], labels, seed=seed)

    @checked
    def sample(
        self,
        num: Count = 64,
        *,
        labels: str | int | Sequence[str | int] | None = None,
        temperature: float | Sequence[float] | None = None,
        guidance: Weight | None = None,
        top_k: Count | None = None,
        top_p: Share | None = None,
        seed: Seed = 0,
    ) -> np.ndarray:
        """Pictures `[num, H, W, C]` of latents from the prior.

        Args:
            num: the number of pictures.
            labels: a class of a conditional model, by name or number, or several, one after the
                other with equal shares of the pictures; None takes all classes.
            temperature: the factor of the scales of a `DeepVAE`'s priors: one number, or one for
                each layer, the bottom layer first; or the temperature of a prior over codes or of
                `GIVT`. None keeps the prior's own.
            guidance: the weight of classifier-free guidance of a prior with classes: a diffusion,
                flow matching, over codes or `GIVT`; None keeps the prior's own, by default 0.
            top_k: the number of likeliest codes from which a prior over codes draws one; None
                keeps the prior's own, by default all.
            top_p: the mass of the likeliest codes from which a prior over codes draws one; None
                keeps the prior's own, by default all.
            seed: the seed of the draws.

        Raises:
            VaeJaxError: there is no such class, or the model's prior has no such argument.
        """
        is_deep = isinstance(self.experiment.model, DeepVAE)
        factors = self.temperatures(temperature) if is_deep else ()
        settings = {
            "temperature": None if is_deep else temperature,
            "guidance": guidance,
            "top_k": top_k,
            "top_p": top_p,
        }
        model = self.drawn_by(**settings)
        if labels is None and model.labels is not None:
            labels = self.class_names
        y = None
        if labels is not None:
            several = isinstance(labels, Sequence) and not isinstance(labels, str)
            names = cast("Sequence[str | int]", labels if several else [labels])
            classes = np.array([self.find_label(name) for name in names], np.int32)
            y = classes[np.arange(num) * len(classes) // num]

        def drawn(
            variables: VariableDict,
            seed: Array,
            factors: tuple[Array, ...],
            rows: Array,
            y: Array | None,
        ) -> Array:
            keys = random.indexed(random.purpose(random.key(seed), "samples"), rows)
            found = model.apply(variables, keys, y, *factors, method="sample")
            return as_pictures(cast("tuple[Layers, Distribution]", found)[1], seed, rows)

        def batch(rows: np.ndarray) -> tuple[np.ndarray | None, ...]:
            return as_rows(rows), None if y is None else y[rows]

        name = "sample", len(factors), repr(settings)
        found = self.mapped(name, drawn, (as_seed(seed), factors), batch, num)
        return cast(np.ndarray, found)

    @checked
    def log_prob(
        self,
        images: object,
        labels: Classes = None,
        *,
        num_samples: Count = 5000,
        seed: Seed = 0,
    ) -> np.ndarray:
        """L_K of each image, `[n]` in nats: a lower bound on ln p(x), tighter as K grows.

        Args:
            images: bytes or floats `[n, H, W, C]`.
            labels: their classes in a conditional model, whose bound is on ln p(x|y).
            num_samples: the number of samples K.
            seed: the seed of the samples.

        Raises:
            VaeJaxError: images or labels do not fit the model, or nothing bounds its likelihood.

        References:
            Burda et al. (2015), "Importance weighted autoencoders", equation 8.
        """
        if not has_bound(self.experiment.model):
            raise VaeJaxError(
                f"There is no bound on ln p(x) of {self.folder.path}, whose q(z|x) has no density "
                "or whose p(x|z) is not normalized: compare `run.bounds(images)['distortion']`."
            )
        return -self.bounds(images, labels, num_samples=num_samples, seed=seed)["nll"]

    @checked
    def bounds(
        self,
        images: object,
        labels: Classes = None,
        *,
        num_samples: Count = 5000,
        seed: Seed = 0,
    ) -> dict[str, np.ndarray]:
        """The bound on -ln p(x) of each image and its parts, `[n]` each in nats.

        They are `nll`, which is -L_K, `neg_elbo`, `distortion`, `kl_sampled`, `kl` if the KL is
        known exactly, and `rate_z1`, ... if there are several layers, as in
        `vae_jax.bounds.per_image`; or the `distortion` alone if nothing bounds the likelihood.

        Args:
            images: bytes or floats `[n, H, W, C]`.
            labels: their classes in a conditional model.
            num_samples: the number of samples K.
            seed: the seed of the samples.

        Raises:
            VaeJaxError: images or labels do not fit the model.
        """
        model = self.experiment.model

        def values(
            variables: VariableDict, x: Array, keys: Array, y: Array | None
        ) -> dict[str, Array]:
            found = meaningful(model, per_image(model, variables, x, keys, num_samples, y))
            return {name: each for name, each in found.items() if each.ndim == 1}

        decoded = min(num_samples, SAMPLES_AT_ONCE)
        name = "evaluation", num_samples
        found = self.of_images(name, values, images, labels, seed, decoded)
        return cast("dict[str, np.ndarray]", found)

    @checked
    def interpolate(
        self,
        a: object,
        b: object,
        labels: Classes = None,
        *,
        points: Count = 11,
        top: int | None = None,
        seed: Seed = 0,
    ) -> np.ndarray:
        """Pictures `[n, points, H, W, C]` of the shortest lines between the latents of two images.

        Lines between real vectors are straight; those between unit vectors are great circles.

        Args:
            a: images `[n, H, W, C]` at the beginning of the lines.
            b: images `[n, H, W, C]` at their end.
            labels: the classes of both in a conditional model.
            points: the number of pictures on each line.
            top: the number of layers of a `DeepVAE` or a `SkipVAE`, from the top, that the lines
                run through; those below are at the means of their priors. None takes all.
            seed: the seed of the pixels if these are drawn.

        Raises:
            VaeJaxError: images or labels do not fit the model or each other, its latents are
                discrete and have no lines between them, or it has fewer layers.
        """
        top = self.layers_or_refuse("top", top)
        space = self.experiment.model.posteriors[0].space
        if space not in ("real", "sphere"):
            raise VaeJaxError(
                f"There is nothing between two latents of {self.folder.path} (space {space!r}): "
                "only real and unit vectors can be interpolated."
            )
        ends = [self.posterior_means(images, labels)[-top:] for images in (a, b)]
        if len(ends[0][0]) != len(ends[1][0]):
            raise VaeJaxError(
                f"interpolate was given {len(ends[0][0])} images to begin with and "
                f"{len(ends[1][0])} to end with: give pairs."
            )
        lines = tuple(between(one, other, points, space) for one, other in zip(*ends, strict=True))
        y = self.classes(labels, len(lines[0]))
        return self.decode(lines, None if y is None else np.repeat(y, points), seed=seed)

    @checked
    def inpaint(
        self,
        images: object,
        mask: object,
        labels: Classes = None,
        *,
        num: Count = 1,
        num_steps: Count | None = None,
        seed: Seed = 0,
    ) -> np.ndarray:
        """Pictures `[n, num, H, W, C]` of images with their missing pixels filled in.

        Each shows a z from p(z | x_seen), drawn by a separate Markov chain: missing pixels are
        those of the picture of z, seen ones stay as they are. Chains through a VAE become exact as
        they grow long; those through models of several layers, or without a density of q(z|x), do
        not (`vae_jax.run.inpainting.inpainted`). If the prior is `MaskedCodes`, the codes whose
        pixels are missing are drawn given the others
        (`vae_jax.run.inpainting.inpainted_by_codes`).

        Args:
            images: bytes or floats `[n, H, W, C]`, whose missing pixels may have any values.
            mask: booleans `[H, W]`, one for all images, or `[n, H, W]`; True for missing pixels.
            labels: the classes of the images in a conditional model.
            num: the number of draws for each image.
            num_steps: the number of steps of each chain; None takes 200, and 4 with `MaskedCodes`.
            seed: the seed of the chains.

        Raises:
            VaeJaxError: images, mask or labels do not fit the model, or its pixels depend on each
                other given z.
        """
        model = self.experiment.model
        shape = self.experiment.data.image_shape
        found = np.asarray(given.laid_out(images, shape))
        missing = given.mask(mask, len(found), shape[:2])
        x = self._given(np.where(missing[..., None], np.zeros((), found.dtype), found))
        y = self.classes(labels, len(x))
        if not has_independent_pixels(model, self.seed_variables):
            raise VaeJaxError(
                f"Pixels of {self.folder.path} depend on each other given z, so that those beside "
                "seen ones cannot be drawn alone: take a likelihood of independent pixels, such as "
                "DiscretizedLogistic, to inpaint."
            )

        by_codes = len(model.posteriors) == 1 and isinstance(model.prior, MaskedCodes)
        fill = inpainted_by_codes if by_codes else inpainted
        count = (4 if by_codes else 200) if num_steps is None else num_steps

        def filled(
            variables: VariableDict,
            seed: Array,
            x: Array,
            missing: Array,
            image: Array,
            draw: Array,
            y: Array | None,
        ) -> Array:
            keys = random.purpose(random.image_keys("given", image, seed), "inpaint")
            keys = random.indexed(keys, draw)
            x = self._seen(x, image)
            zs, _ = fill(model, variables, x, missing, keys, count, y)
            px = cast(Distribution, model.apply(variables, zs, y, method="decode"))
            return jnp.where(missing[..., None], as_pictures(px, seed, image), x)

        def batch(rows: np.ndarray) -> tuple[np.ndarray | None, ...]:
            image, draw = as_rows(rows // num), as_rows(rows % num)
            return x[image], missing[image], image, draw, None if y is None else y[image]

        name = "inpaint", count
        flat = cast(np.ndarray, self.mapped(name, filled, (as_seed(seed),), batch, len(x) * num))
        return flat.reshape(len(x), num, *flat.shape[1:])

    @checked
    def posterior_means(self, images: object, labels: Classes = None) -> tuple[np.ndarray, ...]:
        """The latents at the centre of q(z|x), points of the space of z, from which to decode.

        They are the mean or, without a closed form, a central point: with flows, the image of the
        base's mean. For unit vectors, they are the direction of the mean; for one-hot vectors, the
        likeliest.

        Args:
            images: bytes or floats `[n, H, W, C]`.
            labels: their classes in a conditional model.

        Returns:
            The layers from which pictures are decoded, `[n, *event]`: all of a `DeepVAE` or a
            `SkipVAE`, the bottom layer first, and the bottom layer alone of any other model.

        Raises:
            VaeJaxError: images or labels do not fit the model.
        """
        model = self.experiment.model

        def centres(variables: VariableDict, x: Array, keys: Array, y: Array | None) -> Layers:
            qs = cast("tuple[Distribution, ...]", model.apply(variables, x, y, method="infer"))
            each = zip(qs, model.posteriors, strict=True)
            return tuple(centre(q, layer.space) for q, layer in each)[: model.decoded_layers]

        found = self.of_images("posterior means", centres, images, labels)
        return cast("tuple[np.ndarray, ...]", found)


@checked
def load_run(
    folder: str | Path,
    checkpoint: Checkpoint = "latest",
    experiment: Experiment | None = None,
    *,
    trust: bool = False,
) -> Run:
    """Load a run from its folder.

    Args:
        folder: the run folder.
        checkpoint: the latest checkpoint, or the best by validation.
        experiment: the experiment; needed if it was made in Python from parts that cannot be
            imported, such as those of a script.
        trust: whether to run the code in the folder, which makes the experiment, even if another
            account wrote it.

    Returns:
        The run, with all of its seeds.

    Raises:
        VaeJaxError: the folder is no run folder, has no such checkpoint, another account wrote it,
            or its data or model have changed.
    """
    with Waiting(f"Opening {folder}"):
        run = _without_state(folder, checkpoint, experiment, trust)
        return dataclasses.replace(run, state=run.folder.restore(run.state, checkpoint))


def load_together(
    folder: str | Path, checkpoint: Checkpoint = "latest", *, trust: bool = False
) -> Run:
    """Load a run in all processes at once; the first one reads its checkpoint.

    Args, Raises: as in `load_run`.

    Returns:
        The run, with the same state in every process: all that evaluation needs, without the
        optimizer's state, and with the running average, if one is kept, as its parameters.
    """
    with Waiting(f"Opening {folder}"):
        run = _without_state(folder, checkpoint, None, trust)
        state = run.state
        if parallel.is_main_process():
            state = run.folder.restore(state, checkpoint)
        params = state.variables["params"]
        state = state.replace(params=params, ema_params=None, opt_state=optax.EmptyState())
        return dataclasses.replace(run, state=parallel.from_main_process(state))


def _without_state(
    folder: str | Path, checkpoint: Checkpoint, experiment: Experiment | None, trust: bool
) -> Run:
    """A run whose state is only the shapes and types of its arrays."""
    parallel.check_devices()
    run_folder = RunFolder(Path(folder))
    record = run_folder.read_record()
    if experiment is None:
        experiment = run_folder.stored_experiment(record, trust)
    run_folder.check_model(record, experiment)
    seeds = np.arange(record["num_seeds"], dtype=np.uint32)
    like = jax.eval_shape(jax.vmap(partial(init_state, experiment)), seeds)
    return Run(run_folder, experiment, like, checkpoint)
