"""A model and tasks of the user's own, from a function in a file."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import random
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import amaml_core as am
from bench import cache, sources
from bench.problems.base import Gradient, MetaBenchProblem
from bench.records import Cell

MAX_EVALUATIONS = 1000  # of the inner loss, for one reference
Sampler = Callable[[int], am.TaskBatch]
held: dict[Path, bytes] = {}
"""Files that a user's own imports, as they were when this process first loaded that: it may hold modules of them."""


@dataclass(frozen=True)
class Custom(MetaBenchProblem):
    """What ``FILE.py:NAME`` makes: a function without arguments that returns a ``MetaProblem`` and a task sampler.

    The sampler is called with a seed and returns a ``TaskBatch``; θ is the model's own values. The generators of
    torch, NumPy and Python are seeded before either is called.

    Attributes:
        factory: "FILE.py:NAME".
        source: hash of the file and of those beside and below it that it imports, so that a changed one asks another
            question; found out where it is not given. Data files are not part of it.
        chunk_size: tasks that are worked on at once, where the problem's own number is not wanted.
    """

    factory: str = field(kw_only=True)
    source: str = field(default="", kw_only=True)
    chunk_size: int | None = field(default=None, kw_only=True)

    text = "your own model and tasks, from FILE.py:NAME"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chunk_size is not None:
            self._positive("chunk_size")
        path, _, name = str(self.factory).rpartition(":")
        if not path or not name.isidentifier():
            raise am.InputError(f"{self.factory!r} is not of the form FILE.py:NAME; name the function after a colon.")
        if not Path(path).is_file():
            raise am.InputError(f"There is no file {path}; check the path before the colon.")
        object.__setattr__(self, "source", _hash(self._files()))

    def instance(
        self, seed: int, sample: int, dtype: torch.dtype = torch.float64, device: str = "cpu"
    ) -> tuple[am.MetaProblem, Tensor, am.TaskBatch]:
        """See ``MetaBenchProblem.instance``: tasks follow from the seed, the model from the seed and the sample.

        Raises:
            InputError: the file, the function or what it returns is not usable.
        """
        problem, sampler = self._made(seed * 100_003 + sample)
        theta = problem.initial_parameters(seed=None)
        problem.chunk_size = self.chunk_size or problem.chunk_size
        problem.model.to(device, dtype)
        for loss in (problem.inner_loss, problem.outer_loss):
            if isinstance(loss, nn.Module):
                loss.to(device, dtype)
        return problem, theta.to(device, dtype), self._drawn(sampler, seed).to(device, dtype)

    def sampler(self, dtype: torch.dtype, device: str = "cpu") -> Sampler:
        """The user's own sampler: seed -> tasks; it raises ``InputError`` where those are not usable."""
        _, sampler = self._made(0)
        return lambda seed: self._drawn(sampler, seed).to(device, dtype)

    def _drawn(self, sampler: Sampler, seed: int) -> am.TaskBatch:
        tasks = _seeded(seed, lambda: sampler(seed))
        if not isinstance(tasks, am.TaskBatch):
            raise am.InputError(f"The sampler of {self.factory} returned a {type(tasks).__name__}, not a TaskBatch.")
        if tasks.horizon is not None:
            raise am.InputError(
                f"The sampler of {self.factory} sets TaskBatch.horizon; leave it out, the steps and inner_lr set it."
            )
        return tasks

    def prepare(self, say: Callable[[str], None]) -> None:
        """See ``BenchProblem.prepare``: the model's own derivatives are held against the plain module's.

        Raises:
            InputError: see ``check``.
        """
        for note in self.check().notes:
            say(note)

    def check(self, device: str = "cpu") -> am.Check:
        """Hold the model's derivatives against the plain module's; its cells, in other processes, go by the verdict.

        Raises:
            InputError: a derivative is wrong, or the file, the function or what it returns is not usable.
        """
        path = self._verdict(device)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", am.ModelWarning)  # they are among the notes
                found = am.check(*self.instance(0, 0, self.dtype(), device))
        except am.InputError as error:
            path.write_text(json.dumps({"refused": str(error)}))
            raise
        path.write_text(json.dumps({"dtype": str(found.dtype).removeprefix("torch.")}))
        return found

    def checked(self, device: str = "cpu") -> torch.dtype:
        """The dtype of references, by the last ``check`` of this problem, or by one that is made now.

        Raises:
            InputError: see ``check``.
        """
        try:
            verdict = json.loads(self._verdict(device).read_text())
        except (OSError, ValueError):  # not there, or torn
            return self.check(device).dtype
        if "refused" in verdict:
            raise am.InputError(verdict["refused"])
        return getattr(torch, verdict["dtype"])

    def _verdict(self, device: str) -> Path:
        code = sources.digest(sources.closure(["amaml_core.check"]), torch.__version__, device)
        digest = hashlib.sha256(f"{Path(self.factory).resolve()} {self.source} {code}".encode())
        return cache.folder("checks") / f"{digest.hexdigest()[:32]}.json"

    def update(self, cell: Cell, sample: int) -> Callable[[], Gradient]:
        """See ``BenchProblem.update``; of a model that was checked."""
        self.checked(cell.device)
        return super().update(cell, sample)

    def reference_dtype(self) -> torch.dtype:
        """See ``MetaBenchProblem.reference_dtype``: the model's own where it or its loss holds tensors of that."""
        return self.checked()

    def dtype(self) -> torch.dtype:
        """The dtype of the model as it comes."""
        return self._made(0)[0].initial_parameters(seed=None).dtype

    def reference_settings(self, options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """See ``MetaBenchProblem.reference_settings``; a flow that is not smooth enough is given up in bounded time.

        A smooth model of a few thousand parameters takes about a hundred evaluations. Where the loss has kinks (ReLU,
        max-pooling) its gradient jumps, no solver of high order gets ahead, and references at two tolerances differ by
        percents. The stationary reference would be too dear.
        """
        wanted = super().reference_settings(options)
        rough = {"rtol": 1e-6, "max_evaluations": MAX_EVALUATIONS}
        return {"flow": wanted["flow"] | rough, "unrolled": wanted["unrolled"]}

    def _files(self) -> dict[Path, bytes]:
        """What ``source`` is the hash of, now.

        Raises:
            InputError: it is no longer that.
        """
        path = Path(self.factory.rpartition(":")[0])
        found = {file: file.read_bytes() for file in sources.beside(path)}
        if self.source not in ("", _hash(found)):
            raise am.InputError(f"{path}, or a file that it imports, has changed since this sweep began; run again.")
        return found

    def _made(self, seed: int) -> tuple[am.MetaProblem, Sampler]:
        path, _, name = self.factory.rpartition(":")
        for file, content in self._files().items():
            # the file itself is executed anew each time
            if file != Path(path) and held.setdefault(file.resolve(), content) != content:
                raise am.InputError(f"{file} has changed since this process loaded it; run again.")
        made = _seeded(seed, lambda: getattr(_load(path), name, None))
        if not callable(made):
            raise am.InputError(f"{path} has no function {name!r}; check the name after the colon.")
        made = _seeded(seed, made)
        if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], am.MetaProblem)):
            raise am.InputError(
                f"{self.factory} returned a {type(made).__name__}; it must return (MetaProblem, sampler), "
                "see `amaml-bench profile --template`."
            )
        return made


def _hash(files: Mapping[Path, bytes]) -> str:
    digest = hashlib.sha256()
    for file, content in files.items():
        digest.update(str(file).encode() + b"\0" + content + b"\0")
    return digest.hexdigest()[:12]


def _load(path: str) -> Any:
    spec = importlib.util.spec_from_file_location("amaml_bench_custom", path)
    if spec is None or spec.loader is None:
        raise am.InputError(f"{path} is not a Python file; its name must end in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses and pickle look for it
    folder = str(Path(path).resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)  # what lies beside the file can be imported, as if it were run
    spec.loader.exec_module(module)
    return module


def _seeded(seed: int, make: Callable[[], Any]) -> Any:
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    before = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002  # the global one is what careless code draws from
            random.seed(seed)
            return make()
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
