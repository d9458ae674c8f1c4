"""How the C library gives memory back, which decides how often the kernel must clear the same memory again."""

import ctypes

# Of glibc's malloc.h. The second may not be larger; a tensor of that size or more is mapped by itself.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT, MAPPED = 1 << 29, 1 << 25


def keep_freed_memory() -> bool:
    """Up to 512 MiB that tensors have given back stay with this process, for the next ones; whether that is so.

    By default each forward pass gets most of its memory from the kernel anew, and a sixth of the time is clearing it.
    For processes that compute until they end; other C libraries than glibc are left as they are.
    """
    change = getattr(ctypes.CDLL(None), "mallopt", None)
    return change is not None and bool(change(M_TRIM_THRESHOLD, KEPT) and change(M_MMAP_THRESHOLD, MAPPED))
