import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for what tests share, under every import mode of pytest

from stand_ins import Quiet
from stand_ins import ratings as synthetic_ratings

from bench import runner
from bench.problems import data
from bench.records import Cell, Record, Store


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)  # several processes of several threads wait for each other more than they work


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """No test reads or fills the user's cache, nor reads the user's data."""
    monkeypatch.setenv("AMAML_BENCH_CACHE", str(tmp_path_factory.getbasetemp() / "oracle-cache"))
    monkeypatch.delenv("AMAML_BENCH_DATA", raising=False)


@pytest.fixture
def make_cell():
    def make(method="maml", probe="error", replicate=0, **options):
        return Cell(
            problem="cosmixture",
            problem_options={"shots": 5},
            method=method,
            options={"inner_steps": 2, "inner_lr": 0.01, **options},
            probe=probe,
            replicate=replicate,
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
request = json.loads(sys.stdin.read())
method = request["cell"]["method"]
with open(os.environ["AMAML_BENCH_TRACE"], "a") as trace:
    trace.write(f"{method} {os.getpid()} start {time.monotonic()}\\n")
def answer(**fields):
    with os.fdopen(int(sys.argv[1]), "w") as pipe:
        json.dump({"status": "ok", "reason": "", "metrics": {}, "samples": {}} | fields, pipe)
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
elif method == "noisy":
    print("x" * 1_000_000); sys.stderr.write("y" * 1_000_000); answer(metrics={"flops": 1})
elif method == "slow":
    time.sleep(0.3); answer()
elif method == "long":
    pipe = os.fdopen(int(sys.argv[1]), "w")
    for done in (10, 20):
        print(json.dumps({"done": done, "total": 30}), file=pipe, flush=True)
    print("not of our form", file=pipe, flush=True)
    json.dump({"status": "ok", "reason": "", "metrics": {"flops": 3}, "samples": {}}, pipe); pipe.close()
else:
    answer(metrics={"flops": 7}, samples={"rel_error_flow": [0.5] * 100_000})
with open(os.environ["AMAML_BENCH_TRACE"], "a") as trace:
    trace.write(f"{method} {os.getpid()} end {time.monotonic()}\\n")
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

    go.store, go.trace, go.stub = store, trace, stub
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
