import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for what tests share, under every import mode of pytest

from stand_ins import Quiet
from stand_ins import ratings as synthetic_ratings

from bench.__main__ import main
from bench.commands import sweeping
from bench.harness import runner
from bench.problems import data
from bench.records import Cell, Record, Store, current


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)  # several processes of several threads wait for each other more than they work


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """No test reads or fills the user's cache, nor reads the user's data."""
    monkeypatch.setenv("AMAML_BENCH_CACHE", str(tmp_path_factory.getbasetemp() / "oracle-cache"))
    monkeypatch.delenv("AMAML_BENCH_DATA", raising=False)


@pytest.fixture
def make_cell(device):
    def make(method="maml", probe="error", replicate=0, **options):
        return Cell(
            problem="cosmixture",
            problem_options={"shots": 5},
            method=method,
            options={"inner_steps": 2, "inner_lr": 0.01, **options},
            probe=probe,
            replicate=replicate,
            device=device,
        )

    return make


@pytest.fixture
def make_record(make_cell):
    def make(cell=None, status="ok", version="v1", key="k", **metrics):
        cell = cell or make_cell()
        return Record(
            benchmark_version=version,
            sweep="test",
            cell_id=cell.cell_id,
            cell=cell,
            status=status,
            reason="" if status == "ok" else "because",
            metrics=metrics,
            environment={"counter_key": key, "timing_key": key + " fast"},
            started_at="2026-01-01T00:00:00+00:00",
            duration_s=1.0,
        )

    return make


STUB = """
import json, os, sys, time
def say(what):
    with open(os.environ["AMAML_BENCH_TRACE"], "a") as trace:
        trace.write(f"{method} {os.getpid()} {what} {time.monotonic()}\\n")
def answer(**fields):
    told = {"status": "ok", "reason": "", "metrics": {}, "samples": {}} | fields
    os.write(int(sys.argv[1]), json.dumps(told).encode() + b"\\n")
for line in sys.stdin:
    request = json.loads(line)
    method = request["cell"]["method"]
    say("start")
    if method == "hang":
        time.sleep(600)
    elif method == "segfault":
        os.kill(os.getpid(), 11)
    elif method == "realtime":
        os.kill(os.getpid(), 35)
    elif method == "raise":
        raise RuntimeError("the reason")
    elif method == "silent":
        sys.exit(0)
    elif method == "hog":
        kept = []
        while True:
            kept.append(b"x" * 10_000_000)
    elif method == "greedy":
        import resource
        resource.setrlimit(resource.RLIMIT_DATA, (request["memory_limit_bytes"],) * 2)
        kept = [b"x" * 10_000_000 for _ in range(10_000)]
    elif method == "abort":
        sys.stderr.write("terminate called\\n  what():  std::bad_alloc\\n"); sys.stderr.flush(); os.abort()
    elif method == "nan":
        answer(metrics={"flops": float("nan")})
    elif method == "list":
        os.write(int(sys.argv[1]), b"[]")
    elif method == "parent":
        import subprocess
        subprocess.Popen(["sleep", "60"])  # it inherits standard error
        answer(metrics={"flops": 7})
    elif method == "wrong":
        answer(status="fine")
    elif method == "torn":
        os.write(int(sys.argv[1]), b'{"status": "o')
    elif method == "own":
        answer(benchmark_version="of the worker", git_revision="abc+dirty")
    elif method == "noisy":
        print("x" * 1_000_000); sys.stderr.write("y" * 1_000_000); answer(metrics={"flops": 1})
    elif method == "slow":
        time.sleep(0.3); answer()
    elif method == "long":
        for news in ({"done": 10, "total": 30}, {"done": 20, "total": 30}):
            os.write(int(sys.argv[1]), json.dumps(news).encode() + b"\\n")
        os.write(int(sys.argv[1]), b"not of our form\\n")
        answer(metrics={"flops": 3})
    else:
        answer(metrics={"flops": 7}, samples={"rel_error_flow": [0.5] * 20_000})
    say("end")
"""


@pytest.fixture
def stub_bench(tmp_path, monkeypatch):
    """Run cells with the stub in the worker's place; returns the new records."""
    stub, trace = tmp_path / "stub.py", tmp_path / "trace"
    stub.write_text(STUB)
    trace.touch()
    monkeypatch.setenv("AMAML_BENCH_TRACE", str(trace))
    store = Store(tmp_path / "store")

    def go(cells, retry_failed=False, say=print, **options):
        plan = runner.plan("test", cells, store, retry_failed=retry_failed)
        settings = {"timeout_s": 30.0, "reporter": Quiet()} | options
        return runner.run(plan, store, **settings, say=say, command=(sys.executable, str(stub)))[0]

    def assert_whole(cells):
        """The plan of a second run finds every cell done, by exactly one current row each."""
        records = current(store.read()[0])
        assert sorted(record.cell_id for record in records) == sorted(cell.cell_id for cell in cells)
        tried_again = {record.cell_id for record in records if record.status == "crashed"}
        assert {cell.cell_id for cell in runner.plan("test", cells, store).todo} == tried_again

    go.store, go.trace, go.stub, go.assert_whole = store, trace, stub, assert_whole
    return go


@pytest.fixture
def ratings(tmp_path, monkeypatch):
    """A stand-in for MovieLens-100K, where the loaders find it; returns its table."""
    table = synthetic_ratings()
    folder = tmp_path / "data" / "movielens-100k"
    folder.mkdir(parents=True)
    lines = [f"{u}\t{i}\t{int(r)}\t880000000" for u, i, r in zip(*table, strict=True)]
    (folder / "u.data").write_text("\n".join(np.random.default_rng(1).permutation(lines)) + "\n")
    known = replace(data.DATA["movielens_100k"], content_hash=data.content_hash(table))
    monkeypatch.setitem(data.DATA, "movielens_100k", known)
    monkeypatch.setenv("AMAML_BENCH_DATA", str(tmp_path / "data"))
    return table


TINY = """
description = "a test"
[[grid]]
probe = "error"
problem = "closed_form"
problem_options = { samples = 2 }
method = ["adjoint", "autodiff"]
options = { inner_steps = 5, horizon = 0.5 }
[[grid]]
probe = "counts"
problem = "cosmixture"
problem_options = { shots = 3 }
method = "maml"
options = { inner_steps = 2, inner_lr = 0.1 }
"""


BAD = """def f():
    return 1 / 0
def g():
    import torch, amaml_core as am
    x = torch.zeros(1, 1, 1)
    return am.MetaProblem(torch.nn.Linear(1, 1), torch.nn.functional.mse_loss), lambda seed: am.TaskBatch(x, x, x, x)
"""


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A working directory with a tiny sweep and a bad factory in it, from which no test asks the network."""
    (tmp_path / "tiny.toml").write_text(TINY)
    (tmp_path / "bad.py").write_text(BAD)
    monkeypatch.chdir(tmp_path)
    for name in ("HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")
    return tmp_path


@pytest.fixture
def cli(desk, monkeypatch, capsys):
    """``amaml-bench`` in this process, which has imported already what takes a new one seconds."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["amaml-bench", *arguments])
        sweeping._say_once.cache_clear()
        with pytest.raises(SystemExit) as ended:
            main()
        told = capsys.readouterr()
        return SimpleNamespace(returncode=ended.value.code or 0, stdout=told.out, stderr=told.err)

    return run


@pytest.fixture
def shell(desk):
    """``amaml-bench`` in a process of its own."""

    def run(*arguments, **environment):
        path = os.pathsep.join(filter(None, sys.path))
        command = [sys.executable, "-P", "-m", "bench", *arguments]
        done = subprocess.run(
            command,
            cwd=desk,
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": path} | environment,
            timeout=300,
        )
        assert "Traceback" not in done.stderr
        return done

    return run
