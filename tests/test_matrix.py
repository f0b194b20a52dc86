"""The matrix: posterior x prior x likelihood x objective, each combination trained or refused.

What fits what is written down here by hand, apart from the declarations of the parts, for every
public posterior, prior and objective: a new one has to be added. Every combination of the four is
accepted or refused as this table says. Training compiles a program for each combination, so the
default suite trains each part in one combination at least; `make test-all` trains every compatible
posterior x prior with the other parts in turn, and a covering array: every compatible pair of parts
of any two kinds meets, and each part is on one and on two devices.
"""

import heapq
import inspect
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from combinations import (
    LIKELIHOODS,
    OBJECTIVES,
    POSTERIORS,
    PRIORS,
    SUPPORTS,
    Combination,
    build,
    image_critic,
    latent_critic,
    likelihood_fits,
    objective_fits,
    one_for_each_part,
    prior_fits,
    triples,
)
from running import on_devices

import vae_jax as vj
from vae_jax import parallel
from vae_jax.compatibility import check_data, check_objective, check_prior
from vae_jax.interfaces import Likelihood, Objective, Posterior, Prior
from vae_jax.second_stage import FitPrior
from vae_jax.step import init_state, loss_at_terms, make_train_chunk
from vae_jax.train import chunks_of_batches

STEPS, BATCH = 3, 8


def covering_array() -> Iterator[tuple[Combination, int]]:
    """Combinations in which every compatible pair of parts meets, and each part 1 and 2 devices.

    Greedy: each time the combination with the most pairs that have not met. What it had before
    is at least what it has, so few are counted again.
    """

    bits: dict[Any, int] = {}  # a pair's bit, so that a set of pairs is an integer

    def pairs(*parts: Any) -> int:
        met = itertools.combinations(enumerate(parts), 2)
        return sum(1 << bits.setdefault(pair, len(bits)) for pair in met)

    candidates = {
        ((q, p, likelihood, objective), devices): pairs(q, p, likelihood, objective, devices)
        for q, p, objective in triples()
        for likelihood in LIKELIHOODS
        if likelihood_fits(likelihood, objective)
        for devices in (1, 2)
    }
    left = (1 << len(bits)) - 1
    most = [(-met.bit_count(), n, each, met) for n, (each, met) in enumerate(candidates.items())]
    heapq.heapify(most)
    while left:
        before, n, best, met = most[0]
        count = (met & left).bit_count()
        if count < -before:
            heapq.heapreplace(most, (-count, n, best, met))
            continue
        left &= ~met
        yield best


# --- Accepted or refused ------------------------------------------------------------------------


def test_the_tables_have_every_public_part():
    """Those made of another likelihood have tests of their own."""
    public = [getattr(vj, name) for name in dir(vj)]
    tables: dict[type, set[str]] = {
        Posterior: set(POSTERIORS),
        Prior: set(PRIORS),
        Likelihood: {*LIKELIHOODS, "AutoregressivePixels", "SeenPixels"},
        Objective: {type(objective).__name__ for objective, *_ in OBJECTIVES.values()},
    }
    for base, table in tables.items():
        parts = (part for part in public if isinstance(part, type) and issubclass(part, base))
        assert {part.__name__ for part in parts if part is not base} == table


def refusal(check: Callable, *parts: Any) -> str | None:
    try:
        check(*parts)
    except vj.VaeJaxError as error:
        return str(error)
    return None


def names_one_of(names: list[str], said: str) -> bool:
    return not set(names).isdisjoint(re.findall(r"\w+", said))


def test_every_combination_is_accepted_or_refused_with_a_sentence_that_names_what_fits():
    """All four-fold combinations, and every likelihood with every protocol.

    A refusal names parts that do fit, according to the tables.
    """
    for likelihood, protocol in itertools.product(LIKELIHOODS, SUPPORTS):
        cls: Any = getattr(vj, likelihood)
        said = refusal(check_data, cls(), tiny.data(protocol))
        assert (said is None) == (SUPPORTS[protocol] in cls.supports)
        if said is not None:
            assert any(name in said for name in LIKELIHOODS if LIKELIHOODS[name] == protocol)
    accepted = 0
    fitted = []
    for q, p in itertools.product(POSTERIORS, PRIORS):
        model, _, _ = build((q, p, "Gaussian", "ELBO"))
        said = refusal(check_prior, model.posterior, model.prior)
        assert (said is None) == prior_fits(q, p), said
        if said is None:
            fitted.append((q, p))
        else:
            fitting = [n for n in POSTERIORS if prior_fits(n, p)]
            fitting += [n for n in PRIORS if prior_fits(q, n)]
            assert names_one_of(fitting, said), said
    models = {pair: build((*pair, "Gaussian", "ELBO"))[0] for pair in fitted}
    for (q, p), objective in itertools.product(fitted, OBJECTIVES):
        made, *_, critic = OBJECTIVES[objective]
        model = models[q, p] if critic is None else models[q, p].clone(critic=critic())
        said = refusal(check_objective, made, model)
        assert (said is None) == objective_fits(q, p, objective), f"{q} {p} {objective}: {said}"
        if said is None:
            accepted += 1
            continue
        fitting = [n for n in POSTERIORS if objective_fits(n, "StandardNormal", objective)]
        fitting += [n for n in POSTERIORS if objective_fits(n, "UniformCodes", objective)]
        fitting += [n for n in PRIORS if prior_fits(q, n) and objective_fits(q, n, objective)]
        assert names_one_of(fitting, said), said
    assert accepted == len(triples())


def test_every_objective_is_called_as_their_base_is() -> None:
    """With the model, which one that needs none is given too: no argument has a default."""
    kinds = [type(made) for made, *_ in OBJECTIVES.values()]
    base = inspect.signature(Objective.__call__).parameters.values()
    for kind in [*kinds, FitPrior]:
        found = inspect.signature(kind.__call__).parameters.values()
        assert [(each.name, each.default) for each in found] == [
            (each.name, each.default) for each in base
        ], kind


@pytest.mark.others_slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_loss_is_made_of_terms_and_not_of_what_is_logged(objective, monkeypatch) -> None:
    """Tracing it misses nothing where the metrics of Terms are empty."""
    q, p, _ = next(triple for triple in triples() if triple[2] == objective)
    model, made, _ = build((q, p, "Gaussian", objective))
    check_objective(made, model)
    for name in ("bound_metrics", "rate_and_distortion"):
        monkeypatch.setattr(vj.Terms, name, lambda terms: {})
    x, key = jax.ShapeDtypeStruct((2, *tiny.IMAGE_SHAPE), jnp.float32), jax.random.key(0)
    y = None if model.labels is None else jnp.zeros(2, jnp.int32)
    init = nn.init(loss_at_terms, model)
    jax.eval_shape(lambda x: init(key, made, x, jax.random.split(key), y, jnp.int32(0)), x)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_critics_are_given_where_they_are_needed_and_nowhere_else(objective):
    q, p, _ = next(triple for triple in triples() if triple[2] == objective)
    model, made, _ = build((q, p, "Gaussian", objective))
    needed = OBJECTIVES[objective][4]
    if needed is None:
        said = refusal(check_objective, made, model.clone(critic=latent_critic()))
        assert said is not None
        assert "LatentCritic" in said
    else:
        wrong = image_critic() if needed is latent_critic else latent_critic()
        for critic in (None, wrong):
            said = refusal(check_objective, made, model.clone(critic=critic))
            assert said is not None
            assert type(needed()).__name__ in said


# --- Trained ------------------------------------------------------------------------------------

# Parameters that an objective has no use for: a VAE-GAN looks at means, not at scales of pixels.
# Both sides of a hinge pull a bias by one, until a logit is beyond one. What is behind gates that
# begin at zero moves after them, and a schedule once there is something to be estimated. A vector
# is one token of GIVT, before which there is none.
BEHIND_GATES = {"block0", "of_time_0", "of_time_1"}
UNMOVED = {
    "Diffusion": BEHIND_GATES | {"schedule"},
    "FlowMatching": BEHIND_GATES,
    "GIVT": {"['prior']['network']['Dense_0']['kernel']"},
    "MonteCarloEM": {"encoder", "posterior"},
    "VAEGAN": {"log_scale", "log_concentration"},
    "PatchGAN": {"['critic']['logit']['bias']"},
}


def train_a_little(combination: Combination, devices: int) -> None:
    """Three steps of gradient descent: all stays finite, and every parameter moves."""
    model, objective, protocol = build(combination)
    experiment = vj.Experiment(
        data=tiny.data(protocol),
        model=model,
        objective=objective,
        optimizer=optax.sgd(1e-3),
        num_steps=STEPS,
        batch_size=BATCH,
        log_every=STEPS,
        checkpoint_every=STEPS,
    )
    seeds = np.zeros(1, np.uint32)
    before = jax.tree.map(np.asarray, jax.jit(jax.vmap(partial(init_state, experiment)))(seeds))
    with on_devices(devices):
        layout = parallel.Layout.of(1, BATCH)
        results = make_train_chunk(experiment, layout)(
            layout.place(before),
            parallel.replicate(experiment.data.train.images),
            next(chunks_of_batches(experiment, layout, seeds, 0, streamed=False)),
            layout.place(seeds),
        )
        after, metrics = layout.collect(results)
    assert after.skipped[0] == 0, "a step was not finite"
    for name, values in metrics.items():
        assert np.isfinite(values).all(), name
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before.params, after.params)
    unmoved = UNMOVED.get(combination[3], set()) | UNMOVED.get(combination[1], set())
    still = {
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_flatten_with_path(moved)[0]
        if not leaf and not {*(part.key for part in path), jax.tree_util.keystr(path)} & unmoved
    }
    assert not still, still


def each_part() -> Iterator[tuple[Combination, int]]:
    """Combinations that use every part, on one and on two devices in turn."""
    likelihoods = itertools.cycle(LIKELIHOODS)
    for (q, p, objective), devices in zip(one_for_each_part(), itertools.cycle((1, 2))):
        likelihood = next(each for each in likelihoods if likelihood_fits(each, objective))
        yield (q, p, likelihood, objective), devices


def one_for_each_prior() -> list[tuple[Combination, int]]:
    """Every compatible posterior and prior, with the other parts and the devices in turn.

    Each time the likelihood that was used least, and of such objectives the most particular one.
    """
    places = Counter(objective for _, _, objective in triples())
    used = dict.fromkeys([*OBJECTIVES, *LIKELIHOODS], 0)
    found = []
    for q, p in itertools.product(POSTERIORS, PRIORS):
        fitting = [o for o in OBJECTIVES if prior_fits(q, p) and objective_fits(q, p, o)]
        if fitting:
            objective = min(fitting, key=lambda o: (used[o], places[o]))
            likelihood = min(
                (each for each in LIKELIHOODS if likelihood_fits(each, objective)),
                key=used.__getitem__,
            )
            used[objective] += 1
            used[likelihood] += 1
            found.append(((q, p, likelihood, objective), 1 + len(found) % 2))
    assert all(used.values())
    return found


def name(part: Any) -> str:
    return "-".join(part) if isinstance(part, tuple) else str(part)


@pytest.mark.others_slow
@pytest.mark.parametrize(("combination", "devices"), list(each_part()), ids=name)
def test_every_part_trains(combination, devices):
    train_a_little(combination, devices)


@pytest.mark.parametrize("combination", [triple for triple, _ in each_part()], ids=name)
def test_variables_of_numpy_are_constants_of_a_compiled_program(combination: Combination) -> None:
    """As those of a run are, of which somebody compiles a function."""
    model, _, _ = build(combination)
    x, key = jnp.zeros((2, *tiny.IMAGE_SHAPE)), jax.random.key(0)
    y = None if model.labels is None else jnp.zeros(2, jnp.int32)

    def init(x: Any, keys: Any) -> Any:
        return model.init(key, x, keys, y=y)

    keys = jax.random.split(key, 2)
    shapes = jax.eval_shape(init, x, keys)
    variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)

    def used(x: Any, keys: Any, y: Any) -> Any:
        terms: Any = model.apply(variables, x, keys, y=y)
        zs, px = model.apply(variables, keys, y, method="sample")
        return terms.z, terms.log_px, zs, px.mean

    *_, mean = jax.eval_shape(used, x, keys, y)
    assert mean.shape == x.shape


@pytest.mark.slow
@pytest.mark.parametrize(("combination", "devices"), one_for_each_prior(), ids=name)
def test_every_posterior_trains_with_every_prior(combination, devices):
    """Every objective and every likelihood is among them."""
    train_a_little(combination, devices)


@pytest.mark.slow
@pytest.mark.parametrize(("combination", "devices"), list(covering_array()), ids=name)
def test_every_pair_of_parts_trains(combination, devices):
    # Compiled programs take memory maps, of which Linux gives a process 65,530.
    jax.clear_caches()
    train_a_little(combination, devices)
