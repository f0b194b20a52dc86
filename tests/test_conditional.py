"""Conditional models against closed forms, quadrature, and each label's way to its image."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from gradients import begun, one_batch
from running import on_devices, summary
from scipy import special, stats

import vae_jax as vj
from vae_jax import (
    AIS,
    ELBO,
    MLP,
    VAE,
    Bernoulli,
    ClassGaussian,
    Data,
    DiagonalGaussian,
    Experiment,
    Gaussian,
    HorizontalFlip,
    LabelEmbedding,
    RandomShift,
    StandardNormal,
    VaeJaxError,
    evaluate,
    fitted_priors,
    generate,
    random,
    train,
)
from vae_jax.evaluation.bounds import make_bounds_evaluator
from vae_jax.parallel import OnDevices
from vae_jax.run import Run, RunFolder
from vae_jax.step import init_state

LABELS = LabelEmbedding(8, 2)
CONDITIONAL = tiny.model().clone(labels=LABELS)
N, SHAPE, D, C = 11, (3, 3, 1), 2, 3
PIXELS = 9
NAMES = ("art", "photo", "sci-fi")


def conditional(**changes: Any) -> Experiment:
    """The tiny experiment with the labels of its bars."""
    return dataclasses.replace(tiny.experiment(), **({"model": CONDITIONAL} | changes))


# --- Closed forms -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Linear:
    """x = W z + b_y + sigma e with z ~ N(mu_y, diag s²), and the exact q(z|x, y), as a Run."""

    weights: np.ndarray
    offsets: np.ndarray
    prior_mean: np.ndarray
    prior_scale: np.ndarray
    noise: float
    run: Run

    @property
    def posterior_variance(self) -> np.ndarray:
        return 1 / ((self.weights**2).sum(0) / self.noise**2 + self.prior_scale**-2)

    def posterior_mean(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        evidence = (x.reshape(-1, PIXELS) - self.offsets[y]) @ self.weights / self.noise**2
        return self.posterior_variance * (evidence + self.prior_mean[y] / self.prior_scale**2)

    def log_likelihood(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        normal: Any = stats.multivariate_normal
        covariance = (self.weights * self.prior_scale**2) @ self.weights.T
        covariance += self.noise**2 * np.eye(PIXELS)
        means = self.prior_mean[y] @ self.weights.T + self.offsets[y]
        pairs = zip(x.reshape(-1, PIXELS), means, strict=True)
        return np.array([normal.logpdf(pixels, mean, covariance) for pixels, mean in pairs])


@pytest.fixture(params=["p(z)", "p(z|y)"])
def linear(request, tmp_path: Path) -> Linear:
    """Orthogonal columns of W make the posterior's components independent."""
    generator = np.random.default_rng(0)
    orthogonal, _ = np.linalg.qr(generator.normal(size=(PIXELS, D)))
    weights = orthogonal * [0.4, 0.2]
    offsets = 0.5 + 0.1 * generator.normal(size=(C, PIXELS))
    per_class = request.param == "p(z|y)"
    prior_mean = generator.normal(size=(C, D)) * per_class
    prior_scale = np.array([0.7, 1.5]) if per_class else np.ones(D)
    noise = 0.1
    images = generator.integers(60, 200, (3, N, *SHAPE)).astype(np.uint8)
    labels = generator.integers(C, size=(3, N))
    model = VAE(
        encoder=MLP(()),
        posterior=DiagonalGaussian(D),
        prior=ClassGaussian(C, D) if per_class else StandardNormal(D),
        decoder=MLP(()),
        likelihood=Gaussian(scale=noise, squash=lambda x: x),
        labels=LabelEmbedding(C, C),
        image_shape=SHAPE,
    )
    data = Data.from_arrays(
        "linear",
        *images,
        protocol="grey",
        labels=dict(zip(("train", "valid", "test"), labels, strict=True)),
        class_names=NAMES,
    )
    unknown: Any = None
    found = Linear(weights, offsets, prior_mean, prior_scale, noise, run=unknown)
    to_posterior = found.posterior_variance * weights / noise**2
    kernel = np.zeros((PIXELS, 1 + C, D))  # of pixels and channels: grey, then one for each class
    kernel[:, 0] = to_posterior
    kernel[0, 1:] = found.posterior_mean(np.zeros((C, PIXELS)), np.arange(C))
    params = {
        "labels": {name: {"embedding": np.eye(C)} for name in ("encoder", "decoder")},
        "posterior": {
            "loc": {"kernel": kernel.reshape(-1, D), "bias": np.zeros(D)},
            "log_scale": {
                "kernel": np.zeros((PIXELS * (1 + C), D)),
                "bias": 0.5 * np.log(found.posterior_variance),
            },
        },
        "likelihood": {
            "loc": {"kernel": np.concatenate([weights.T, offsets]), "bias": np.zeros(PIXELS)}
        },
    }
    if per_class:
        log_scale = np.broadcast_to(np.log(prior_scale), (C, D))
        params["prior"] = {"loc": prior_mean, "log_scale": log_scale}
    state = SimpleNamespace(
        variables={"params": jax.tree.map(lambda leaf: leaf[None].astype(np.float32), params)},
        step=np.zeros(1, int),
    )
    experiment = conditional(data=data, model=model)
    run = Run(RunFolder(tmp_path), experiment, state, "latest")
    return dataclasses.replace(found, run=run)


@pytest.mark.others_slow
def test_every_bound_is_the_exact_likelihood_given_the_label(linear: Linear):
    """The posterior is exact, so each weight is p(x|y); the gaps are zero; AIS agrees."""
    test: Any = linear.run.experiment.data.test
    exact = linear.log_likelihood(test.images / 255, test.labels).mean()
    shuffled = linear.log_likelihood(test.images / 255, np.roll(test.labels, 1)).mean()
    assert abs(exact - shuffled) > 0.1
    with on_devices(2):
        found = evaluate(linear.run, num_samples=3, ais=AIS(200, 4, 3), gaps=True)
    mean = {name: values[0] for name, values in found.mean.items()}
    for name in ("nll", "neg_elbo"):
        assert mean[name] == pytest.approx(-exact, abs=1e-3)
    # An exact q has E_q[ln p(x|z)] - KL = ln p(x), and what the samples miss of it.
    assert mean["kl"] + mean["distortion"] == pytest.approx(-exact, abs=3)
    assert mean["nll_ais"] == pytest.approx(-exact, abs=0.2)
    assert mean["simulated_nll_upper"] == pytest.approx(mean["simulated_nll_lower"], abs=0.6)
    assert "given the image's label" in found.data


def test_styles_are_changed_in_closed_form(linear: Linear):
    """W (E[z|x, y] + m_y' - m_y) + b_y', of images of class y alone; scales are shared here."""
    test = linear.run.experiment.data.test
    assert test.labels is not None
    source, targets = int(test.labels[0]), [2, 0]
    x, images, *_ = generate.restyle(linear.run, source, targets, "test", 3)
    rows = np.flatnonzero(test.labels == source)[:3]
    np.testing.assert_allclose(x, test.images[rows] / 255, rtol=1e-6)
    z = linear.posterior_mean(x, np.full(len(x), source))
    z = z[:, None] + linear.prior_mean[targets] - linear.prior_mean[source]
    means = z @ linear.weights.T + linear.offsets[targets]
    np.testing.assert_allclose(images, means.reshape(images.shape).clip(0, 1), atol=1e-5)


def test_latents_of_one_class_become_those_of_another():
    """Kolmogorov-Smirnov against SciPy; order and places are kept, and the way back is known."""
    generator = np.random.default_rng(0)
    loc, log_scale = generator.normal(size=(2, C, 2, D))
    carry: Any = partial(
        ClassGaussian(C, (2, D)).apply,
        {"params": {"loc": loc, "log_scale": log_scale}},
        method="carry",
    )
    scale = np.exp(log_scale)
    z = loc[0] + scale[0] * generator.normal(size=(2000, 2, D))
    there: Any = carry(z, 0, 2)
    for place in np.ndindex(2, D):
        normal = stats.norm(loc[(2, *place)], scale[(2, *place)])
        column = np.asarray(there)[(slice(None), *place)]
        assert stats.kstest(column, normal.cdf).pvalue > 1e-4
        assert (np.diff(column[z[(slice(None), *place)].argsort()]) >= 0).all()
    np.testing.assert_allclose(carry(there, 2, 0), z, atol=1e-5)
    np.testing.assert_allclose(carry(z, 1, 1), z, atol=1e-5)


def test_reconstructions_keep_their_labels(linear: Linear):
    x, means = generate.reconstruct(linear.run, "valid", N)
    y: Any = linear.run.experiment.data.valid.labels
    expected = linear.posterior_mean(x, y) @ linear.weights.T + linear.offsets[y]
    np.testing.assert_allclose(means, expected.reshape(means.shape).clip(0, 1), atol=1e-5)


def test_lines_lie_between_images_of_one_class(linear: Linear):
    """Their ends are the reconstructions of the pairs."""
    rows = generate.pairs_of(linear.run, "valid", 3)
    y: Any = linear.run.experiment.data.valid.labels
    assert (y[rows[::2]] == y[rows[1::2]]).all()
    assert len(set(rows)) == len(rows) == 6
    lines = generate.interpolate(linear.run, "valid", 3, 4)
    _, means = generate.reconstruct(linear.run, "valid", N)
    np.testing.assert_allclose(lines[:, [0, -1]].reshape(6, *SHAPE), means[rows], atol=1e-5)


def test_traversals_keep_the_image_and_its_label(linear: Linear):
    images, values, dims = generate.traverse(linear.run, "test", 4, 3, D)
    row = np.array([4])
    x, y = linear.run.images("test", row), linear.run.labels("test", row)
    assert y is not None
    z = np.tile(linear.posterior_mean(np.asarray(x), y), (D, 3, 1))
    for place, dim in enumerate(dims):
        z[place, :, dim] = values
    expected = z @ linear.weights.T + linear.offsets[y[0]]
    np.testing.assert_allclose(images, expected.reshape(images.shape).clip(0, 1), atol=1e-5)


def test_samples_of_a_class_have_its_prior_and_its_offset(linear: Linear):
    """Kolmogorov-Smirnov of z against SciPy; a share of the samples for each class."""
    labels = np.arange(3000) % C
    keys = random.indexed(random.key(5), np.arange(len(labels)))
    model, variables = linear.run.experiment.model, linear.run.seed_variables
    found: Any = model.apply(variables, keys, jnp.asarray(labels), method="sample")
    (z,), px = found
    for y in range(C):
        standard = (np.asarray(z)[labels == y] - linear.prior_mean[y]) / linear.prior_scale
        assert min(stats.kstest(column, "norm").pvalue for column in standard.T) > 1e-4
    means = np.asarray(z) @ linear.weights.T + linear.offsets[labels]
    np.testing.assert_allclose(px.mean.reshape(means.shape), means, atol=1e-5)

    one = generate.sample(linear.run, 7, seed=3, labels=[2])
    np.testing.assert_allclose(one, generate.sample(linear.run, 7, 3, [2] * 7), atol=1e-6)
    shared = generate.sample(linear.run, 7, seed=3)
    own = generate.sample(linear.run, 7, 3, [0, 0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(shared, own)


def test_latents_of_the_training_images_are_encoded_with_their_labels(linear: Linear, monkeypatch):
    """Their mean, within four standard errors; a prior of each class is not replaced by another."""
    monkeypatch.setattr(fitted_priors, "LATENTS", 50 * N)
    data = linear.run.experiment.data.train
    exact = linear.posterior_mean(data.images / 255, np.asarray(data.labels)).mean(0)
    error = np.sqrt(linear.posterior_variance / (50 * N))
    assert (np.abs(fitted_priors.latents_of(linear.run).mean(0) - exact) < 4 * error).all()
    if isinstance(linear.run.experiment.model.prior, ClassGaussian):
        with pytest.raises(VaeJaxError, match="a density for each class"):
            fitted_priors.fit(linear.run, StandardNormal(D))
        with pytest.raises(VaeJaxError, match="ClassGaussian is a prior for each"):
            evaluate(linear.run, num_samples=1, information=True)
    else:
        found = evaluate(linear.run, num_samples=1, information=True).mean
        assert found["mutual_information"] <= np.log(N)


def test_p_of_every_image_given_each_class_by_quadrature():
    """L_K of all 16 binary images of 2x2 pixels against Gauss-Hermite over z; they sum to one.

    q(z|x, y) is the prior, so that L_K is no worse for one image than for another.
    """
    model = VAE(
        encoder=MLP((3,)),
        posterior=DiagonalGaussian(1, kernel_init=jax.nn.initializers.zeros),
        prior=StandardNormal(1),
        decoder=MLP((4,)),
        likelihood=Bernoulli(kernel_init=jax.nn.initializers.normal(1.0)),
        labels=LabelEmbedding(2, 2),
        image_shape=(2, 2, 1),
    )
    bits = np.array([[i >> b & 1 for b in range(4)] for i in range(16)])
    images = np.tile(255 * bits.astype(np.uint8), (2, 1)).reshape(32, 2, 2, 1)
    y = np.repeat([0, 1], 16)
    data = Data.from_arrays("all", images, protocol="threshold", labels={"train": y})
    experiment = conditional(data=data, model=model, ema_decay=None)
    state = jax.jit(jax.vmap(partial(init_state, experiment)))(np.zeros(1, np.uint32))
    p: Any = jax.tree.map(lambda leaf: np.asarray(leaf[0], np.float64), state.params)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    log_p = []
    for label in range(2):
        e = p["labels"]["decoder"]["embedding"][label]
        inputs = np.concatenate([nodes[:, None], np.tile(e, (60, 1))], 1)
        dense, logits = p["decoder"]["Dense_0"], p["likelihood"]["logits"]
        h = np.tanh(inputs @ dense["kernel"] + dense["bias"])
        means = special.expit(h @ logits["kernel"] + logits["bias"])
        px = np.prod(np.where(bits[:, None] == 1, means, 1 - means), -1)
        log_p.append(np.log(px @ weights / weights.sum()))
    assert np.exp(log_p).sum(1) == pytest.approx(1)
    assert np.abs(log_p[0] - log_p[1]).max() > 0.3
    evaluator = make_bounds_evaluator(experiment, "train", 4000)
    nll = evaluator(jax.tree.map(np.asarray, state.variables))["nll"][0]
    np.testing.assert_allclose(nll, -np.concatenate(log_p), atol=0.05)


# --- Each label's way to its image --------------------------------------------------------------


def test_gradients_are_the_same_on_1_and_8_devices_and_in_parts():
    """A class that is not in the batch has none."""
    experiment = conditional(batch_size=8)
    state = begun(experiment)
    (*_, whole), eight = one_batch(experiment, 1, 8, state=state)
    (parts,) = one_batch(dataclasses.replace(experiment, accumulate=2), 2, state=state)
    for other in (eight, parts):
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), other[-1], whole)
    labels = experiment.data.train.labels
    assert labels is not None
    present = np.isin(np.arange(8), labels[20:28])
    assert 1 < present.sum() < 8
    for table in whole["labels"].values():
        np.testing.assert_array_equal(np.abs(table["embedding"]).max(1) > 0, present)


@pytest.mark.slow
def test_streamed_and_resident_images_train_alike(tmp_path: Path):
    """Of several seeds, augmented; labels are no part of what is kept."""
    experiment = conditional(num_steps=5, augment=(HorizontalFlip(), RandomShift(1)))
    with on_devices(2):
        resident = train(experiment, tmp_path / "a", num_seeds=3, streamed=False)
        streamed = train(experiment, tmp_path / "b", num_seeds=3, streamed=True)
    jax.tree.map(np.testing.assert_array_equal, resident.variables, streamed.variables)
    assert set(resident.variables) == {"params"}


def with_labels(data: Data, change: Callable[[np.ndarray], np.ndarray] | None) -> Data:
    """The same images with other labels in every split, or with none."""
    splits = {name: data[name] for name in ("train", "valid", "test")}
    changed: dict[str, Any] = {
        name: dataclasses.replace(
            split, labels=None if change is None else change(np.asarray(split.labels))
        )
        for name, split in splits.items()
    }
    names = None if change is None else data.class_names
    return dataclasses.replace(data, class_names=names, **changed)


@pytest.mark.slow
def test_labels_in_the_data_change_nothing_of_a_model_that_takes_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Its training and its evaluation are the same text."""
    plain = partial(conditional, model=tiny.model(), num_steps=5)
    labelled, _ = programs(plain(), tmp_path / "labelled", monkeypatch)
    bare, _ = programs(plain(data=with_labels(tiny.data(), None)), tmp_path / "bare", monkeypatch)
    assert labelled == bare


def test_labels_are_arguments_and_no_constants_of_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Other labels train and evaluate otherwise by programs of the same text."""
    run = partial(conditional, num_steps=5)
    own, results = programs(run(), tmp_path / "own", monkeypatch)
    turned = with_labels(tiny.data(), lambda labels: (labels + 1) % 8)
    others, other_results = programs(run(data=turned), tmp_path / "others", monkeypatch)
    assert own == others
    assert results["params_sha256"] != other_results["params_sha256"]
    assert results["valid_nll"] != pytest.approx(other_results["valid_nll"], abs=1e-3)


def programs(
    experiment: Experiment, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[str], dict[str, Any]]:
    """The programs that a run compiles for devices, as text, and its summary."""
    texts: list[str] = []
    compiled = OnDevices.compiled

    def recorded(self: OnDevices, *arguments: Any) -> Any:
        if not self.programs:
            texts.append(self.mapped.lower(*arguments).as_text())
        return compiled(self, *arguments)

    with on_devices(1), monkeypatch.context() as patch:
        patch.setattr(OnDevices, "compiled", recorded)
        train(experiment, folder)
    assert len(texts) == 2  # the steps, and the validation
    return texts, summary(folder)


HIERARCHY: dict[str, Any] = {
    "encoders": (MLP((4,)), MLP((4,))),
    "posteriors": (DiagonalGaussian(3), DiagonalGaussian(2)),
    "decoders": (MLP((4,)), MLP((4,))),
    "conditionals": (DiagonalGaussian(3),),
    "likelihood": Bernoulli(),
    "labels": LABELS,
    "image_shape": tiny.IMAGE_SHAPE,
}
IMAGE_CRITIC = vj.ImageCritic(MLP((4,)), MLP((4,)))
GAMES: dict[str, tuple[Any, Any]] = {
    "WakeSleep": (CONDITIONAL, vj.WakeSleep()),
    "MonteCarloEM": (CONDITIONAL, vj.MonteCarloEM(2, 2)),
    "PIWAE": (CONDITIONAL, vj.PIWAE(2, 2)),
    "VAEGAN": (CONDITIONAL.clone(critic=IMAGE_CRITIC), vj.VAEGAN(0.1)),
    "VAEGAN, p(z|y)": (
        CONDITIONAL.clone(prior=ClassGaussian(8, 2), critic=IMAGE_CRITIC),
        vj.VAEGAN(0.1),
    ),
    "InfoVAE, p(z|y)": (CONDITIONAL.clone(prior=ClassGaussian(8, 2)), vj.InfoVAE(0.5, 2.0)),
    "RAE": (CONDITIONAL.clone(posterior=vj.Deterministic(2)), vj.RAE(0.1, 0.1, 0.1)),
    "one-hot z": (
        CONDITIONAL.clone(posterior=vj.Categorical(2, 3, 0.7), prior=vj.UniformCategorical(2, 3)),
        ELBO(),
    ),
    "codes": (
        CONDITIONAL.clone(
            encoder=vj.ConvEncoder((4,), dense=None),
            posterior=vj.VectorQuantized(3, 2),
            prior=vj.UniformCodes((2, 2)),
        ),
        vj.VQVAE(),
    ),
    "HierarchicalVAE": (
        vj.HierarchicalVAE(prior=StandardNormal(2), **HIERARCHY),
        vj.IWAE(2),
    ),
    "LadderVAE, p(z|y)": (vj.LadderVAE(prior=ClassGaussian(8, 2), **HIERARCHY), ELBO()),
}


SLOW = ("PIWAE", "VAEGAN", "VAEGAN, p(z|y)", "one-hot z", "codes", "HierarchicalVAE")


@pytest.mark.others_slow
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in GAMES]
)
def test_objectives_and_models_take_labels_without_knowing_of_them(name: str):
    """Finite, and the vectors of the batch's classes move; so they reach encoder and decoder."""
    model, objective = GAMES[name]
    ((loss, _, _, gradients),) = one_batch(conditional(model=model, objective=objective), 1)
    assert np.isfinite(loss)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    for table in gradients["labels"].values():
        assert np.abs(table["embedding"]).max() > 0


# --- Refusals -----------------------------------------------------------------------------------


def test_a_model_without_labels_given_says_so():
    state = jax.eval_shape(partial(init_state, conditional()), np.uint32(0))
    encode = partial(jax.eval_shape, partial(CONDITIONAL.apply, method="encode"), state.variables)
    x = jnp.zeros((6, *tiny.IMAGE_SHAPE))
    with pytest.raises(VaeJaxError, match="was given no labels: pass them as y"):
        encode(x)
    with pytest.raises(VaeJaxError, match="4 labels were given for 6 inputs"):
        encode(x, jnp.arange(4))
    assert encode(x, jnp.arange(3)).batch_shape == (6,)


UNLABELLED = Data.from_arrays("plain", tiny.images(20, 0), protocol="dynamic")
PARTLY = Data.from_arrays(
    "partly",
    tiny.images(20, 0),
    tiny.images(20, 1),
    protocol="dynamic",
    labels={"train": tiny.labels(20, 0)},
)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": UNLABELLED}, "the train images of plain have no labels"),
        ({"data": PARTLY}, "the valid images of partly have no labels"),
        (
            {"model": CONDITIONAL.clone(labels=LabelEmbedding(7, 2))},
            "LabelEmbedding is for 7 classes, and bars has 8: set num_classes=8",
        ),
        (
            {"model": CONDITIONAL.clone(prior=ClassGaussian(9, 2))},
            "ClassGaussian is for 9 classes, and bars has 8: set num_classes=8",
        ),
        (
            {"model": tiny.model().clone(prior=ClassGaussian(8, 2))},
            "add labels=LabelEmbedding",
        ),
        ({"model": CONDITIONAL.clone(prior=vj.VampPrior(3))}, "VampPrior is made of"),
        (
            {
                "model": CONDITIONAL.clone(
                    posterior=vj.Deterministic(2), prior=ClassGaussian(8, 2)
                ),
                "objective": vj.WAE(1.0),
            },
            "WAE does not train a prior",
        ),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], said: str):
    with pytest.raises(VaeJaxError, match=said):
        conditional(**changes)


@pytest.mark.parametrize(
    ("labels", "names", "said"),
    [
        ([0, 1, 3], ("a", "b", "c"), "from 0 to 3, and there are 3 class_names"),
        ([-1, 1, 0], None, "from -1 to 1"),
        ([0, 1, 1], ("a", "a"), "named 'a'"),
    ],
)
def test_labels_and_names_agree(labels: list[int], names: Any, said: str):
    with pytest.raises(VaeJaxError, match=said):
        Data.from_arrays(
            "odd",
            tiny.images(3, 0),
            protocol="grey",
            labels={"train": np.array(labels)},
            class_names=names,
        )


def test_classes_are_named():
    assert UNLABELLED.class_names is None
    assert tiny.data().class_names == tuple("01234567")


def test_labels_are_found_by_name_or_number(linear: Linear):
    run = linear.run
    assert [run.find_label(name) for name in ("sci-fi", "1", "art")] == [2, 1, 0]
    for wrong in ("comic", "3", "-1"):
        with pytest.raises(VaeJaxError, match=f"no class '{wrong}': choose one of art, photo, sci"):
            run.find_label(wrong)
    plain = dataclasses.replace(run, experiment=tiny.experiment())
    with pytest.raises(VaeJaxError, match="trained without labels"):
        plain.find_label("art")
    with pytest.raises(VaeJaxError, match="trained without labels"):
        generate.restyle(plain, 0, [1], "test", 2)
