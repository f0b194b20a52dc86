"""p(x|z): a network's features become a distribution over images.

Each likelihood is a Linen module, in a file with the density that only it uses, with two
declarations:

- `supports`: the kinds of data it gives a meaning to: `"binary"`, `"uint8"` (the 256 levels on a
  grid k/255), `"unit"` (reals in [0, 1]), `"real"`.
- `measure`: `"mass"` (bits/dim defined), `"density"` (nats only, unless the data were
  dequantized), `"pseudo"` (not normalized: no NLL).

A likelihood may have a method `observe(px, x) -> px`, by which it sees the images x `[B, H, W, C]`
beside the p(x|z) that it has made of them, batch `[K, B]`, before `log_px` is computed: in training
`OptimalGaussian` then fits its scale. What it remembers is a variable outside of `"params"`.

What is public is named in `vae_jax/__init__.pyi`, and that is what refusals offer and what the
shared tests run over.
"""
