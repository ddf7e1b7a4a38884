"""What stands in for a user's data and console, and for times."""

import math

import numpy as np

from bench.probes import load
from bench.problems import make_problem


def ratings(users=70, items=40, seed=0):
    """Users, items and ratings from 1 to 5, sorted, every user having rated 20 items or more."""
    rng = np.random.default_rng(seed)
    rated = rng.random((users, items)) < np.linspace(0.95, 0.6, items)
    rated[:, :20] = True
    user, item = np.nonzero(rated)
    level = 3 + np.sin(np.arange(items))[item] + rng.normal(0, 0.6, users)[user] + rng.normal(0, 0.5, len(user))
    return user + 1, item + 1, level.round().clip(1, 5)


class Quiet:
    """A reporter that says nothing and remembers what progress it heard of."""

    def __init__(self):
        self.progress = []

    def started(self, cell):
        pass

    def progressed(self, cell, done, total):
        self.progress.append((cell.method, done, total))

    def finished(self, record):
        pass


CASES = [f"case{i}" for i in range(10)]


def blocks(seed, count=14, slower=0.0, noise=0.02, cases=CASES, control=0.0):
    """Observations of A, B and C in which B is slower in the first case."""
    rng = np.random.default_rng(seed)

    def observe(letter):
        shift = {"A": 0.0, "B": slower, "C": control}[letter]
        return {n: math.exp(rng.normal(0, noise) + (shift if n == cases[0] else 0.0)) for n in cases}

    return [{letter: [observe(letter), observe(letter)] for letter in "ABC"} for _ in range(count)]


def measured(make_cell, probe, method, **options):
    """One cell on a small CosMixture through a probe, in this process."""
    cell = make_cell(method, probe, **options)
    return load(probe)(make_problem("cosmixture", {"shots": 5, "width": 4}), cell)


# the source of an operator whose derivative is wrong
HALF = """
class Half(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, g):
        return g
"""
