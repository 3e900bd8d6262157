"""Target inputs that label themselves: prototypes, k-means and self-training, with labels in the source only.

All of it works on features [N, D] of a frozen body, in closed form or a few passes, without a gradient.
k-means presumes one cluster per class, of about equal size; self-training presumes that a confident
classifier is right.  Both fail without a word where that is not so: page 07 shows how.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tlhelpers.analysis.features import Features
from tlhelpers.analysis.probes import Probe, fit_probe
from tlhelpers.objectives.adaptation import check_domains


def class_prototypes(features: Features) -> Tensor:
    """The mean direction of every class, [C, D] with rows of length 1.

    Every row of features.x is brought to length 1, averaged over its class, and brought to length 1 again.

    Raises:
        ValueError: NaN, labels that are not int64 [N] from 0 on, a single class, or a class below the
            largest label without an example (so also fewer samples than classes).
    """
    check_domains(features.x, features.x, least=1)
    if features.y.dtype != torch.int64 or features.y.ndim != 1 or (len(features.y) and int(features.y.min()) < 0):
        raise ValueError(f"labels must be int64 [N] from 0 on, not {features.y.dtype} {list(features.y.shape)}")
    counts = torch.bincount(features.y)
    if len(counts) < 2 or len(features.x) != len(features.y) or not counts.all():
        raise ValueError(
            f"{len(features.x)} rows with {counts.tolist()} labels of class 0, 1, ...: every class needs an "
            "example, and there must be at least two classes"
        )
    sums = features.x.new_zeros(len(counts), features.x.shape[1])
    sums.index_add_(0, features.y, F.normalize(features.x))
    return F.normalize(sums)


def nearest_prototype(features: Tensor, prototypes: Tensor) -> Tensor:
    """Number of the prototype [C, D] with the largest cosine to each row of features [N, D]: int64 [N].

    Raises:
        ValueError: other shapes, different D, no row, or NaN.
    """
    check_domains(prototypes, features, least=1)
    return (features @ F.normalize(prototypes).T).argmax(1)  # a row's own length changes no order


def spherical_kmeans(unlabelled: Tensor, start: Tensor, *, passes: int = 30) -> Tensor:
    """Prototypes [C, D] moved onto the clusters of unlabelled features [N, D]; row c keeps its meaning.

    Dhillon & Modha 2001, "Concept decompositions for large sparse text data using clustering": assign
    every row to the prototype with the largest cosine, take mean directions, and again, until no
    assignment changes.  Started from `class_prototypes` of the source, cluster c stands for class c
    (page 07 measures how often it then does).  A prototype that no row chooses stays where it is.

    Args:
        passes: at most this many.

    Raises:
        ValueError: other shapes, different D, NaN, fewer rows than prototypes, or passes below 1.
    """
    check_domains(start, unlabelled, least=1)
    if len(unlabelled) < len(start) or passes < 1:
        raise ValueError(
            f"{len(unlabelled)} rows for {len(start)} clusters in passes={passes}: give at least one row per "
            "cluster and one pass"
        )
    rows = F.normalize(unlabelled)
    prototypes = F.normalize(start)
    before = None
    for _ in range(passes):
        chosen = nearest_prototype(rows, prototypes)
        if before is not None and torch.equal(chosen, before):
            break
        sums = torch.zeros_like(prototypes).index_add_(0, chosen, rows)
        filled = torch.bincount(chosen, minlength=len(start)) > 0
        prototypes = torch.where(filled[:, None], F.normalize(sums), prototypes)
        before = chosen
    return prototypes


@dataclass(frozen=True)
class SelfTraining:
    """What `self_training` gives back.

    Attributes:
        probe: the last classifier.
        confident: per round, how many unlabelled rows were confident enough to be learnt from.
    """

    probe: Probe
    confident: tuple[int, ...]


def self_training(
    source: Features, unlabelled: Tensor, *, confidence: float = 0.9, rounds: int = 5, C: float = 0.1
) -> SelfTraining:
    """A probe on the source, then again on source and confident target rows with the labels that it gave them.

    Lee 2013, "Pseudo-label", with a linear classifier fitted anew in every round.

    Args:
        source: features [N, D] and labels.
        unlabelled: features [M, D] of the target.
        confidence: a row is kept if its largest probability reaches this.
        rounds: refits after the first fit on the source alone.
        C: inverse strength of the probe's penalty.

    Raises:
        ValueError: other shapes, different D, NaN, an empty domain, a single class, a confidence outside
            (0, 1], or rounds below 1.
    """
    check_domains(source.x, unlabelled, least=1)
    if not 0 < confidence <= 1 or rounds < 1:
        raise ValueError(f"confidence={confidence} must be in (0, 1], and rounds={rounds} at least 1")
    probe = fit_probe(source, C=C)
    confident = []
    for _ in range(rounds):
        sure, label = F.linear(unlabelled, probe.weight, probe.bias).softmax(1).max(1)
        rows = sure >= confidence
        confident.append(int(rows.sum()))
        both = Features(torch.cat([source.x, unlabelled[rows]]), torch.cat([source.y, label[rows]]))
        probe = fit_probe(both, C=C)
    return SelfTraining(probe, tuple(confident))
