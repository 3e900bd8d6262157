"""Objectives: what is optimised, one factory per method of transfer; see `supervised.py` for what an objective is."""

from tlhelpers.objectives.adaptation import (
    adabn,
    check_domains,
    coral,
    coral_distance,
    coral_transform,
    dann,
    dann_lambda,
    mmd,
    reverse_gradient,
    squared_mmd,
)
from tlhelpers.objectives.distillation import (
    FrozenTeacher,
    attention_transfer,
    distillation,
    distillation_loss,
    feature_match,
)
from tlhelpers.objectives.multitask import gradient_cosine, multitask, project_conflicting, uncertainty_weighted
from tlhelpers.objectives.supervised import Batch, Objective, classification, l2_sp
