import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toys import CPU, Pair, toy_examples, toy_model
from two_processes import trained, trained_on_two_tasks

from tlhelpers.data import TensorLoader
from tlhelpers.objectives import classification
from tlhelpers.training import Team, fit
from tlhelpers.training.distributed import cut

HERE = Path(__file__).parent
TOLERANCE = 1e-5  # relative; float32 sums in another order
NOTEBOOK = """
import sys
from accelerate import notebook_launcher
from two_processes import save, trained
trained()  # a kernel that has trained before it forks
notebook_launcher(save, (sys.argv[1],), num_processes=2, use_port="PORT")
"""
# Without --multi_gpu, accelerate launch starts one process only where there is no GPU.
LAUNCH = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "PORT"]
COMMANDS = {"launch": [*LAUNCH, str(HERE / "two_processes.py")], "notebook": ["-c", NOTEBOOK]}


def numbers(result):
    """All numbers in a nested result but seconds, in one order."""
    if isinstance(result, dict):
        return [n for name in sorted(result) if name != "seconds" for n in numbers(result[name])]
    return [n for inner in result for n in numbers(inner)] if isinstance(result, list) else [result]


def close(one, other):
    return numbers(one) == pytest.approx(numbers(other), rel=TOLERANCE, abs=TOLERANCE)


@pytest.fixture(scope="module", params=COMMANDS)
def two(request, tmp_path_factory):
    """The folder that two processes have written into, and what they printed."""
    folder = tmp_path_factory.mktemp("two")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)]),
        "OMP_NUM_THREADS": "1",
        "HF_HOME": str(folder / "home"),  # accelerate's own settings of this user stay out of it
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        command = [part.replace("PORT", str(free.getsockname()[1])) for part in COMMANDS[request.param]]
    done = subprocess.run(
        [sys.executable, *command, str(folder)], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr  # whole: what went wrong stands first, the summary of the launcher last
    return folder, done.stdout


def test_two_processes_give_the_losses_metrics_and_weights_of_one(two):
    folder, _ = two
    ranks = [json.loads((folder / f"rank{k}.json").read_text()) for k in (0, 1)]
    assert numbers(ranks[0]) == numbers(ranks[1])
    two_tasks, seen = trained_on_two_tasks()
    assert close([ranks[0]["one"], ranks[0]["two"]], [trained(), two_tasks])
    assert ranks[0]["seen"] != pytest.approx(seen.item(), rel=1e-3)  # statistics are those of one process


def test_one_of_two_processes_writes_and_one_process_can_take_over(two, capsys):
    folder, _ = two
    assert {path.name for path in folder.glob("run.ckpt*")} == {"run.ckpt", "run.ckpt.previous"}
    assert close(trained(folder / "run.ckpt"), trained())
    assert "Continuing from" in capsys.readouterr().out


@pytest.mark.parametrize("two", ["launch"], indirect=True, scope="module")
def test_a_program_leaves_its_process_group_before_python_ends(two):
    # Where it does not, one run in many aborts (SIGABRT) after all its work is done.
    folder, _ = two
    assert [(folder / f"group{k}.txt").read_text() for k in (0, 1)] == ["ended", "ended"]


@pytest.mark.parametrize("accumulate", [2, 3, 9, 50])
def test_a_batch_in_pieces_gives_the_step_of_the_whole_batch(accumulate):
    assert close(trained(accumulate=accumulate), trained())


def test_batchnorm_sees_one_piece_at_a_time():
    def first_mean(accumulate):
        torch.manual_seed(0)
        model = toy_model()
        loader = TensorLoader(toy_examples(), 24, device=CPU)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        fit(model, (loader, None), classification(), optimizer, epochs=1, device=CPU, accumulate=accumulate)
        return model.body.norm.running_mean, model.body.norm.num_batches_tracked

    whole = first_mean(1)
    halves = first_mean(2)
    assert (int(whole[1]), int(halves[1])) == (1, 2)
    assert not torch.allclose(whole[0], halves[0])


@pytest.mark.parametrize(("n", "size", "accumulate"), [(10, 2, 1), (10, 3, 2), (1, 2, 1), (2, 3, 2)])
def test_the_shares_of_all_processes_make_up_the_batch_and_the_mean(n, size, accumulate):
    batch = {"x": torch.arange(n).float(), "pair": (torch.arange(n), torch.arange(n))}
    weighted = 0.0
    seen = []
    for rank in range(size):
        team = Team(CPU)
        team.size = size
        team.rank = rank
        pieces = team.share(batch, accumulate)
        assert 1 <= len(pieces) <= accumulate
        seen += [i for piece in pieces for i in piece.batch["pair"][1].tolist()[: piece.examples]]
        weighted += sum(piece.weight * float(piece.batch["x"].mean()) for piece in pieces) / size
    assert seen == list(range(n))
    assert weighted == pytest.approx((n - 1) / 2)


@pytest.mark.parametrize(
    ("source", "target", "lengths"), [((8,), (3,), r"\[3, 8\]"), ((2,), (8,), r"\[2, 8\]"), ((8,), (), r"\[0, 8\]")]
)
def test_what_cannot_be_cut_alike_is_refused_in_pieces_and_passed_on_whole(source, target, lengths):
    batch = {"source": (torch.zeros(source), torch.zeros(source)), "target": torch.zeros(target)}
    with pytest.raises(
        ValueError, match=f"have {lengths} examples and cannot be cut alike; let the loaders give equal"
    ):
        Team(CPU).share(batch, 4)
    assert Team(CPU).share(batch, 1)[0].batch is batch


def test_cutting_keeps_the_structure_of_a_batch():
    first, second = cut({"a": (torch.arange(5), [torch.arange(5)]), "b": Pair(torch.arange(5), torch.arange(5))}, 2)
    assert first["a"][0].tolist() == first["b"].x.tolist() == [0, 1, 2]
    assert second["a"][1][0].tolist() == [3, 4]
