"""Checkpoints as a training meets them: damaged, of another training, cut off by a kill."""

import os
import time
from functools import partial

import pytest
import torch
from trainings import SGD, Apart, go, maml, same

import amaml_core as am
from amaml_core.checkpoints import KEPT


@pytest.mark.parametrize("left", [0.0, 0.3, 0.99])
def test_of_a_truncated_checkpoint_the_one_before_is_used_and_said_so(left, regression, tmp_path):
    whole = go(regression, 12)
    go(regression, 7, directory=tmp_path, every=3)
    newest = max(tmp_path.glob("*.pt"))
    newest.write_bytes(newest.read_bytes()[: int(left * newest.stat().st_size)])
    asked = []

    def batch(update):
        asked.append(update)
        return am.batches(regression.tasks, 2, 0)(update)

    resumed = go(regression, 12, directory=tmp_path, every=3, batch=batch)
    assert same(whole, resumed)
    assert asked[:3] == [0, 5, 6]  # the first and the last batch tell whether it is the same training
    (note,) = resumed.notes
    assert newest.name in note


def test_a_checkpoint_with_a_changed_bit_is_damaged_too(regression, tmp_path):
    whole = go(regression, 12)
    go(regression, 7, directory=tmp_path, every=3)
    newest = max(tmp_path.glob("*.pt"))
    content = bytearray(newest.read_bytes())
    at = content.find(torch.load(newest, weights_only=True)["meta"]["theta"].numpy().tobytes())
    assert at > 0
    content[at] ^= 1
    newest.write_bytes(bytes(content))
    resumed = go(regression, 12, directory=tmp_path, every=3)
    assert same(whole, resumed)
    assert newest.name in resumed.notes[0]


def test_where_all_checkpoints_are_damaged_it_starts_anew_and_says_so(regression, tmp_path):
    go(regression, 7, directory=tmp_path, every=3)
    for file in tmp_path.glob("*.pt"):
        file.write_bytes(b"PK nothing of ours")
    resumed = go(regression, 12, directory=tmp_path, every=3)
    assert same(go(regression, 12), resumed)
    assert len(resumed.notes) == KEPT


def test_a_checkpoint_is_data_alone(regression, tmp_path):
    """What torch's unpickler for weights does not take cannot run when it is loaded."""
    go(regression, 3, directory=tmp_path, snapshots=[1])
    assert all(torch.load(file, weights_only=True)["losses"].shape == (3,) for file in tmp_path.glob("*.pt"))


def test_only_the_newest_checkpoints_stay(regression, tmp_path):
    go(regression, 12, directory=tmp_path, every=2)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["update-00000010.pt", "update-00000012.pt"]


def test_killed_at_random_moments_it_still_ends_in_the_same_bits(tmp_path):
    expected = Apart(None).hear()
    moments = torch.rand(3, generator=torch.Generator().manual_seed(os.getpid())).tolist()
    for moment in moments:
        process, seen = Apart(tmp_path), sorted(tmp_path.glob("*.pt"))[-1:]
        while process.is_alive() and sorted(tmp_path.glob("*.pt"))[-1:] == seen:
            time.sleep(0.01)  # until it has got any further, so that the test cannot go on for ever
        time.sleep(0.2 * moment)
        process.kill()
    found = Apart(tmp_path).hear()
    assert torch.equal(found, expected), f"killed {moments} × 0.2 s after a checkpoint"


@pytest.mark.parametrize(
    ("changes", "culprit"),
    [
        ({"method": maml(3)}, "another method"),
        ({"optimizer": SGD}, "another optimizer"),
        ({"optimizer": partial(torch.optim.Adam, lr=2e-3)}, "another optimizer"),
        ({"updates": 2}, "training of 4 updates"),
        ({"seed": 1}, "another first task batch"),
        ({"xi": 1e-9}, "another xi"),
    ],
)
def test_a_directory_of_another_training_is_refused(changes, culprit, regression, tmp_path):
    go(regression, 4, directory=tmp_path)
    with pytest.raises(am.InputError, match=culprit):
        go(regression, **{"updates": 6, **changes}, directory=tmp_path)


def test_a_directory_of_another_start_is_refused(regression, tmp_path):
    go(regression, 4, directory=tmp_path)
    with pytest.raises(am.InputError, match="another start"):
        am.train(
            maml(), regression.problem, am.batches(regression.tasks, 2, 0), updates=6,
            meta=regression.theta + 1e-12, directory=tmp_path,
        )  # fmt: skip


def test_a_directory_of_another_loss_model_or_later_batch_is_refused(regression, tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1)).double()
    x = torch.linspace(-1, 1, 60, dtype=torch.float64).view(3, 10, 2)
    pool = am.TaskBatch(x, x.prod(-1, keepdim=True), x, x.sum(-1, keepdim=True))
    changed = am.TaskBatch(x, x.prod(-1, keepdim=True), x, x.sum(-1, keepdim=True) * 2)

    def train(updates, loss=torch.nn.functional.mse_loss, later=pool):
        problem = am.MetaProblem(model, loss, adapt=r"2\..*")
        batch = lambda update: pool if update == 0 else later  # noqa: E731
        return am.train(maml(), problem, batch, updates=updates, directory=tmp_path)

    train(4)
    with pytest.raises(am.InputError, match="another loss at the start"):
        train(6, loss=lambda p, t: 2 * torch.nn.functional.mse_loss(p, t))
    with pytest.raises(am.InputError, match="batch at update 3 was another"):
        train(6, later=changed)
    with torch.no_grad():
        model[0].weight.add_(1e-9)
    with pytest.raises(am.InputError, match="another frozen part of the model"):
        train(6)
