import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from killed_runs import same, whole_run
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset
from toys import CPU, toy_examples, toy_model, weights_of

from tlhelpers.data import JointLoader, TensorLoader
from tlhelpers.models import freeze, unfreeze
from tlhelpers.objectives import classification, dann, distillation, feature_match, l2_sp, uncertainty_weighted
from tlhelpers.runtime import seed_everything
from tlhelpers.training import checkpoint, fit, loop


def beside(path, ending):
    return path.with_name(f"{path.name}.{ending}")


def killed_runs(folder, kills):
    """What `killed_runs.py` counted, in a process of its own."""
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("killed_runs.py"), folder, str(kills)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def pressing_stop(at, *, times=1):
    """The objective, with Ctrl-C pressed in its call number `at`; evaluation counts too."""
    inner = classification()
    calls = []

    def objective(model, batch):
        calls.append(1)
        for _ in range(times if len(calls) == at else 0):
            signal.raise_signal(signal.SIGINT)
        return inner(model, batch)

    return objective


@pytest.fixture(autouse=True)
def stop_button_works():
    """A shell starts its background jobs with Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new folder" / "run.ckpt"


def test_killed_at_random_moments_a_run_ends_bit_equal(tmp_path):
    count = killed_runs(tmp_path, 4)
    assert count["kills"] >= 4
    assert count["equal"] == count["runs"]


@pytest.mark.faults
def test_killed_at_sixty_random_moments_some_inside_a_write_runs_end_bit_equal(tmp_path, fault_row):
    count = killed_runs(tmp_path, 60)
    assert count["kills"] >= 50
    assert count["inside a write"] >= 5
    # A kill is survived when the run that it hit ends as it would have.
    survived = count["kills"] if count["equal"] == count["runs"] else 0
    fault_row("SIGKILL at a random moment of training", "the same call ends bit-equal", count["kills"], survived)


def test_keeping_a_run_does_not_change_it_and_a_finished_one_returns_at_once(path):
    alone, kept = whole_run(None), whole_run(path)
    assert same(alone, kept)
    objective = pressing_stop(1)  # would stop the run if it were called
    assert same(alone, whole_run(path, objective=objective))
    assert not beside(path, "partial").exists()


@pytest.mark.parametrize("at", [1, 3, 6, 7, 9, 26, 27, 28])  # 6 steps and 1 validation per epoch
def test_the_stop_button_ends_at_the_next_step_and_the_same_call_goes_on(path, at, capsys):
    history, *_ = whole_run(path, objective=pressing_stop(at))
    steps = at % 7 % 6 if at % 7 else 0
    assert len(history) == (at // 7 if steps else -(-at // 7))
    counted = f"{len(history)} epoch(s)" + (f" and {steps} of 6 steps" if steps else "")
    if at > 26:  # the run was at its end
        assert capsys.readouterr().out == ""
    else:
        assert f"Stopped after {counted}. The same call again goes on from there: {path}" in capsys.readouterr().out
    assert same(whole_run(None), whole_run(path))
    assert f"Continuing from {path} after {counted}." in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_press_and_one_without_a_checkpoint_interrupt_as_ever(path):
    with pytest.raises(KeyboardInterrupt):
        whole_run(path, objective=pressing_stop(3, times=2))
    with pytest.raises(KeyboardInterrupt):
        whole_run(None, objective=pressing_stop(3))
    assert same(whole_run(None), whole_run(path))


def test_a_program_that_has_its_own_way_with_the_stop_button_keeps_it(path):
    heard = []
    signal.signal(signal.SIGINT, lambda *_: heard.append(1))
    assert same(whole_run(path, objective=pressing_stop(3)), whole_run(None))
    assert heard == [1]


def test_another_thread_trains_and_leaves_the_stop_button_alone(path):
    results = []
    thread = threading.Thread(target=lambda: results.append(whole_run(path)))
    thread.start()
    thread.join()
    assert same(results[0], whole_run(None))


# objectives that are modules, and loaders with generators


class Stopping(nn.Module):
    """An objective that is a module, with Ctrl-C pressed in its call number `at`."""

    def __init__(self, inner, at):
        super().__init__()
        self.inner = inner
        self.at = at
        self.calls = 0

    def forward(self, model, batch):
        self.calls += 1
        if self.calls == self.at:
            signal.raise_signal(signal.SIGINT)
        return self.inner(model, batch)


class OfSource(nn.Module):
    """A supervised objective on the source of a batch {"source": ..., "target": ...}."""

    def __init__(self, objective):
        super().__init__()
        self.objective = objective

    def forward(self, model, batch):
        return self.objective(model, batch["source"])


def weighted_task(model):
    model.heads = nn.ModuleDict({"source": model.head})
    return uncertainty_weighted(["source"])


def matched(model):
    teacher = toy_model()
    soft = distillation(teacher, temperature=2.0, alpha=0.5)
    return OfSource(feature_match(soft, teacher, layers=("body", "body"), regressor=nn.Linear(6, 6), beta=0.5))


LEARNING_OBJECTIVES = {
    "a discriminator": lambda model: dann(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))),
    "log variances": weighted_task,
    "a regressor and a teacher": matched,
    "a starting point": lambda model: OfSource(l2_sp(classification(), model.body, alpha=0.1)),
}


def joint_run(path, make_objective, at=None):
    """History and weights of model and objective after 3 epochs, each of 6 steps and a validation of 6 batches."""
    torch.manual_seed(0)
    examples = toy_examples()
    generator = torch.Generator().manual_seed(5)
    # Two batches for six steps: within an epoch the target begins anew, which draws from its generator.
    target = DataLoader(TensorDataset(examples.x + 1, examples.y), 12, shuffle=True, generator=generator)
    loader = JointLoader({"source": TensorLoader(examples, 4, shuffle=True, device=CPU), "target": target})
    model = toy_model()
    objective = Stopping(make_objective(model), at)
    optimizer = torch.optim.SGD([*model.parameters(), *objective.parameters()], lr=0.1, momentum=0.9)
    history = fit(model, (loader, loader), objective, optimizer, epochs=3, device=CPU, checkpoint=path)
    return [record | {"seconds": 0} for record in history], weights_of(nn.ModuleList([model, objective]))


@pytest.mark.parametrize("kind", LEARNING_OBJECTIVES)
def test_an_objective_that_is_a_module_learns_and_after_a_resume_ends_bit_equal(path, kind, capsys):
    make_objective = LEARNING_OBJECTIVES[kind]
    history, weights = joint_run(None, make_objective)
    joint_run(path, make_objective, at=12 + 3)
    assert "Stopped after 1 epoch(s) and 3 of 6 steps" in capsys.readouterr().out
    joint_run(path, make_objective, at=9 + 5)
    assert "Stopped after 2 epoch(s) and 5 of 6 steps" in capsys.readouterr().out
    resumed_history, resumed_weights = joint_run(path, make_objective)
    assert history == resumed_history
    assert weights.keys() == resumed_weights.keys()
    assert all(torch.equal(weights[name], resumed_weights[name]) for name in weights)


def batches(data, generator):
    return BatchSampler(RandomSampler(data, generator=generator), 4, False)


ORDERS = {
    "its own": lambda data, generator: DataLoader(data, 4, shuffle=True, generator=generator),
    "of its sampler": lambda data, generator: DataLoader(data, 4, sampler=RandomSampler(data, generator=generator)),
    "of its sampler of batches": lambda data, generator: DataLoader(data, batch_sampler=batches(data, generator)),
    "of a sampler that samples batches": lambda data, generator: DataLoader(
        data, batch_size=None, sampler=batches(data, generator)
    ),
}


def unfreezing_run(path, order, at=None):
    """History and weights of 4 epochs in which on_epoch unfreezes, with NumPy's numbers for all rates."""

    def unfreeze_more(record):
        if record["epoch"] == 1:
            unfreeze(model.body.norm)  # the optimizer holds it already
        if record["epoch"] == 2:
            unfreeze(model.body.last)
            optimizer.add_param_group({"params": model.body.last.parameters(), "lr": np.float64(0.01)})

    seed_everything(0)
    model = toy_model()
    freeze(model.body)
    examples = toy_examples()
    training = ORDERS[order](TensorDataset(examples.x, examples.y), torch.Generator().manual_seed(3))
    validation = TensorLoader(examples, 12, augment=lambda x, generator: torch.randn(x.shape, generator=generator))
    parameters = [*model.head.parameters(), *model.body.norm.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=np.logspace(-3, -1, 3)[2], momentum=0.9, weight_decay=np.float64(0.01))
    objective = pressing_stop(at)
    options = {"schedule": np.cos, "on_epoch": unfreeze_more, "device": CPU, "checkpoint": path}
    history = fit(model, (training, validation), objective, optimizer, epochs=4, **options)
    return [record | {"seconds": 0} for record in history], weights_of(model)


@pytest.mark.parametrize("order", ORDERS)
def test_what_on_epoch_unfreezes_and_who_draws_the_order_are_the_same_after_a_resume(path, order):
    history, weights = unfreezing_run(None, order)
    for at in (8, 2, 7 + 8):  # in the last step of an epoch, in one, and after a group was added
        unfreezing_run(path, order, at=at)
    resumed_history, resumed_weights = unfreezing_run(path, order)
    assert history == resumed_history
    assert all(torch.equal(weights[name], resumed_weights[name]) for name in weights)


class Whole(nn.Module):
    """An objective that owns all that learns."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, model, batch):
        return classification()(self.head, batch)


def test_a_model_without_parameters_goes_on(path):
    def run(path, epochs):
        torch.manual_seed(0)
        objective = Whole()
        optimizer = torch.optim.SGD(objective.parameters(), lr=0.1)
        loader = TensorLoader(toy_examples(), 4, device=CPU)
        options = {"epochs": epochs, "device": CPU, "checkpoint": path}
        fit(nn.Identity(), (loader, None), objective, optimizer, **options)
        return objective.head.weight

    run(path, 1)
    assert torch.equal(run(path, 2), run(None, 2))


def test_the_scale_of_a_float16_loss_goes_on(path, monkeypatch):
    monkeypatch.setattr(loop, "mixed_precision", lambda _: torch.float16)
    whole_run(path, objective=pressing_stop(9))
    whole_run(path)
    assert checkpoint.read(path)["scaler"]["_growth_tracker"] == 4 * 6  # steps


class Odd:
    """No plain value."""


def test_a_run_that_cannot_be_kept_says_so_and_blames_no_file(path):
    class Keeping(Stopping):
        def get_extra_state(self):
            return Odd()

        def set_extra_state(self, state):
            pass

    words = r"this run cannot be kept in .*run.ckpt: .*plain values, test_checkpoint.Odd; make it plain"
    with pytest.raises(ValueError, match=words):
        whole_run(path, objective=Keeping(classification(), None))


def test_an_objective_of_another_shape_is_refused_with_what_differs(path):
    joint_run(path, lambda model: dann(nn.Linear(6, 1)), at=3)
    message = r"objective.inner.discriminator.weight: torch.float32 \[1, 6\] .* in the file, None here"
    with pytest.raises(ValueError, match=message):
        joint_run(path, LEARNING_OBJECTIVES["a discriminator"])


def test_the_best_weights_are_the_same_after_a_resume(path):
    def run(path, at=None):
        torch.manual_seed(0)
        model = toy_model()
        examples = toy_examples()
        wrong = toy_examples()
        wrong.y.add_(1).remainder_(3)  # what is learnt is wrong there, so the best epoch comes early
        loaders = TensorLoader(examples, 4, shuffle=True, device=CPU), TensorLoader(wrong, 24, device=CPU)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        history = fit(model, loaders, pressing_stop(at), optimizer, epochs=6, device=CPU, checkpoint=path)
        return [record["validation_loss"] for record in history], weights_of(model)

    losses, weights = run(None)
    assert losses.index(min(losses)) < 2
    for at in (25, 9):
        run(path, at)
    resumed_losses, resumed_weights = run(path)
    assert losses == resumed_losses
    assert all(torch.equal(weights[name], resumed_weights[name]) for name in weights)


def test_without_a_schedule_a_run_can_be_made_longer_not_shorter(path):
    whole_run(path, schedule=None, epochs=2)
    assert same(whole_run(path, schedule=None, epochs=4), whole_run(None, schedule=None, epochs=4))
    with pytest.raises(ValueError, match="holds 4 epochs, more than epochs=3; give another path"):
        whole_run(path, schedule=None, epochs=3)
    objective = Stopping(classification(), None)
    objective.progress = 0.0
    path.unlink()
    whole_run(path, schedule=None, epochs=2, objective=objective)
    with pytest.raises(ValueError, match=r"(?s)epochs: 2 in the file, 4 here.*objective follow the progress"):
        whole_run(path, schedule=None, epochs=4, objective=objective)


def other_run(path, *, model=None, make=torch.optim.AdamW, lr=0.05, batch_size=4, validation=None, **options):
    model = model or toy_model()
    loader = TensorLoader(toy_examples(), batch_size, device=CPU)
    optimizer = make(model.parameters(), lr=lr)
    options = {"epochs": 4, "schedule": lambda p: 1 - p, "device": CPU, "checkpoint": path} | options
    return fit(model, (loader, validation), classification(), optimizer, **options)


@pytest.mark.parametrize(
    ("different", "message"),
    [
        ({"epochs": 5}, r"epochs: 4 in the file, 5 here\n.*Schedule or objective follow the progress"),
        (
            {"best": "validation_a", "validation": TensorLoader(toy_examples(), 24)},
            r"best: validation_loss in the file, validation_a here",
        ),
        ({"lr": 0.1}, r"optimizer group 0 lr: 0.05 in the file, 0.1 here"),
        ({"make": torch.optim.SGD}, r"optimizer kind: AdamW in the file, SGD here"),
        ({"batch_size": 8}, r"steps per epoch: 6 in the file, 3 here"),
        ({"validation": TensorLoader(toy_examples(), 24)}, r"validation steps: None in the file, 1 here"),
        ({"schedule": None}, r"schedule: \[0.95, 0.75, 0.5, 0.25, .*\] in the file, None here"),
        ({"clip_norm": 1.0}, r"clip_norm: None in the file, 1.0 here"),
        ({"model": nn.Linear(4, 3)}, r"model.body.first.weight: torch.float32 \[8, 4\] .* in the file, None here"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_with_what_differs(path, different, message):
    other_run(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"(?s)run.ckpt belongs to another run:.*" + message + ".*start anew"):
        other_run(path, **different)
    assert path.read_bytes() == before


class Bomb:
    """Makes a file when unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (Path.touch, (Path(self.target),))


@pytest.mark.fault_table
def test_a_pickle_that_runs_code_is_refused_and_nothing_of_it_is_run(path, fault_row):
    exploded = path.parent / "exploded"
    path.parent.mkdir()
    path.write_bytes(pickle.dumps(Bomb(exploded)))
    with pytest.raises(ValueError, match="damaged or no checkpoint"):
        whole_run(path)
    torch.save({"format": checkpoint.FORMAT, "model": Bomb(exploded)}, path)
    with pytest.raises(
        ValueError, match=r"is refused: it holds more than tensors and plain values.*Nothing of it was run"
    ):
        whole_run(path)
    assert not exploded.exists()
    torch.save(toy_model().state_dict(), path)
    with pytest.raises(ValueError, match=r"was not written by fit\(..., checkpoint=...\); give another path"):
        whole_run(path)
    fault_row("malicious pickle as a checkpoint", "refused, nothing of it run", 2, 2)


def test_a_wrong_bit_is_noticed_or_harmless_wherever_it_is(path):
    """All bits of the directory at the end, where one makes a folder of a tensor, and a byte in 20 of the rest."""
    path.parent.mkdir()
    tensors = {str(k): torch.full((300,), k) for k in range(2)}
    checkpoint.write(path, {"format": checkpoint.FORMAT, "tensors": tensors, "plain": [1, "two", (3.0, None)]})
    good = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        directory = archive.start_dir
    flips = [(place, 0xFF) for place in range(0, directory, 20)]
    flips += [(place, 1 << bit) for place in range(directory, len(good)) for bit in range(8)]
    noticed = 0
    for place, bits in flips:
        path.write_bytes(good[:place] + bytes([good[place] ^ bits]) + good[place + 1 :])
        try:
            state = checkpoint.read(path)
        except checkpoint.Damaged:
            noticed += 1
            continue
        assert state["plain"] == [1, "two", (3.0, None)]
        assert all(torch.equal(state["tensors"][name], tensor) for name, tensor in tensors.items())
    assert noticed > len(flips) / 3  # the others are bytes that pad or repeat, which nobody reads


def test_a_damaged_file_is_noticed_and_the_previous_one_taken(path, capsys):
    whole_run(path, objective=pressing_stop(9))
    whole = whole_run(None)
    good = path.read_bytes()
    for damaged in (b"", good[: len(good) // 2], good[:-1]):
        path.write_bytes(damaged)
        shutil.copy(beside(path, "previous"), path.parent / "keep")
        assert same(whole, whole_run(path))
        assert "is damaged" in capsys.readouterr().out
        shutil.copy(path.parent / "keep", beside(path, "previous"))


def test_damaged_without_a_previous_one_is_an_error_not_a_silent_fresh_start(path):
    whole_run(path)
    path.write_bytes(path.read_bytes()[:1000])
    beside(path, "previous").unlink()
    with pytest.raises(ValueError, match=r"is damaged or no checkpoint .*Delete the file to start anew"):
        whole_run(path)


def test_a_deleted_file_means_a_fresh_start_whatever_lies_beside_it(path, capsys):
    whole = whole_run(path)
    path.unlink()
    capsys.readouterr()
    assert same(whole, whole_run(path))
    assert "Continuing" not in capsys.readouterr().out


def test_at_every_moment_of_a_write_there_is_a_whole_file_under_the_path(path, monkeypatch):
    epochs_seen = []

    def looking_around(function):
        def call(*arguments, **options):
            epochs_seen.append(len(checkpoint.read(path)["history"]))
            result = function(*arguments, **options)
            epochs_seen.append(len(checkpoint.read(path)["history"]))
            return result

        return call

    whole_run(path, objective=pressing_stop(3))
    for name in ("chmod", "fsync", "link", "rename", "replace", "unlink"):  # all that a write does to files
        monkeypatch.setattr(os, name, looking_around(getattr(os, name)))
    assert same(whole_run(path), whole_run(None))
    assert len(epochs_seen) >= 4 * 2 * 5
    assert sorted(epochs_seen) == epochs_seen
    assert set(epochs_seen) == {0, 1, 2, 3, 4}


def test_the_file_of_before_stays_beside_it_where_a_file_system_has_no_links_too(path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    whole = whole_run(path)
    assert {file.name for file in path.parent.iterdir()} == {"run.ckpt", "run.ckpt.previous"}
    assert len(checkpoint.read(beside(path, "previous"))["history"]) == 3
    path.write_bytes(b"")
    assert same(whole, whole_run(path))
    assert "taking run.ckpt.previous, which is one save older" in capsys.readouterr().out


@pytest.mark.fault_table
def test_a_full_disk_stops_neither_the_run_nor_the_way_back(path, fault_row):
    """The limit on the size of a file gives the same kind of error as a full disk, from the kernel."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(record):
        if record["epoch"] == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))

    try:
        with pytest.warns(UserWarning, match=r"run.ckpt could not be written after \d epoch.*free some space"):
            history, *_ = whole_run(path, on_epoch=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(history) == 4
    assert len(checkpoint.read(path)["history"]) == 1
    assert same(whole_run(path), whole_run(None))
    fault_row("disk full while a checkpoint is written", "the run goes on, the last good file stays", 1, 1)


@pytest.mark.fault_table
def test_a_folder_that_cannot_be_written_shows_at_the_start(tmp_path, monkeypatch, fault_row):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file/run.ckpt cannot be written: .*give a path in a folder that can"):
        whole_run(tmp_path / "file" / "run.ckpt")

    def refuse(self, *_):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(OSError, match=r"run.ckpt cannot be written: .*Permission denied"):
        whole_run(tmp_path / "run.ckpt")
    fault_row("checkpoint folder cannot be written", "said at the start, with the remedy", 2, 2)


@pytest.mark.fault_table
def test_a_disk_that_gives_back_something_else_never_replaces_the_last_good_file(path, monkeypatch, fault_row):
    whole_run(path, objective=pressing_stop(9))
    good = path.read_bytes()
    write = checkpoint._Sink.write
    monkeypatch.setattr(checkpoint._Sink, "write", lambda sink, data: write(sink, bytes(len(data))) and len(data))
    with pytest.warns(UserWarning, match=r"could not be written .*cannot be read back .*is the disk failing"):
        whole_run(path)
    assert path.read_bytes() == good
    fault_row("a disk that gives back other bytes", "the last good checkpoint stays", 1, 1)
