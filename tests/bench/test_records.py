import json
import math
import subprocess
import sys

import pytest

from bench.records import (
    KEY_PACKAGES,
    METRICS,
    SCHEMA_VERSION,
    Cell,
    Store,
    StoreBusyError,
    canonical_json,
    counter_key,
    current,
)


def test_cell_id_follows_from_the_content_alone(make_cell):
    a = make_cell(method="amaml", num_states=50)
    b = Cell.model_validate(json.loads(a.model_dump_json()))
    reordered = a.model_copy(update={"options": dict(reversed(a.options.items()))})
    assert a.cell_id == b.cell_id == reordered.cell_id
    assert len({a.cell_id, make_cell(method="amaml", num_states=51).cell_id, make_cell().cell_id}) == 3
    assert a.cell_id != a.model_copy(update={"replicate": 1}).cell_id


def test_canonical_json_refuses_nan():
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"x": math.nan})


def test_records_survive_the_round_trip(tmp_path, make_record):
    record = make_record(peak_live_bytes=12345678901234, rel_error_flow=0.1 + 0.2)
    with Store(tmp_path).writer() as writer:
        writer.append(record)
    read, complaints = Store(tmp_path).read()
    assert read == [record]
    assert not complaints


def test_the_last_row_of_an_identity_counts(make_record):
    rows = [make_record(status="crashed"), make_record(x=1), make_record(x=2), make_record(version="v2", x=3)]
    assert [row.metrics["x"] for row in current(rows)] == [2, 3]


def test_time_is_told_apart_by_the_timing_key_and_counters_are_not(make_cell, make_record):
    def pair(probe):
        rows = [make_record(make_cell(probe=probe)) for _ in range(2)]
        rows[1].environment["timing_key"] = "another machine"
        return current(rows)

    assert len(pair("time")) == 2
    assert len(pair("memory")) == 1


@pytest.mark.parametrize("cut", [1, 40, -2])
def test_a_torn_last_line_is_reported_skipped_and_closed(tmp_path, make_record, cut):
    store = Store(tmp_path)
    with store.writer() as writer:
        writer.append(make_record(x=1))
    whole = store.path.read_bytes()
    store.path.write_bytes(whole + whole[:cut])
    records, complaints = store.read()
    assert [record.metrics["x"] for record in records] == [1]
    assert len(complaints) == 1
    assert ":2:" in complaints[0]
    with store.writer() as writer:
        writer.append(make_record(x=2))
    assert [record.metrics["x"] for record in store.read()[0]] == [1, 2]


def test_a_line_of_another_schema_is_reported_and_skipped(tmp_path, make_record):
    data = make_record().model_dump() | {"schema_version": 99}
    Store(tmp_path).path.write_text(json.dumps(data) + "\n")
    records, complaints = Store(tmp_path).read()
    assert records == []
    assert "99" in complaints[0]


PACKAGES = {"torch": "2.6.0+cpu", "torchdiffeq": "0.2.5", "numpy": "2.2.0", "scipy": "1.15.0", "pydantic": "2.10"}


def first_schema(record, device="cpu", gpu=""):
    """A row as it was written when keys told torch's version alone."""
    key = " | ".join(filter(None, ["torch 2.6.0", device, gpu]))
    told = {"counter_key": key, "timing_key": f"{key} | A CPU | 2 cores | 1 threads", "packages": PACKAGES, "gpu": gpu}
    data = record.model_dump() | {"schema_version": 1, "environment": told}
    data["cell"]["device"] = device
    return data


@pytest.mark.parametrize(("device", "gpu", "end"), [("cpu", "", "cpu"), ("cuda", "A GPU", "cuda | A GPU")])
def test_a_row_of_the_first_schema_gets_its_keys_from_the_packages_that_it_recorded(
    tmp_path, make_record, device, gpu, end
):
    Store(tmp_path).path.write_text(json.dumps(first_schema(make_record(x=1), device, gpu)) + "\n")
    (record,), complaints = Store(tmp_path).read()
    assert not complaints
    key = f"torch 2.6.0 | torchdiffeq 0.2.5 | numpy 2.2.0 | scipy 1.15.0 | {end}"
    assert record.environment["counter_key"] == key
    assert record.environment["timing_key"] == f"{key} | A CPU | 2 cores | 1 threads"
    assert (record.schema_version, record.metrics) == (SCHEMA_VERSION, {"x": 1})


@pytest.mark.parametrize("lost", ["packages", "counter_key", "timing_key", "gpu"])
def test_a_row_of_the_first_schema_that_lacks_them_is_skipped(tmp_path, make_record, lost):
    data = first_schema(make_record())
    del data["environment"][lost]
    Store(tmp_path).path.write_text(json.dumps(data) + "\n")
    records, (complaint,) = Store(tmp_path).read()
    assert records == []
    assert "not a whole record" in complaint


@pytest.mark.parametrize(
    "told",
    [
        {"counter_key": "torch 2.7.0 | cpu"},
        {"timing_key": "torch 2.7.0 | cpu | A CPU | 2 cores | 1 threads"},
        {"packages": PACKAGES | {"torch": "2.7.0"}},
        {"packages": {name: version for name, version in PACKAGES.items() if name != "scipy"}},
    ],
)
def test_a_row_of_the_first_schema_whose_keys_do_not_fit_is_skipped(tmp_path, make_record, told):
    data = first_schema(make_record())
    data["environment"] |= told
    Store(tmp_path).path.write_text(json.dumps(data) + "\n")
    records, (complaint,) = Store(tmp_path).read()
    assert records == []
    assert "not a whole record" in complaint


@pytest.mark.parametrize("version", [True, 1.0, None, [1], "2 "])
def test_a_schema_version_that_is_no_number_of_one_is_skipped(tmp_path, make_record, version):
    data = make_record().model_dump() | {"schema_version": version}
    Store(tmp_path).path.write_text(json.dumps(data) + "\n")
    records, (complaint,) = Store(tmp_path).read()
    assert (records, "the line is skipped" in complaint) == ([], True)


@pytest.mark.parametrize("package", KEY_PACKAGES)
def test_a_key_names_each_package_that_makes_numbers(package):
    key = counter_key(PACKAGES, "cpu")
    assert counter_key(PACKAGES | {package: "0.0"}, "cpu") != key
    assert counter_key(PACKAGES | {"pydantic": "0.0"}, "cpu") == key
    assert counter_key({"torch": "2.6.0"}, "cpu") == "torch 2.6.0 | cpu"


def test_two_writers_are_refused_and_a_killed_one_leaves_no_lock(tmp_path):
    hold = "from bench.records import Store; from pathlib import Path; import sys, time\n"
    hold += "with Store(Path(sys.argv[1])).writer():\n    print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", hold, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline().strip() == b"held"
        with pytest.raises(StoreBusyError, match="--out"), Store(tmp_path).writer():
            pass
        process.kill()
        process.wait()
    with Store(tmp_path).writer():
        pass


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from bench.records import Store
store = Store(Path(sys.argv[1]))
(record,), _ = store.read()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit = store.path.stat().st_size + 100
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
with store.writer() as writer:
    writer.append(record)
"""


def test_a_full_disk_loses_nothing_that_was_written(tmp_path, make_record):
    """A file-size limit stands for the full disk; it needs a process of its own."""
    store = Store(tmp_path)
    with store.writer() as writer:
        writer.append(make_record(x=1))
    before = store.path.read_bytes()
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True)
    assert "File too large" in done.stderr
    assert store.path.read_bytes() == before


def test_metric_names_carry_their_unit():
    suffix = {"s": "_seconds", "B": "_bytes"}
    assert all(name.endswith(suffix.get(metric.unit, "")) for name, metric in METRICS.items())


@pytest.mark.parametrize("module", ["bench", "bench.records", "bench.sources"])
def test_what_reports_need_imports_no_torch(module):
    code = f"import {module}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
