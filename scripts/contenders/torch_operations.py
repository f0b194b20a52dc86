"""Times convolutions, channels last, their gradients, and products of matrices by PyTorch, alone.

Reads a list in JSON from standard input: `[of, images, size, inputs, features, window, stride,
groups]` with `of` one of output, image and kernel, or Einstein's summation and two shapes, such as
`["ab,bc->ac", [2, 3], [3, 4]]`. Prints the milliseconds of each in JSON.
"""

import json
import sys
import time

import torch
from torch.nn import functional

CALLS, LOOPS, SECONDS = 6, 4, 0.3  # of each operation; loops go on for the seconds at least


def padded(x, size, window, stride):
    """Images with the edges of "SAME" padding, where both sides do not get the same."""
    edges = []
    for n, k in zip(reversed(size), reversed(window), strict=True):
        total = max((-(-n // stride) - 1) * stride + k - n, 0)
        edges += [total // 2, total - total // 2]
    if edges[0] == edges[1] and edges[2] == edges[3]:
        return x, (edges[2], edges[0])
    return functional.pad(x, edges), (0, 0)


def of_convolution(of, images, size, inputs, features, window, stride, groups):
    """A call of one convolution or gradient."""
    last = {"memory_format": torch.channels_last}
    x, edges = padded(torch.randn(images, inputs, *size), size, window, stride)
    x = x.contiguous(**last)
    kernel = torch.randn(features, inputs // groups, *window).contiguous(**last)
    y = functional.conv2d(x, kernel, None, stride, edges, 1, groups)
    mask = (of == "image", of == "kernel", False)

    def call():
        if of == "output":
            functional.conv2d(x, kernel, None, stride, edges, 1, groups)
        else:
            torch.ops.aten.convolution_backward(
                y, x, kernel, None, [stride] * 2, edges, [1, 1], False, [0, 0], groups, mask
            )

    return call


def of_product(equation, a, b):
    """A call of one product."""
    operands = torch.randn(a), torch.randn(b)
    return lambda: torch.einsum(equation, *operands)


def milliseconds(name, *shapes):
    """A call of one operation, on average over the fastest loop."""
    call = (of_product if "->" in name else of_convolution)(name, *shapes)
    call()
    each, end = [], time.perf_counter() + SECONDS
    while len(each) < LOOPS or time.perf_counter() < end:
        began = time.perf_counter()
        for _ in range(CALLS):
            call()
        each.append(time.perf_counter() - began)
    return 1e3 * min(each) / CALLS


if __name__ == "__main__":
    with torch.no_grad():
        print(json.dumps([milliseconds(*one) for one in json.load(sys.stdin)]))
