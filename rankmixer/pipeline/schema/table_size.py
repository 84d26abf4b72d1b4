"""How many rows and columns of floats an embedding table of so many ids is given, if nobody says."""

import math


def suggest_buckets(distinct: int) -> int:
    """Four buckets an id at least, a power of two: then about a fifth of the ids or fewer share one.

    For one in a hundred it would take a hundred buckets an id.

    >>> suggest_buckets(1000)
    4096
    """
    return 1 << max(4 * distinct - 1, 15).bit_length()


def suggest_dim(distinct: int) -> int:
    """8 for up to 64 ids, 16 up to 65,536, then their fourth root, as a multiple of 4.

    The fourth root is a rule of thumb of the TensorFlow team ("Introducing TensorFlow Feature Columns", 2017).

    >>> [suggest_dim(ids) for ids in (2, 1000, 1_000_000, 100_000_000)]
    [8, 16, 32, 100]
    """
    return 8 if distinct <= 64 else max(16, math.ceil(distinct**0.25 / 4) * 4)
