"""Tight PyTorch loops: data in memory, fused Adam, channels-last convolutions, nothing else.

It runs on a GPU if there is one, and prints its device. There cuDNN chooses convolutions by their
speed, and matrix products are in TF32 in training, as XLA computes them by default, and in float32
in evaluation.

Networks, batches, losses and dynamic binarization are those of `ours.py`; `evaluation` is L_5000 of
the MLP, 64 samples of 20 images at a time.
"""

import argparse
import json
import math
import time
from itertools import pairwise

import numpy as np
import torch
import torch_networks as networks
from torch import nn
from torch.nn import functional

GREY = ("mlp", "iwae", "vampprior", "conv", "conv3", "evaluation")  # binarized 28x28 pixels
RESNET, VGG = ((32, 64, 128), 2), (((32, 32), (64, 64), (128, 128)), 256)
XCEPTION = (32, 64), (128,), 2, (128, 128, 256)
OTHERS = {
    "resnet": lambda latents: networks.resnet(*RESNET, latents, 32),
    "vgg": lambda latents: networks.vgg(*VGG, latents, 32),
    "separable": lambda latents: networks.xception(*XCEPTION, latents, 32),
    "vit": lambda latents: networks.patch_transformer(32, 4, 128, 4, False, latents),
    "gpt": lambda latents: networks.patch_transformer(32, 4, 128, 4, True, latents),
    "axial": lambda latents: networks.axial(32, 2, 64, latents),
}


def size_of(work):
    """The side of the images."""
    return {"conv64": 64, "conv128": 128}.get(work, 28 if work in GREY else 32)


class Gated(nn.Module):
    """(W x + b) * sigmoid(V x + c)."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.both = nn.Linear(inputs, 2 * outputs)

    def forward(self, x):
        """`[N, inputs]` to `[N, outputs]`."""
        return functional.glu(self.both(x))


class Residual(nn.Module):
    """x + W relu(C relu(x))."""

    def __init__(self, channels):
        super().__init__()
        self.wide = nn.Conv2d(channels, channels, 3, padding=1)
        self.narrow = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        """`[N, C, H, W]` to the same."""
        return x + self.narrow(functional.relu(self.wide(functional.relu(x))))


def mlp(widths, layer):
    """Layers of these widths."""
    return nn.Sequential(*(layer(m, n) for m, n in pairwise(widths)))


def dense_tanh(inputs, outputs):
    """A dense layer with its activation."""
    return nn.Sequential(nn.Linear(inputs, outputs), nn.Tanh())


def conv(channels, kernel=4):
    """Strided convolutions that halve the image."""
    layers = []
    for m, n in pairwise(channels):
        layers += [nn.Conv2d(m, n, kernel, 2, 1), nn.ReLU()]
    return layers


def conv_transpose(channels, kernel=4):
    """Transposed convolutions that double it."""
    layers = []
    for m, n in pairwise(channels):
        layers += [nn.ConvTranspose2d(m, n, kernel, 2, 1, output_padding=4 - kernel), nn.ReLU()]
    return layers


class Model(nn.Module):
    """Encoder with two heads, and decoder to the likelihood's parameters."""

    def __init__(self, work):
        super().__init__()
        dense = {
            "mlp": ((784, 500), 20, dense_tanh),
            "iwae": ((784, 200, 200), 50, dense_tanh),
            "vampprior": ((784, 300, 300), 40, Gated),
        }
        if work in dense:
            widths, latents, layer = dense[work]
            hidden = widths[-1]
            self.encoder = nn.Sequential(nn.Flatten(), mlp(widths, layer))
            back = (latents, *reversed(widths[1:]))
            self.decoder = nn.Sequential(mlp(back, layer), nn.Linear(back[-1], 784))
        elif work in OTHERS:
            latents = 64
            self.encoder, hidden, self.decoder = OTHERS[work](latents)
        else:
            grey, kernel = work in ("conv", "conv3"), 3 if work == "conv3" else 4
            down = {
                "conv32": (3, 32, 64, 128),
                "conv64": (3, 32, 64, 128, 256),
                "conv128": (3, 32, 64, 128, 256, 256),
                "residual": (3, 64, 128),
            }.get(work, (1, 32, 64))
            last, size = down[-1], size_of(work) >> (len(down) - 1)
            up = (*down[:0:-1], 1 if grey else 32)
            latents, blocks = 32 if grey else 64, 3 if work == "residual" else 0
            middle, hidden = last * size * size, 256
            ends = [nn.ReLU()] if blocks else []
            self.encoder = nn.Sequential(
                *conv(down, kernel),
                *(Residual(last) for _ in range(blocks)),
                *ends,
                nn.Flatten(),
                nn.Linear(middle, hidden),
                nn.ReLU(),
            )
            self.decoder = nn.Sequential(
                nn.Linear(latents, hidden),
                nn.ReLU(),
                nn.Linear(hidden, middle),
                nn.ReLU(),
                nn.Unflatten(1, (last, size, size)),
                *(Residual(last) for _ in range(blocks)),
                *ends,
                *(conv_transpose(up, kernel)[:-1] if grey else conv_transpose(up)),
                *([] if grey else [nn.Conv2d(up[-1], 3, 1)]),
            )
        self.mean, self.logvar = nn.Linear(hidden, latents), nn.Linear(hidden, latents)
        if work == "vampprior":
            self.pseudo_inputs = nn.Parameter(0.05 + 0.01 * torch.randn(500, 784))

    def encode(self, x):
        """Means and log-variances of q(z|x)."""
        h = self.encoder(x)
        return self.mean(h), self.logvar(h)


class Deep(networks.Deep):
    """A hierarchy of six layers, and its loss."""

    def __init__(self, work):
        super().__init__(blocks=2, levels=3, width=64, latents=16, size=32)

    def loss(self, x):
        """The negative ELBO."""
        out, kl = self(x)
        return (distance(out, x) + kl) / len(x)


class Velocity(networks.FlowMatching):
    """Flow matching to maps of latents that an encoder held fixed makes."""

    def __init__(self, work):
        super().__init__(
            networks.UNet(4, (64, 128)) if work == "unet" else networks.DiT(4, 16, 128, 2)
        )
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.ReLU(), nn.Conv2d(4, 8, 1))
        self.encoder.requires_grad_(requires_grad=False)

    def loss(self, x):
        """The mean error of an image."""
        mean, logvar = self.encoder(x).chunk(2, 1)
        return self(mean + (logvar / 2).exp() * torch.randn_like(mean)) / len(x)


def distance(out, x):
    """-ln N(x; sigmoid(out), 0.1²) without the constant, of a batch."""
    return ((torch.sigmoid(out) - x) ** 2).sum() / (2 * 0.1**2)


def log_normal(z, mean, logvar):
    """ln N(z; mean, exp logvar) without the constant, summed over the last axis."""
    return -0.5 * (logvar + (z - mean) ** 2 / logvar.exp()).sum(-1)


def log_weights(model, x, k, work):
    """ln p(x, z) - ln q(z|x), `[k, B]`, without constants that cancel."""
    mean, logvar = model.encode(x)
    noise = torch.randn(k, *mean.shape)
    z = mean + (logvar / 2).exp() * noise
    out = model.decoder(z.flatten(0, 1)).reshape(k, len(x), -1)
    target = x.reshape(1, len(x), -1).expand_as(out)
    log_px = -functional.binary_cross_entropy_with_logits(out, target, reduction="none").sum(-1)
    if work == "vampprior":
        means, logvars = model.encode(model.pseudo_inputs.clamp(0, 1))
        # The expanded square: products of matrices in place of every pair's differences.
        precision = (-logvars).exp()
        pairs = z**2 @ precision.T - 2 * z @ (means * precision).T + (means**2 * precision).sum(-1)
        log_pz = torch.logsumexp(-0.5 * (pairs + logvars.sum(-1)), -1) - math.log(500)
    else:
        log_pz = -0.5 * (z**2).sum(-1)
    return log_px + log_pz + 0.5 * (logvar + noise**2).sum(-1)


def loss_of(model, x, k, work):
    """The negative bound: the ELBO's with its exact KL where there is one."""
    if isinstance(model, Deep | Velocity):
        return model.loss(x)
    if k > 1 or work == "vampprior":
        return -(torch.logsumexp(log_weights(model, x, k, work), 0) - math.log(k)).mean()
    mean, logvar = model.encode(x)
    out = model.decoder(mean + (logvar / 2).exp() * torch.randn_like(mean))
    kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum()
    if work not in GREY:
        distortion = distance(out, x)
    else:
        target = x.reshape(out.shape)
        distortion = functional.binary_cross_entropy_with_logits(out, target, reduction="sum")
    return (distortion + kl) / len(x)


@torch.inference_mode()
def evaluate(model, images, num_samples=5000):
    """L_K of 20 images."""
    x = torch.bernoulli(images[:20])
    parts = [
        torch.logsumexp(log_weights(model, x, min(64, num_samples - done), "mlp"), 0)
        for done in range(0, num_samples, 64)
    ]
    return torch.logsumexp(torch.stack(parts), 0) - math.log(num_samples)


def main() -> None:
    """Train or evaluate until it is killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--work")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--k", type=int, default=1)
    parser.add_argument("--log-every", type=int, default=100)
    parser.add_argument("--compute-dtype", default="float32")
    options = parser.parse_args()
    work, batch_size, k = options.work, options.batch_size, options.k
    half = options.compute_dtype == "bfloat16"
    side = size_of(work)
    shape = (1 if work in GREY else 3, side, side)
    if work in ("mlp", "iwae", "vampprior", "evaluation"):
        shape = (784,)
    if torch.cuda.is_available():
        torch.set_default_device("cuda")
        torch.set_float32_matmul_precision("highest" if work == "evaluation" else "high")
        torch.backends.cudnn.benchmark = True
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    print(json.dumps({"device": device}), flush=True)
    generator, count = np.random.default_rng(0), min(50_000, 20_000 * 64**2 // side**2)
    images = torch.from_numpy(generator.integers(0, 256, (count, *shape), np.uint8))
    images = images.to(torch.get_default_device())
    if work == "evaluation":
        model, pixels = Model("mlp"), images[:1000].float() / 255
        for done in range(0, 10**8, 20):
            assert evaluate(model, pixels[done % 1000 :]).isfinite().all()
            print(json.dumps({"step": done + 20, "time": time.time()}), flush=True)
    made = {"unet": Velocity, "dit": Velocity, "deep": Deep}.get(work, Model)(work)
    model = made.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    for done in range(1, 10**8):
        pixels = images[torch.randint(len(images), (batch_size,))].float() / 255
        x = torch.bernoulli(pixels) if work in GREY else pixels
        if len(shape) == 3:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=half):
            loss = loss_of(model, x, k, work)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if done % options.log_every == 0:
            assert loss.isfinite()
            print(json.dumps({"step": done, "time": time.time()}), flush=True)


if __name__ == "__main__":
    main()
