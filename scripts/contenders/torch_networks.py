"""The networks of `vae_jax.networks` in PyTorch, channels-last, as `torch_loop.py` trains them."""

from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

gelu = partial(functional.gelu, approximate="tanh")  # JAX's


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, bias: bool = False):
    """A convolution with "SAME" padding of images whose sides the stride divides."""
    return nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, bias=bias)


def norm(features: int) -> nn.GroupNorm:
    """Groups of 16 features, or one group."""
    return nn.GroupNorm(features // 16 if features % 16 == 0 else 1, features, eps=1e-6)


def upsample(x: Tensor) -> Tensor:
    """Nearest-neighbour upsampling by a factor of two."""
    return functional.interpolate(x, scale_factor=2.0, mode="nearest")


class Mean(nn.Module):
    """The mean over positions."""

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, H, W]` to `[N, C]`."""
        return x.mean((2, 3))


class Upsample(nn.Module):
    """`upsample` as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, h, w]` to `[N, C, 2h, 2w]`."""
        return upsample(x)


def coarsest(latents: int, features: int, size: int) -> nn.Sequential:
    """Map a vector of latents to the decoder's first map."""
    dense = nn.Linear(latents, features * size * size)
    return nn.Sequential(dense, nn.Unflatten(1, (features, size, size)))


# --- Residual networks, VGG, Xception -----------------------------------------------------------


class PreActivation(nn.Module):
    """A residual block whose norms and activations come first."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, up: bool = False):
        super().__init__()
        self.up = up
        self.norms = nn.ModuleList([norm(inputs), norm(outputs)])
        self.first, self.second = conv(inputs, outputs, 3, stride), conv(outputs, outputs)
        changes = stride > 1 or inputs != outputs
        self.shortcut = conv(inputs, outputs, 1, stride) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, H, W]` to the map of the outputs."""
        h = functional.relu(self.norms[0](x))
        if self.up:
            h = upsample(h)
            x = upsample(x) if self.shortcut is None else x
        if self.shortcut is not None:
            x = self.shortcut(h)
        return x + self.second(functional.relu(self.norms[1](self.first(h))))


def resnet(widths: tuple[int, ...], blocks: int, latents: int, size: int):
    """The encoder, to a vector; the length of this vector; and the decoder."""
    layers, before = [conv(3, widths[0])], widths[0]
    for stage, width in enumerate(widths):
        for block in range(blocks):
            layers.append(PreActivation(before, width, 2 if stage and not block else 1))
            before = width
    encoder = nn.Sequential(*layers, norm(before), nn.ReLU(), Mean())
    layers = [coarsest(latents, before, size >> (len(widths) - 1))]
    for stage in reversed(range(len(widths))):
        below = widths[max(stage - 1, 0)]
        for block in reversed(range(blocks)):
            after = widths[stage] if block else below
            layers.append(PreActivation(before, after, up=bool(stage and not block)))
            before = after
    return encoder, widths[-1], nn.Sequential(*layers, norm(before), nn.ReLU(), conv(before, 3, 1))


def vgg(stages: tuple[tuple[int, ...], ...], dense: int, latents: int, size: int):
    """The encoder, to a vector; the length of this vector; and the decoder."""

    def layer(inputs: int, outputs: int) -> list[nn.Module]:
        return [conv(inputs, outputs, bias=True), norm(outputs), nn.ReLU()]

    layers, before = [], 3
    for stage in stages:
        for width in stage:
            layers += layer(before, width)
            before = width
        layers.append(nn.MaxPool2d(2))
    small = size >> len(stages)
    middle = before * small * small
    encoder = nn.Sequential(*layers, nn.Flatten(), nn.Linear(middle, dense), nn.ReLU())
    every = [width for stage in stages for width in stage]
    after = [every[0], *every[:-1]]
    layers = [nn.Linear(latents, dense), nn.ReLU(), coarsest(dense, before, small), nn.ReLU()]
    for stage in reversed(stages):
        layers.append(Upsample())
        for _ in stage:
            width = after.pop()
            layers += layer(before, width)
            before = width
    return encoder, dense, nn.Sequential(*layers, conv(before, 3, 1))


def separable(inputs: int, outputs: int) -> nn.Sequential:
    """A depthwise 3x3 convolution, a pointwise one, and a norm."""
    depthwise = nn.Conv2d(inputs, inputs, 3, 1, 1, groups=inputs, bias=False)
    return nn.Sequential(depthwise, conv(inputs, outputs, 1), norm(outputs))


class XceptionBlock(nn.Module):
    """Separable convolutions around a shortcut."""

    def __init__(self, inputs: int, features: tuple[int, ...], down: bool = False, up=False):
        super().__init__()
        self.down, self.up = down, up
        self.layers = nn.ModuleList(separable(m, n) for m, n in pairwise((inputs, *features)))
        self.shortcut = None
        if down or up:
            shortcut = conv(inputs, features[-1], 1, 2 if down else 1)
            self.shortcut = nn.Sequential(shortcut, norm(features[-1]))

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, H, W]` to the map of the features."""
        h = x = upsample(x) if self.up else x
        for layer in self.layers:
            h = layer(functional.relu(h))
        if self.shortcut is not None:
            x = self.shortcut(x)
        return x + (functional.max_pool2d(h, 3, 2, 1) if self.down else h)


def xception(stem, entry, middle: int, end, latents: int, size: int):
    """The encoder, to a vector; the length of this vector; and the decoder."""

    def wide(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
        return [conv(inputs, outputs, 3, stride), norm(outputs), nn.ReLU()]

    layers, before = [*wide(3, stem[0], 2), *wide(*stem)], stem[1]
    for width in entry:
        layers.append(XceptionBlock(before, (width, width), down=True))
        before = width
    layers += [XceptionBlock(before, (before,) * 3) for _ in range(middle)]
    layers.append(XceptionBlock(before, (before, end[0]), down=True))
    for m, n in pairwise(end):
        layers += [separable(m, n), nn.ReLU()]
    encoder = nn.Sequential(*layers, Mean())
    layers = [coarsest(latents, end[2], size >> (len(entry) + 2)), nn.ReLU()]
    for m, n in pairwise(reversed(end)):
        layers += [separable(m, n), nn.ReLU()]
    layers.append(XceptionBlock(end[0], (end[0], entry[-1]), up=True))
    layers += [XceptionBlock(entry[-1], (entry[-1],) * 3) for _ in range(middle)]
    for m, n in pairwise((*reversed(entry), stem[1])):
        layers.append(XceptionBlock(m, (m, n), up=True))
    layers += [*wide(stem[1], stem[0]), Upsample(), *wide(stem[0], stem[0])]
    return encoder, end[2], nn.Sequential(*layers, conv(stem[0], 3, 1))


# --- Transformers -------------------------------------------------------------------------------


class Block(nn.Module):
    """Attention and an MLP, both pre-norm and residual."""

    def __init__(self, width: int, heads: int, causal: bool):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, S, width]` to the same."""
        x = x + self.out(attention(self.qkv(self.norms[0](x)), self.heads, self.causal))
        return x + self.narrow(gelu(self.wide(self.norms[1](x))))


def attention(qkv: Tensor, heads: int, causal: bool = False) -> Tensor:
    """`[N, S, 3 * width]` to `[N, S, width]`."""
    number, length, _ = qkv.shape
    q, k, v = qkv.view(number, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
    attended = functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return attended.transpose(1, 2).reshape(number, length, -1)


def to_patches(x: Tensor, size: int) -> Tensor:
    """`[N, C, H, W]` to `[N, h, w, C * size * size]`."""
    n, c, height, width = x.shape
    patches = x.reshape(n, c, height // size, size, width // size, size)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(n, height // size, width // size, -1)


def from_patches(patches: Tensor, size: int) -> Tensor:
    """The inverse of `to_patches`."""
    n, h, w, _ = patches.shape
    pixels = patches.reshape(n, h, w, -1, size, size).permute(0, 3, 1, 4, 2, 5)
    return pixels.reshape(n, -1, h * size, w * size)


class Transformer(nn.Module):
    """Learned positions, blocks and a norm, and perhaps a last layer."""

    def __init__(self, length: int, inputs: int, width: int, layers: int, causal: bool, outputs=0):
        super().__init__()
        self.embed = nn.Linear(inputs, width)
        self.positions = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.Sequential(*(Block(width, 4, causal) for _ in range(layers)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.out = nn.Linear(width, outputs) if outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """`[N, S, inputs]` to `[N, S, outputs or width]`."""
        return self.out(self.norm(self.blocks(self.embed(x) + self.positions)))


class PatchEncoder(nn.Module):
    """Images to the features of the class token or of the last patch."""

    def __init__(self, size: int, patch: int, width: int, layers: int, causal: bool):
        super().__init__()
        self.patch, self.before, number = patch, 0 if causal else 1, (size // patch) ** 2
        inputs = 3 * patch * patch
        self.trunk = Transformer(number + self.before, inputs, width, layers, causal)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, H, W]` to `[N, width]`."""
        tokens = to_patches(x, self.patch).flatten(1, 2)
        h = self.trunk(functional.pad(tokens, (0, 0, self.before, 0)))
        return h[:, 0 if self.before else -1]


class PatchDecoder(nn.Module):
    """A vector as one token before the patches, to 16 features for each pixel and to colours."""

    def __init__(self, latents: int, size: int, patch: int, width: int, layers: int, causal: bool):
        super().__init__()
        self.patch, self.side = patch, size // patch
        outputs = 16 * patch * patch
        self.trunk = Transformer(self.side**2 + 1, latents, width, layers, causal, outputs)
        self.colours = conv(16, 3, 1)

    def forward(self, z: Tensor) -> Tensor:
        """`[N, latents]` to `[N, C, H, W]`."""
        h = self.trunk(functional.pad(z[:, None], (0, 0, 0, self.side**2)))[:, 1:]
        h = h.unflatten(1, (self.side, self.side))
        return self.colours(from_patches(h, self.patch))


def patch_transformer(size: int, patch: int, width: int, layers: int, causal: bool, latents: int):
    """The encoder, to a vector; the length of this vector; and the decoder."""
    decoder = PatchDecoder(latents, size, patch, width, layers, causal)
    return PatchEncoder(size, patch, width, layers, causal), width, decoder


class Axial(nn.Module):
    """Two blocks along the rows or the columns of a map whose positions are embedded."""

    def __init__(self, inputs: int, side: int, width: int, columns: bool):
        super().__init__()
        self.columns, self.embed = columns, nn.Linear(inputs, width)
        self.rows = nn.Parameter(0.02 * torch.randn(side, 1, width))
        self.places = nn.Parameter(0.02 * torch.randn(side, width))
        self.blocks = nn.Sequential(*(Block(width, 4, False) for _ in range(2)))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, h, w, inputs]` to `[N, h, w, width]`."""
        h = self.embed(x) + self.rows + self.places
        h = h.transpose(1, 2) if self.columns else h
        h = self.blocks(h.flatten(0, 1)).view(h.shape)
        return h.transpose(1, 2) if self.columns else h


class AxialEncoder(nn.Module):
    """Rows, then columns, whose means are the result."""

    def __init__(self, size: int, patch: int, width: int):
        super().__init__()
        self.patch, side = patch, size // patch
        self.first = Axial(3 * patch * patch, side, width, columns=False)
        self.second = Axial(width, side, width, columns=True)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, H, W]` to `[N, w * width]`."""
        h = self.first.norm(self.first(to_patches(x, self.patch)))
        return self.second.norm(self.second(h).mean(1)).flatten(1)


class AxialDecoder(nn.Module):
    """Columns, then rows."""

    def __init__(self, latents: int, size: int, patch: int, width: int):
        super().__init__()
        self.patch, side = patch, size // patch
        self.first = Axial(latents, side, width, columns=True)
        self.middle = nn.Linear(width, 16)
        self.second = Axial(16, side, width, columns=False)
        self.out, self.colours = nn.Linear(width, 16 * patch * patch), conv(16, 3, 1)

    def forward(self, z: Tensor) -> Tensor:
        """`[N, latents]` to `[N, C, H, W]`."""
        h = self.middle(self.first.norm(self.first(z[:, None, None])))
        patches = self.out(self.second.norm(self.second(h)))
        return self.colours(from_patches(patches, self.patch))


def axial(size: int, patch: int, width: int, latents: int):
    """The encoder, to a vector; the length of this vector; and the decoder."""
    hidden = size // patch * width
    return AxialEncoder(size, patch, width), hidden, AxialDecoder(latents, size, patch, width)


# --- A deep hierarchy ---------------------------------------------------------------------------


def bottleneck(inputs: int, outputs: int, width: int) -> nn.Sequential:
    """1x1, 3x3, 3x3 and 1x1 convolutions, a GELU before each."""
    narrow = width // 4
    act = partial(nn.GELU, approximate="tanh")
    return nn.Sequential(
        *(act(), conv(inputs, narrow, 1, bias=True)),
        *(act(), conv(narrow, narrow, 3, bias=True)),
        *(act(), conv(narrow, narrow, 3, bias=True)),
        *(act(), conv(narrow, outputs, 1, bias=True)),
    )


class TopDownBlock(nn.Module):
    """p(z | h), q(z | h, a), and what z adds to h."""

    def __init__(self, width: int, latents: int):
        super().__init__()
        self.posterior = bottleneck(2 * width, 2 * latents, width)
        self.prior = bottleneck(width, 2 * latents + width, width)
        self.project, self.residual = (
            conv(latents, width, 1, bias=True),
            bottleneck(width, width, width),
        )
        self.split = latents, latents, width

    def forward(self, h: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """The state after the block, and the sum of KL(q | p)."""
        q_mean, q_log = self.posterior(torch.cat([h, a], 1)).chunk(2, 1)
        p_mean, p_log, features = self.prior(h).split(self.split, 1)
        z = q_mean + q_log.exp() * torch.randn_like(q_mean)
        ratio = (2 * (q_log - p_log)).exp() + ((q_mean - p_mean) * (-p_log).exp()) ** 2
        kl = (p_log - q_log + 0.5 * (ratio - 1)).sum()
        h = h + features + self.project(z)
        return h + self.residual(h), kl


class Deep(nn.Module):
    """Residual networks up, and blocks with latents down, at three resolutions or as many."""

    def __init__(self, blocks: int, levels: int, width: int, latents: int, size: int):
        super().__init__()
        self.first = conv(3, width, bias=True)
        net = partial(bottleneck, width, width, width)
        counts = [blocks + 1] * (levels - 1) + [blocks]  # one more where a level is halved
        self.up = nn.ModuleList(nn.ModuleList(net() for _ in range(n)) for n in counts)
        self.down = nn.ModuleList(
            nn.ModuleList(TopDownBlock(width, latents) for _ in range(blocks))
            for _ in range(levels)
        )
        self.starts = nn.ParameterList(
            torch.zeros(1, width, size >> level, size >> level) for level in range(levels)
        )
        self.gain = nn.Parameter(torch.ones(width, 1, 1))
        self.bias = nn.Parameter(torch.zeros(width, 1, 1))
        self.colours = conv(width, 3, 1, bias=True)
        self.blocks = blocks

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The image's parameters, and the sum of all KLs."""
        h, activations = self.first(x), []
        for level, nets in enumerate(self.up):
            for net in nets[: self.blocks]:
                h = h + net(h)
            activations.append(h)
            if level < len(self.up) - 1:
                h = functional.avg_pool2d(h + nets[-1](h), 2)
        h, kl = torch.zeros(()), torch.zeros(())
        for level in reversed(range(len(self.down))):
            h = self.starts[level].expand(len(x), -1, -1, -1) + (upsample(h) if h.ndim else h)
            for block in self.down[level]:
                h, more = block(h, activations[level])
                kl = kl + more
        return self.colours(h * self.gain + self.bias), kl


# --- Velocities of flow matching ----------------------------------------------------------------


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """An affine map of each feature."""
    return x * (1 + scale) + shift


class UNetBlock(nn.Module):
    """Two convolutions, the second's input modulated."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.norms = nn.ModuleList([norm(inputs), norm(outputs)])
        self.first, self.second = (conv(m, outputs, bias=True) for m in (inputs, outputs))
        self.modulations = nn.Linear(128, 2 * outputs)
        self.shortcut = nn.Identity() if inputs == outputs else conv(inputs, outputs, 1)

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        """`[N, C, H, W]` to the outputs' map."""
        inner = self.first(functional.silu(self.norms[0](h)))
        shift, scale = self.modulations(functional.silu(condition))[:, :, None, None].chunk(2, 1)
        inner = functional.silu(modulated(self.norms[1](inner), shift, scale))
        return self.shortcut(h) + self.second(inner)


class UNet(nn.Module):
    """Two stages of two blocks each way, and attention between."""

    def __init__(self, channels: int, widths: tuple[int, int]):
        super().__init__()
        first, last = widths
        self.start = conv(channels, first, bias=True)
        sizes = [(first, first), (first, first), (first, last), (last, last)]
        self.down = nn.ModuleList(UNetBlock(*size) for size in sizes)
        self.norm, self.qkv, self.out = norm(last), nn.Linear(last, 3 * last), nn.Linear(last, last)
        self.middle = UNetBlock(last, last)
        sizes = [(2 * last, last), (2 * last, last), (last + first, first), (2 * first, first)]
        self.up = nn.ModuleList(UNetBlock(*size) for size in sizes)
        self.last_norm, self.end = norm(2 * first), conv(2 * first, channels, bias=True)

    def forward(self, z: Tensor, condition: Tensor) -> Tensor:
        """`[N, c, h, w]` to the same."""
        h = self.start(z)
        skips = [h]
        for number, block in enumerate(self.down):
            h = block(functional.avg_pool2d(h, 2) if number == 2 else h, condition)
            skips.append(h)
        tokens = self.norm(h).flatten(2).transpose(1, 2)
        attended = self.out(attention(self.qkv(tokens), 4))
        h = self.middle(h + attended.transpose(1, 2).reshape(h.shape), condition)
        for number, block in enumerate(self.up):
            h = upsample(h) if number == 2 else h
            h = block(torch.cat([h, skips.pop()], 1), condition)
        return self.end(functional.silu(self.last_norm(torch.cat([h, skips.pop()], 1))))


class DiTBlock(nn.Module):
    """A transformer's block, modulated and gated."""

    def __init__(self, width: int):
        super().__init__()
        self.modulations = nn.Linear(128, 6 * width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        """`[N, S, width]` to the same."""
        every = self.modulations(functional.silu(condition))[:, None].chunk(6, -1)
        normalized = partial(functional.layer_norm, normalized_shape=h.shape[-1:], eps=1e-6)
        qkv = self.qkv(modulated(normalized(h), *every[:2]))
        h = h + every[2] * self.out(attention(qkv, 4))
        inner = self.wide(modulated(normalized(h), *every[3:5]))
        return h + every[5] * self.narrow(gelu(inner))


class DiT(nn.Module):
    """Four blocks over the patches of a map."""

    def __init__(self, channels: int, size: int, width: int, patch: int):
        super().__init__()
        self.patch, inputs = patch, channels * patch * patch
        self.embed, self.end = nn.Linear(inputs, width), nn.Linear(width, inputs)
        self.positions = nn.Parameter(0.02 * torch.randn((size // patch) ** 2, width))
        self.blocks = nn.ModuleList(DiTBlock(width) for _ in range(4))
        self.modulations = nn.Linear(128, 2 * width)

    def forward(self, z: Tensor, condition: Tensor) -> Tensor:
        """`[N, c, h, w]` to the same."""
        patches = to_patches(z, self.patch)
        h = self.embed(patches.flatten(1, 2)) + self.positions
        for block in self.blocks:
            h = block(h, condition)
        shift, scale = self.modulations(functional.silu(condition))[:, None].chunk(2, -1)
        h = modulated(functional.layer_norm(h, h.shape[-1:], eps=1e-6), shift, scale)
        return from_patches(self.end(h).view(*patches.shape[:3], -1), self.patch)


class FlowMatching(nn.Module):
    """The loss of a velocity along straight paths from latents to noise."""

    def __init__(self, velocity: nn.Module):
        super().__init__()
        self.velocity = velocity
        self.of_time = nn.Sequential(nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 128))

    def forward(self, z: Tensor) -> Tensor:
        """`[N, c, h, w]` to the sum of squares."""
        t, noise = torch.rand(len(z)), torch.randn_like(z)
        angles = t[:, None] * torch.linspace(0.0, 4.605, 64).exp()
        condition = self.of_time(torch.cat([angles.cos(), angles.sin()], -1))
        at = t[:, None, None, None]
        return ((noise - z - self.velocity((1 - at) * z + at * noise, condition)) ** 2).sum()
