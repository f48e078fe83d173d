"""What a graph network has to beat: the majority, the last return, logistic regression and gradient boosting.

Each takes scaled features and answers with the probability of class 1. Fixed settings, no search: every tried
setting is a trial that would have to be counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression

from models.gnn.features import FEATURE_NAMES, Floats, sigmoid

Matrix = npt.NDArray[np.float32]
Answers = npt.NDArray[np.float32]
LAST_RETURN = FEATURE_NAMES.index("return_1")


@dataclass(frozen=True)
class Linear:
    """Logistic regression as plain numbers, so that it can be served with numpy alone. Shapes: weight (F,), bias ()."""

    weight: npt.NDArray[np.float32]
    bias: np.float32

    def probability(self, x: Matrix) -> Floats:
        return sigmoid(x.astype(np.float64) @ self.weight.astype(np.float64) + float(self.bias))


def majority(y_train: Answers, test_rows: int) -> Floats:
    """The share of class 1 in training, for every row. Shapes: (n,) -> (m,)."""
    return np.full(test_rows, float(y_train.mean()))


def fit_linear(x: Matrix, y: Answers) -> Linear:
    """Logistic regression with C = 0.01. Shapes: (n, F), (n,)."""
    model = LogisticRegression(C=0.01, max_iter=1000).fit(x, y)
    return Linear(model.coef_[0].astype(np.float32), np.float32(model.intercept_[0]))


def last_return(train: Matrix, test: Matrix, y: Answers) -> Floats:
    """Go with the last return or against it, whichever was right more often in training. Shapes: (n,), (m,), (n,)."""
    agrees = float(np.mean((train > 0) == (y > 0.5)))
    return np.asarray(0.5 + np.sign(test) * (agrees - 0.5))


def boosting(x_train: Matrix, y: Answers, x_test: Matrix, seed: int) -> Floats:
    """Histogram gradient boosting, small and slow. Shapes: (n, F), (n,), (m, F) -> (m,)."""
    model = HistGradientBoostingClassifier(
        max_iter=120, learning_rate=0.04, max_leaf_nodes=15, min_samples_leaf=60, l2_regularization=5.0,
        early_stopping=False, random_state=seed,
    )  # fmt: skip
    return np.asarray(model.fit(x_train, y).predict_proba(x_test)[:, 1])
