"""The loop of the course and what a user would pick instead, each behind the same three arguments.

All train the given network with AdamW at a constant rate on shuffled batches of 32, in float32, without
validation; logging, progress bars and checkpoints are switched off.  The alternatives read a map-style
data set through `DataLoader` without workers, as each does when told nothing else.
"""

import logging
import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from benchmarks.nets import hand_loop

RATE, BATCH = 1e-3, 32
CPU = torch.device("cpu")


def by_hand(model: nn.Module, data: Dataset, epochs: int) -> None:
    """The shortest loop."""
    hand_loop(model, DataLoader(data, BATCH, shuffle=True), torch.optim.AdamW(model.parameters(), lr=RATE), epochs)


def with_accelerate(model: nn.Module, data: Dataset, epochs: int) -> None:
    """The same loop with the four changes that accelerate asks for."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(data, BATCH, shuffle=True))
    model.train()
    for _ in range(epochs):
        for x, y in loader:
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()


def with_lightning(model: nn.Module, data: Dataset, epochs: int) -> None:
    """PyTorch Lightning's Trainer."""
    import pytorch_lightning as pl

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch, _step):
            x, y = batch
            return F.cross_entropy(self.model(x), y)

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=RATE)

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = pl.Trainer(max_epochs=epochs, accelerator="cpu", devices=1, **off)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it recommends workers
        trainer.fit(Module(), DataLoader(data, BATCH, shuffle=True))


class WithLoss(nn.Module):
    """What Hugging Face's Trainer calls: keyword arguments in, a dict with the loss out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.model(x)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def with_transformers(model: nn.Module, data: Dataset, epochs: int) -> None:
    """Hugging Face's Trainer."""
    from transformers import Trainer, TrainingArguments

    def collate(rows: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        x, y = zip(*rows, strict=True)
        return {"x": torch.stack(x), "labels": torch.stack(y)}

    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    never = dict.fromkeys(("logging_strategy", "save_strategy", "eval_strategy"), "no")
    settings = TrainingArguments(
        output_dir="build/trainer",
        seed=torch.initial_seed(),  # left alone, it sets the seed of the whole process to 42
        num_train_epochs=epochs,
        per_device_train_batch_size=BATCH,
        max_grad_norm=0,
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
        dataloader_pin_memory=False,
        **never,
    )
    constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _step: 1.0)
    trainer = Trainer(WithLoss(model), settings, collate, data, optimizers=(optimizer, constant))
    trainer.remove_callback(next(c for c in trainer.callback_handler.callbacks if "Printer" in type(c).__name__))
    trainer.train()


def with_fastai(model: nn.Module, data: Dataset, epochs: int) -> None:
    """fastai's Learner around torch's AdamW."""
    import fastai.callback.progress  # noqa: F401  (gives Learner its no_bar)
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.optimizer import OptimWrapper

    loaders = DataLoaders(DataLoader(data, BATCH, shuffle=True), [], device=CPU)  # it wants a validation loader
    adamw = partial(OptimWrapper, opt=torch.optim.AdamW)
    learner = Learner(loaders, model, nn.CrossEntropyLoss(), adamw, RATE)
    with learner.no_bar(), learner.no_logging():
        learner.fit(epochs)


def with_skorch(model: nn.Module, data: Dataset, epochs: int) -> None:
    """skorch's NeuralNetClassifier."""
    from skorch import NeuralNetClassifier

    net = NeuralNetClassifier(
        model,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.AdamW,
        lr=RATE,
        max_epochs=epochs,
        batch_size=BATCH,
        iterator_train__shuffle=True,
        train_split=None,
        callbacks__print_log=None,
        device="cpu",
    )
    net.fit(data, y=None)


RIVALS: dict[str, Callable[[nn.Module, Dataset, int], None]] = {
    "accelerate": with_accelerate,
    "Lightning": with_lightning,
    "HF Trainer": with_transformers,
    "fastai": with_fastai,
    "skorch": with_skorch,
}
