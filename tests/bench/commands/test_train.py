import pytest

from bench.records import Store


def test_train_runs_an_experiment_and_resumes(cli, tmp_path):
    few = {"outer_updates": 4, "train_tasks": 6, "test_tasks": 3, "test_queries": 5, "test_steps": 5}
    small = [arg for name, n in few.items() for arg in ("--set", f"problem_options.{name}={n}")]
    asked = ["train", "regression", "--quick", "--only", "*/cosmixture_training/[ai]maml K=*50shot*", *small]
    first = cli(*asked, "--set", "engine=eager", "--set", "options.inner_steps=3", "--set", "seed=[1, 2]")
    assert first.returncode == 0, first.stderr
    assert "results/train_regression_quick/records.jsonl" in first.stdout
    records, _ = Store(tmp_path / "results" / "train_regression_quick").read()
    assert {record.cell.seed for record in records} == {1, 2}
    assert {record.cell.method for record in records} == {"imaml", "amaml"}
    assert all(record.metrics["outer_updates"] == 4 for record in records)
    again = cli(*asked, "--set", "engine=eager", "--set", "options.inner_steps=3", "--set", "seed=[1, 2]")
    assert ": 0 cells to run" in again.stdout


def test_missing_data_are_told_once_and_their_cells_skipped(cli, tmp_path):
    done = cli("train", "ratings", "--quick", "--only", "quality/jester/item-mean*", "--out", "s")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("cannot be fetched") == 1
    records, _ = Store(tmp_path / "s").read()
    assert {record.status for record in records} == {"skipped"}
    assert all("amaml-bench fetch jester" in record.reason for record in records)


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        (["train", "images"], "Unknown experiment 'images'; choose one of regression, ratings"),
        (["fetch", "netflix"], "Unknown data set 'netflix'; choose one of jester"),
        (["fetch", "jester"], "AMAML_BENCH_DATA"),
    ],
)
def test_what_train_and_fetch_cannot_do_is_told(cli, arguments, culprit):
    done = cli(*arguments)
    assert done.returncode == 2
    assert culprit in done.stderr
