"""What the studies measure alike: classifiers that ask what latents know, and statistics."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def accuracies(
    fit_on: NDArray, fit_labels: NDArray, test_on: NDArray, test_labels: NDArray, iterations: int = 300
) -> dict[str, float]:
    """Share of right labels of logistic regression and of an RBF-SVM, both as scikit-learn sets them. (N, K), (N,).

    Latents are centred, because the SVM takes its width from the variance over all dimensions together, but not scaled:
    that would lift dimensions that the model does not use to the level of those it uses.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import SVC

    centre = fit_on.mean(0)
    found = {}
    for name, classifier in (("logistic", LogisticRegression(max_iter=iterations)), ("svm", SVC())):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the logistic regression stopped before it had converged
            classifier.fit(fit_on - centre, fit_labels)
        found[name] = float(classifier.score(test_on - centre, test_labels))
    return found


def standard_error(accuracy: float, tested: int) -> float:
    """Of an accuracy measured on so many independent items."""
    return float(np.sqrt(accuracy * (1 - accuracy) / tested))


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's: that of the ranks, ties sharing theirs; nan if either is constant."""

    def ranks(values: Sequence[float]) -> NDArray:
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        return (np.cumsum(counts) - (counts - 1) / 2)[inverse]

    x, y = ranks(a), ranks(b)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])
