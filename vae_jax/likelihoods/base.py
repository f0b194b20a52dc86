"""The limit that the likelihoods with a learned scale share."""

# No pixel needs a scale of e^10 times the range of the data, and e^89 overflows float32.
MAX_LOG_SCALE = 10.0
