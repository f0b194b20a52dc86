"""Keys: what they are, and that in no program two draws share bits.

The second part runs losses, training, evaluation, fitting and sampling, and looks at every key that
was drawn from (`recording`).
"""

import dataclasses
import itertools
from collections.abc import Iterable
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from combinations import POSTERIORS, PRIORS, Triple, build, one_for_each_part, triples
from recording import Recording, checksum, keys_alone, purposes, recording
from running import on_devices

import vae_jax as vj
from vae_jax import bounds, fitted_priors, generate, parallel, random
from vae_jax.compatibility import LIKELIHOODS
from vae_jax.evaluation import gaps
from vae_jax.run import Run, RunFolder
from vae_jax.second_stage import FitPrior
from vae_jax.step import Batch, init_state, loss_and_gradients, loss_at_terms

B = 2
MODEL = tiny.model()


def data_of(keys: jax.Array) -> np.ndarray:
    return np.asarray(jax.random.key_data(keys))


# --- Keys ---------------------------------------------------------------------------------------


def test_every_purpose_has_a_number_of_its_own_above_all_indices():
    names = purposes()
    assert {"posterior", "protocol", "prior", "dream", "angle", "train"} <= names
    assert len({checksum(name) for name in names}) == len(names)
    assert min(map(checksum, names)) >= 2**31


@pytest.mark.parametrize("seed", [0, 3, 2**32 - 1])
def test_a_key_draws_the_bits_of_jaxs(seed):
    np.testing.assert_array_equal(data_of(random.key(seed)), data_of(jax.random.key(seed)))
    ours, jaxs = (jax.random.bits(make(seed), (5,)) for make in (random.key, jax.random.key))
    np.testing.assert_array_equal(ours, jaxs)


def test_purposes_meet_neither_indices_nor_what_jax_splits_off():
    """`jax.random.split(key)[i]` is `fold_in(key, i)`, whatever is split off beside it."""
    key, count = random.key(0), 2**16
    indices = data_of(random.indexed(key, np.arange(count)))
    np.testing.assert_array_equal(data_of(jax.random.split(key, 3)), indices[:3])
    found = np.concatenate(
        [indices, *(data_of(random.purpose(key, name))[None] for name in purposes())]
    )
    assert len(np.unique(found, axis=0)) == count + len(purposes())


def test_the_noise_of_every_two_purposes_is_uncorrelated():
    """Also with the noise of the keys themselves and of their first index."""
    keys = random.indexed(random.key(0), np.arange(20_000))
    every = [keys, random.indexed(keys, 0), *(random.purpose(keys, name) for name in purposes())]
    noise = jax.vmap(jax.vmap(jax.random.normal))(jnp.stack(every))
    correlation = np.corrcoef(noise)
    assert np.abs(correlation - np.eye(len(every))).max() < 0.05


def test_purposes_are_their_names_and_nothing_else():
    key = random.key(0)
    first, second = random.purposes(key, "a", "b")
    np.testing.assert_array_equal(data_of(first), data_of(random.purpose(key, "a")))
    np.testing.assert_array_equal(data_of(second), data_of(random.purpose(key, "b")))
    assert (data_of(first) != data_of(second)).any()


def test_keys_of_any_shape_broadcast():
    """Each entry is that of its own key and index."""
    keys = random.indexed(random.key(0), np.arange(3))[:, None]
    together = random.indexed(keys, np.arange(4))
    assert together.shape == (3, 4)
    for i, j in itertools.product(range(3), range(4)):
        alone = random.indexed(random.indexed(random.key(0), i), j)
        np.testing.assert_array_equal(data_of(together[i, j]), data_of(alone))
    assert len(np.unique(data_of(together).reshape(-1, 2), axis=0)) == 12
    named = random.purpose(together, "posterior")
    assert named.shape == (3, 4)
    np.testing.assert_array_equal(
        data_of(named[2, 1]), data_of(random.purpose(together[2, 1], "posterior"))
    )


def test_an_images_key_depends_on_its_split_its_row_and_the_seed():
    rows = np.array([4, 0, 7])
    found = [data_of(random.image_keys(split, rows)) for split in ("train", "test")]
    found.append(data_of(random.image_keys("train", rows, seed=1)))
    assert len(np.unique(np.concatenate(found), axis=0)) == 9
    np.testing.assert_array_equal(data_of(random.image_keys("train", rows[::-1])), found[0][::-1])


def test_draws_have_a_key_for_each_leading_axis():
    """Keys [K, B]: entry (k, b) is what key (k, b) draws by itself, of any sampler and shape."""
    keys = random.indexed(random.key(2), np.arange(6).reshape(3, 2))
    noise = random.draw(jax.random.bits, keys, (7,), (3, 2, 5))
    assert noise.shape == (7, 3, 2, 5)
    for k, b in itertools.product(range(3), range(2)):
        np.testing.assert_array_equal(noise[:, k, b], jax.random.bits(keys[k, b], (7, 5)))
    one = random.draw(jax.random.bits, keys[0, 0], (7,), (3, 2))
    np.testing.assert_array_equal(one, jax.random.bits(keys[0, 0], (7, 3, 2)))


def test_noise_depends_neither_on_the_batch_nor_on_the_devices():
    keys = random.indexed(random.key(1), np.arange(8))
    draw = partial(random.draw, jax.random.bits)
    together = draw(keys, (3,), (8, 2))
    np.testing.assert_array_equal(draw(keys[3:5], (3,), (2, 2)), together[:, 3:5])
    apart = jax.pmap(lambda keys: draw(keys, (3,), (1, 2)))(keys.reshape(8, 1))
    np.testing.assert_array_equal(apart[:, :, 0].swapaxes(0, 1), together)


def test_every_element_has_a_key():
    """All of them different; an example's own do not depend on those around it."""
    assert random.draw_keys(random.key(0), (4,), (3, 2)).shape == (4, 3, 2)
    keys = random.indexed(random.key(0), np.arange(3))
    found = random.draw_keys(keys, (4,), (3, 2))
    assert found.shape == (4, 3, 2)
    assert len(np.unique(data_of(found).reshape(-1, 2), axis=0)) == 24
    alone = random.draw_keys(keys[1:2], (4,), (1, 2))
    np.testing.assert_array_equal(data_of(alone[:, 0]), data_of(found[:, 1]))


# --- Losses -------------------------------------------------------------------------------------


def inputs(model: Any, count: int) -> tuple[Any, Any]:
    """Images and labels."""
    y = None if model.labels is None else jnp.arange(count)
    return jnp.zeros((count, *model.image_shape)), y


def ones(model: Any, objective: Any) -> Any:
    """Variables: keys do not depend on them."""
    x, y = inputs(model, 1)
    init, key = nn.init(loss_at_terms, model), jax.random.key(0)
    shapes = jax.eval_shape(lambda: init(key, objective, x, key[None], y, jnp.int32(0)))
    return jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), shapes)


def loss(model: Any, objective: Any, variables: Any, keys: jax.Array) -> Any:
    """As in training, with a key for each example."""
    x, y = inputs(model, len(keys))
    apply = nn.apply(loss_at_terms, model, mutable=list(variables.keys() - {"params"}))
    return apply(variables, objective, x, keys, y, jnp.int32(0))[0][0]


def losses(*pairs: tuple[Any, Any]) -> Recording:
    """Objectives at models of their own, in one program; pair n's example b has the key (n, b)."""

    def every(variables: Any) -> list[Any]:
        keys = random.indexed(random.key(0), jnp.arange(len(pairs)))[:, None]
        keys = random.indexed(keys, jnp.arange(B))
        return [loss(*pair, variables[n], keys[n]) for n, pair in enumerate(pairs)]

    variables = [ones(*pair) for pair in pairs]
    with recording() as recorded:
        keys_alone(every)(variables)
    return recorded


# What objectives draw beside the posterior's noise, which is there unless q has none.
DRAWS = {
    "FactorVAE": {"shuffle"},
    "InfoVAE": {"prior"},
    "WAE": {"prior"},
    "AdversarialAutoencoder": {"prior"},
    "VAEGAN": {"prior"},
    "RAE": {"projection"},
    "WakeSleep": {"dream"},
    "MonteCarloEM": {"chains", "transitions"},
}


def grouped(combinations: Iterable[Triple], *parts: int) -> list[list[Triple]]:
    """Combinations in groups of those with the same of some parts, such as 0, the posterior."""
    key = itemgetter(*parts)
    return [list(group) for _, group in itertools.groupby(sorted(combinations, key=key), key)]


@pytest.mark.parametrize(
    "combinations",
    [
        *grouped(one_for_each_part(), 0),
        *(pytest.param(group, marks=pytest.mark.slow) for group in grouped(triples(), 0, 1)),
    ],
    ids=lambda group: f"{group[0][0]}-{len(group)}",
)
def test_no_two_draws_of_a_loss_share_bits(combinations):
    """Across purposes, examples and samples; and every noise that should be there is drawn."""
    recorded = losses(
        *(build((q, p, "Gaussian", objective))[:2] for q, p, objective in combinations)
    )
    drawn: dict[Any, set[Any]] = {n: set() for n in range(len(combinations))}
    for number, _, purpose, *_ in recorded.paths():
        drawn[number].add(purpose)
    for (posterior, prior, objective), found in zip(combinations, drawn.values(), strict=True):
        own = {"posterior"} if "n" in POSTERIORS[posterior][2] else set()
        own |= {"bound of the prior"} if "b" in PRIORS[prior][3] else set()
        assert found == own | DRAWS.get(objective, set())
    if any(drawn.values()):
        recorded.check()


def test_no_two_draws_of_pixels_share_bits():
    """From every likelihood; by `AutoregressivePixels` one after the other."""
    likelihoods: list[Any] = [part() for part in LIKELIHOODS]
    likelihoods += [
        vj.AutoregressivePixels(pixel(), width=4, num_layers=1, num_heads=1)
        for pixel in (vj.Bernoulli, vj.MixtureOfLogistics)
    ]

    def sample(likelihood: Any, keys: jax.Array) -> Any:
        init = partial(likelihood.init_with_output, jax.random.key(0))
        px, _ = init(jnp.zeros((B, 3)), image_shape=(2, 2, 2))
        return px.sample(keys, (2,))

    with recording() as recorded:
        keys = random.indexed(random.key(0), np.arange(len(likelihoods)))[:, None]
        keys = random.indexed(keys, np.arange(B))
        keys_alone(lambda keys: list(map(sample, likelihoods, keys)))(keys)
    recorded.check()
    assert {path[0] for path in recorded.paths()} == set(range(len(likelihoods)))


def hierarchy(kind: Any, **settings: Any) -> Any:
    return kind(
        encoders=[vj.MLP((4,)) for _ in range(3)],
        posteriors=[vj.DiagonalGaussian(2) for _ in range(3)],
        prior=vj.StandardNormal(2),
        decoders=[vj.MLP((4,)) for _ in range(3)],
        conditionals=[vj.DiagonalGaussian(2) for _ in range(2)],
        likelihood=vj.Bernoulli(),
        image_shape=tiny.IMAGE_SHAPE,
        **settings,
    )


LABELS = vj.LabelEmbedding(8, 2)
HIERARCHIES = {
    "hierarchical": hierarchy(vj.HierarchicalVAE),
    "ladder": hierarchy(vj.LadderVAE),
    "skip": hierarchy(vj.SkipVAE),
    "conditional": hierarchy(vj.HierarchicalVAE, labels=LABELS),
}


def test_no_two_layers_or_samples_share_bits():
    """The first layer's K samples are one draw, the others' have a key each: 1 + 2 K."""
    recorded = losses(*((model, vj.IWAE(3)) for model in HIERARCHIES.values()))
    recorded.check()
    assert len(recorded.paths()) == len(HIERARCHIES) * B * (1 + 2 * 3)


# --- The check itself ---------------------------------------------------------------------------

WAE_ON_THE_SPHERE = build(("VonMisesFisher", "HypersphericalUniform", "Gaussian", "WAE"))[:2]


def test_two_purposes_of_one_name_are_found(monkeypatch):
    named = random.purpose
    losses(WAE_ON_THE_SPHERE).check()
    monkeypatch.setattr(
        random, "purpose", lambda k, name: named(k, "posterior" if name == "prior" else name)
    )
    model = tiny.model()
    with pytest.raises(AssertionError, match=r"'posterior'.* is drawn from 2 times"):
        losses((model, vj.WAE(1.0))).check()
    with pytest.raises(AssertionError, match=r"'posterior'.* is drawn from and folded"):
        losses(WAE_ON_THE_SPHERE).check()


def test_what_is_split_off_beside_an_index_is_found(monkeypatch):
    """The first edition's fault: the sampler split the key that the objective folded with 1."""

    def split(keys: jax.Array, *names: str) -> tuple[jax.Array, ...]:
        made = jax.vmap(lambda key: jax.random.split(key, len(names)))(keys)
        return tuple(made[:, i] for i in range(len(names)))

    monkeypatch.setattr(random, "purposes", split)
    monkeypatch.setattr(
        random,
        "purpose",
        lambda keys, name: keys if name == "posterior" else random.indexed(keys, 1),
    )
    with pytest.raises(AssertionError, match="are one key"):
        losses(WAE_ON_THE_SPHERE).check()


# --- The life of a run --------------------------------------------------------------------------


def untrained(experiment: vj.Experiment, seed: int = 0) -> Run:
    """A run whose parameters are ones: its keys are those of any other."""
    shapes = jax.eval_shape(partial(init_state, experiment), seed)
    state = jax.tree.map(lambda leaf: np.ones((1, *leaf.shape), leaf.dtype), shapes)
    return Run(RunFolder(Path("run")), experiment, state, "latest")


@pytest.fixture
def quick(monkeypatch):
    """Programs for their keys alone, and few latents, samples and steps of everything."""

    def on_every_device(function: Any, *_: Any) -> Any:
        return keys_alone(jax.vmap(function, axis_name=parallel.AXIS))

    monkeypatch.setattr(jax, "jit", keys_alone)
    monkeypatch.setattr(parallel, "on_every_device", on_every_device)
    monkeypatch.setattr(parallel, "temporary_bytes", lambda *_: 0)
    # Of no image, as these programs count them.
    monkeypatch.setattr("vae_jax.evaluation.evaluate.active_units", lambda *_: np.zeros(1))
    monkeypatch.setattr(bounds, "SAMPLES_AT_ONCE", 2)
    monkeypatch.setattr(gaps, "SAMPLES_AT_ONCE", 2)
    for name, value in {"SAMPLES": 2, "BLOCK": 2, "MAX_BLOCKS": 2}.items():
        monkeypatch.setattr(gaps, name, value)
    for name, value in {"LATENTS": 180, "IMAGES_AT_ONCE": 50, "BATCH_SIZE": 3}.items():
        monkeypatch.setattr(fitted_priors, name, value)
    with on_devices(1):
        yield


def programs(asked: dict[str, Any]) -> int:
    """How many go over the split, each of which draws the images' own noise again."""
    return 1 + len(asked) + ("information" in asked)


OF_IMAGES = ("test", "protocol")
OF_GAPS = ("test", "evaluation", "gap")  # L[q] and L[q*], whose difference is asked for
ANNEALED = vj.AIS(2, 2, 1)
EXPERIMENT = tiny.experiment()


def names(recorded: Recording) -> set[str]:
    return {step for path in recorded.paths() for step in path if isinstance(step, str)}


def test_no_two_draws_of_a_run_share_bits(quick):
    """Its start, steps of two seeds, all of evaluation, a second-stage VAE, and samples."""
    experiment = dataclasses.replace(
        EXPERIMENT,
        model=MODEL.clone(prior=vj.GaussianMixture(3, 2)),
        objective=vj.WakeSleep(),
        augment=(vj.HorizontalFlip(), vj.RandomShift(1)),
    )
    run, images = untrained(experiment), experiment.data.train.images[:3]
    asked: dict[str, Any] = {"ais": ANNEALED, "information": True, "gaps": True}

    def step(seed: jax.Array, step: jax.Array) -> Any:
        state = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), run.state).replace(step=step)
        batch = Batch(rows=jnp.arange(3), images=None, y=None)
        return loss_and_gradients(experiment, state, jnp.asarray(images), batch, seed, None)[0]

    with recording() as recorded:
        keys_alone(partial(init_state, experiment))(0)
        keys_alone(jax.vmap(step))(jnp.array([0, 0, 1]), jnp.array([0, 1, 0]))
        vj.evaluate(run, num_samples=5, num_images=3, **asked)
        fitted = fitted_priors.fit(run, fitted_priors.SecondStageVAE(2, (4,)), num_steps=2)
        generate.sample(fitted, 4)
    recorded.check({OF_IMAGES: programs(asked), OF_GAPS: 2})
    drawn = names(recorded)
    assert {"init", "step", "augment", "protocol", "posterior", "dream", "pixels"} <= drawn
    assert {"chains", "transitions", "reverse", "simulation"} <= drawn
    assert {"information", "gap", "optimization"} <= drawn
    assert {"aggregated posterior", "fit", "rows", "noise", "samples", "prior"} <= drawn


EVALUATED: dict[str, tuple[Any, dict[str, Any]]] = {
    "sphere": (
        MODEL.clone(posterior=vj.VonMisesFisher(2), prior=vj.VampPrior(3)),
        {"information": True},
    ),
    "covariance": (MODEL.clone(posterior=vj.FullCovarianceGaussian(2)), {"gaps": True}),
    "classes": (MODEL.clone(prior=vj.ClassGaussian(8, 2), labels=LABELS), {}),
    "hierarchical": (HIERARCHIES["conditional"], {"ais": ANNEALED}),
    "ladder": (HIERARCHIES["ladder"], {}),
}


@pytest.mark.others_slow
@pytest.mark.parametrize(("model", "asked"), EVALUATED.values(), ids=EVALUATED)
def test_no_two_draws_of_an_evaluation_share_bits(quick, model, asked):
    """Nor those of samples from other models."""
    run = untrained(EXPERIMENT.with_model(model))
    with recording() as recorded:
        vj.evaluate(run, num_samples=5, num_images=3, **asked)
        generate.sample(run, 4)
    recorded.check({OF_IMAGES: programs(asked), OF_GAPS: 2})
    assert {"evaluation", "posterior", "samples"} <= names(recorded)


def codes(prior: str) -> Any:
    return build(("VectorQuantized", prior, "Bernoulli", "VQVAE"))[0]


FITTED = {
    "mixture": (MODEL, vj.GaussianMixture(3, 2)),
    "flow": (MODEL, vj.RealNVP(2, 2, (4,))),
    "autoregressive": (codes("UniformCodes"), codes("AutoregressiveCodes").prior),
}


@pytest.mark.others_slow
@pytest.mark.parametrize(("model", "prior"), FITTED.values(), ids=FITTED)
def test_no_two_draws_of_a_fit_share_bits(quick, model, prior):
    """Of a prior to two draws from each image's posterior; and of samples from it."""
    with recording() as recorded:
        fitted = fitted_priors.fit(untrained(EXPERIMENT.with_model(model)), prior, num_steps=2)
        generate.sample(fitted, 4)
    recorded.check()
    assert {"fit", "init", "rows", "samples"} <= names(recorded)


DEEP = vj.DeepVAE(
    encoder=vj.BottomUp(blocks=(1, 2), width=4),
    decoder=vj.TopDown(blocks=(1, 2), width=4, latents=2),
    likelihood=vj.Bernoulli(),
    image_shape=tiny.IMAGE_SHAPE,
)
LIVED: dict[str, Any] = {
    "deep hierarchy": DEEP,
    "diffusion": MODEL.clone(prior=vj.Diffusion(2, vj.AdaptiveMLP(4, 1))),
    "flow matching": MODEL.clone(prior=vj.FlowMatching(2, vj.AdaptiveMLP(4, 1))),
    "mixtures of tokens": build(("DiagonalGaussian", "GIVT", "Bernoulli", "ELBO"))[0],
    "masked codes": codes("MaskedCodes"),
}


@pytest.mark.others_slow
@pytest.mark.parametrize("model", LIVED.values(), ids=LIVED)
def test_no_two_draws_of_losses_samples_and_inpainting_share_bits(quick, model):
    """Of the prior's own loss, too, where it has one as a second stage."""
    images, missing = np.zeros((2, *tiny.IMAGE_SHAPE), np.uint8), np.eye(4, dtype=bool)
    run = untrained(EXPERIMENT.with_model(model))
    with recording() as recorded:
        generate.sample(run, 4)
        run.inpaint(images, missing, num=2, num_steps=3)
    # Both draws are of the image as it was seen; and ln p(z) always has the same probes.
    recorded.check({("given", "protocol"): 2, ("divergence",): 3})
    assert {"samples", "inpainting"} <= names(recorded)
    first: Any = vj.VQVAE() if model is LIVED["masked codes"] else vj.ELBO(2)
    objectives = [first] if model is DEEP else [first, FitPrior()]
    losses(*((model, objective) for objective in objectives)).check()


# --- Noise --------------------------------------------------------------------------------------


def correlations(model: Any, objective: Any) -> np.ndarray:
    """Of everything that a loss draws for each of 20,000 examples, `[columns, columns]`.

    Bits as whole numbers: whatever a sampler makes of them rises or falls with them.
    """
    count, variables = 20_000, ones(model, objective)
    with recording(bits=True) as recorded:
        keys = random.indexed(random.key(0), np.arange(count))
        keys_alone(partial(loss, model, objective))(variables, keys)
    bits = np.concatenate([bits for keys, bits in recorded.bits if len(keys) == count], 1)
    assert all(len(keys) == count for keys, _ in recorded.bits)
    return np.asarray(np.corrcoef(bits.T.astype(np.float64)))


VMF = MODEL.clone(posterior=vj.VonMisesFisher(3), prior=vj.HypersphericalUniform(3))
GAUSSIAN = vj.Gaussian(scale=0.5)
PAIRS = {
    "wake-sleep": (
        MODEL.clone(prior=vj.GaussianMixture(3, 2), likelihood=GAUSSIAN),
        vj.WakeSleep(),
    ),
    "mmd": (VMF, vj.WAE(1.0)),
    "adversarial": (VMF.clone(critic=vj.LatentCritic(vj.MLP((4,)))), vj.AdversarialAutoencoder()),
    "vae-gan": (
        VMF.clone(critic=vj.ImageCritic(vj.MLP((4,)), vj.MLP((4,))), likelihood=GAUSSIAN),
        vj.VAEGAN(1.0),
    ),
}


@pytest.mark.parametrize(("model", "objective"), PAIRS.values(), ids=PAIRS)
def test_noise_for_different_purposes_is_uncorrelated(model, objective):
    """Below 0.05, seven standard errors, for every two numbers that are drawn for an example.

    Wake-sleep with a mixture had -0.80 between z and x in the first edition, and objectives that
    draw from the prior had -0.97 with a von Mises-Fisher posterior.
    """
    found = correlations(model, objective)
    assert len(found) >= 6
    assert np.abs(found - np.eye(len(found))).max() < 0.05


def test_noise_of_one_purpose_is_not_uncorrelated(monkeypatch):
    named = random.purpose
    monkeypatch.setattr(
        random, "purpose", lambda keys, name: named(keys, "angle" if name == "direction" else name)
    )
    found = correlations(*PAIRS["mmd"])
    assert np.abs(found - np.eye(len(found))).max() > 0.95
