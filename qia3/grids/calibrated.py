"""The int4 grid with calibration (GPTQ): the rounding error of each input is compensated by the inputs that are still
to be rounded.

A layer sees inputs x [K]; what matters is the error of its outputs, not of its weights. With H = mean x x^T, an error e
of one row costs

    E |e . x|^2 = e H e^T

Inputs are rounded one after the other. When input i is rounded with an error d = W[i] - Q[i], the best compensation is
to move each later input j by -d U[i, j] / U[i, i], where U is the upper Cholesky factor of H^-1, H^-1 = U^T U. The
largest inputs (by the diagonal of H) come first, while most others are left to compensate for them. A block's inputs
are thus rounded at different times, so its scale and zero point are chosen beforehand, from the float weights, weighted
by the diagonal of H (int4.choose). Worked example, K = 2, steps of 1:

    W = [0.4, 0.4]     x1 = x2 always: H = [[1, 1], [1, 1]] (and a little on the diagonal, to be invertible)
    nearest: Q = [0, 0], output error 0.8 x.    Here: Q1 = 0, the lost 0.4 moves to the second: 0.8 -> Q2 = 1, output error -0.2 x.

Damping: 1 % of the mean of the diagonal is added to it. An input that was always zero gets 1 there, so its weights are
rounded independently.

Source: GPTQ, Frantar et al. 2022 (arXiv:2210.17323), algorithm 1; the order of inputs and scales that are chosen
beforehand are the options `act-order` and `static-groups` of its authors' code.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from qia3.grids.blocks import Floats, check
from qia3.grids.int4 import Int4, assemble, choose

DAMPING = 0.01
ROWS = 4096  # rows at a time: bounds the memory of the working copy
SMALLEST = 1 / np.finfo(np.float32).max  # of scales: the inverse of a smaller one is infinite
PART = 64  # inputs whose errors are passed on to the rest together
SMALL = 32  # half the size of a triangular matrix that is inverted as a whole


@dataclass(frozen=True)
class Seen:
    """Second moment of a layer's inputs: `moment` [K, K], the mean (or sum) of x x^T.

    Layers with the same inputs (q, k, v) share one object, so the factorisation is done once.
    """

    moment: NDArray[np.floating]

    @cached_property
    def damped(self) -> NDArray[np.float64]:
        """H, damped so that it can be inverted."""
        return damp(self.moment)

    @cached_property
    def order(self) -> NDArray[np.intp]:
        """The inputs [K], in the order in which they are rounded."""
        return np.argsort(-self.damped.diagonal(), kind="stable")

    @cached_property
    def factor(self) -> Floats:
        """U of the inputs in their order, float32 [K, K]. Raises ValueError if H is not positive definite."""
        return inverse_factor(self.damped[np.ix_(self.order, self.order)])


def quantise_calibrated(weight: Floats, seen: Seen, block_size: int, symmetric: bool = False) -> Int4:
    """weight [N, K] float32 -> Int4, calibrated on the inputs in `seen`.

    Raises ValueError on a bad block size, a weight or moment that is not finite, or shapes that do not match.
    """
    check(weight, block_size)
    outputs, inputs = weight.shape
    if seen.moment.shape != (inputs, inputs):
        raise ValueError(
            f"the inputs' second moment must be of shape [{inputs}, {inputs}], not {list(seen.moment.shape)}"
        )
    if not np.isfinite(seen.moment).all():
        raise ValueError("the inputs' second moment is not finite: the model's activations overflow")
    factor, importance = seen.factor, seen.damped.diagonal().astype(np.float32)
    blocks = -(-inputs // block_size)
    steps = np.zeros((outputs, blocks * block_size), np.float32)
    scales, zeros = np.empty((outputs, blocks), np.float32), np.empty((outputs, blocks), np.float32)
    for part in (slice(start, start + ROWS) for start in range(0, outputs, ROWS)):
        rows = np.asarray(weight[part], np.float32)
        for b in range(blocks):
            here = slice(b * block_size, min((b + 1) * block_size, inputs))
            scales[part, b], zeros[part, b] = _scales(rows[:, here], importance[here], block_size, symmetric)
        left = np.ascontiguousarray(rows.T[seen.order])  # [K, rows]: one input's weights side by side
        each = np.ascontiguousarray(scales[part].T), np.ascontiguousarray(zeros[part].T)  # [B, rows]
        for now in (slice(start, min(start + PART, inputs)) for start in range(0, inputs, PART)):
            where = seen.order[now]
            found, errors = _round(left[now], factor[now, now], where // block_size, *each)
            steps[part, where] = found.T
            left[now.stop :] -= factor[now, now.stop :].T @ errors
    return assemble(steps.reshape(outputs, blocks, block_size), scales, zeros, inputs, symmetric)


def damp(moment: NDArray[np.floating]) -> NDArray[np.float64]:
    """The moment in float64, damped so that it can be inverted."""
    result = moment.astype(np.float64)
    diagonal = np.einsum("ii->i", result)
    diagonal[diagonal <= 0] = 1
    diagonal += DAMPING * diagonal.mean()
    return result


def inverse_factor(matrix: NDArray[np.float64]) -> Floats:
    """Upper U with U^T U = matrix^-1, float32 [K, K]. Raises ValueError if the matrix is not positive definite.

    With rows and columns in reverse, matrix = L L^T is R R^T with R upper, so U = R^-1: no full inverse is needed.
    """
    try:
        return _inverse(np.linalg.cholesky(matrix[::-1, ::-1])[::-1, ::-1]).astype(np.float32)
    except np.linalg.LinAlgError as error:
        raise ValueError("the inputs' second moment is not positive definite") from error


def _inverse(upper: NDArray[np.floating]) -> NDArray[np.floating]:
    """The inverse of an upper triangular matrix, by halves: [[A, B], [0, D]]^-1 = [[A^-1, -A^-1 B D^-1], [0, D^-1]]."""
    half = len(upper) // 2
    if half < SMALL:
        return np.triu(np.linalg.inv(upper))
    result = np.zeros_like(upper, order="C")
    result[:half, :half], result[half:, half:] = _inverse(upper[:half, :half]), _inverse(upper[half:, half:])
    result[:half, half:] = -result[:half, :half] @ (upper[:half, half:] @ result[half:, half:])
    return result


def _scales(block: Floats, importance: Floats, block_size: int, symmetric: bool) -> tuple[Floats, Floats]:
    """Scales and zero points [rows] of one block [rows, up to block_size]."""
    short = block_size - block.shape[1]
    _, scales, zeros = choose(np.pad(block, ((0, 0), (0, short))), np.pad(importance, (0, short))[None], symmetric)
    return scales, zeros


def _round(
    weights: Floats, factor: Floats, block: NDArray[np.intp], scales: Floats, zeros: Floats
) -> tuple[Floats, Floats]:
    """Steps [inputs, rows] of `weights` [inputs, rows], and their errors divided by the diagonal, for the inputs that
    follow. `block` [inputs] is each input's row of scales and zero points [B, rows].
    """
    left, errors, steps = weights.copy(), np.empty_like(weights), np.empty_like(weights)
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=np.abs(scales) > SMALLEST)
    low, high = -zeros, 15 - zeros
    for i, (row, b) in enumerate(zip(left, block, strict=True)):
        np.clip(np.rint(row * inverse[b]), low[b], high[b], out=steps[i])
        np.multiply(row - steps[i] * scales[b], 1 / factor[i, i], out=errors[i])
        left[i + 1 :] -= factor[i, i + 1 :, None] * errors[i]
    return steps, errors
