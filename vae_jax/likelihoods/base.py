"""What the likelihoods share."""

from vae_jax.cpu.softplus import softplus as softplus

# No pixel needs a scale of e^10 times the data's range, and e^89 overflows float32.
MAX_LOG_SCALE = 10.0
