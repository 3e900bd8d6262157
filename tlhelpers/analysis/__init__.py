"""Analysis: what a body gives, how far apart two domains are, and what is wrong with a program."""

from tlhelpers.analysis import diagnose
from tlhelpers.analysis.baselines import pixel_baseline, pixel_scores
from tlhelpers.analysis.diagnose import (
    batch_dependence,
    can_overfit,
    changed_tensors,
    first_loss,
    input_shift,
    missing_gradients,
    not_in_optimizer,
    saved_graph_bytes,
    snapshot,
)
from tlhelpers.analysis.features import (
    Features,
    cached_features,
    extract_features,
    feature_function,
    open_features,
    stream_features,
)
from tlhelpers.analysis.probes import C_GRID, NearestNeighbours, Probe, fit_knn, fit_probe
from tlhelpers.analysis.pseudo_labels import (
    SelfTraining,
    class_prototypes,
    nearest_prototype,
    self_training,
    spherical_kmeans,
)
from tlhelpers.analysis.strategy import Recommendation, recommend
from tlhelpers.analysis.transferability import h_score, leep, logme, mmd_distance, nce, proxy_a_distance
