"""q(z|x): a network's features become a distribution over latents.

Each posterior is a Linen module with three declarations, which `vae_jax.compatibility` compares
with what priors and objectives need:

- `space`: where z lives. `"real"`: R^d. `"sphere"`: unit vectors. `"onehot"`: one-hot vectors
  `[n, C]`. `"simplex"`: probability vectors `[n, C]`. `"codes"`: vectors of a finite codebook.
- `event_ndims`: how many axes one z has; where `shape` says it, a property.
- `traits`: what its distribution can do. `"density"`: `log_prob` is a density or mass, so that
  importance weights mean something. `"path"`: its density is differentiable along z, with the
  parameters held. `"factors"`: independent components, each with a KL of its own. `"amortized"`:
  every parameter depends on x, so that a mixture of q(z|u_c) can be indexed. `"noise"`: two draws
  differ. `"codebook"`: it is a `Quantized` with penalties.
"""
