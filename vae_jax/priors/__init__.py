"""p(z): called with the model that it is part of.

Most priors ignore the model; the VampPrior is made of its `encode`, a prior over codes asks its
posterior for the codebook. Each declares, for `vae_jax.compatibility`:

- `spaces`: where z may live (see `vae_jax.posteriors`).
- `needs`: the traits that the posterior must have.
- `factors`: whether its components are independent.
- `learned`: whether it has parameters.

A prior that is a `vae_jax.compatibility.PerClass` is p(z|y).
"""
