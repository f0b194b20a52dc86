"""The processes of a run: their meeting, their agreement, and their common end."""

from vae_jax.processes.agreement import DisagreementError, agree
from vae_jax.processes.launch import Launch, launch, visible_gpus
from vae_jax.processes.rendezvous import meet
from vae_jax.processes.signals import stop_signals
from vae_jax.processes.together import together

__all__ = [
    "DisagreementError",
    "Launch",
    "agree",
    "launch",
    "meet",
    "stop_signals",
    "together",
    "visible_gpus",
]
