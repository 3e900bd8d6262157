"""Training: the loop, its learning rates, and what lets it stop, go on and spread over processes."""

from tlhelpers.training.device import autocast, batch_size, mixed_precision, to_device
from tlhelpers.training.distributed import Team
from tlhelpers.training.loop import accuracy, evaluate, fit, train_one_epoch
from tlhelpers.training.schedules import Rates, warmup_cosine
