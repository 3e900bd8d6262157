"""Simple classifiers on features: fitted once, asked as often as one likes."""

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from tlhelpers.analysis.features import Features

C_GRID = (0.01, 0.1, 1.0)  # inverse strengths of the L2 penalty that `fit_probe` chooses from


@dataclass(frozen=True)
class Probe:
    """A linear classifier on features.

    Attributes:
        C: inverse strength of the L2 penalty in use.
        weight, bias: the linear layer [classes, D], [classes] that gives the same decisions on raw features,
            so that `nn.Linear` can start from it (LP-FT).  A class without a training example is never the answer.
        classifier: scikit-learn's, with the standardisation in front of it.
    """

    C: float
    weight: Tensor
    bias: Tensor
    classifier: Pipeline

    def predict(self, x: Tensor) -> Tensor:
        """The most likely class of every row of features [N, D]: int64 [N].

        Raises:
            ValueError: features of another shape, or NaN.
        """
        _check_inputs(x, self.weight.shape[1])
        return torch.from_numpy(self.classifier.predict(_exact(x))).long()

    def score(self, features: Features) -> float:
        """Accuracy on features with labels.

        Raises:
            ValueError: as `predict`, or labels that do not fit.
        """
        return _accuracy(self.predict(features.x), features)

    def as_layer(self) -> nn.Linear:
        """A new linear layer [N, D] -> [N, classes] that decides as this probe does."""
        layer = nn.Linear(self.weight.shape[1], self.weight.shape[0])
        with torch.no_grad():
            layer.weight.copy_(self.weight)
            layer.bias.copy_(self.bias)
        return layer


@dataclass(frozen=True)
class NearestNeighbours:
    """The majority label of the k nearest training features by cosine similarity.

    Attributes:
        k: number of neighbours.
        classifier: scikit-learn's.
    """

    k: int
    classifier: KNeighborsClassifier

    def predict(self, x: Tensor) -> Tensor:
        """The class of every row of features [N, D]: int64 [N]; errors as for `Probe.predict`."""
        _check_inputs(x, self.classifier.n_features_in_)
        with threadpool_limits(1):
            return torch.from_numpy(self.classifier.predict(x.numpy())).long()

    def score(self, features: Features) -> float:
        """Accuracy on features with labels."""
        return _accuracy(self.predict(features.x), features)


def fit_probe(train: Features, *, validation: Features | None = None, C: float = 0.1) -> Probe:
    """Logistic regression on standardised features (scikit-learn, L-BFGS).

    Args:
        validation: if given, C is the best of `C_GRID` on it (the first of equals); `C` is ignored.
        C: inverse strength of the L2 penalty.

    Raises:
        ValueError: features that are not [N, D] with N, D >= 1, labels that are not int64 [N] from 0 on, NaN or
            infinite features, a single class, or C that is not a positive number.
    """
    _check_training(train)
    grid = (C,) if validation is None else C_GRID
    classifiers = {candidate: _logistic(train, candidate) for candidate in grid}
    best = grid[0]
    if validation is not None:
        _check_inputs(validation.x, train.x.shape[1])
        right = {c: fitted.score(_exact(validation.x), validation.y) for c, fitted in classifiers.items()}
        best = max(right, key=right.get)  # the first of equals
    weight, bias = _on_raw_features(classifiers[best], classes=int(train.y.max()) + 1)
    return Probe(best, weight, bias, classifiers[best])


def fit_knn(train: Features, *, k: int = 1) -> NearestNeighbours:
    """A classifier by the k nearest training features.

    Raises:
        ValueError: as `fit_probe`, or k outside 1..len(train).
    """
    _check_training(train)
    if not 1 <= k <= len(train):
        raise ValueError(f"k is {k}, but there are {len(train)} training examples; choose 1..{len(train)}")
    return NearestNeighbours(k, KNeighborsClassifier(k, metric="cosine").fit(train.x.numpy(), train.y))


def _logistic(train: Features, C: float) -> Pipeline:
    # One thread: these problems are small, and BLAS threads would fight with torch's for the cores.
    with threadpool_limits(1):
        return make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=1000)).fit(_exact(train.x), train.y)


def _exact(x: Tensor) -> np.ndarray:
    return x.double().numpy()  # L-BFGS stops where it should only in float64


def _on_raw_features(classifier: Pipeline, classes: int) -> tuple[Tensor, Tensor]:
    """Fold the standardisation into the layer: w.(x-m)/s + b = (w/s).x + (b - (w/s).m)."""
    scaler, logistic = classifier
    coef = logistic.coef_
    intercept = logistic.intercept_
    if len(logistic.classes_) == 2:  # scikit-learn keeps one row for two classes
        coef = np.vstack([-coef, coef]) / 2
        intercept = np.concatenate([-intercept, intercept]) / 2
    weight = torch.zeros(classes, coef.shape[1])
    bias = torch.full((classes,), -1e4)  # a class without examples is never the answer
    rows = torch.from_numpy(logistic.classes_)
    weight[rows] = torch.from_numpy(coef / scaler.scale_).float()
    bias[rows] = torch.from_numpy(intercept - (coef / scaler.scale_) @ scaler.mean_).float()
    return weight, bias


def _accuracy(predictions: Tensor, features: Features) -> float:
    if features.y.shape != predictions.shape:
        raise ValueError(f"{len(predictions)} features and labels {list(features.y.shape)} must be equally many")
    return float((predictions == features.y).float().mean())


def _check_training(train: Features) -> None:
    x, y = train.x, train.y
    if x.ndim != 2 or 0 in x.shape or y.shape != x.shape[:1] or y.dtype != torch.int64 or int(y.min()) < 0:
        raise ValueError(
            f"the training features {list(x.shape)} and labels {y.dtype} {list(y.shape)} must be [N, D] and "
            "int64 [N], at least one example, with labels from 0 on"
        )
    _check_inputs(x, x.shape[1])
    if len(y.unique()) < 2:
        raise ValueError("the training labels hold a single class; a classifier needs at least two")


def _check_inputs(x: Tensor, width: int) -> None:
    if x.ndim != 2 or len(x) == 0 or x.shape[1] != width:
        raise ValueError(f"the features are {list(x.shape)}; they must be [N, {width}], of one body, and not empty")
    if not torch.isfinite(x).all():
        raise ValueError("the features hold NaN or infinity; look at the inputs and at the body's normalisation")
