"""A prior fitted as a run of its own: what it holds fixed, what it is refused, how it goes on."""

import dataclasses
import signal
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny
from running import on_devices

import vae_jax as vj
from vae_jax import fitted_priors
from vae_jax.checkpoint import fingerprint
from vae_jax.errors import Interrupted
from vae_jax.progress import Pace
from vae_jax.run import Run
from vae_jax.second_stage import FitPrior, fit_prior
from vae_jax.step import init_state

NETWORK = vj.AdaptiveMLP(8, 1)
FLOW = vj.FlowMatching(2, NETWORK, num_classes=8)
HOW: dict[str, Any] = {"num_steps": 40, "batch_size": 16}


@pytest.fixture(scope="module", autouse=True)
def fewer_latents():
    with pytest.MonkeyPatch.context() as patch, on_devices(1):
        patch.setattr(fitted_priors, "LATENTS", 500)
        yield


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Run:
    experiment = dataclasses.replace(tiny.experiment(), data=tiny.data("threshold"))
    return vj.train(experiment, tmp_path_factory.mktemp("first") / "run")


@pytest.fixture(scope="module")
def second(first: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return fit_prior(first, FLOW, tmp_path_factory.mktemp("second") / "run", **HOW)


def test_everything_but_the_prior_is_held_to_the_bit(first: Run, second: Run):
    """In the parameters and in their running average; the prior's own have moved from zero."""
    ours = {**second.seed_variables["params"]}
    prior = ours.pop("prior")
    theirs = {**first.seed_variables["params"]}
    theirs.pop("prior", None)
    assert ours.keys() == theirs.keys()
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    state: Any = second.state
    one_seed = {name: tree for name, tree in state.params.items() if name != "prior"}
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0], b), one_seed, theirs)
    last = prior["prior"]["network"]["Dense_1"]["kernel"]
    assert np.abs(last).min() > 0
    z = fitted_priors.latents_of(first)
    np.testing.assert_allclose(prior["loc"], z.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(prior["scale"], z.std(0), rtol=1e-4)


@pytest.mark.slow
def test_its_folder_alone_is_sampled_from_and_knows_classes(first: Run, second: Run):
    """Guidance at zero weight is the conditional model to the bit; the first stage has none."""
    loaded = vj.load_run(second.folder.path)
    assert loaded.experiment.objective == FitPrior(fingerprint(first.seed_variables))
    pictures = loaded.sample(4, labels=[3])
    np.testing.assert_array_equal(pictures, second.sample(4, labels=[3]))
    np.testing.assert_array_equal(pictures, loaded.sample(4, labels=[3], guidance=0.0))
    assert (pictures != loaded.sample(4, labels=[3], guidance=3.0)).any()
    with pytest.raises(vj.VaeJaxError, match="StandardNormal without such classes"):
        first.sample(4, guidance=1.0)


@pytest.mark.slow
def test_a_finished_one_is_left_as_it_is_and_a_stopped_one_goes_on_to_the_same_bytes(
    first: Run, second: Run, tmp_path: Path
):
    again = fit_prior(first, FLOW, second.folder.path, **HOW)
    assert fingerprint(again.state) == fingerprint(second.state)

    def changes(self: Pace, steps: int, seconds: float, step: int) -> bool:
        if step == 20:
            signal.raise_signal(signal.SIGUSR1)
        return False

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vae_jax.progress.FIRST_STEPS", 10)
        patch.setattr(Pace, "changes", changes)
        with pytest.raises(Interrupted):
            fit_prior(first, FLOW, tmp_path / "run", **HOW)
    resumed = fit_prior(first, FLOW, tmp_path / "run", **HOW)
    assert fingerprint(resumed.state) == fingerprint(second.state)


def test_what_does_not_fit_is_refused_with_a_sentence(first: Run, second: Run, tmp_path: Path):
    state: Any = first.state
    moved = jax.tree.map(lambda leaf: leaf + 1, state.params)
    other = dataclasses.replace(first, state=state.replace(params=moved, ema_params=None))
    with pytest.raises(vj.VaeJaxError, match=r"holds a prior fitted to another run than .* choose"):
        fit_prior(other, FLOW, second.folder.path, **HOW)
    with pytest.raises(vj.VaeJaxError, match="is the run of another experiment"):
        fit_prior(first, vj.GaussianMixture(3, 2), second.folder.path, **HOW)
    with pytest.raises(vj.VaeJaxError, match=r"shape \(2,\), the prior's \(3,\): give both"):
        fit_prior(first, vj.FlowMatching(3, NETWORK), tmp_path / "run", **HOW)
    with pytest.raises(vj.VaeJaxError, match="num_classes=8"):
        fit_prior(first, FLOW.clone(num_classes=7), tmp_path / "run", **HOW)
    with pytest.raises(vj.VaeJaxError, match="gives no density to real vectors"):
        fit_prior(first, vj.HypersphericalUniform(2), tmp_path / "run", **HOW)
    with pytest.raises(vj.VaeJaxError, match="has a density for each class"):
        fit_prior(second.replica(0), vj.GaussianMixture(3, 2), tmp_path / "run", **HOW)
    assert not (tmp_path / "run").exists()
    with pytest.raises(vj.VaeJaxError, match="no prior has classes: leave them out"):
        fitted_priors.prior_for(first, "mixture", classes=8)


def of_codes(first: Run, prior: Any, labels: Any = None) -> Run:
    """The run of a model of codes with this prior, not trained."""
    codes = {"encoder": vj.ConvEncoder((4,), dense=None), "posterior": vj.VectorQuantized(3, 2)}
    model = tiny.model().clone(**codes, prior=prior, labels=labels)
    experiment = dataclasses.replace(first.experiment, model=model, objective=vj.VQVAE())
    state = jax.jit(jax.vmap(partial(init_state, experiment)))(np.zeros(1, np.uint32))
    return dataclasses.replace(first, experiment=experiment, state=state)


SMALL: dict[str, Any] = {"width": 4, "num_layers": 1, "num_heads": 1}


@pytest.mark.slow
@pytest.mark.parametrize("kind", [vj.MaskedCodes, vj.AutoregressiveCodes])
def test_how_codes_are_drawn_is_an_argument(first: Run, kind: Any):
    """Guidance of zero is the conditional model to the bit; the likeliest is that of one code."""
    run = of_codes(first, kind((2, 2), **SMALL, num_classes=8), vj.Labels(8))
    how: dict[str, Any] = {"num": 4, "label": [3]}
    own = run.sample(**how)
    alike: list[dict[str, Any]] = [
        {"guidance": 0.0},
        {"temperature": 1.0},
        {"top_p": 1, "top_k": 3},
    ]
    for same in alike:
        np.testing.assert_array_equal(own, run.sample(**how, **same))
    assert (own != run.sample(**how, guidance=20.0)).any()
    if kind is vj.AutoregressiveCodes:
        one = run.sample(**how, top_k=1)
        np.testing.assert_array_equal(one, run.sample(**how, temperature=0))
        np.testing.assert_array_equal(one, np.broadcast_to(one[:1], one.shape))
    else:
        half = np.arange(4)[:, None] < np.array([[2] * 4])
        images = tiny.images(3, 7)
        filled = run.inpaint(images, half, 3, num=2)
        assert filled.shape == (3, 2, 4, 4, 1)
        seen = run.inpaint(images, ~half, 3)
        np.testing.assert_array_equal(filled[:, 0, 2:] > 0.5, images[:, 2:] > 127)
        np.testing.assert_array_equal(seen[:, 0, :2] > 0.5, images[:, :2] > 127)


def test_draws_that_a_prior_does_not_make_are_refused(first: Run):
    plain = of_codes(first, vj.AutoregressiveCodes((2, 2), **SMALL))
    refused: dict[str, Any] = {
        r"is StandardNormal, whose draws take no top_k: leave the top_k out": (first, "top_k", 3),
        r"is StandardNormal, whose draws take no temperature": (first, "temperature", 0.5),
        r"that of .* is AutoregressiveCodes without such classes": (plain, "guidance", 1.0),
        r"The temperature of AutoregressiveCodes is \[1, 2\]: give one": (
            plain,
            "temperature",
            [1, 2],
        ),
        r"temperature of AutoregressiveCodes is -1": (plain, "temperature", -1.0),
        r"top_k of sample is 0": (plain, "top_k", 0),
        r"top_p of sample is 1\.5": (plain, "top_p", 1.5),
    }
    for sentence, (run, name, value) in refused.items():
        with pytest.raises(vj.VaeJaxError, match=sentence):
            run.sample(2, **{name: value})
    same = plain.sample(2, top_k=1)  # of a codebook of three
    np.testing.assert_array_equal(same[0], same[1])


@pytest.mark.slow
def test_a_codebook_is_held_to_the_bit(tmp_path: Path):
    """The running averages of its codes too, which any other training moves."""
    codes = {"encoder": vj.ConvEncoder((4,), dense=None), "posterior": vj.VectorQuantized(3, 2)}
    model = tiny.model().clone(**codes, prior=vj.UniformCodes((2, 2)))
    experiment = dataclasses.replace(
        tiny.experiment(num_steps=10), model=model, objective=vj.VQVAE()
    )
    first = vj.train(experiment, tmp_path / "first")
    prior = vj.AutoregressiveCodes((2, 2), width=4, num_layers=1, num_heads=1)
    second = fit_prior(first, prior, tmp_path / "second", **HOW)
    assert len(first.seed_variables) > 1
    for name, tree in first.seed_variables.items():
        if name != "params":
            jax.tree.map(np.testing.assert_array_equal, tree, second.seed_variables[name])
    assert second.sample(2).shape == (2, 4, 4, 1)


@pytest.mark.slow
def test_a_family_is_fitted_and_evaluated_by_the_command(first: Run, tmp_path: Path, capsys):
    """`fit-prior`, then `sample` and `evaluate` of its folder; the exact density has its place."""
    from vae_jax.cli import main

    folder, out = tmp_path / "second", tmp_path / "samples.png"
    how = ["--workdir", str(folder), "--num-steps", "40", "--batch-size", "16"]
    main(["fit-prior", str(first.folder.path), "--prior", "diffusion", "--classes", *how])
    assert capsys.readouterr().out.strip() == str(folder)
    main(["sample", str(folder), "--guidance", "1", "--num", "8", "--out", str(out)])
    assert out.exists()
    main(["evaluate", str(folder), "--num-samples", "2", "--num-images", "4"])
    assert "NLL" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("family", ["masked", "autoregressive", "givt"])
def test_a_family_of_tokens_is_fitted_drawn_from_and_evaluated(
    first: Run, family: str, tmp_path: Path, capsys
):
    """With classes; of codes a bound on the likelihood, of GIVT more samples are a tighter one."""
    from vae_jax.cli import main

    run, folder, out = first, tmp_path / "second", tmp_path / "samples.png"
    if family != "givt":
        model = of_codes(first, vj.UniformCodes((2, 2))).experiment.model
        run = vj.train(
            dataclasses.replace(first.experiment, model=model, objective=vj.VQVAE()),
            tmp_path / "first",
        )
    how = ["--workdir", str(folder), "--num-steps", "20", "--batch-size", "16"]
    main(["fit-prior", str(run.folder.path), "--prior", family, "--classes", *how])
    more = [] if family == "givt" else ["--top-k", "2", "--top-p", "0.9"]
    draw = ["--guidance", "1", "--temperature", "0.8", *more, "--num", "8", "--out", str(out)]
    main(["sample", str(folder), *draw])
    assert out.exists()
    capsys.readouterr()
    main(["evaluate", str(folder), "--num-samples", "3", "--num-images", "4"])
    assert "NLL" in capsys.readouterr().out
    fitted = vj.load_run(folder)
    images, labels = fitted.images("test", np.arange(4)), fitted.labels("test", np.arange(4))
    bounds = fitted.bounds(images, labels, num_samples=3)
    assert (bounds["nll"] <= bounds["neg_elbo"] + 1e-4).all()
