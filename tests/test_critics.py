"""Games in one scalar: against losses written out by hand, closed forms, and on 1 to 8 devices."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from gradients import assert_close, loss_and_metrics, norm, one_batch, params_of
from jax import Array

from vae_jax import (
    ELBO,
    MLP,
    VAEGAN,
    VQVAE,
    AdversarialAutoencoder,
    ConvEncoder,
    FactorVAE,
    Gaussian,
    HypersphericalUniform,
    ImageCritic,
    LatentCritic,
    PatchCritic,
    PatchGAN,
    UniformCodes,
    VaeJaxError,
    VampPrior,
    VectorQuantized,
    VonMisesFisher,
    load,
    train_file,
)
from vae_jax.compatibility import check_objective
from vae_jax.networks.critics import frozen
from vae_jax.objectives import adversarial, factor_vae, vaegan
from vae_jax.step import loss_at_terms

B, D = 6, 2
MODEL = tiny.model().clone(likelihood=Gaussian())
LATENT = MODEL.clone(critic=LatentCritic(MLP((5,))))
IMAGE = MODEL.clone(critic=ImageCritic(MLP((7,)), MLP((5,))))
PATCH = MODEL.clone(critic=PatchCritic((3, 4)))
X = jax.random.uniform(jax.random.key(0), (B, 4, 4, 1))
KEYS = jax.random.split(jax.random.key(1), B)
STEP = jnp.int32(0)


@contextmanager
def remembered(module: Any, name: str) -> Iterator[list[Array]]:
    """What a function of a module returns within, call by call."""
    function, returned = getattr(module, name), []

    def remember(*arguments: Any) -> Array:
        returned.append(function(*arguments))
        return returned[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, remember)
        yield returned


class Game:
    """A model taken apart: its groups as pure functions of their own parameters and of noise."""

    def __init__(self, model: Any, params: Any, eps: Array, drawn: Array | None):
        self.model, self.params = model, params
        self.eps = eps
        self.drawn: Any = drawn  # None in games that draw nothing

    def groups(self, *names: str) -> dict[str, Any]:
        return {name: self.params[name] for name in names}

    def apply(self, method: Any, own: Any, *arguments: Any) -> Any:
        return self.model.apply({"params": self.params | own}, *arguments, method=method)

    def encode(self, own: Any) -> tuple[Array, Array]:
        """z, and KL in closed form."""
        q = self.apply("encode", own, X)
        kl = 0.5 * (q.loc**2 + q.scale**2 - 1 - 2 * jnp.log(q.scale)).sum(-1)
        return q.loc + q.scale * self.eps, kl.mean()

    def decode(self, own: Any, z: Array) -> Array:
        return self.apply("decode", own, (z,)).mean

    def log_px(self, own: Any, z: Array) -> Array:
        return self.apply("decode", own, (z,)).log_prob(X).mean()

    def critic(self, own: Any, value: Array) -> Any:
        return self.apply(lambda model, value: model.critic(value), own, value)


def log_d(logit: Array) -> Array:
    return jnp.log(1 / (1 + jnp.exp(-logit)))


def log_one_minus_d(logit: Array) -> Array:
    return jnp.log(1 - 1 / (1 + jnp.exp(-logit)))


def vaegan_losses(game: Game, gamma: float) -> list[tuple[Any, Any]]:
    """Algorithm 1 of Larsen et al. (2016): (a group's own parameters, its own loss)."""
    z, _ = game.encode({})
    x_tilde, x_p = game.decode({}, z), game.decode({}, game.drawn)

    def llike(x_tilde: Array) -> Array:
        distance = (game.critic({}, X)[1] - game.critic({}, x_tilde)[1]) ** 2
        return distance.sum() / (2 * B)

    def gan(own: Any, x_tilde: Array, x_p: Array) -> Array:
        real, fake, dream = (game.critic(own, each)[0] for each in (X, x_tilde, x_p))
        return -(log_d(real) + log_one_minus_d(fake) + log_one_minus_d(dream)).mean()

    def encoder(own: Any) -> Array:
        z, kl = game.encode(own)
        return kl + llike(game.decode({}, z))

    def decoder(own: Any) -> Array:
        x_tilde, x_p = game.decode(own, z), game.decode(own, game.drawn)
        return gamma * llike(x_tilde) - gan({}, x_tilde, x_p)

    return [
        (game.groups("encoder", "posterior"), encoder),
        (game.groups("decoder", "likelihood"), decoder),
        (game.groups("critic"), lambda own: gan(own, x_tilde, x_p)),
    ]


def adversarial_losses(game: Game, weight: float) -> list[tuple[Any, Any]]:
    """Makhzani et al. (2016), section 2, the generator's loss non-saturating."""
    z, _ = game.encode({})

    def encoder(own: Any) -> Array:
        z, _ = game.encode(own)
        return -game.log_px({}, z) - weight * log_d(game.critic({}, z)).mean()

    def critic(own: Any) -> Array:
        return -(log_d(game.critic(own, game.drawn)) + log_one_minus_d(game.critic(own, z))).mean()

    return [
        (game.groups("encoder", "posterior"), encoder),
        (game.groups("decoder", "likelihood"), lambda own: -game.log_px(own, z)),
        (game.groups("critic"), critic),
    ]


def factor_vae_losses(game: Game, gamma: float) -> list[tuple[Any, Any]]:
    """Algorithm 2 of Kim & Mnih (2018), the critic's two minibatches being halves of one."""
    z, _ = game.encode({})
    half = B // 2

    def encoder(own: Any) -> Array:
        z, kl = game.encode(own)
        logit = game.critic({}, z)
        ratio = log_d(logit) - log_one_minus_d(logit)  # ln D / (1 - D)
        return -game.log_px({}, z) + kl + gamma * ratio.mean()

    def critic(own: Any) -> Array:
        real, fake = log_d(game.critic(own, z[:half])), game.critic(own, game.drawn)
        return -(real.sum() + log_one_minus_d(fake).sum()) / (2 * half)

    return [
        (game.groups("encoder", "posterior"), encoder),
        (game.groups("decoder", "likelihood"), lambda own: -game.log_px(own, z)),
        (game.groups("critic"), critic),
    ]


def patch_gan_losses(game: Game, weight: float) -> list[tuple[Any, Any]]:
    """Esser et al. (2021), equations 6 and 7, with hinge losses, and the ELBO as the objective.

    lambda is of the whole model's gradients with respect to the affine map of the likelihood.
    """
    z, _ = game.encode({})

    def gan(own: Any, z: Array) -> Array:
        return -game.critic({}, game.decode(own, z)).mean()

    def ratio() -> Array:
        def norm(loss: Any) -> Array:
            layer = jax.grad(loss)(game.groups("likelihood"))["likelihood"]["loc"]
            return jnp.sqrt((layer["kernel"] ** 2).sum() + (layer["bias"] ** 2).sum())

        return norm(lambda own: -game.log_px(own, z)) / (norm(lambda own: gan(own, z)) + 1e-6)

    fixed = ratio()

    def autoencoder(own: Any) -> Array:
        z, kl = game.encode(own)
        return -game.log_px(own, z) + kl + weight * fixed * gan(own, z)

    def critic(own: Any) -> Array:
        real, fake = (game.critic(own, x) for x in (X, game.decode({}, z)))
        return (jnp.maximum(0, 1 - real) + jnp.maximum(0, 1 + fake)).mean()

    return [
        (game.groups("encoder", "posterior", "decoder", "likelihood"), autoencoder),
        (game.groups("critic"), critic),
    ]


# The model, the objective of a weight, the losses, and the function that draws for the critic.
GAMES: dict[str, tuple[Any, Any, Any, Any]] = {
    "patch_gan": (PATCH, lambda weight: PatchGAN(ELBO(), weight), patch_gan_losses, None),
    "vaegan": (IMAGE, VAEGAN, vaegan_losses, (vaegan, "sample_each")),
    "adversarial": (
        LATENT,
        AdversarialAutoencoder,
        adversarial_losses,
        (adversarial, "sample_each"),
    ),
    "factor_vae": (LATENT, FactorVAE, factor_vae_losses, (factor_vae, "permute_dims")),
}
every_game = pytest.mark.parametrize("name", GAMES)


def played(
    name: str, model: Any, params: Any, weight: Any, x: Array, keys: Array
) -> tuple[Array, tuple[Any, Array | None]]:
    """The loss; the Terms, and what was drawn for the critic."""
    _, objective, _, function = GAMES[name]

    def play(model: Any) -> Any:
        terms = model(x, keys)
        if function is None:
            return objective(weight)(terms, STEP, model)[0], (terms, None)
        with remembered(*function) as drawn:
            loss = objective(weight)(terms, STEP, model)[0]
        (own,) = drawn
        return loss, (terms, own)

    return nn.apply(play, model)({"params": params})


@pytest.mark.others_slow
@every_game
def test_each_group_has_the_gradient_of_its_own_loss(name: str) -> None:
    """One scalar against three losses, each differentiated by its own copy of its parameters.

    The three are written from the papers, with D = 1 / (1 + e^-logit), a KL in closed form, and
    no stop_gradient: what is not a loss's argument is a constant to it. A weight of 1e-6 would be
    lost to rounding if the decoder's part were taken as a difference.
    """
    model, objective, losses, _ = GAMES[name]
    params = params_of(model, objective(1.0), X, KEYS)
    if name == "patch_gan":  # so that some patches are on either side of the hinges
        params["critic"]["logit"]["kernel"] *= 4

    @jax.jit
    def both(weight: Array) -> tuple[Any, Any]:
        scalar = jax.grad(lambda params: played(name, model, params, weight, X, KEYS), has_aux=True)
        gradient, (terms, drawn) = scalar(params)
        eps = (terms.z[0][0] - terms.q[0].loc) / terms.q[0].scale
        game = losses(Game(model, params, eps, drawn), weight)
        separate = [jax.grad(loss)(own) for own, loss in game]
        return gradient, {part: each for group in separate for part, each in group.items()}

    for weight in (0.3, 1e-6):
        actual, expected = both(jnp.asarray(weight))
        assert actual.keys() == expected.keys()
        if objective is VAEGAN:  # the width of p(x|z) has no part in the game
            assert actual["likelihood"].pop("log_scale") == 0
            assert expected["likelihood"].pop("log_scale") == 0
        assert all(np.abs(leaf).max() > 1e-5 for leaf in jax.tree.leaves(expected))
        assert_close(actual, expected, 1e-5)


SPHERE = {"posterior": VonMisesFisher(D), "prior": HypersphericalUniform(D)}


@pytest.mark.parametrize(
    ("name", "changes"),
    [("adversarial", {}), ("adversarial", SPHERE), ("vaegan", SPHERE)],
)
def test_draws_of_the_prior_are_independent_of_the_latents(name: str, changes: Any) -> None:
    """10,000 pairs of z from q(z|x), for one x, and from the prior: no correlation above 0.05.

    Those of the prior have its mean of zero and its covariance, the identity or that over D.
    """
    count = 10_000
    model, objective, *_ = GAMES[name]
    model = model.clone(**changes)
    params = params_of(model, objective(1.0), X, KEYS)

    @jax.jit
    def pairs() -> Any:
        def one(keys: Array) -> Any:
            _, (terms, drawn) = played(name, model, params, 1.0, X[:1], keys)
            return terms.z[0][0, 0], drawn[0]  # pyright: ignore[reportOptionalSubscript]

        return jax.vmap(one)(jax.random.split(jax.random.key(5), (count, 1)))

    z, z_prior = (np.float64(each) for each in pairs())
    assert np.abs(np.corrcoef(z.T, z_prior.T)[:D, D:]).max() < 0.05
    variance = 1 / D if changes else 1.0
    assert np.abs(z_prior.mean(0)).max() < 4 * np.sqrt(variance / count)
    np.testing.assert_allclose(np.cov(z_prior.T), variance * np.eye(D), atol=0.06)


def test_the_game_begins_at_its_step() -> None:
    """Before it, the loss is the objective's and the critic stays; from it on, neither holds."""
    objective = PatchGAN(ELBO(), first_step=2)
    params = params_of(PATCH, objective, X, KEYS)

    @jax.jit
    def at(step: int) -> Any:
        def loss(critic: Any) -> Any:
            return loss_and_metrics(params | {"critic": critic}, PATCH, objective, X, KEYS, step)

        return jax.value_and_grad(loss, has_aux=True)(params["critic"])

    (before, metrics), gradients = at(1)
    assert before == metrics["neg_elbo"]
    assert norm(gradients) == 0
    (after, metrics), gradients = at(2)
    game = metrics["adaptive_weight"] * metrics["generator_loss"] + metrics["critic_loss"]
    np.testing.assert_allclose(after - metrics["neg_elbo"], game, rtol=1e-3)
    assert norm(gradients) > 1e-3


def test_codes_play_against_patches_too() -> None:
    """VQGAN without its perceptual loss: traced, not run."""
    model = PATCH.clone(
        encoder=ConvEncoder((4,), dense=None),
        posterior=VectorQuantized(3, D),
        prior=UniformCodes((2, 2)),
    )
    objective = PatchGAN(VQVAE())
    check_objective(objective, model)
    init = nn.init_with_output(loss_at_terms, model)
    (loss, metrics), variables = jax.eval_shape(
        lambda key: init(key, objective, X, KEYS, None, STEP), KEYS[0]
    )
    assert loss.shape == ()
    assert {"commitment", "adaptive_weight"} <= metrics.keys()
    assert "critic" in variables["params"]


@pytest.mark.parametrize("kind", ["latent", "image"])
def test_a_frozen_critic_moves_its_input_alone(kind: str) -> None:
    model, objective = (LATENT, FactorVAE(1.0)) if kind == "latent" else (IMAGE, VAEGAN(1.0))
    params = params_of(model, objective, X, KEYS)
    value = jax.random.normal(jax.random.key(4), (3, D) if kind == "latent" else (3, 4, 4, 1))

    @partial(jax.jit, static_argnums=2)
    @partial(jax.value_and_grad, argnums=(0, 1))
    def total(params: Any, value: Array, freeze: bool) -> Array:
        def of(model: Any, value: Array) -> Any:
            return frozen(model).critic(value) if freeze else model.critic(value)

        outputs = model.apply({"params": params}, value, method=of)
        return sum(jnp.sin(leaf).sum() for leaf in jax.tree.leaves(outputs))  # pyright: ignore

    fixed, free = total(params, value, True), total(params, value, False)
    np.testing.assert_allclose(fixed[0], free[0], rtol=1e-6)
    np.testing.assert_allclose(fixed[1][1], free[1][1], rtol=1e-5)
    assert norm(free[1][0]["critic"]) > 0.1
    assert norm(fixed[1][0]) == 0


def test_a_learned_prior_has_the_gradient_of_the_kl_alone() -> None:
    """What is drawn from it is a constant to the game."""
    model = IMAGE.clone(prior=VampPrior(3))
    params = params_of(model, VAEGAN(1.0), X, KEYS)

    def loss(prior: Any) -> Array:
        return loss_and_metrics(params | {"prior": prior}, model, VAEGAN(1.0), X, KEYS)[0]

    def rate(prior: Any) -> Array:
        terms: Any = model.apply({"params": params | {"prior": prior}}, X, KEYS)
        return terms.kl_sampled.mean()

    @jax.jit
    def both(prior: Any) -> Any:
        return jax.grad(loss)(prior), jax.grad(rate)(prior)

    gradient, expected = both(params["prior"])
    assert norm(expected) > 1e-3
    assert_close(gradient, expected, 1e-5)


def test_the_adversarial_encoder_and_its_critic_pull_in_opposite_ways() -> None:
    """A small step of either down its gradient: the critic's error falls, D of the encoder rises.

    The reconstruction's part is taken away: gradients are linear in the weight.
    """
    params = params_of(LATENT, AdversarialAutoencoder(), X, KEYS)

    @jax.jit
    def at(params: Any, weight: Any) -> Any:
        of_params = jax.grad(loss_and_metrics, has_aux=True)
        return of_params(params, LATENT, AdversarialAutoencoder(weight), X, KEYS)

    (one, before), (none, _) = at(params, 1.0), at(params, 0.0)
    game = jax.tree.map(np.subtract, one, none)
    assert norm(game["critic"]) == norm(game["decoder"]) == 0

    def after_a_step(group: str, gradients: Any) -> Any:
        moved = jax.tree.map(lambda p, g: p - 1e-2 * g, params[group], gradients[group])
        return at(params | {group: moved}, 1.0)[1]

    encoder, critic = after_a_step("encoder", game), after_a_step("critic", one)
    assert encoder["encoder_loss"] < before["encoder_loss"]
    assert encoder["critic_loss"] > before["critic_loss"]
    assert critic["critic_loss"] < before["critic_loss"]


# Real images


@pytest.mark.slow
@pytest.mark.parametrize("data", ["mnist_5k", "cifar10_4k"])
def test_a_game_of_patches_is_stable_for_400_steps(data: str, tmp_path: Path) -> None:
    """300 steps of the game: losses stay in bounds, and the critic neither wins nor loses.

    A hinge loss of 0 is a critic that is never wrong, of 2 one that tells nothing. In the last 100
    steps both players are between, reconstructions are better than when the game began, and the
    weight moves and does not run to its limit.
    """
    try:
        load(data)
    except VaeJaxError as error:
        pytest.skip(str(error))
    arguments = {"objective": "patch_gan", "data": data, "critic_start": 100, "num_steps": 400}
    file = Path(__file__).parents[1] / "experiments" / "vaegan.py"
    lines = [
        line
        for line in train_file(file, tmp_path / "run", arguments).folder.read_metrics()
        if "loss" in line
    ]
    assert [line["step"] for line in lines] == [100, 200, 300, 400]
    assert lines[-1]["skipped"] == 0
    for line in lines:
        assert all(value is not None for value in line.values())
    for line in lines[1:]:
        assert 0.02 < line["critic_loss"] < 2.5
        assert abs(line["logit_real"]) < 10
        assert abs(line["logit_fake"]) < 10
        assert 0 < line["adaptive_weight"] < 5e3
    assert lines[-1]["critic_loss"] < 1.98
    assert lines[-1]["distortion"] < lines[0]["distortion"]


# Devices


@pytest.mark.parametrize(
    "name",
    [
        "factor_vae",  # this one and the next look at the whole batch
        pytest.param("patch_gan", marks=pytest.mark.slow),
        pytest.param("vaegan", marks=pytest.mark.slow),
        pytest.param("adversarial", marks=pytest.mark.slow),
    ],
)
def test_a_game_is_the_same_on_every_number_of_devices(name: str) -> None:
    model, objective, *_ = GAMES[name]
    experiment = dataclasses.replace(
        tiny.experiment(),
        data=tiny.data("grey"),
        model=model,
        objective=objective(1.0),
        batch_size=8,
    )
    one, two, eight = one_batch(experiment, 1, 2, 8)
    assert norm(one[3]["critic"]) > 1e-2
    assert_close(two, one, 1e-5)
    assert_close(eight, one, 1e-5)


# Critics as parts


def test_critics_look_at_each_example_alone() -> None:
    x = jax.random.uniform(jax.random.key(0), (5, 4, 3, 1))
    critic = ImageCritic(MLP((6,)), MLP((4,)))
    (logits, features), variables = jax.jit(critic.init_with_output)(jax.random.key(1), x)
    assert (logits.shape, features.shape) == ((5,), (5, 6))
    np.testing.assert_allclose(features.mean(-1), 0, atol=1e-6)
    np.testing.assert_allclose(features.var(-1), 1, rtol=1e-3)
    alone = jax.jit(critic.apply)(variables, x[2:3])
    np.testing.assert_allclose(alone[0], logits[2:3], rtol=1e-5)


@pytest.mark.parametrize("layers", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_logit_is_of_its_patch_alone(layers: int) -> None:
    """The side of the patch from the paper's recurrence r -> stride r + kernel - stride, kernel 4.

    What a logit in the middle depends on, by its gradient, and 70 pixels for four layers.
    """
    side = 1
    for stride in [1, 1] + [2] * (layers - 1):  # from the logit down to the image
        side = stride * side + 4 - stride
    assert side == {2: 16, 4: 70}[layers] == 9 * 2 ** (layers - 1) - 2
    critic = PatchCritic((3,) * layers)
    x = jax.random.uniform(jax.random.key(0), (2, 2 * side, 2 * side, 1))
    logits, variables = jax.jit(critic.init_with_output)(jax.random.key(1), x)
    size = logits.shape[1]
    assert size == -(-2 * side // 2 ** (layers - 1))
    middle = jax.grad(lambda x: critic.apply(variables, x)[0, size // 2, size // 2])  # pyright: ignore
    seen = np.asarray(jax.jit(middle)(x))[..., 0] != 0
    assert not seen[1].any()
    for axis in (0, 1):
        (where,) = np.nonzero(seen[0].any(axis))
        assert where[-1] - where[0] + 1 == len(where) == side


def test_isolas_critic_has_as_many_parameters_as_the_papers() -> None:
    """C64-C128-C256-C512 of 4x4 kernels and one to a logit, with a scale and a shift where it is
    normalized, as batch normalization has.
    """
    x = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
    params = jax.eval_shape(PatchCritic.isola().init, jax.random.key(0), x)
    kernels = 16 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512)
    expected = kernels + 64 + 1 + 2 * (128 + 256 + 512)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected == 2_765_633


def test_a_game_within_a_game_is_refused() -> None:
    with pytest.raises(
        VaeJaxError, match=r"VAEGAN plays against a critic of its own.*such as ELBO"
    ):
        PatchGAN(VAEGAN(1.0))


@pytest.mark.parametrize(
    ("model", "objective", "said"),
    [
        (MODEL, PatchGAN(ELBO()), r"PatchGAN plays .*: give the model critic=PatchCritic"),
        (MODEL, FactorVAE(1.0), r"FactorVAE plays .*: give the model critic=LatentCritic\(...\)\."),
        (
            LATENT,
            VAEGAN(1.0),
            r"VAEGAN plays .*critic=ImageCritic\(...\) instead of LatentCritic\.",
        ),
        (IMAGE, AdversarialAutoencoder(), r"critic=LatentCritic\(...\) instead of ImageCritic\."),
        (LATENT, ELBO(), "ELBO has no use for a critic: take FactorVAE"),
        (
            LATENT.clone(prior=VampPrior(3)),
            FactorVAE(1.0),
            "independent components.*StandardNormal",
        ),
    ],
)
def test_a_model_without_the_right_critic_is_refused(model: Any, objective: Any, said: str) -> None:
    with pytest.raises(VaeJaxError, match=said):
        check_objective(objective, model)


@every_game
def test_a_model_with_the_right_critic_passes(name: str) -> None:
    model, objective, *_ = GAMES[name]
    check_objective(objective(1.0), model)
