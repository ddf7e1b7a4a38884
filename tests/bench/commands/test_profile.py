import time

from bench.records import Store


def test_the_template_is_a_problem_that_can_be_profiled(shell, tmp_path):
    """A quarter of a minute is not enough for all cells, and the profile keeps to it."""
    (tmp_path / "mine.py").write_text(shell("profile", "--template").stdout)
    began = time.monotonic()
    done = shell("profile", "mine.py:my_problem", "--steps", "2", "--minutes", "0.25", "--out", "store", "--quiet")
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 25
    assert ("Use " in done.stdout) != ("No method" in done.stdout)
    assert "Not measured" in done.stdout
    records, _ = Store(tmp_path / "store").read()
    assert {record.cell.problem_options["factory"] for record in records} == {"mine.py:my_problem"}
