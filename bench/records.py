"""Cells, records and the append-only store: what was asked, what came out, where it is kept.

A cell is one question (problem, method, options, probe); a record is one answer to it, one JSON line in
``records.jsonl``. This module imports no torch, so that reports can read a store anywhere.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, ValidationError

SCHEMA_VERSION = 2
READABLE = (1, SCHEMA_VERSION)
RECORDS_FILE = "records.jsonl"
KEY_PACKAGES = ("torch", "torchdiffeq", "numpy", "scipy")  # that make the numbers, or the references for them

Status = Literal["ok", "skipped", "diverged", "oom", "timeout", "crashed"]
TIMED_PROBES = frozenset({"floor", "time"})
RESUMED_PROBES = frozenset({"quality"})  # they take long and keep what they have reached beside the records
FINAL_STATUSES = frozenset({"ok", "diverged", "oom", "timeout"})  # crashed and skipped are tried again


@dataclass(frozen=True)
class Metric:
    """What a metric means.

    Attributes:
        unit: of the value; the name carries it too.
        better: "lower", "higher" or "neither".
        key: which environment key must agree before two values may be compared.
        text: one line for people.
    """

    unit: str
    better: Literal["lower", "higher", "neither"]
    key: Literal["counter_key", "timing_key"]
    text: str


METRICS: dict[str, Metric] = {
    "outer_update_seconds": Metric("s", "lower", "timing_key", "median time of one meta-gradient"),
    "floor_seconds": Metric("s", "lower", "timing_key", "its matrix products and activations alone"),
    "compile_seconds": Metric(
        "s", "lower", "timing_key", "compiling and capturing before the first update, cache on disk used"
    ),
    "peak_live_bytes": Metric("B", "lower", "counter_key", "peak tensor bytes above the resting level, eager engine"),
    "peak_saved_bytes": Metric("B", "lower", "counter_key", "the most of it that autograd held for a backward pass"),
    "peak_allocated_bytes": Metric("B", "lower", "counter_key", "the allocator's own peak above the resting level"),
    "peak_cuda_allocated_bytes": Metric("B", "lower", "counter_key", "the same on CUDA, in the allocator's blocks"),
    "graph_peak_bytes": Metric("B", "lower", "counter_key", "the most allocated at once in a CUDA graph"),
    "graph_pool_bytes": Metric("B", "lower", "counter_key", "what CUDA graphs hold of the allocator's memory"),
    "graph_exec_bytes": Metric("B", "lower", "counter_key", "executable CUDA graphs, outside the allocator"),
    "captured_bytes": Metric("B", "lower", "counter_key", "all that an update in CUDA graphs takes and keeps"),
    "peak_cuda_requested_bytes": Metric("B", "lower", "counter_key", "the same on CUDA, as requested of the allocator"),
    "device_used_bytes": Metric("B", "neither", "timing_key", "memory in use on the whole GPU after it (NVML)"),
    "peak_rss_bytes": Metric("B", "lower", "timing_key", "peak resident memory of the worker process"),
    "grad_evals": Metric("1", "lower", "counter_key", "batched gradients of the support loss"),
    "hvp_evals": Metric("1", "lower", "counter_key", "batched Hessian-vector products of the support loss"),
    "states_stored": Metric("1", "lower", "counter_key", "parameter vectors a task that are kept for the way back"),
    "forward_steps": Metric("1", "lower", "counter_key", "accepted steps of the inner solve"),
    "flops": Metric("1", "lower", "counter_key", "floating-point operations of matrix products and convolutions"),
    "dispatched_ops": Metric("1", "lower", "counter_key", "operators that reached the dispatcher"),
    "rel_error_flow": Metric("1", "lower", "counter_key", "relative L2 distance to the gradient of the flow at T"),
    "rel_error_unrolled": Metric("1", "lower", "counter_key", "relative L2 distance to the gradient of K GD steps"),
    "rel_error_stationary": Metric("1", "lower", "counter_key", "relative L2 distance to the implicit gradient"),
    "cosine_flow": Metric("1", "higher", "counter_key", "cosine with the gradient of the flow"),
    "cosine_unrolled": Metric("1", "higher", "counter_key", "cosine with the gradient of K GD steps"),
    "nrmse": Metric(
        "1", "lower", "counter_key", "mean over test tasks of the RMSE over what the problem normalises by"
    ),
    "accuracy": Metric("1", "higher", "counter_key", "mean over test tasks of the share of queries that are right"),
    "outer_updates": Metric("1", "neither", "counter_key", "outer updates made"),
    "train_seconds": Metric("s", "lower", "timing_key", "all outer updates, on one core beside another training"),
    "test_seconds": Metric("s", "neither", "timing_key", "all adaptation curves of the test tasks"),
    "users_tasks": Metric("1", "neither", "counter_key", "tasks in the data"),
    "training_tasks": Metric("1", "neither", "counter_key", "tasks that batches are drawn from"),
    "test_tasks": Metric("1", "neither", "counter_key", "tasks of the meta-test"),
    "excluded_tasks": Metric("1", "neither", "counter_key", "test tasks whose normaliser is zero, left out of nrmse"),
    "target_range": Metric("1", "neither", "counter_key", "the largest possible target less the smallest"),
    "query_loss": Metric("1", "lower", "counter_key", "mean query loss at the end of the trajectory"),
    "draws": Metric("1", "neither", "counter_key", "networks that a setting was tried on"),
    "near_draws": Metric("1", "neither", "counter_key", "draws whose gradient is within 1 %"),
    "far_draws": Metric("1", "neither", "counter_key", "draws whose gradient is more than 10 % off"),
    "alarmed_draws": Metric("1", "lower", "counter_key", "draws within 1 % that are not told to be ok, kinks apart"),
    "kinked_draws": Metric("1", "neither", "counter_key", "draws of a loss with kinks that are told to go across them"),
    "ok_draws": Metric("1", "neither", "counter_key", "draws told to be ok"),
    "missed_draws": Metric("1", "lower", "counter_key", "draws told to be ok that are more than 10 % off"),
    "estimated_draws": Metric("1", "neither", "counter_key", "draws told to be ok with an estimate of their error"),
    "exceeded_draws": Metric("1", "lower", "counter_key", "of these, whose error is above 3 times the estimate"),
    "reference_mismatch": Metric(
        "1", "lower", "counter_key", "of references from central differences, relative to them"
    ),
    "met_draws": Metric(
        "1", "higher", "counter_key", "updates whose gradient is within the grad_rtol that was asked for"
    ),
    "unmet_told_draws": Metric("1", "neither", "counter_key", "updates that are not within it and are told so"),
    "price": Metric("1", "lower", "counter_key", "of a first update, in gradients of the inner loss"),
    "next_price": Metric("1", "lower", "counter_key", "of the update after that, likewise"),
    "error_estimate": Metric("1", "lower", "counter_key", "the method's own estimate of its error, a mean over tasks"),
    "rel_error": Metric("1", "lower", "counter_key", "relative error of a first update, to the gradient of the flow"),
    "next_rel_error": Metric("1", "lower", "counter_key", "relative error of that update's gradient"),
    "not_converged_tasks": Metric("1", "lower", "counter_key", "tasks whose solver stopped short of its tolerance"),
    "inaccurate_tasks": Metric("1", "lower", "counter_key", "tasks whose gradient is told to be inaccurate"),
}


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Cell(_Frozen):
    """One question. ``options`` is fully resolved and always holds ``inner_steps`` and ``inner_lr``."""

    problem: str
    problem_options: dict[str, Any] = Field(default_factory=dict)
    method: str
    options: dict[str, Any]
    engine: str = "eager"
    probe: str
    replicate: int = 0
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"

    @property
    def cell_id(self) -> str:
        """The first 16 hex digits of the SHA-256 of the canonical cell (sorted keys, no spaces)."""
        return hashlib.sha256(canonical_json(self.model_dump()).encode()).hexdigest()[:16]

    @property
    def label(self) -> str:
        """A name for people: probe/problem/method and the trajectory length."""
        options = self.options
        telling = ("num_states", "forward", "backward", "solver", "rtol", "variant")
        extra = "".join(f" {k}={options[k]}" for k in telling if k in options)
        extra += "" if self.engine == "eager" else f" {self.engine}"
        if "outer_updates" in (asked := self.problem_options):
            extra += f" {asked['shots']}shot-{asked['queries']}val G={asked['outer_updates']} seed={self.seed}"
        horizon = options["inner_steps"] * options["inner_lr"]
        return f"{self.probe}/{self.problem}/{self.method} K={options['inner_steps']} T={horizon:g}{extra} {self.dtype}"


class Record(_Frozen):
    """One answer: a line of the store.

    ``target`` is what the method with these options estimates, as the worker told it; empty where no worker answered.
    """

    schema_version: int = SCHEMA_VERSION
    benchmark_version: str
    sweep: str
    cell_id: str
    cell: Cell
    target: str = ""
    status: Status
    reason: str = ""
    metrics: dict[str, float | int] = Field(default_factory=dict)
    samples: dict[str, list[float]] = Field(default_factory=dict)
    environment: dict[str, Any]
    started_at: str
    duration_s: float

    @property
    def identity(self) -> tuple[str, str, str]:
        """Rows of the same identity answer the same question; the last one counts."""
        key = environment_key(self.cell.probe)
        return self.cell_id, self.benchmark_version, str(self.environment.get(key, ""))


def environment_key(probe: str) -> Literal["counter_key", "timing_key"]:
    """The environment key under which a probe's answers are comparable."""
    return "timing_key" if probe in TIMED_PROBES else "counter_key"


def counter_key(packages: Mapping[str, str], device: str, gpu: str = "") -> str:
    """What counters and gradients depend on besides the benchmark's own code.

    Args:
        packages: name -> version; of ``KEY_PACKAGES`` those that are installed.
        device: "cpu" or "cuda".
        gpu: its model, or empty.
    """
    versions = [f"{name} {packages[name].split('+')[0]}" for name in KEY_PACKAGES if packages.get(name)]
    return " | ".join(filter(None, [*versions, device, gpu]))


def canonical_json(value: Any) -> str:
    """JSON with one spelling per value; NaN and infinities are refused with ValueError."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def current(records: Iterable[Record]) -> list[Record]:
    """The last record of each identity, in the order in which the identities first appeared."""
    latest: dict[tuple[str, str, str], Record] = {}
    for record in records:
        latest[record.identity] = record
    return list(latest.values())


class StoreBusyError(RuntimeError):
    """Another process writes to this store."""


@dataclass(frozen=True)
class Store:
    """A directory with one append-only ``records.jsonl``. Only the runner writes, under a lock."""

    directory: Path

    @property
    def path(self) -> Path:
        """The file of the records."""
        return self.directory / RECORDS_FILE

    def read(self) -> tuple[list[Record], list[str]]:
        """All readable records in order, and one sentence for each line that could not be read."""
        if not self.path.exists():
            return [], []
        records, complaints = [], []
        for number, line in enumerate(self.path.read_bytes().split(b"\n"), start=1):
            if not line.strip():
                continue
            try:
                data = json.loads(line)
                if str(data.get("schema_version")) not in map(str, READABLE):
                    complaints.append(
                        f"{self.path}:{number}: schema version {data.get('schema_version')} is none of "
                        f"{', '.join(map(str, READABLE))}; the line is skipped."
                    )
                    continue
                records.append(Record.model_validate(_upgraded(data)))
            except (ValueError, ValidationError, AttributeError, KeyError, TypeError, RecursionError):
                complaints.append(f"{self.path}:{number}: not a whole record (torn or edited); the line is skipped.")
        return records, complaints

    @contextmanager
    def writer(self) -> Iterator[StoreWriter]:
        """The one writer of this store.

        Raises:
            StoreBusyError: another process holds the lock. A killed process holds none.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.directory / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise StoreBusyError(
                f"Another run writes to {self.directory}; wait for it or choose another --out."
            ) from None
        try:
            yield StoreWriter(self.path)
        finally:
            lock.release()


@dataclass(frozen=True)
class StoreWriter:
    """Appends whole, fsynced lines."""

    path: Path

    def append(self, record: Record) -> None:
        """Write one record as one line and return when it is on the disk.

        A half-written line of a killed run is closed first, so that it cannot swallow this one; a write that fails
        (a full disk) leaves the file as it was before.
        """
        line = canonical_json(record.model_dump()).encode() + b"\n"
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            size = os.lseek(descriptor, 0, os.SEEK_END)
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                line = b"\n" + line
            try:
                view = memoryview(line)
                while view:
                    view = view[os.write(descriptor, view) :]
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, size)
                raise
        finally:
            os.close(descriptor)


def _upgraded(data: dict[str, Any]) -> dict[str, Any]:
    """A row in today's schema: in the first one the keys told torch's version alone, though the others were known."""
    if data["schema_version"] == SCHEMA_VERSION:
        return data
    told = data["environment"]
    before, versions = told["counter_key"], {name: told["packages"][name] for name in KEY_PACKAGES}
    _, agree, machine = told["timing_key"].partition(before)
    if not agree or not before.startswith(f"torch {versions['torch'].split('+')[0]} | "):
        raise ValueError("its keys do not fit each other and the packages")
    key = counter_key(versions, data["cell"]["device"], told["gpu"])
    keys = {"counter_key": key, "timing_key": key + machine}
    return data | {"schema_version": SCHEMA_VERSION, "environment": told | keys}
