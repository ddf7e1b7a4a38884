"""The version of what defines a cell's number, and whose code that is."""

from __future__ import annotations

import hashlib
import os
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from amaml_core import METHODS
from bench import sources
from bench.peers import PEERS
from bench.problems import PROBLEMS

WORKER = "bench.harness.worker"
FORMS = ("bench.records",)  # how questions and answers are written down makes no number
ROOT = Path(__file__).parents[2]


def benchmark_version(problem: str, method: str, probe: str) -> str:
    """The hash of the code behind the numbers of such cells, read from the disk anew each time.

    That is what the method, the problem and the probe rest on, the worker, and of a peer the versions of the packages
    that it stands for.
    """
    own = sources.digest(sources.closure(roots(problem, method, probe), FORMS) | sources.only(WORKER))
    if method not in PEERS:
        return own
    told = [f"{name} {installed(name)}" for name in PEERS[method].packages]
    return hashlib.sha256(" ".join([own, *told]).encode()).hexdigest()[: sources.DIGITS]


def roots(problem: str, method: str, probe: str) -> list[str]:
    """The modules that a cell names; a method of no registry is the problem's own."""
    named = [registry[method].__module__ for registry in (METHODS, PEERS) if method in registry]
    return [PROBLEMS[problem].__module__, f"bench.probes.{probe}", *named]


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
    own = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    try:
        command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
        done = subprocess.run(command, env=own, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
