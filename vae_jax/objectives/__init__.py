"""From Terms to one scalar and named metrics; see `vae_jax.interfaces.Objective`.

An objective is a frozen dataclass called with Terms, the step and the model. It returns the loss in
nats per image, to be minimized, and metrics. All are means over its batch, so the means over equal
shares on several devices are those of the whole batch. Every objective, adversarial games included,
is one scalar with stop_gradients, differentiated once.
"""
