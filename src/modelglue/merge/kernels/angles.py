"""Angles out of dot products, where there are too few of them for numpy's calls to pay."""

import math

from modelglue.merge.kernels.compiled import quotient


@quotient
def _length(square):
    return 0.0 if square < 0 else math.sqrt(square)


@quotient
def mean_cosines(products, out):
    """Mean cosine over all pairs of n vectors: out [m], of dot products [m, n, n] float64.

    A vector of length 0 has no direction: its cosines are 0.
    """
    m, n, _ = products.shape
    for row in range(m):
        total = 0.0
        for a in range(n):
            for b in range(a):
                length = _length(products[row, a, a]) * _length(products[row, b, b])
                product = products[row, a, b]
                cosine = product * 0 if length == 0 else product / length
                # Not min and max, which lose what is no number.
                if cosine > 1:
                    cosine = 1.0
                elif cosine < -1:
                    cosine = -1.0
                total += cosine
        out[row] = 2 * total / (n * (n - 1))
