"""`python -m vae_jax.cli`, for use when the command itself is not on the path."""

from vae_jax.cli import main

if __name__ == "__main__":
    main()
