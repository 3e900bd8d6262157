"""Run a frozen body once, keep what comes out, and put a simple classifier on top."""

import hashlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from tlhelpers.models.backbones import Backbone
from tlhelpers.data.examples import Part, as_float
from tlhelpers.runtime import autocast, cache_dir, mixed_precision, pick_device
from tlhelpers.tensor_files import keep_tensor, kept_tensor

C_GRID = (0.01, 0.1, 1.0)  # inverse strengths of the L2 penalty that `linear_probe` chooses from


@dataclass(frozen=True)
class Features:
    """Outputs of a body: x float32 [N, D] and labels y int64 [N], both on the CPU."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class ProbeResult:
    """A classifier on features, and how it did.

    Attributes:
        accuracy: on the test features.
        predictions: int64 [N] for the test features.
        setting: the hyper-parameter in use (C of the penalty, or k neighbours).
        weight, bias: the linear layer [C, D], [C] that gives the same decisions on raw features, so
            that `nn.Linear` can start from it (LP-FT); None for k-NN.
    """

    accuracy: float
    predictions: Tensor
    setting: float
    weight: Tensor | None = None
    bias: Tensor | None = None

    def as_layer(self) -> nn.Linear:
        """A new linear layer [N, D] -> [N, C] that decides as this probe does.

        Raises:
            ValueError: the probe is not linear (k-NN).
        """
        if self.weight is None:
            raise ValueError("a k-NN probe has no weights; only linear_probe gives a layer")
        layer = nn.Linear(self.weight.shape[1], self.weight.shape[0])
        with torch.no_grad():
            layer.weight.copy_(self.weight)
            layer.bias.copy_(self.bias)
        return layer


def extract_features(
    backbone: Backbone,
    part: Part,
    *,
    layer: str | None = None,
    batch_size: int = 256,
    device: torch.device | None = None,
) -> Features:
    """Features of every example, in order, from the body in eval mode and without gradients.

    On a GPU the body runs in reduced precision, as it does under `fit`.

    Args:
        layer: name of a submodule whose output is taken instead, averaged over positions if it is
            a feature map [N, D, H, W]; the body's own output when None.

    Raises:
        ValueError: no such submodule, one that does not run exactly once per pass, or an output that
            is neither [N, D] nor [N, D, H, W].
    """
    with feature_function(backbone, layer=layer, device=device) as outputs:
        return Features(torch.cat([outputs(x) for x in part.x.split(batch_size)]), part.y)


@contextmanager
def feature_function(
    backbone: Backbone, *, layer: str | None = None, device: torch.device | None = None
) -> Iterator[Callable[[Tensor], Tensor]]:
    """What `extract_features` does to one batch: raw inputs [n, ...] to features float32 [n, D] on the CPU."""
    device = device or pick_device()
    module = backbone.module.to(device).eval()
    caught: list[Tensor] = []
    hook = _layer(module, layer).register_forward_hook(lambda _module, _inputs, output: caught.append(output))

    @torch.inference_mode()
    def outputs(x: Tensor) -> Tensor:
        caught.clear()
        with autocast(device, mixed_precision(device)):
            module(backbone.transform(as_float(x.to(device))))
        if len(caught) != 1:
            raise ValueError(f"layer {layer!r} runs {len(caught)} times per pass; take one that runs once")
        return _flat(caught[0]).float().cpu()

    try:
        yield outputs
    finally:
        hook.remove()


def _layer(module: nn.Module, name: str | None) -> nn.Module:
    if name is None:
        return module
    layers = dict(module.named_modules())
    if name not in layers:
        raise ValueError(f"no layer called {name!r}; the body has {', '.join(n for n, _ in module.named_children())}")
    return layers[name]


def _flat(output: Tensor) -> Tensor:
    if output.ndim == 4:
        return output.mean(dim=(2, 3))  # [N, D, H, W] -> [N, D]
    if output.ndim != 2:
        raise ValueError(f"the layer gives {list(output.shape)}; take one that gives [N, D] or [N, D, H, W]")
    return output


def cached_features(
    backbone: Backbone, part: Part, *, layer: str | None = None, folder: Path | None = None
) -> Features:
    """`extract_features`, kept on disk.  A kept file that is damaged is made anew, with a warning.

    The key covers the part (name, indices, the inputs themselves, what was done to them) and the
    body (layers, weights, transform): whatever changes, a stale file is never read.

    Args:
        folder: where to keep the files; `runtime.cache_dir() / "features"` when None.

    A folder that cannot be written (read-only, full) costs a warning, which says how to choose another,
    and not the features.
    """
    folder = folder or cache_dir() / "features"
    path = folder / f"{feature_key(backbone, part, layer)}.safetensors"
    if path.exists():
        try:
            return Features(kept_tensor(path, len(part)), part.y)
        except (OSError, SafetensorError, ValueError) as error:
            warnings.warn(f"{path} cannot be used ({error}); its features are computed again", stacklevel=2)
    features = extract_features(backbone, part, layer=layer)
    try:
        keep_tensor(path, features.x)
    except (OSError, SafetensorError) as error:
        warnings.warn(
            f"cannot keep features in {folder} ({getattr(error, 'strerror', None) or error}); they will be computed "
            "again next time: set TLHELPERS_CACHE to a folder with room that you can write to",
            stacklevel=2,
        )
    return features


def feature_key(backbone: Backbone, part: Part, layer: str | None) -> str:
    """sha256 (hex) over everything that the features depend on."""
    digest = hashlib.sha256()
    # The text of a module shows what its weights do not (which activation); a transform without a
    # telling text (a lambda) shows by what it does to a few inputs.
    texts = (part.name, part.transform, backbone.name, repr(backbone.transform), str(backbone.module), str(layer))
    digest.update("\0".join(texts).encode())
    seen = backbone.transform(as_float(part.x[:8]))
    tensors = {"rows": part.indices, "x": part.x, "seen": seen, **backbone.module.state_dict()}
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def linear_probe(train: Features, test: Features, *, validation: Features | None = None, C: float = 0.1) -> ProbeResult:
    """Logistic regression on standardised features (scikit-learn, L-BFGS).

    Args:
        validation: if given, C is the best of `C_GRID` on it (the first of equals); `C` is ignored.
        C: inverse strength of the L2 penalty.

    Raises:
        ValueError: features that are not [N, D] with N, D >= 1, labels that are not int64 [N] from 0 on, NaN or
            infinite features, a single class in `train`, or C that is not a positive number.
    """
    _check_probe(train, test)
    scaler = StandardScaler().fit(train.x)
    fits = [_logistic(scaler, train, c) for c in (C_GRID if validation is not None else (C,))]
    if validation is not None:
        inputs = scaler.transform(validation.x)
        fits.sort(key=lambda fit: -fit.score(inputs, validation.y))  # sort is stable
    best = fits[0]
    predictions = torch.from_numpy(best.predict(scaler.transform(test.x))).long()
    weight, bias = _on_raw_features(best, scaler, classes=int(train.y.max()) + 1)
    accuracy = float((predictions == test.y).float().mean())
    return ProbeResult(accuracy, predictions, best.C, weight, bias)


def _logistic(scaler: StandardScaler, train: Features, C: float) -> LogisticRegression:
    # One thread: these problems are small, and BLAS threads would fight with torch's for the cores.
    with threadpool_limits(1):
        return LogisticRegression(C=C, max_iter=1000).fit(scaler.transform(train.x), train.y)


def _on_raw_features(fit: LogisticRegression, scaler: StandardScaler, classes: int) -> tuple[Tensor, Tensor]:
    """Fold the standardisation into the layer: w.(x-m)/s + b = (w/s).x + (b - (w/s).m)."""
    coef, intercept = fit.coef_, fit.intercept_
    if len(fit.classes_) == 2:  # scikit-learn keeps one row for two classes
        coef, intercept = np.vstack([-coef, coef]) / 2, np.concatenate([-intercept, intercept]) / 2
    weight = torch.zeros(classes, coef.shape[1])
    bias = torch.full((classes,), -1e4)  # a class without examples is never the answer
    rows = torch.from_numpy(fit.classes_)
    weight[rows] = torch.from_numpy(coef / scaler.scale_).float()
    bias[rows] = torch.from_numpy(intercept - (coef / scaler.scale_) @ scaler.mean_).float()
    return weight, bias


def knn_probe(train: Features, test: Features, *, k: int = 1) -> ProbeResult:
    """Majority label of the k nearest training features by cosine similarity.

    Raises:
        ValueError: k outside 1..len(train), NaN features, or a single class in `train`.
    """
    _check_probe(train, test)
    if not 1 <= k <= len(train):
        raise ValueError(f"k is {k}, but there are {len(train)} training examples; choose 1..{len(train)}")
    with threadpool_limits(1):
        neighbours = KNeighborsClassifier(k, metric="cosine").fit(train.x, train.y)
        predictions = torch.from_numpy(neighbours.predict(test.x)).long()
    return ProbeResult(float((predictions == test.y).float().mean()), predictions, k)


def _check_probe(train: Features, test: Features) -> None:
    for name, features in [("train", train), ("test", test)]:
        x, y = features.x, features.y
        if x.ndim != 2 or 0 in x.shape or y.shape != x.shape[:1] or y.dtype != torch.int64 or int(y.min()) < 0:
            raise ValueError(
                f"the {name} features {list(x.shape)} and labels {y.dtype} {list(y.shape)} must be [N, D] and "
                "int64 [N], at least one example, with labels from 0 on"
            )
        if not torch.isfinite(features.x).all():
            raise ValueError(
                f"the {name} features hold NaN or infinity; look at the inputs and at the body's transform"
            )
    if train.x.shape[1] != test.x.shape[1]:
        raise ValueError(f"train has {train.x.shape[1]} features, test {test.x.shape[1]}; use one body for both")
    if len(train.y.unique()) < 2:
        raise ValueError("the training labels hold a single class; a classifier needs at least two")
