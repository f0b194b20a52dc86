"""From Terms to one scalar and named metrics.

An objective is a frozen dataclass called with Terms, the step and the model. It returns the loss in
nats per image, to be minimised, and metrics, all means over its batch: equal batches on several
devices average to the whole batch's. Everything, adversarial games included, is one scalar with
stop_gradients, differentiated once.
"""
