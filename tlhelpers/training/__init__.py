"""Training: the loop, its learning rates, and what lets it stop, go on and spread over processes."""

from tlhelpers.training.distributed import Team
from tlhelpers.training.loop import accuracy, evaluate, fit, train_one_epoch
from tlhelpers.training.schedules import warmup_cosine
