"""The benchmark's workloads, and the ratios required of ours."""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

CONTENDERS = Path(__file__).parent / "contenders"
OURS = "**vae_jax**, `vae-jax train`"
PLAIN = "plain jitted loop of the same model"
TORCH = "tight PyTorch loop"
ONE_SEED = "one seed after the other"
PRODUCTS = "its matrix products alone"
SQUARE = "square matrix products"  # measured beside every work
CORES = os.cpu_count() or 1
# Each core works alone on its share of a batch.
DEVICE_A_CORE = {
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={CORES} "
    "--xla_cpu_multi_thread_eigen=false"
}
# The system clears large memory again for each chunk; in pages of 2 MiB it is faster than in 4 KiB.
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
OF_CPUS = DEVICE_A_CORE, HUGE_PAGES  # they mean nothing on an accelerator
LEAST_OF_PLAIN = 0.97  # of the rate of `PLAIN`
LEAST_OF_EARLIER = 0.97  # of the rate at another revision


@dataclass(frozen=True)
class Contender:
    """One program.

    Attributes:
        name: its name in the table.
        command: `vae-jax` or a file in `CONTENDERS`, with arguments.
        images: the number of images in one of its steps.
        peer: whether it runs in the peers' environment.
        environment: its own environment variables.
    """

    name: str
    command: list[str]
    images: int
    peer: bool = False
    environment: dict[str, str] = field(default_factory=dict)


MATRIX_RATE = Contender(
    SQUARE, ["matrix_products.py", "--work", "square", "--log-every", "10"], 128
)


@dataclass
class Asked:
    """The ratios required of `ours` relative to `other`, both named as in the table.

    Attributes:
        least: the smallest ratio of their rates.
        other, ours: the names of the contenders.
        most_compiling, most_memory: the largest ratios of compile times and of memory, if required.
    """

    least: float
    other: str
    ours: str = OURS
    most_compiling: float | None = None
    most_memory: float | None = None


@dataclass
class Work:
    """Contenders that do the same work, ours first.

    Attributes:
        title: the heading in the report.
        contenders: the programs.
        asked: the ratios required of ours.
        streams: whether the first four contenders are training from memory, training from the disk,
            and the input of each alone; the report then says how much of the input the step hides.
        matrix_rate: the square matrix products that are measured beside them.
    """

    title: str
    contenders: list[Contender]
    asked: list[Asked] = field(default_factory=list)
    streams: bool = False
    matrix_rate: Contender = MATRIX_RATE


def same_work(work: str, log_every: int, batch_size: int, k: int = 1) -> list[str]:
    """The flags that ours, the plain loop and PyTorch's loop have in common."""
    numbers = ["--batch-size", str(batch_size), "--k", str(k), "--log-every", str(log_every)]
    return ["--work", work, *numbers]


def train(work: str, log_every: int, batch_size: int, k: int = 1, *flags: str) -> list[str]:
    """`vae-jax train` with the benchmark's experiment; the run folder is added later."""
    experiment = str(CONTENDERS / "ours.py")
    return ["vae-jax", "train", experiment, *same_work(work, log_every, batch_size, k), *flags]


def plain(work: str, log_every: int, batch_size: int, k: int = 1) -> Contender:
    """The plain loop, which ours must not be slower than."""
    flags = same_work(work, log_every, batch_size, k)
    return Contender(PLAIN, ["our_step_in_a_loop.py", *flags], batch_size)


def training(
    title: str, work: str, log_every: int, batch_size: int, k: int = 1, *, torch: float | None
) -> Work:
    """Ours, a plain loop of the same model, and PyTorch; ours has to be `torch` times as fast."""
    flags = same_work(work, log_every, batch_size, k)
    contenders = [
        Contender(OURS, train(work, log_every, batch_size, k), batch_size),
        plain(work, log_every, batch_size, k),
        Contender(TORCH, ["torch_loop.py", *flags], batch_size, peer=True),
    ]
    asked = [Asked(LEAST_OF_PLAIN, PLAIN)] + ([] if torch is None else [Asked(torch, TORCH)])
    return Work(title, contenders, asked)


def limited(this: Work) -> Work:
    """The same, with limits on compile time and memory, which convolutions and attention need."""
    limits = {PLAIN: {"most_compiling": 1.3}, TORCH: {"most_memory": 1.5}}
    this.asked = [replace(asked, **limits[asked.other]) for asked in this.asked]
    return this


def flax(work: str, log_every: int, batch_size: int) -> Contender:
    """The same network in a loop as a user would write it."""
    flags = ["--work", work, "--batch-size", str(batch_size), "--log-every", str(log_every)]
    return Contender("Flax loop, as a user writes it", ["flax_loop.py", *flags], batch_size)


def mlp() -> Work:
    """The work that every peer can do."""
    work = training("MLP, batch 128", "mlp", 100, 128, torch=1.15)
    products = ["matrix_products.py", "--work"]
    work.contenders += [
        flax("mlp", 100, 128),
        Contender("NumPyro's example", ["numpyro_example.py"], 128, peer=True),
        Contender("Pythae's trainer", ["pythae_trainer.py"], 128, peer=True),
        Contender(PRODUCTS, [*products, "mlp"], 128),
    ]
    work.asked += [
        Asked(1.1, "NumPyro's example"),
        Asked(2.0, "Pythae's trainer"),
        Asked(0.75, PRODUCTS),
    ]
    return work


def small_mlp() -> Work:
    """The MLP at the batch size with the largest host overhead."""
    work = training("MLP, batch 20", "mlp", 500, 20, torch=2.0)
    work.contenders.append(flax("mlp", 500, 20))
    return work


def variants(work: str, log_every: int, batch_size: int) -> list[Contender]:
    """Ours with each batch divided among the cores, and with memory in huge pages."""
    command = train(work, log_every, batch_size)
    return [
        Contender("the same, each core a device", command, batch_size, environment=DEVICE_A_CORE),
        Contender("the same, in huge pages", command, batch_size, environment=HUGE_PAGES),
    ]


def image_network(title: str, work: str, log_every: int, batch_size: int) -> Work:
    """Convolutions or attention on colour images."""
    return limited(training(title, work, log_every, batch_size, torch=1.0))


def image_networks() -> list[Work]:
    """Every kind of network on colour images, and convolutional VAEs of growing size."""
    return [
        image_network("convolutional VAE, 32x32 colours, batch 64", "conv32", 20, 64),
        image_network("convolutional VAE, 64x64 colours, batch 64", "conv64", 8, 64),
        image_network("convolutional VAE, 128x128 colours, batch 16", "conv128", 8, 16),
        image_network("ResNet with norms, 32x32 colours, batch 32", "resnet", 4, 32),
        image_network("VGG, 32x32 colours, batch 32", "vgg", 4, 32),
        image_network("Xception, 32x32 colours, batch 32", "separable", 8, 32),
        image_network("deep hierarchy, 32x32 colours, batch 32", "deep", 4, 32),
        image_network("ViT, 32x32 colours, batch 32", "vit", 8, 32),
        image_network("GPT, 32x32 colours, batch 32", "gpt", 8, 32),
        image_network("axial, 32x32 colours, batch 32", "axial", 4, 32),
        image_network("flow matching by a U-Net, 16x16 latents, batch 32", "unet", 4, 32),
        image_network("flow matching by a DiT, 16x16 latents, batch 64", "dit", 8, 64),
    ]


def in_bfloat16(this: Work) -> Work:
    """The same with networks in bfloat16, and matrices that are."""

    def changed(one: Contender) -> Contender:
        return replace(one, command=[*one.command, "--compute-dtype", "bfloat16"])

    return replace(
        this,
        title=f"{this.title}, bfloat16",
        contenders=[changed(one) for one in this.contenders],
        matrix_rate=changed(this.matrix_rate),
    )


def of_accelerators() -> list[Work]:
    """Networks in bfloat16, those of images at growing batch sizes, of which the best counts."""
    networks = {
        "residual network": "residual",
        "ResNet with norms": "resnet",
        "VGG": "vgg",
        "deep hierarchy": "deep",
    }
    return [
        in_bfloat16(training("IWAE network, batch 20, k = 50", "iwae", 50, 20, k=50, torch=1.3)),
        *(
            in_bfloat16(
                training(f"{name}, 32x32 colours, batch {size}", work, 200, size, torch=1.0)
            )
            for name, work in networks.items()
            for size in (64, 256, 1024)
        ),
    ]


def convolutional() -> Work:
    """Strided convolutions and transposed ones."""
    work = limited(training("convolutional VAE, batch 128", "conv", 20, 128, torch=1.3))
    work.contenders += [flax("conv", 20, 128), *variants("conv", 20, 128)]
    return work


def residual() -> Work:
    """3x3 convolutions in residual blocks."""
    title = "residual network, 32x32 colours, batch 64"
    work = limited(training(title, "residual", 8, 64, torch=1.0))
    work.contenders += variants("residual", 8, 64)
    return work


def several(number: int, work: str, log_every: int, batch_size: int, k: int = 1) -> Contender:
    """Ours with several seeds in one program."""
    command = train(work, log_every, batch_size, k, "--seeds", str(number))
    return Contender(f"**vae_jax**, {number} seeds in one program", command, number * batch_size)


def two_seeds(
    title: str, work: str, log_every: int, batch_size: int, k: int = 1, least: float = 1.3
) -> Work:
    """Two seeds in one program, which have to be `least` times as fast as one after the other."""
    two = several(2, work, log_every, batch_size, k)
    one = Contender(ONE_SEED, train(work, log_every, batch_size, k), batch_size)
    return Work(f"two seeds: {title}", [two, one], [Asked(least, ONE_SEED, two.name)])


def seeds_of_mlp() -> Work:
    """Two and five seeds, and the largest gain for two that their matrix products permit."""
    this = two_seeds("MLP, batch 128", "mlp", 100, 128, least=1.1)
    five, products = several(5, "mlp", 100, 128), ["matrix_products.py", "--work", "mlp"]
    this.contenders += [
        five,
        plain("mlp", 100, 128),
        Contender(PRODUCTS, products, 128),
        Contender(
            f"{PRODUCTS}, each core a device", products, CORES * 128, environment=DEVICE_A_CORE
        ),
    ]
    this.asked += [Asked(LEAST_OF_PLAIN, PLAIN, five.name), Asked(1.0, ONE_SEED, five.name)]
    return this


def sixteen_cells() -> Work:
    """A grid of four betas and four learning rates in one program."""
    values = "--beta", "0.3", "1", "3", "10", "--learning-rate", "3e-4", "1e-3", "3e-3", "1e-2"
    name, one = "**vae_jax**, 16 cells in one program", train("mlp", 100, 128)
    cells = Contender(name, [*train("mlp", 20, 128), *values], 16 * 128)
    alone = Contender("one cell after the other", one, 128)
    return Work("16 cells: MLP, batch 128", [cells, alone], [Asked(1.0, alone.name, name)])


def evaluation() -> Work:
    """L_5000 of test images under the MLP; a step is an image."""
    ours = "**vae_jax**, `evaluate`"
    flags = ["our_evaluation.py", "--num-images", "60"]
    return Work(
        "evaluation: L_5000 of the MLP",
        [
            Contender(ours, flags, 1),
            Contender(PLAIN, [*flags, "--plain-loop"], 1),
            Contender(TORCH, ["torch_loop.py", "--work", "evaluation"], 1, peer=True),
        ],
        [Asked(LEAST_OF_PLAIN, PLAIN, ours)],
    )


def streaming() -> Work:
    """64x64 colour images in memory and on the disk, and a network with fast steps."""
    alone = ["our_input.py", "--log-every", "400"]
    return Work(
        "streamed input, 64x64 colours, batch 128",
        [
            Contender(OURS, train("stream", 40, 128, 1, "--streamed", "False"), 128),
            Contender(
                "the same, `--streamed True`",
                train("stream", 40, 128, 1, "--streamed", "True"),
                128,
            ),
            Contender("input alone, from memory", [*alone, "--no-streamed"], 128),
            Contender("input alone, streamed", alone, 128),
            plain("stream", 40, 128),
        ],
        [Asked(LEAST_OF_PLAIN, PLAIN)],
        streams=True,
    )


def without(title: str, ours: Contender, *tricks: str) -> Work:
    """Ours, and ours without each of these tricks in `vae_jax/cpu`, as named in `without.py`."""
    rest = [
        replace(ours, name=f"without `{trick}`", command=["without.py", trick, *ours.command[1:]])
        for trick in tricks
    ]
    return Work(f"the CPU's tricks: {title}", [ours, *rest])


def cpu_tricks() -> list[Work]:
    """Each trick on the workload where it matters, or might matter, most."""

    def ours(work: str, log_every: int, batch_size: int, k: int = 1) -> Contender:
        return Contender(OURS, train(work, log_every, batch_size, k), batch_size)

    everywhere = "threefry", "softplus", "sums", "barriers", "branches"
    return [
        without("MLP, batch 20", ours("mlp", 500, 20), *everywhere),
        without("IWAE network, batch 20, k = 50", ours("iwae", 50, 20, k=50), *everywhere),
        without("convolutional VAE", ours("conv", 20, 128), "convolution", "patches", "ynnpack"),
        without("64x64 colours", ours("stream", 40, 128), "sums", "ynnpack"),
        without("residual network", ours("residual", 8, 64), "winograd"),
        without("ResNet with norms", ours("resnet", 8, 32), "sums"),
        without("flow matching by a DiT", ours("dit", 8, 64), "sums"),
        without("two seeds, MLP, batch 128", several(2, "mlp", 100, 128), "cores"),
        without("five seeds, MLP, batch 128", several(5, "mlp", 100, 128), "turns"),
    ]


def everything() -> list[Work]:
    """The whole benchmark of a CPU."""
    return [
        mlp(),
        small_mlp(),
        training("IWAE network, batch 20, k = 1", "iwae", 500, 20, torch=2.0),
        training("IWAE network, batch 20, k = 50", "iwae", 50, 20, k=50, torch=1.3),
        convolutional(),
        limited(training("convolutional VAE, 3x3 kernels, batch 128", "conv3", 50, 128, torch=1.3)),
        residual(),
        *image_networks(),
        training("VampPrior, 500 pseudo-inputs, batch 100", "vampprior", 50, 100, torch=None),
        seeds_of_mlp(),
        two_seeds("MLP, batch 20", "mlp", 500, 20),
        two_seeds("IWAE network, batch 20, k = 1", "iwae", 500, 20, least=1.25),
        two_seeds("IWAE network, batch 20, k = 50", "iwae", 50, 20, k=50),
        sixteen_cells(),
        evaluation(),
        streaming(),
        *cpu_tricks(),
    ]
