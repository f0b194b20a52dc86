"""Quality of pictures: features in closed form, distances that grow with damage, a run's."""

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import astuple
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import optax
import pytest
from running import ROOT, on_devices
from scipy import ndimage

import vae_jax.metrics.quality
from vae_jax import (
    ELBO,
    MLP,
    VAE,
    Data,
    DiagonalGaussian,
    Experiment,
    Gaussian,
    Run,
    StandardNormal,
    VaeJaxError,
    evaluate,
    generate,
    load,
    metrics,
    report,
    train,
)
from vae_jax.data import Split
from vae_jax.run import RunFolder, jsonable

COLOURS = np.array([[230, 60, 40], [40, 200, 80], [60, 90, 220]])


def pictures(count: int, seed: int, side: int = 16, channels: int = 3) -> tuple[np.ndarray, Any]:
    """Discs, squares and stripes of a colour of their own: uint8 images, and which they are."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(3, size=count)
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    images = []
    for label in labels:
        dy, dx, r = *generator.uniform(-side / 8, side / 8, 2), generator.uniform(0.2, 0.35) * side
        shapes = (
            (y - dy) ** 2 + (x - dx) ** 2 < r**2,
            (abs(y - dy) < r) & (abs(x - dx) < r),
            np.sin(2 * np.pi * (x + dx) / 4) > 0,
        )
        ink = COLOURS[label] + generator.normal(0, 15, 3)
        ground = generator.uniform(40, 120)
        image = np.where(shapes[label][..., None], ink, ground)
        images.append(image + generator.normal(0, 4, image.shape))
    coloured = np.clip(images, 0, 255).astype(np.uint8)
    return (coloured if channels == 3 else coloured[..., 1:2]), labels


# --- Features -----------------------------------------------------------------------------------


def test_colour_of_two_halves() -> None:
    """Three quarters black, the rest (255, 85, 0), which is a level of each channel."""
    image = np.zeros((1, 8, 8, 3), np.uint8)
    image[:, :, :2] = 255, 85, 0
    (found,) = metrics.colour(image)
    histogram = found[:64].reshape(4, 4, 4)
    expected = np.zeros((4, 4, 4))
    expected[0, 0, 0], expected[3, 1, 0] = 0.75, 0.25
    np.testing.assert_allclose(histogram, expected, atol=1e-6)
    values = [np.repeat([0, top], [3, 1]) for top in (1, 1 / 3, 0)]
    moments = [[v.mean() for v in values], [v.std() for v in values]]
    moments.append([np.cbrt(((v - v.mean()) ** 3).mean()) for v in values])
    np.testing.assert_allclose(found[64:], np.ravel(moments), atol=1e-6)


def test_colour_of_grey_between_two_levels() -> None:
    (found,) = metrics.colour(np.full((1, 8, 8, 1), 23, np.uint8))  # 23 / 255 = 1.353 / 15
    expected = np.zeros(16)
    expected[1], expected[2] = 1 - 0.353, 0.353
    np.testing.assert_allclose(found[:16], expected, atol=1e-3)
    np.testing.assert_allclose(found[16:], [23 / 255, 0, 0], atol=1e-4)


@pytest.mark.parametrize("direction", [0, 2])
def test_texture_of_stripes(direction: int) -> None:
    """A band's answer to a cosine is A exp(-|f - f_0|^2 / (2 s^2)), the same everywhere."""
    amplitude, size = 60, 24
    wave = amplitude * np.cos(2 * np.pi * (np.arange(size) + 0.5) / 6)  # its own mirror image
    image = np.broadcast_to(wave[:, None] if direction == 2 else wave, (size, size))
    (found,) = metrics.texture(np.rint(127 + image)[None, ..., None].astype(np.uint8))
    angle = np.pi * direction / 4
    wanted = np.array([np.sin(angle), np.cos(angle)]) / 6
    for band, (wavelength, other) in enumerate(product((3, 6, 12), range(4))):
        angle = np.pi * other / 4
        centre = np.array([np.sin(angle), np.cos(angle)]) / wavelength
        # A cosine has the frequency -f too, which few bands hear.
        heard = [
            np.exp(-0.5 * (((f - centre) * 3 * wavelength) ** 2).sum()) for f in (wanted, -wanted)
        ]
        if min(heard) < 1e-3:
            assert found[band] == pytest.approx(amplitude / 255 * max(heard), abs=2e-3)
    assert found[:12].argmax() == 4 + direction


@pytest.mark.parametrize("shape", [(8, 8, 1), (8, 40, 3), (33, 9, 1), (64, 64, 3)])
@pytest.mark.parametrize("space", [metrics.colour, metrics.texture])
def test_any_size_and_a_flat_image_have_features(space: Callable, shape: Any) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, *shape)).astype(np.uint8)
    images[1] = 200
    found = space(images)
    assert found.shape == (3, {1: 19, 3: 73}[shape[-1]] if space is metrics.colour else 90)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(space(images[1:])[0], found[1], atol=1e-6)


def test_chunks_are_the_whole_in_order() -> None:
    images = np.random.default_rng(0).integers(0, 256, (1103, 8, 8, 1)).astype(np.uint8)
    sizes = []

    def mean(chunk: np.ndarray) -> np.ndarray:
        sizes.append(len(chunk))
        return chunk.mean((1, 2))

    np.testing.assert_allclose(metrics.in_chunks(mean, images), images.mean((1, 2)))
    assert len(sizes) > 1
    assert len(set(sizes)) == 1


def test_standardized_features_keep_their_proportions() -> None:
    images, _ = pictures(60, 0)
    space = metrics.standardized(metrics.colour, images)
    found, raw = space(images), metrics.colour(images)
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-9)
    assert found.var(0).mean() == pytest.approx(1)
    ratio = np.ptp(found, 0) / np.maximum(np.ptp(raw, 0), 1e-12)
    np.testing.assert_allclose(ratio[np.ptp(raw, 0) > 0.01], ratio.max(), rtol=1e-6)
    alike = np.repeat(images[:1], 50, 0)
    assert np.abs(metrics.standardized(metrics.colour, alike)(alike)).max() < 0.1


@cache
def learned_space(labelled: bool, folder: Path) -> metrics.Features:
    images, labels = pictures(300, 0)
    train = Split(images, labels.astype(np.int32) if labelled else None)
    return metrics.learned_features(RunFolder(folder), train, num_steps=100)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("features")


@pytest.fixture(
    params=[
        "colour",
        "texture",
        pytest.param("classifier", marks=pytest.mark.slow),
        pytest.param("autoencoder", marks=pytest.mark.slow),
    ]
)
def space(request: pytest.FixtureRequest, folder: Path) -> tuple[str, metrics.Features]:
    name = request.param
    found = getattr(metrics, name, None)
    return name, found or learned_space(name == "classifier", folder / name)


def damaged(images: np.ndarray, how: str, much: float) -> np.ndarray:
    """Blurred by `much` pixels; or with noise of, or with red more by, 30 `much` levels."""
    x = images.astype(float)
    if how == "blur":
        x = ndimage.gaussian_filter(x, (0, much, much, 0))
    elif how == "noise":
        x += 30 * much * np.random.default_rng(3).normal(size=x.shape)
    else:
        x[..., 0] += 30 * much
    return np.clip(np.rint(x), 0, 255).astype(np.uint8)


def distances_grow(
    name: str,
    function: metrics.Features,
    images: np.ndarray,
    others: np.ndarray,
    strengths: tuple[float, ...],
) -> None:
    """From undamaged images of which none is among those that are damaged more and more."""
    kinds = ["blur", "noise", "shift"]
    if name == "texture":  # see test_texture_does_not_see_a_shift_of_colour
        kinds.remove("shift")
    real, undamaged = function(others), function(images)
    worse = {how: [function(damaged(images, how, much)) for much in strengths] for how in kinds}
    for distance in (metrics.frechet_distance, metrics.kernel_distance):
        floor = distance(undamaged, real)
        assert floor.low < 0 < floor.high, distance.__name__
        for how in kinds:
            found = [floor, *(distance(each, real) for each in worse[how])]
            values = [f.value for f in found]
            assert values == sorted(values), (how, distance.__name__, values)
            assert floor.high < found[-1].low, (how, distance.__name__)


@pytest.mark.others_slow
def test_distances_grow_with_blur_noise_and_a_shift_of_colour(
    space: tuple[str, metrics.Features],
) -> None:
    name, function = space
    function = metrics.standardized(function, pictures(300, 0)[0])
    # Four images for each of 224 learned features. Half a pixel of blur is less than two sets of
    # that many differ by.
    count = 450 if name in ("colour", "texture") else 900
    distances_grow(name, function, pictures(count, 1)[0], pictures(count, 2)[0], (1, 2, 3))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["colour", "texture", "classifier", "autoencoder"])
def test_distances_of_photographs_grow_with_damage(name: str, tmp_path: Path) -> None:
    """800 of CIFAR-10 that are not for training: half of them against the other half."""
    if not os.environ.get("VAE_JAX_MANUAL_DIR"):
        pytest.skip("VAE_JAX_MANUAL_DIR, the folder of the official files, is not set")
    data = load("cifar10_4k", data_dir=tmp_path)
    function = getattr(metrics, name, None)
    if function is None:
        labels = data.train.labels if name == "classifier" else None
        function = metrics.learned_features(RunFolder(tmp_path), Split(data.train.images, labels))
    held_out = np.concatenate([data.valid.images, data.test.images])
    function = metrics.standardized(function, data.train.images)
    distances_grow(name, function, held_out[::2], held_out[1::2], (0.5, 1, 2, 3))


def test_texture_does_not_see_a_shift_of_colour() -> None:
    images = pictures(20, 0)[0] // 2
    shifted = images + np.array([90, 0, 0], np.uint8)
    np.testing.assert_allclose(metrics.texture(shifted), metrics.texture(images), atol=1e-4)


def test_learned_features_tell_classes_apart_and_are_kept(folder: Path) -> None:
    space = learned_space(True, folder / "classifier")
    images, labels = pictures(300, 0)
    test, answers = pictures(100, 5)
    centres = np.stack([space(images)[labels == c].mean(0) for c in range(3)])
    guesses = ((space(test)[:, None] - centres) ** 2).sum(-1).argmin(1)
    assert (guesses == answers).mean() > 0.9
    other = Split(images, (2 - labels).astype(np.int32))  # would be learned otherwise
    kept = metrics.learned_features(RunFolder(folder / "classifier"), other, num_steps=100)
    np.testing.assert_array_equal(kept(test), space(test))


@pytest.mark.slow
def test_learned_features_are_the_same_each_time(tmp_path: Path) -> None:
    images, _ = pictures(64, 0, side=8, channels=1)
    train = Split(images, None)
    first, second = (
        metrics.learned_features(RunFolder(tmp_path / name), train, num_steps=5)(images)
        for name in "ab"
    )
    np.testing.assert_array_equal(first, second)
    assert first.shape == (64, 224)


# --- A run --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A VAE of small colour pictures with labels; its learned features are learned briefly."""
    splits = [pictures(count, seed, side=8) for seed, count in enumerate((90, 60))]
    data = Data.from_arrays(
        "shapes",
        splits[0][0],
        test=splits[1][0],
        protocol="grey",
        labels={"train": splits[0][1], "test": splits[1][1]},
    )
    model = VAE(
        encoder=MLP((16,)),
        posterior=DiagonalGaussian(4),
        prior=StandardNormal(4),
        decoder=MLP((16,)),
        likelihood=Gaussian(),
        image_shape=(8, 8, 3),
    )
    with pytest.MonkeyPatch.context() as patch, on_devices(1):
        patch.setattr(
            vae_jax.metrics.quality,
            "learned_features",
            partial(metrics.learned_features, num_steps=20),
        )
        yield train(
            Experiment(
                data=data,
                model=model,
                objective=ELBO(),
                optimizer=optax.adam(1e-2),
                num_steps=30,
                batch_size=30,
                log_every=30,
                checkpoint_every=30,
            ),
            tmp_path_factory.mktemp("quality") / "run",
        )


def grey_levels(images: np.ndarray) -> np.ndarray:
    """A user's features: means of the channels."""
    return images.mean((1, 2))


def test_quality_of_a_run(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """The floor is the training images'; a table and evaluation.json say the same."""
    with on_devices(1):
        evaluation = evaluate(
            run, num_samples=2, quality_images=50, features={"grey_levels": grey_levels}
        )
    found = evaluation.quality
    assert found is not None
    assert [(score.space, score.name) for score in found.scores] == list(
        product(
            ("colour", "texture", "learned", "grey_levels"),
            ("frechet", "kernel", "precision", "recall"),
        )
    )
    scores = {(score.space, score.name): score for score in found.scores}
    for space in ("colour", "texture", "learned"):
        for distance in ("frechet", "kernel"):
            score = scores[space, distance]
            assert score.training.value < score.samples.value, (space, distance)
    data = run.experiment.data
    test, training = (
        data.test.images[np.arange(50) * 60 // 50],
        data.train.images[np.arange(50) * 90 // 50],
    )
    floor = metrics.frechet_distance(grey_levels(training), grey_levels(test))
    assert scores["grey_levels", "frechet"].training == floor
    samples = np.rint(255 * generate.sample(run, 50)).astype(np.uint8)
    ours = metrics.kernel_distance(grey_levels(samples), grey_levels(test))
    assert scores["grey_levels", "kernel"].samples == ours
    means = run.reconstruct(run.images("test", np.arange(50) * 60 // 50))
    errors = metrics.psnr(np.rint(255 * means).astype(np.uint8), test)
    assert found.reconstruction["psnr"].value == pytest.approx(errors.mean(), abs=0.01)
    assert 0 < found.reconstruction["ssim"].value < 1
    learned = metrics.standardized(
        metrics.learned_features(run.folder, data.train, num_steps=20), training
    )
    drawn = learned(np.rint(255 * means).astype(np.uint8))
    rfrechet = metrics.frechet_distance(drawn, learned(test))  # without an interval: nan
    np.testing.assert_equal(astuple(found.reconstruction["rfrechet"]), astuple(rfrechet))

    report.record(run, evaluation, 1.0)
    report.show(run, evaluation)
    printed = capsys.readouterr().out
    for name in ("Fréchet distance", "kernel distance", "precision", "PSNR", "SSIM", "floor"):
        assert name in printed
    (entry,) = json.loads(run.folder.evaluation.read_text())
    assert entry["quality"]["num_images"] == 50
    kept = entry["quality"]["scores"][0]
    assert (kept["space"], kept["name"]) == ("colour", "frechet")
    assert kept["samples"]["value"] == scores["colour", "frechet"].samples.value
    assert kept["samples"]["low"] is kept["samples"]["high"] is None  # 50 images, 73 features
    assert re.search(r"\d\.\d{3} \[none\].*\[none\]", printed)
    assert "fewer images than twice the features" in " ".join(printed.split())
    line = next(line for line in printed.splitlines() if "SSIM" in line)
    assert f"{entry['quality']['reconstruction']['ssim']['value']:.3f} [" in line


def test_samples_of_a_conditional_model_have_the_labels_of_the_split(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not equal shares: most of the test images are of the first class."""
    labels, asked = np.repeat([0, 1, 2], [40, 15, 5]), []

    def sample(run: Run, num: int, seed: int, labels: list[int]) -> None:
        asked.extend(labels)
        raise StopIteration

    monkeypatch.setattr(Run, "labels", lambda run, split, rows: labels[rows])
    monkeypatch.setattr(generate, "sample", sample)
    with pytest.raises(StopIteration):
        vae_jax.metrics.quality.measure_quality(run, "test", 60)
    assert asked == list(labels)


def test_the_documents_python_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/quality.md").read_text(), re.DOTALL)
    exec(compile(block, "docs/quality.md", "exec"), {})
    assert re.fullmatch(r"-?\d.*plain \d+\.\d\d\n", capsys.readouterr().out)


def test_infinite_psnr_is_null_in_the_record() -> None:
    found = metrics.Estimate.mean(np.array([20.0, np.inf]))
    assert np.isinf(found.value)
    assert jsonable(found.value) is jsonable(found.low) is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"quality_images": 39}, "at least 40 and at most 60"),
        ({"quality_images": 61}, "at least 40 and at most 60"),
        ({"quality_images": 50, "split": "train"}, "choose --split test"),
        ({"quality_images": 50, "split": "valid"}, "has 0: leave --quality-images out"),
    ],
)
def test_quality_is_refused(run: Run, arguments: dict[str, Any], said: str) -> None:
    with on_devices(1), pytest.raises(VaeJaxError, match=said):
        evaluate(run, num_samples=2, **arguments)


def test_a_users_features_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "inception.py"
    file.write_text(
        "import numpy as np\n"
        "def pool(images): return images.mean((1, 2))\n"
        "def flat(images): return images.mean((1, 2, 3))\n"
        "number = 3\n"
    )
    images, _ = pictures(60, 0)
    spaces = metrics.load_features(f"{file}:pool")
    assert list(spaces) == ["pool"]
    np.testing.assert_allclose(spaces["pool"](images), images.mean((1, 2)))
    with pytest.raises(VaeJaxError, match=r"let it return numbers \[60, F\]"):
        metrics.load_features(f"{file}:flat")["flat"](images)
    (tmp_path / "broken.py").write_text("import nothing_of_that_name")
    for reference, said in {
        "inception.py": "give it as WEIGHTS.npz or FILE.py:FUNCTION",
        f"{file}:number": "has no function number",
        f"{tmp_path / 'absent.py'}:pool": "cannot be run",
        f"{tmp_path / 'broken.py'}:pool": "No module named",
    }.items():
        with pytest.raises(VaeJaxError, match=said):
            metrics.load_features(reference)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (np.zeros((3, 8, 8, 1)), "float64"),
        (np.zeros((3, 8, 8), np.uint8), r"\(3, 8, 8\)"),
        (np.zeros((3, 8, 8, 2), np.uint8), "C = 1 or 3"),
        (np.zeros((0, 8, 8, 1), np.uint8), "at least one"),
    ],
)
def test_what_are_no_images_is_refused(images: np.ndarray, said: str) -> None:
    for space in (metrics.colour, metrics.texture):
        with pytest.raises(VaeJaxError, match=said):
            space(images)
