"""What machine, versions and settings a number was measured with."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

from amaml_core import InputError

PACKAGES = ("amaml-bench", "torch", "torchdiffeq", "numpy", "scipy", "jaxtyping", "pydantic")


@dataclass(frozen=True)
class Environment:
    """The environment of a record. Two records may be compared only where the key that their metric needs agrees.

    Attributes:
        counter_key: torch version, device kind, GPU model: what counters and gradients depend on.
        timing_key: that, the CPU model, its cores and the threads used: what times depend on besides.
        python: its version.
        system: kernel and architecture.
        cpu: model name.
        cores: that this process may use.
        threads: that torch uses inside an operator.
        memory_bytes: of the machine.
        gpu: model, or empty.
        driver: of the GPU, or empty.
        packages: name -> version.
        git_revision: of the working directory's checkout, with "+dirty" where it has changes; never a key.
        load: the 1-minute load average at the start; never a key.
    """

    counter_key: str
    timing_key: str
    python: str
    system: str
    cpu: str
    cores: int
    threads: int
    memory_bytes: int
    gpu: str
    driver: str
    packages: dict[str, str]
    git_revision: str
    load: float


def choose_device(asked: str | None) -> str:
    """The device to measure on: what was asked for, else CUDA where there is one, else the CPU.

    Raises:
        InputError: the device is unknown or not there.
    """
    if asked not in (None, "cpu", "cuda"):
        raise InputError(f"Unknown device {asked!r}; choose cpu or cuda.")
    if asked == "cuda" and not torch.cuda.is_available():
        raise InputError("This machine has no CUDA device that torch can use; run with --device cpu.")
    return asked or ("cuda" if torch.cuda.is_available() else "cpu")


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe(device: str, threads: int) -> dict[str, Any]:
    """The environment of measurements on ``device`` with ``threads`` torch threads, as plain JSON."""
    gpu, driver = _gpu() if device == "cuda" else ("", "")
    counter_key = " | ".join(filter(None, [f"torch {torch.__version__.split('+')[0]}", device, gpu]))
    cpu, cores = _cpu_model(), usable_cores()
    return asdict(
        Environment(
            counter_key=counter_key,
            timing_key=f"{counter_key} | {cpu} | {cores} cores | {threads} threads",
            python=platform.python_version(),
            system=f"{platform.system()} {platform.machine()}",
            cpu=cpu,
            cores=cores,
            threads=threads,
            memory_bytes=psutil.virtual_memory().total,
            gpu=gpu,
            driver=driver,
            packages={name: found for name in PACKAGES if (found := _version(name))},
            git_revision=_git_revision(),
            load=round(psutil.getloadavg()[0], 2),
        )
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _gpu() -> tuple[str, str]:
    import pynvml

    try:
        pynvml.nvmlInit()
        return torch.cuda.get_device_name(), pynvml.nvmlSystemGetDriverVersion()
    except pynvml.NVMLError:
        return torch.cuda.get_device_name(), ""


def _git_revision() -> str:
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+dirty"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
