import sys
from functools import partial

import pytest

from bench.advise.profile import plan_cells
from bench.harness import runner


@pytest.fixture
def cells(tmp_path):
    (tmp_path / "mine.py").write_text("")
    return plan_cells(f"{tmp_path}/mine.py:make", [4, 20], 0.05, device="cpu", dtype="float32")


WORKER = """
import json, os, sys
{answer}
for line in sys.stdin:
    request = json.loads(line)
    cell = request["cell"]
    with open(sys.argv[0] + ".trace", "a") as trace:
        print(os.getpid(), cell["probe"], request["threads"], file=trace)
    found = {{"status": "ok", "reason": "", "metrics": {{}}, "samples": {{}}}} | answer(cell, cell["options"])
    os.write(int(sys.argv[1]), json.dumps(found).encode() + b"\\n")
"""


@pytest.fixture
def stub_worker(tmp_path, monkeypatch):
    """Have workers answer as the source of this function says: answer(cell, options) -> fields of the record."""
    monkeypatch.setattr(runner.environment, "busy", lambda: "")
    monkeypatch.setattr(runner.environment, "cores_taken", lambda seconds: 0.0)
    script = tmp_path / "worker.py"
    monkeypatch.setattr(runner, "run", partial(runner.run, command=(sys.executable, str(script))))

    def plant(answer):
        script.write_text(WORKER.format(answer=answer))
        return script.with_name("worker.py.trace")

    return plant
