"""Images, latents and labels that do not fit a model or a data set."""

import functools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tiny

import vae_jax as vj
from hostile import Row
from vae_jax import generate, metrics, plots, random
from vae_jax.run import Run, RunFolder
from vae_jax.step import init_state

IMAGES = tiny.images(6, 0)
BINARY = (IMAGES > 127).astype(np.float32)
Z = np.zeros((6, 2), np.float32)
NAN_Z = np.full((6, 2), np.nan, np.float32)


@functools.cache
def run_of(kind: str) -> Run:
    """A run of the tiny experiment before its first step."""
    experiment = tiny.experiment()
    model = {
        "plain": experiment.model,
        "classes": experiment.model.clone(labels=vj.LabelEmbedding(8, 2)),
        "sphere": experiment.model.clone(
            posterior=vj.VonMisesFisher(3), prior=vj.HypersphericalUniform(3)
        ),
        "onehot": experiment.model.clone(
            posterior=vj.Categorical(2, 3, 0.5), prior=vj.UniformCategorical(2, 3)
        ),
        "ladder": vj.LadderVAE(
            encoders=(vj.MLP((4,)), vj.MLP((4,))),
            posteriors=(vj.DiagonalGaussian(3), vj.DiagonalGaussian(2)),
            decoders=(vj.MLP((4,)), vj.MLP((4,))),
            conditionals=(vj.DiagonalGaussian(3),),
            prior=vj.StandardNormal(2),
            likelihood=vj.Bernoulli(),
            image_shape=tiny.IMAGE_SHAPE,
        ),
    }[kind]
    experiment = experiment.with_model(model)
    shapes = jax.eval_shape(jax.vmap(partial(init_state, experiment)), np.zeros(1, np.uint32))
    generator = np.random.default_rng(0)
    state = jax.tree.map(
        lambda leaf: generator.normal(0, 0.1, leaf.shape).astype(leaf.dtype), shapes
    )
    return Run(RunFolder(Path("run")), experiment, state, "latest")


def encode(x: Any, kind: str = "plain", y: Any = None) -> Any:
    """The way of a run: bytes or floats of the protocol."""
    return run_of(kind).posterior_means(x, y)


def decode(z: Any, kind: str = "plain", y: Any = None) -> Any:
    """The way of a run."""
    return run_of(kind).decode(z, y)


def apply(method: str, *arguments: Any, kind: str = "plain", **named: Any) -> Any:
    """The way of Flax."""
    run = run_of(kind)
    return run.experiment.model.apply(run.seed_variables, *arguments, method=method, **named)


def init(x: Any) -> Any:
    """The way of Flax to parameters."""
    keys = random.image_keys("train", np.arange(len(x)))
    return tiny.model().init(random.key(0), x, keys)


def bytes_are_scaled() -> None:
    """Bytes give the latents of what the protocol makes of them, not of 0 to 255."""
    (means,) = encode(IMAGES)
    assert np.abs(means).max() < 5
    run = run_of("plain")
    x = run.observed(IMAGES)
    assert set(np.unique(x)) <= {0, 1}
    np.testing.assert_array_equal(means, encode(x)[0])
    np.testing.assert_allclose(means[:3], encode(IMAGES[:3])[0], atol=1e-6)


def data(images: Any = IMAGES, **named: Any) -> vj.Data:
    """A data set of a user's arrays."""
    return vj.Data.from_arrays("mine", images, **{"protocol": "grey", **named})


# What is given for images, and what is said of it; the model's are [N, 4, 4, 1].
X = {
    "channels first": (BINARY.transpose(0, 3, 1, 2), "its channels come first"),
    "a list": (BINARY[:1].tolist(), "give an array [N, 4, 4, 1]"),
    "a path": ("images.npy", "x is 'images.npy': give an array"),
    "one image": (BINARY[0], "it is one image: give x[None]"),
    "without channels": (BINARY[..., 0], "give x.reshape(-1, 4, 4, 1)"),
    "flat": (BINARY.reshape(6, -1), "give x.reshape(-1, 4, 4, 1)"),
    "in colour": (np.repeat(BINARY, 3, -1), "x has the shape (6, 4, 4, 3)"),
    "larger": (np.zeros((2, 8, 8, 1), np.float32), "give [N, 4, 4, 1]"),
    "in integers": ((IMAGES > 127).astype(int), "x is int64"),
    "in booleans": (IMAGES > 127, "x is bool"),
    "in complex numbers": (BINARY.astype(np.complex64), "x is complex64"),
    "from 0 to 255 in floats": (IMAGES.astype(np.float32), "divide pixels of 0 to 255 by 255"),
    "from -1 to 1": (2 * BINARY - 1, "x goes from -1 to 1"),
    "with a NaN": (np.where(BINARY > 0, np.nan, 0).astype(np.float32), "not finite"),
    "infinite": (np.full_like(BINARY, np.inf), "not finite"),
    "infinite as float32": (np.full(BINARY.shape, 1e39), "not finite"),
    "masked": (np.ma.masked_equal(BINARY, 0), "x is a masked array, whose mask would be lost"),
}
ZS = {
    "a list": (Z.tolist(), "give an array [..., 2]"),
    "of another length": (np.zeros((6, 3), np.float32), "z has the shape (6, 3): give [..., 2]"),
    "of length one, which would broadcast": (Z[:, :1], "z has the shape (6, 1): give [..., 2]"),
    "a scalar": (np.zeros(()), "z has the shape (): give [..., 2]"),
    "in integers": (Z.astype(int), "z is int64: give floats"),
    "with a NaN": (NAN_Z, "not finite"),
    "infinite as float32": (np.full((6, 2), -1e39), "not finite"),
}
YS = {
    "above the last class": ([0, 1, 2, 3, 4, 8], "y goes from 0 to 8, and there are 8 classes"),
    "-1": ([-1] * 6, "y goes from -1 to -1"),
    "in floats": ([0.0] * 6, "y is float64 (6,): give integers"),
    "in booleans": ([True] * 6, "y is bool"),
    "names": (["0"] * 6, "give integers [N]"),
    "one-hot": (np.eye(8)[[0] * 6], "give integers [N], y.argmax(-1)"),
    "a number": (3, "y has the shape (): give [N]"),
    "none of them": ([], "give integers [N], or [1]"),
    "four for six images": ([0, 1, 2, 3], "4 labels were given for 6 inputs"),
    "left out": (None, "was given no labels"),
}
RUN_YS = YS | {
    "in floats": ([0.0] * 6, "give classes by name or number"),
    "in booleans": ([True] * 6, "give classes by name or number"),
    "names": (["0"] * 6, ""),
    "names of no class": (["shoe"] * 6, "no class 'shoe': choose one of 0, 1, 2"),
    "a number": (3, ""),
    "two for six images": ([0, 1], "2 labels were given for 6 inputs"),
    "left out": (None, "give the classes too"),
}
ARRAY_YS = {name: (np.asarray(y), said) for name, (y, said) in YS.items() if y is not None}

Act = Callable[[], object]


def _data_rows() -> dict[str, tuple[Act, str]]:
    labels = tiny.labels(6, 0)
    grey, colour = (np.zeros((6, c, 28, 28), np.uint8) for c in (1, 3))
    return {
        "grey, channels first": (
            lambda: data(grey),
            "channels first",
        ),
        "in colour, channels first": (lambda: data(colour), "images.transpose(0, 2, 3, 1)"),
        "a list": (lambda: data(IMAGES.tolist()), "train of mine is ("),
        "a path": (lambda: data("images.npy"), "train of mine is 'images.npy'"),
        "None": (lambda: data(None), "train of mine is None: give an array"),
        "without channels": (lambda: data(IMAGES[..., 0]), "with C = 1 for grey images"),
        "in floats": (lambda: data(IMAGES / 255), "multiply by 255 and round"),
        "in integers": (lambda: data(IMAGES.astype(int)), "are int64: give uint8"),
        "with a NaN": (lambda: data(IMAGES + np.nan), "hold a NaN"),
        "none of them": (lambda: data(IMAGES[:0]), "has no training image"),
        "of no height": (lambda: data(IMAGES[:, :0]), "without a pixel"),
        "masked": (lambda: data(np.ma.masked_equal(IMAGES, 0)), "train of mine is a masked array"),
        "of objects": (lambda: data(IMAGES.astype(object)), "are object: give uint8"),
        "a test split of another size": (
            lambda: data(test=np.zeros((2, 8, 8, 1), np.uint8)),
            "give all splits the same image shape",
        ),
        "a test split that is a list": (lambda: data(test=[1, 2]), "test of mine is (1, 2)"),
        "a protocol that is none": (lambda: data(protocol="gray"), "no protocol 'gray'"),
        "labels in an array": (lambda: data(labels=labels), 'labels={"train": labels}'),
        "labels in a list": (lambda: data(labels=[0] * 6), 'labels={"train": labels}'),
        "class names in one": (
            lambda: data(labels={"train": labels}, class_names="abcdefgh"),
            "class_names of mine is 'abcdefgh': give a tuple",
        ),
        "labels of a split that is none": (
            lambda: data(labels={"validation": labels}),
            "labels of mine for 'validation'",
        ),
        "labels in floats": (lambda: data(labels={"train": labels / 1}), "one per image"),
        "labels that are names": (lambda: data(labels={"train": ["a"] * 6}), "one per image"),
        "labels one-hot": (lambda: data(labels={"train": np.eye(8)[labels]}), "one per image"),
        "too few labels": (lambda: data(labels={"train": labels[:3]}), "give 6 integers"),
        "a label below 0": (lambda: data(labels={"train": labels - 9}), "from 0 and name each"),
        "a label without a name": (
            lambda: data(labels={"train": labels}, class_names=["a", "b"]),
            "there are 2 class_names",
        ),
        "two classes of one name": (
            lambda: data(labels={"train": labels}, class_names=["a"] * 8),
            "are named 'a'",
        ),
    }


def _metric_rows() -> dict[str, tuple[Act, str]]:
    chw = np.zeros((6, 3, 8, 8), np.uint8)
    features = np.random.default_rng(0).normal(size=(40, 2))
    rows: dict[str, tuple[Act, str]] = {}
    for name in ("colour", "texture"):
        function = getattr(metrics, name)
        rows |= {
            f"{name} of floats": (partial(function, IMAGES / 255), "give uint8 from 0 to 255"),
            f"{name} of a list": (partial(function, IMAGES.tolist()), "give an array [N, H, W, C]"),
            f"{name}, channels first": (partial(function, chw), "channels last"),
            f"{name} of one image": (partial(function, IMAGES[0]), "give [N, H, W, C]"),
            f"{name} of no image": (partial(function, IMAGES[:0]), "at least one"),
        }
    for name in ("psnr", "ssim"):
        function = getattr(metrics, name)
        rows |= {
            f"{name} of floats": (partial(function, IMAGES / 255, IMAGES), "give uint8"),
            f"{name} of a list": (partial(function, IMAGES, IMAGES.tolist()), "give an array"),
            f"{name} of two sizes": (partial(function, IMAGES, IMAGES[:3]), "give both the same"),
            f"{name}, channels first": (partial(function, chw, chw), "channels last"),
        }
    for name in ("frechet_distance", "kernel_distance", "precision_recall"):
        function = getattr(metrics, name)
        rows |= {
            f"{name} of a list": (
                partial(function, features.tolist(), features),
                "an array [N, F]",
            ),
            f"{name} of vectors": (partial(function, features[:, 0], features), "give [N, F]"),
            f"{name} of few": (partial(function, features[:9], features), "at least 40"),
            f"{name} of a NaN": (partial(function, features * np.nan, features), "not finite"),
            f"{name} of names": (partial(function, features.astype(str), features), "give numbers"),
            f"{name} of two spaces": (
                partial(function, features, features[:, :1]),
                "cannot be compared",
            ),
        }
    for count in (0, -1, 40):
        rows[f"precision_recall of {count} neighbours"] = (
            partial(metrics.precision_recall, features, features, count),
            "give 1 to 39",
        )
    return rows


def _plot_rows() -> dict[str, tuple[Callable[[Path], object], str]]:
    pictures = IMAGES / 255

    def save(images: Any) -> Callable[[Path], object]:
        return lambda folder: plots.save_images(images, folder / "x.png")

    return {
        "a list": (save(pictures.tolist()), "give an array [N,H,W,C]"),
        "bytes": (save(IMAGES), "pass pictures in [0, 1], not logits or bytes"),
        "logits": (save(8 * pictures - 4), "pass pictures in [0, 1]"),
        "a NaN": (save(pictures * np.nan), "pass pictures in [0, 1]"),
        "channels first": (save(np.zeros((2, 3, 8, 8))), "channels last"),
        "one image": (save(pictures[0]), "give [N,H,W,C]"),
        "no image": (save(pictures[:0]), "at least one"),
    }


def _scatter_rows() -> dict[str, tuple[Act, str]]:
    draw = plots.latent_scatter
    labels = np.zeros(6, int)
    return {
        "a list": (lambda: draw(Z.tolist()), "give an array [N, 2]"),  # pyright: ignore
        "three dimensions": (lambda: draw(np.zeros((6, 3))), "(6, 2) is needed"),
        "too few labels": (lambda: draw(Z, labels[:2]), "(6,) is needed"),
        "labels in floats": (lambda: draw(Z, labels / 1), "give integers [N]"),
        "labels without a name": (lambda: draw(Z, labels + 3, ["a", "b"]), "name each"),
        "labels below zero": (lambda: draw(Z, labels - 1, ["a", "b"]), "name each"),
    }


def _door_rows() -> dict[str, tuple[Act, str]]:
    rows: dict[str, tuple[Act, str]] = {}
    for name, (x, said) in X.items():
        rows[f"posterior_means of x {name}"] = (partial(encode, x), said)
        rows[f"apply(encode) to x {name}"] = (partial(apply, "encode", x), said)
    rows |= {
        "apply(encode) to bytes": (
            partial(apply, "encode", IMAGES),
            "data.protocol.apply(x, keys)",
        ),
        "apply(encode) to x by name": (partial(apply, "encode", x=IMAGES), "x is uint8"),
        "apply to bytes": (lambda: apply("__call__", IMAGES, None), "x is uint8"),
        "apply(log_joint) to bytes": (lambda: apply("log_joint", IMAGES, (Z,)), "x is uint8"),
        "init with bytes": (partial(init, IMAGES), "x is uint8"),
        "init with channels first": (partial(init, BINARY.transpose(0, 3, 1, 2)), "come first"),
        "posterior_means of bytes, channels first": (
            partial(encode, IMAGES.transpose(0, 3, 1, 2)),
            "its channels come first",
        ),
        "posterior_means of bytes": (bytes_are_scaled, ""),
        "posterior_means of jax.numpy's bytes": (partial(encode, jnp.asarray(IMAGES)), ""),
        "posterior_means of float64": (partial(encode, BINARY.astype(np.float64)), ""),
        "posterior_means with a label for all": (partial(encode, BINARY, "classes", [3]), ""),
    }
    for name, (z, said) in ZS.items():
        rows[f"run.decode of z {name}"] = (partial(decode, z), said)
        rows[f"apply(decode) to z {name}"] = (partial(apply, "decode", (z,)), said)
        rows[f"apply(log_prior) to z {name}"] = (partial(apply, "log_prior", (z,)), said)
    top = np.zeros((6, 3), np.float32)
    rows |= {
        "apply(decode) to a bare array": (
            partial(apply, "decode", Z),
            "of which there is one, (z,)",
        ),
        "apply(decode) to two layers": (partial(apply, "decode", (Z, Z)), "there is one"),
        "run.decode of a bare array": (
            lambda: run_of("plain").decode(Z),
            "",
        ),
        "apply(decode) to the bottom one of two layers": (
            partial(apply, "decode", (top,), kind="ladder"),
            "",
        ),
        "apply(decode) to three layers of two": (
            partial(apply, "decode", (top, Z, Z), kind="ladder"),
            "of which there are 2",
        ),
        "apply(log_prior) to one of two layers": (
            partial(apply, "log_prior", (top,), kind="ladder"),
            "of which there are 2",
        ),
        "apply(log_prior) to layers in the wrong order": (
            partial(apply, "log_prior", (Z, top), kind="ladder"),
            "z_1 has the shape (6, 2): give [..., 3]",
        ),
        "run.decode of vectors longer than one": (
            partial(decode, np.ones((2, 3), np.float32), "sphere"),
            "holds other than unit vectors",
        ),
        "run.decode of unit vectors": (
            partial(decode, np.eye(3, dtype=np.float32), "sphere"),
            "",
        ),
        "run.decode of probabilities for one-hot": (
            partial(decode, np.full((1, 2, 3), 1 / 3, np.float32), "onehot"),
            "holds other than one-hot vectors",
        ),
        "run.decode of two draws for each": (
            partial(decode, np.zeros((2, 6, 2), np.float32)),
            "",
        ),
    }
    for name, (y, said) in RUN_YS.items():
        rows[f"posterior_means with labels {name}"] = (
            partial(encode, BINARY, "classes", y),
            said,
        )
        rows[f"run.decode with labels {name}"] = (partial(decode, Z, "classes", y), said)
    for name, (y, said) in ARRAY_YS.items():
        rows[f"apply(encode) with labels {name}"] = (
            partial(apply, "encode", BINARY, y, kind="classes"),
            said,
        )
    rows |= {
        "apply(encode) with a list of labels": (
            partial(apply, "encode", BINARY, [1] * 6, kind="classes"),
            "y is (1, 1, 1, 1, 1, 1): give an array [N]",
        ),
        "labels of a model without classes": (
            partial(encode, BINARY, "plain", [0] * 6),
            "The model takes no labels: leave y out",
        ),
        "apply with labels of a model without classes": (
            partial(apply, "decode", (Z,), np.zeros(6, int)),
            "The model takes no labels",
        ),
        "sample of a class that is none": (
            lambda: generate.sample(run_of("classes"), 2, labels=["9"]),
            "has no class '9'",
        ),
        "sample of class -1": (
            lambda: generate.sample(run_of("classes"), 2, labels=[-1]),
            "has no class '-1'",
        ),
        "sample of a class without classes": (
            lambda: generate.sample(run_of("plain"), 2, labels=["1"]),
            "was trained without labels",
        ),
    }
    return rows


def _number_rows() -> dict[str, tuple[Act, str]]:
    """Numbers and names of functions of a run."""
    rows: dict[str, tuple[Act, str]] = {}
    for function, names in {
        generate.sample: ("num",),
        generate.reconstruct: ("num",),
        generate.interpolate: ("pairs", "points"),
        generate.traverse: ("points", "num_latents"),
        generate.manifold: ("n",),
        vj.evaluate: ("num_samples",),
    }.items():
        for name in names:
            for value in (0, -1, 2.5, "3"):
                given = {"n": 2} if function is generate.manifold else {}
                act = partial(_call, function, **given | {name: value})
                said = f"{name} of {function.__name__} is {value!r}: give a whole number"
                rows[f"{function.__name__}({name}={value!r})"] = act, said
    for function in (generate.reconstruct, generate.interpolate, vj.evaluate):
        act = partial(_call, function, split="validation")
        said = f"split of {function.__name__} is 'validation': give 'train' or 'valid' or 'test'"
        rows[f"{function.__name__} of a split that is none"] = act, said
    rows["sample of a folder"] = lambda: generate.sample("runs/x"), "run of sample is 'runs/x'"  # pyright: ignore
    rows["sample of a prior that is none"] = (
        partial(_call, generate.sample, prior="gaussian"),
        "give 'mixture' or 'flow' or 'vae' or 'autoregressive', or None",
    )
    return rows


def _call(function: Callable[..., object], **named: Any) -> object:
    return function(run_of("plain"), **named)


def _of_act(act: Act, _: Path) -> object:
    return act()


ROWS = [
    *(
        Row(f"{kind} {name}", partial(_of_act, act), said)
        for kind, table in (
            ("Data of", _data_rows()),
            ("Features:", _metric_rows()),
            ("Door:", _door_rows()),
            ("Scatter of", _scatter_rows()),
            ("Run:", _number_rows()),
        )
        for name, (act, said) in table.items()
    ),
    *(Row(f"save_images of {name}", act, said) for name, (act, said) in _plot_rows().items()),
]
