"""Collaborative filtering as meta-learning: a user is a task, a rated joke or film an example (Li et al. 2023, 5.3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np
import torch
from torch import Generator, Tensor

import amaml_core as am
from amaml_core.tasks import generator as generator_of
from bench.problems import data
from bench.problems.base import mlp
from bench.problems.training import Arena, Normaliser, TrainingProblem


@dataclass(frozen=True)
class Ratings(TrainingProblem):
    """A network with tanh predicts a user's rating from the one-hot item; plain mean squared error.

    A training task is a random user of those with at least ``shots + queries`` ratings, which is what resampling comes
    to, and random ratings of theirs, drawn anew for each batch. Test users have as many ratings at least: the network
    adapts to ``shots`` of them and is judged on all the others.

    Attributes:
        shots: support ratings a user.
        queries: query ratings a user.
        width: of each hidden layer.
        depth: number of hidden layers.
        items: the most rated items that are kept.
        min_ratings: of these items, that a user needs to be a task at all.
        normaliser: see ``TrainingProblem``; "range" is 20 for Jester and 4 for MovieLens.
        leak: the users of the test, their queries included, are among those of the training: a mistake, to see what
            it would do.
    """

    shots: int = 10
    queries: int = 15
    width: int = 40
    depth: int = 2
    items: int = 100
    min_ratings: int = 20
    normaliser: Normaliser = "range"
    leak: bool = False

    guesses = ("global-mean", "item-mean", "user-mean", "item-user-mean")

    source: ClassVar[str]

    def __post_init__(self) -> None:
        super().__post_init__()
        self._positive("shots", "queries", "width", "depth", "items", "min_ratings")

    def prepare(self, say: Callable[[str], None]) -> None:
        """See ``BenchProblem.prepare``: the data are fetched where they are not at hand, the tasks counted."""
        data.show_terms(self.source, say)
        if data.find(self.source) is None:
            say(f"Fetching {data.DATA[self.source].title} from {data.DATA[self.source].urls[0]}.")
            data.fetch(self.source)
        rated = _most_rated(self.source, self.items, self.min_ratings)[1].sum(1)
        able = int((rated >= self.shots + self.queries).sum())
        say(
            f"{data.DATA[self.source].title}: {len(rated):,} users rated at least {self.min_ratings} of the "
            f"{self.items} most rated items; {able:,} of them have enough for {self.shots} shots and {self.queries} "
            f"queries, of whom {self.test_tasks} are kept for the test."
        )

    def arena(self, seed: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Arena:
        """See ``TrainingProblem.arena``."""
        rating, rated = _most_rated(self.source, self.items, self.min_ratings)
        needed = self.shots + self.queries
        able = (rated.sum(1) >= needed).nonzero().squeeze(1)
        if len(able) < self.test_tasks + self.tasks:
            raise am.InputError(
                f"{data.DATA[self.source].title} has {len(able)} users with {needed} ratings; lower shots, queries, "
                "min_ratings or test_tasks."
            )
        draw = generator_of(seed, -1)
        able = able[torch.randperm(len(able), generator=draw)]
        testers, learners = able[: self.test_tasks], able if self.leak else able[self.test_tasks :]
        others = torch.ones(len(rating), dtype=torch.bool).index_fill_(0, testers, False)
        known = rating[others], rated[others]
        mean = float(known[0][known[1]].mean())
        shift, unit = (mean, float(known[0][known[1]].std(correction=0))) if self.standardise else (0.0, 1.0)

        one_hot = torch.eye(self.items, dtype=dtype, device=device)
        shots = _some(rated[testers], self.shots, draw)
        all_items = torch.arange(self.items).expand(self.test_tasks, -1)
        mask = rated[testers].scatter(1, shots, False)
        scaled = ((rating - shift) / unit).to(device, dtype)

        def tasks(users: Tensor, support: Tensor, query: Tensor) -> am.TaskBatch:
            mine, support, query = scaled[users], support.to(device), query.to(device)
            x = (one_hot[support], one_hot[query])
            y = (mine.gather(1, support).unsqueeze(-1), mine.gather(1, query).unsqueeze(-1))
            return am.TaskBatch(x[0], y[0], x[1], y[1])

        def batch(update: int) -> am.TaskBatch:
            draw = generator_of(seed, update)
            users = learners[torch.randperm(len(learners), generator=draw)[: self.tasks]]
            return tasks(users, *_some(rated[users], needed, draw).split([self.shots, self.queries], 1))

        problem = am.MetaProblem(mlp(self.items, self.width, self.depth), self._loss)
        theta = self._theta(problem, seed)
        problem.model.to(device, dtype)
        test = tasks(testers, shots, all_items)
        # an item that nobody else rated is guessed at the mean of all
        by_item = ((known[0] * known[1]).sum(0) / known[1].sum(0)).nan_to_num(mean)
        told = rating[testers].gather(1, shots)
        guesses = {
            "global-mean": torch.full_like(rating[testers], mean),
            "item-mean": by_item.expand(self.test_tasks, -1),
            "user-mean": told.mean(1, keepdim=True).expand(-1, self.items),
            "item-user-mean": by_item + (told - by_item[shots]).mean(1, keepdim=True),
        }
        return Arena(
            problem,
            theta.to(device, dtype),
            batch,
            test,
            query_mask=mask.to(device),
            unit=unit,
            target_range=data.DATA[self.source].highest - data.DATA[self.source].lowest,
            guesses={name: ((g - shift) / unit).unsqueeze(-1).to(device, dtype) for name, g in guesses.items()},
            counts={"users": len(rating), "training": len(learners), "test": self.test_tasks},
        )


def _some(allowed: Tensor, count: int, draw: Generator) -> Tensor:
    """``count`` different random columns where each row of ``allowed`` is true, ``[rows, count]``."""
    return torch.rand(allowed.shape, generator=draw, dtype=torch.float64).masked_fill(~allowed, -1).topk(count, 1)[1]


@cache
def _most_rated(source: str, items: int, min_ratings: int) -> tuple[Tensor, Tensor]:
    """Ratings ``[users, items]`` of the most rated items, and which exist; of users who rated enough of them.

    Items come in order of their ratings' number, ties in that of their own.
    """
    user, item, rating = data.load(source)
    count = np.bincount(item)
    kept = np.lexsort((np.arange(len(count)), -count))[:items]
    column = np.full(len(count), -1)
    column[kept] = np.arange(len(kept))
    mine = column[item] >= 0
    matrix = np.zeros((user.max() + 1, items))
    exists = np.zeros_like(matrix, dtype=bool)
    matrix[user[mine], column[item[mine]]] = rating[mine]
    exists[user[mine], column[item[mine]]] = True
    enough = exists.sum(1) >= min_ratings
    return torch.from_numpy(matrix[enough]), torch.from_numpy(exists[enough])


@dataclass(frozen=True)
class Jester(Ratings):
    """Ratings of 100 jokes from -10 to 10 by 24,983 users (Goldberg et al. 2001)."""

    text = "meta-training on the joke ratings of Jester-1"
    source = "jester"


@dataclass(frozen=True)
class MovieLens100K(Ratings):
    """Ratings of films from 1 to 5 by 943 users (Harper and Konstan 2015)."""

    text = "meta-training on the film ratings of MovieLens-100K"
    source = "movielens_100k"


@dataclass(frozen=True)
class MovieLens1M(Ratings):
    """Ratings of films from 1 to 5 by 6,040 users (Harper and Konstan 2015)."""

    text = "meta-training on the film ratings of MovieLens-1M"
    source = "movielens_1m"
