"""The C library's memory, kept between passes."""

import ctypes
import os

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # glibc's numbers of mallopt's options (mallopt(3))
MOST, LARGEST = 2**31 - 1, 32 * 2**20  # bytes: of an option; the largest threshold for a mapping of its own
OWN_CHOICE = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed() -> bool:
    """Have glibc keep what a pass frees for the next one; return whether it does.

    Else it gives the activations back after every pass, and each of their pages costs a fault when it is next
    touched: a tenth of the time of training on a CPU. Nothing happens where the environment has made its own choice or
    where there is no glibc.
    """
    if any(name in os.environ for name in OWN_CHOICE):
        return False
    try:
        choose = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl and macOS; Windows has no library without a name
        return False
    return bool(choose(TRIM_THRESHOLD, MOST) and choose(MMAP_THRESHOLD, LARGEST))
