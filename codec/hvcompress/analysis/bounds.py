"""What the rates of the layers allow, whatever the networks: bounds on distortion, information and classification.

Xiao & Bamler, "Trading Information between Latents in Hierarchical Variational Autoencoders", ICLR 2023. Layers are
counted as there: z_L is the coarsest, which is coded first. With the rates of the layers, in coding order,

    R(z_L) = E_x KL[q(z_L|x) || p(z_L)],    R(z_l|z_>l) = E_x E_q KL[q(z_l|z_>l,x) || p(z_l|z_>l)]

and their sum over the layers from L down to l, R(z_>=l), for images x with labels y and D = E[-log p(x|z)]:

    compression       D + R(z_>=1) >= H[x]
    information       R(z_>=l) >= I_q(x; z_>=l) >= I_q(y; z_>=l)
    classification    accuracy <= f^-1(I_q(y; z_>=l)) <= f^-1(R(z_>=l))

The proofs are in docs/rate_space.md. Everything is in nats; 1 nat = 1/ln 2 bits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def entropy(probabilities: ArrayLike) -> float:
    """H[p] = -sum_y p_y ln p_y. probabilities: (M,), summing to 1. Raises ValueError."""
    p = np.asarray(probabilities, np.float64)
    if p.ndim != 1 or not (p >= 0).all() or not np.isclose(p.sum(), 1.0):
        raise ValueError("expected probabilities of shape (M,) that sum to 1")
    return float(-_x_ln_x(p).sum())


def distortion_bound(data_entropy: float, rates: ArrayLike) -> NDArray:
    """Least D = E[-log p(x|z)] at these rates: H[x] - sum_l R_l; only the total rate enters.

    data_entropy: differential for a density p(x|z), discrete for a probability. rates: (..., L). Returns (...).
    """
    return data_entropy - np.asarray(rates, np.float64).sum(-1)


def information_bound(rates: ArrayLike) -> NDArray:
    """Most information about x, and so about its label, in the layers decoded so far: I_q(x; z_>=l) <= R(z_>=l).

    rates: (..., L) in coding order, R(z_L) first. Returns (..., L), the cumulative rates.
    """
    return np.asarray(rates, np.float64).cumsum(-1)


# --------------------------------------------------------------------------------------------------------------------
# Fano's inequality as a bound on accuracy


def fano_information(accuracy: ArrayLike, label_entropy: float, classes: int) -> NDArray:
    """f(a) = H[y] + a ln a + (1-a) ln((1-a)/(M-1)): the least information about y that allows the accuracy a.

    From H[y|z] <= h(a) + (1-a) ln(M-1), h the binary entropy (Fano; section 3 of the paper, after Meyen 2016).
    Increasing on [1/M, 1], negative below the accuracy that needs no information.

    accuracy: any shape, in [1/M, 1]. label_entropy: H[y], between 0 and ln M. classes: M, at least 2.
    Returns the shape of `accuracy`. Raises ValueError.
    """
    _check_labels(label_entropy, classes)
    a = np.asarray(accuracy, np.float64)
    if not ((a >= 1.0 / classes - 1e-12) & (a <= 1.0)).all():
        raise ValueError(f"accuracy must be within [1/{classes}, 1]")
    return label_entropy + _x_ln_x(a) + _x_ln_x(1.0 - a) - (1.0 - a) * np.log(classes - 1.0)


def fano_accuracy(information: ArrayLike, label_entropy: float, classes: int) -> NDArray:
    """f^-1: no classifier that sees no more than `information` nats about y is right more often than this.

    information: any shape, nats, not negative; 1 is returned from H[y] on. The inverse is found by bisection, to
    the precision of float64. Arguments otherwise as `fano_information`. Raises ValueError.
    """
    _check_labels(label_entropy, classes)
    target = np.asarray(information, np.float64)
    if not (target >= 0).all():
        raise ValueError("information must not be negative")
    low, high = np.full(target.shape, 1.0 / classes), np.ones(target.shape)
    for _ in range(60):
        middle = 0.5 * (low + high)
        below = fano_information(middle, label_entropy, classes) < target
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return high  # the upper end: a bound must not be too low, and it stays at 1 where f never reaches the target


def _check_labels(label_entropy: float, classes: int) -> None:
    if classes < 2:
        raise ValueError("there must be at least two classes")
    if not 0.0 <= label_entropy <= np.log(classes) + 1e-9:
        raise ValueError(f"the entropy of {classes} classes is between 0 and ln {classes}")


def _x_ln_x(x: NDArray) -> NDArray:
    """x ln x with its limit 0 at 0."""
    return x * np.log(np.where(x > 0, x, 1.0))


# --------------------------------------------------------------------------------------------------------------------
# A case with a known answer


def reverse_water_filling(variances: ArrayLike, beta: float, sigma2: float) -> tuple[NDArray, NDArray]:
    """Distortion and rate of each component at the optimum of a linear-Gaussian VAE with all betas equal.

    For x ~ N(0, diag(lambda)) and p(x|z) = N(mean, sigma2 I), minimizing SSE / (2 sigma2) + beta R gives

        D_i = min(lambda_i, beta sigma2),    R_i = max(0, 1/2 ln(lambda_i / (beta sigma2)))

    the rate-distortion function of a Gaussian vector (Cover & Thomas, theorem 10.3.3): 1/(2 sigma2) is the slope of
    the distortion and beta / (2 D_i) that of the rate. The water level is beta sigma2.

    variances: (d,) positive. Returns D_i (squared error) and R_i (nats), (d,) each. Raises ValueError.
    """
    lam = np.asarray(variances, np.float64)
    if not ((lam > 0).all() and beta > 0 and sigma2 > 0):
        raise ValueError("variances, beta and sigma2 must be positive")
    level = beta * sigma2
    return np.minimum(lam, level), np.maximum(0.0, 0.5 * np.log(lam / level))
