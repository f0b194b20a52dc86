"""What only the CPU needs, each trick behind one function or option that the package uses.

Where a number has been printed for what a trick buys, it is in docs/performance.md. The benchmark's
workloads "the CPU's tricks" (`scripts/works.py`) train with and without each:

    python scripts/benchmark.py --only "the CPU's tricks: MLP, batch 20"
"""
