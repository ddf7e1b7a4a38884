"""What machine, versions and settings a number was measured with."""

from __future__ import annotations

import os
import platform
import re
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from amaml_core import InputError
from bench.harness.versions import git_revision, installed
from bench.peers import PEERS
from bench.records import KEY_PACKAGES, counter_key

PEER_PACKAGES = dict.fromkeys(package for peer in PEERS.values() for package in peer.packages)
PACKAGES = ("amaml-bench", *KEY_PACKAGES, "jaxtyping", "pydantic", *PEER_PACKAGES)
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
CGROUP = Path("/sys/fs/cgroup")
CGROUP_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
)
BUSY_CORES = 0.25  # others' work from which on times are not to be trusted


@dataclass(frozen=True)
class Moment:
    """What changes while a sweep runs; never a key.

    Attributes:
        load: the 1-minute load average.
        memory_available_bytes: to new processes.
        cpu_mhz: current clock, 0 where it is not told.
        gpu_mhz: current clock of the GPU's multiprocessors, 0 without a GPU.
        gpu_throttling: why the GPU runs below its clock (NVML's reasons), empty where it does not.
    """

    load: float
    memory_available_bytes: int
    cpu_mhz: int
    gpu_mhz: int
    gpu_throttling: str


@dataclass(frozen=True)
class Environment(Moment):
    """The environment of a record. Two records may be compared only where the key that their metric needs agrees.

    Attributes:
        counter_key: versions of ``KEY_PACKAGES``, device kind, GPU model: what counters and gradients depend on.
        timing_key: that, the CPU model, its cores and the threads used: what times depend on besides.
        python: its version.
        system: kernel and architecture.
        cpu: model name.
        cores: that this process may use.
        threads: that torch uses inside an operator.
        governor: of the CPU's clock, or empty.
        memory_bytes: of the machine.
        blas: that torch was built with.
        cpu_capability: the instruction set that torch's kernels use.
        gpu: model, or empty.
        driver: of the GPU, or empty.
        packages: name -> version.
        git_revision: see ``versions.git_revision``; never a key.
    """

    counter_key: str
    timing_key: str
    python: str
    system: str
    cpu: str
    cores: int
    threads: int
    governor: str
    memory_bytes: int
    blas: str
    cpu_capability: str
    gpu: str
    driver: str
    packages: dict[str, str]
    git_revision: str


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
    return len(_usable())


def _usable() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def available_memory() -> int:
    """Bytes that new processes may take: what the machine has free, and a container's own limit."""
    free = psutil.virtual_memory().available
    for limit, used, cache in CGROUP_FILES:
        with suppress(OSError, ValueError, KeyError):  # no such file, or no limit
            stat = dict(line.split() for line in (CGROUP / limit).with_name("memory.stat").read_text().splitlines())
            kept = int((CGROUP / used).read_text()) - int(stat[cache])  # the cache of files makes room when asked
            free = min(free, int((CGROUP / limit).read_text()) - kept)
    return max(free, 0)


def busy(seconds: float = 0.5) -> str:
    """A warning where other processes use this one's cores just now, watched for so long; else empty."""
    used = cores_taken(seconds)
    if used < BUSY_CORES:
        return ""
    return (
        f"The machine is busy ({used:.1f} of {usable_cores()} cores in use): times will be noisy; stop what else runs."
    )


def cores_taken(seconds: float) -> float:
    """How many of this process's cores are in use just now, watched for so long while nothing of ours runs."""
    shares = psutil.cpu_percent(interval=seconds, percpu=True)
    return sum(shares[core] for core in _usable() if core < len(shares)) / 100


def describe(device: str, threads: int) -> dict[str, Any]:
    """The environment of measurements on ``device`` with ``threads`` torch threads, as plain JSON."""
    gpu = torch.cuda.get_device_name() if device == "cuda" else ""
    packages = {name: found for name in PACKAGES if (found := installed(name))} | {"torch": torch.__version__}
    key = counter_key(packages, device, gpu)
    cpu, cores = _cpu_model(), usable_cores()
    blas = re.search(r"BLAS_INFO=(\w+)", torch.__config__.show())
    return asdict(
        Environment(
            **moment(device),
            counter_key=key,
            timing_key=f"{key} | {cpu} | {cores} cores | {threads} threads",
            python=platform.python_version(),
            system=f"{platform.system()} {platform.machine()}",
            cpu=cpu,
            cores=cores,
            threads=threads,
            governor=GOVERNOR.read_text().strip() if GOVERNOR.exists() else "",
            memory_bytes=psutil.virtual_memory().total,
            blas=blas[1] if blas else "",
            cpu_capability=torch.backends.cpu.get_cpu_capability(),
            gpu=gpu,
            driver=_driver() if device == "cuda" else "",
            packages=packages,
            git_revision=git_revision(),
        )
    )


def moment(device: str) -> dict[str, Any]:
    """What is to be said of this moment, as plain JSON."""
    clock = psutil.cpu_freq() if hasattr(psutil, "cpu_freq") else None
    gpu_mhz, gpu_throttling = _gpu_clock() if device == "cuda" else (0, "")
    return asdict(
        Moment(
            load=round(psutil.getloadavg()[0], 2),
            memory_available_bytes=available_memory(),
            cpu_mhz=round(clock.current) if clock else 0,
            gpu_mhz=gpu_mhz,
            gpu_throttling=gpu_throttling,
        )
    )


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _driver() -> str:
    import pynvml

    try:
        pynvml.nvmlInit()
        return pynvml.nvmlSystemGetDriverVersion()
    except pynvml.NVMLError:
        return ""


def _gpu_clock() -> tuple[int, str]:
    """The clock in MHz and the reasons for throttling by NVML's names; nothing where NVML does not answer."""
    import pynvml

    try:
        pynvml.nvmlInit()
        # by its UUID: the order of CUDA_VISIBLE_DEVICES is not NVML's
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties().uuid}")
        reasons = pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
        clock = pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM)
    except pynvml.NVMLError:
        return 0, ""
    prefix = "nvmlClocksThrottleReason"
    named = {name.removeprefix(prefix): bit for name, bit in vars(pynvml).items() if name.startswith(prefix)}
    return clock, ", ".join(sorted(name for name, bit in named.items() if bit and bit & reasons == bit))
