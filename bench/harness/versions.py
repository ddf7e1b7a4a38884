"""The version of what defines a cell's number, and whose code that is."""

from __future__ import annotations

import os
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from amaml_core import METHODS, InputError
from bench import sources
from bench.peers import PEERS
from bench.probes import PROBES
from bench.problems import PROBLEMS

WORKER = "bench.harness.worker"
FORMS = ("bench.records", "bench.sources")  # how answers are written down, and versions made, makes no number
ROOT = Path(__file__).parents[2]
# of the environment, what would have git look at another repository
ELSEWHERE = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY", "GIT_NAMESPACE")


def benchmark_version(problem: str, method: str, probe: str) -> str:
    """The hash of what is behind the numbers of such cells, read from the disk anew each time.

    That is the code that the method, the problem and the probe rest on, the worker, and of a peer the versions of the
    packages that it stands for.

    Raises:
        InputError: there is no file of a method or problem that was registered.
    """
    named = [PROBLEMS[problem], *(registry[method] for registry in (METHODS, PEERS) if method in registry)]
    packages = [f"{name} {installed(name)}" for name in PEERS[method].packages] if method in PEERS else []
    return sources.digest(files(problem, method, probe), *(one.__qualname__ for one in named), *packages)


def files(problem: str, method: str, probe: str) -> dict[str, Path]:
    """The modules that such a number rests on: name -> file. A method of no registry is the problem's own."""
    named = [PROBLEMS[problem], *(registry[method] for registry in (METHODS, PEERS) if method in registry)]
    modules = [PROBES[probe], *(one.__module__ for one in named)]
    try:
        return sources.closure(modules, FORMS) | sources.only(WORKER)
    except ModuleNotFoundError as error:
        raise InputError(f"{error} Its rows could not be told from those of other code; put it into a file.") from None


def installed(package: str) -> str:
    """The version of an installed package, or empty."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def git_revision(root: Path = ROOT) -> str:
    """The commit of the suite's own sources in ``root``, with "+dirty" where they differ from it.

    Empty where they are not those of a repository of their own: installed, unpacked or copied into somebody else's.
    """
    packages = list(sources.OURS)
    top, _, revision = _git(root, "rev-parse", "--show-toplevel", "--short=12", "HEAD").partition("\n")
    if top != str(root.resolve()) or not _git(root, "ls-files", *packages):
        return ""
    changed = _git(root, "status", "--porcelain", "--untracked-files=all", "--", *packages)
    return f"{revision}+dirty" if changed else revision


def _git(root: Path, *arguments: str) -> str:
    """What git says of the repository around a directory, whatever the environment names; empty where it fails."""
    own = {key: value for key, value in os.environ.items() if key not in ELSEWHERE}
    try:
        command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
        done = subprocess.run(command, env=own, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
