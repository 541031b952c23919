"""The nearest orthogonal matrix by polynomials, which is what Muon makes of an average gradient."""

from __future__ import annotations

import torch
from torch import Tensor

# Amsel et al. 2025, "The Polar Express", degree-5 polynomials for singular values in [1e-3, 1], safety factor 1.02.
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


def orthogonalize(matrices: Tensor, iterations: int = len(POLAR_EXPRESS)) -> Tensor:
    """Return the nearest semi-orthogonal matrices (N, R, C), to about 10 %: U V^T of each U S V^T.

    Computed in the dtype given. Costs a matrix iterations x (4 R C + 2 R^2) x R FLOPs for R <= C; in float32 with C at
    least 2 R (4 C + (8 x iterations - 6) R) x R^2, by _polynomial: for C = 4 R and 3 iterations 34 R^3 instead of 54.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]  # then products from the right, so that the result is contiguous
    gram = _gram(matrices, tall=tall)
    # The squared Frobenius norm is the Gram matrix's trace. To scale what is small spares two passes over what is long.
    norm = gram.diagonal(dim1=-2, dim2=-1).sum(-1, dtype=torch.float32).sqrt()
    scale = (1 / (norm * 1.02 + 1e-6))[:, None, None]
    gram = gram * scale.square()
    short, long = sorted(matrices.shape[-2:])
    if _by_polynomial(short, long, matrices.dtype):
        return _times(_polynomial(gram, iterations) * scale, matrices, tall=tall)
    x = matrices
    for number, coefficients in enumerate(POLAR_EXPRESS[:iterations]):
        factor = _factor(_gram(x, tall=tall) if number else gram.to(x.dtype), coefficients)
        x = _times(factor if number else factor.mul_(scale), x, tall=tall)
    return x


def _by_polynomial(short: int, long: int, dtype: torch.dtype) -> bool:
    """Return whether _polynomial costs less, and loses nothing that matters."""
    return long >= 2 * short and dtype.itemsize >= 4


def _gram(x: Tensor, *, tall: bool) -> Tensor:
    """Return the smaller of the two Gram matrices of each matrix."""
    return torch.bmm(x.mT, x) if tall else torch.bmm(x, x.mT)


def _factor(gram: Tensor, coefficients: tuple[float, float, float]) -> Tensor:
    """Return a I + b gram + c gram^2."""
    a, b, c = coefficients
    factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    factor.diagonal(dim1=-2, dim2=-1).add_(a)
    return factor


def _times(square: Tensor, x: Tensor, *, tall: bool) -> Tensor:
    """Return the symmetric matrices times the short sides of x."""
    return torch.bmm(x, square) if tall else torch.bmm(square, x)


def _polynomial(gram: Tensor, iterations: int) -> Tensor:
    """Return P (N, R, R) of gram = X X^T for which P X is what the iterations make of X.

    They multiply X by polynomials of its Gram matrix, which can all be multiplied first. The small eigenvalues that
    this needs are lost in bfloat16.
    """
    product = gram
    for number, coefficients in enumerate(POLAR_EXPRESS[:iterations]):
        factor = _factor(gram, coefficients)
        product = torch.bmm(factor, product) if number else factor
        if number + 1 < iterations:
            gram = torch.bmm(torch.bmm(factor, gram), factor)
    return product


def orthogonalize_flops(rows: int, columns: int, iterations: int, dtype: torch.dtype) -> float:
    """Return the FLOPs of `orthogonalize` on one matrix."""
    short, long = sorted((rows, columns))
    if _by_polynomial(short, long, dtype):
        return (4 * long + (8 * iterations - 6) * short) * short**2
    return iterations * (4 * long + 2 * short) * short**2
