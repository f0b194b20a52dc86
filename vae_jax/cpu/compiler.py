"""Options of XLA's CPU compiler."""

# Keeps optimization barriers, which the CPU backend otherwise removes before it fuses operations
# and merges equal ones: what is behind a barrier is computed once, and what is rematerialized is
# computed again.
KEEP_BARRIERS: dict[str, str | bool] = {"xla_disable_hlo_passes": "cse_barrier_expander"}

# One thread for each device, where each core is a device: threads of two devices that share a core
# wait for each other.
ONE_THREAD = "--xla_cpu_multi_thread_eigen=false"
