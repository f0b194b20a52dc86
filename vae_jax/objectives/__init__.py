"""From Terms to one scalar and named metrics; see `vae_jax.interfaces.Objective`.

An objective is a frozen dataclass called with Terms, the step and the model. It returns a loss to
minimize, in nats per image, and metrics. All are means over the batch, so that averaging over equal
shares on several devices gives the values of the whole batch. Every objective, adversarial games
included, is one scalar with stop_gradients, differentiated once.
"""
