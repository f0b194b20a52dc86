"""Pythae's VAE and trainer on 784-500-20-500-784, batches of 128, one fixed binarization.

It runs on a GPU if there is one, and prints its device.
"""

import json
import tempfile
import time

import numpy as np
import torch
from pythae.data.datasets import BaseDataset
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from pythae.trainers.training_callbacks import TrainingCallback
from torch import nn

LOG_EVERY = 100


class Encoder(BaseEncoder):
    """784-500, then means and log-variances of 20 latents."""

    def __init__(self):
        super().__init__()
        self.hidden, self.mean, self.logvar = (
            nn.Linear(784, 500),
            nn.Linear(500, 20),
            nn.Linear(500, 20),
        )

    def forward(self, x):
        """Images `[B, 784]` to Pythae's output."""
        h = torch.tanh(self.hidden(x))
        return ModelOutput(embedding=self.mean(h), log_covariance=self.logvar(h))


class Decoder(BaseDecoder):
    """20-500-784 probabilities."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(20, 500), nn.Tanh(), nn.Linear(500, 784), nn.Sigmoid()
        )

    def forward(self, z):
        """Latents `[B, 20]` to Pythae's output."""
        return ModelOutput(reconstruction=self.layers(z))


class Lines(TrainingCallback):
    """Prints lines of steps and times."""

    steps = 0

    def on_train_step_end(self, training_config, **_):
        """Count the step."""
        self.steps += 1
        if self.steps % LOG_EVERY == 0:
            print(json.dumps({"step": self.steps, "time": time.time()}), flush=True)


def main() -> None:
    """Train until it is killed."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    print(json.dumps({"device": device}), flush=True)
    generator = np.random.default_rng(0)
    images = generator.integers(0, 2, (50_000, 784)).astype(np.float32)
    config = VAEConfig(input_dim=(784,), latent_dim=20, reconstruction_loss="bce")
    with tempfile.TemporaryDirectory() as folder:
        training = BaseTrainerConfig(
            output_dir=folder,
            num_epochs=10**6,
            per_device_train_batch_size=128,
            learning_rate=1e-3,
        )
        model = VAE(config, encoder=Encoder(), decoder=Decoder())
        data = BaseDataset(torch.from_numpy(images), torch.zeros(len(images)))
        BaseTrainer(model, data, training_config=training, callbacks=[Lines()]).train()


if __name__ == "__main__":
    main()
