"""Tricks for the CPU alone, each behind one function or option that the package uses.

The first lines of each file hold its gain: the ratio of images/s with it and without it in the
median of three or five rounds, by docs/performance.md. The benchmark's workloads "the CPU's tricks"
(`scripts/works.py`) train both ways:

    python scripts/benchmark.py --only "the CPU's tricks: MLP, batch 20"

Tricks that gained less than 3 percent were deleted. Sums of shifted images in place of depthwise
convolutions are not among these workloads, because training without them is too slow to be timed.
"""
