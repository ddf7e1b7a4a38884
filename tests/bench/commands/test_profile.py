import time

from bench.records import Store

INSERT = "import os, sys\nsys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))\nimport helper\n"


def test_the_template_is_a_problem_that_can_be_profiled(shell, tmp_path):
    """A quarter of a minute is not enough for all cells, and the profile keeps to it.

    The user's folder holds packages that are called as ours are: ours come first, in every process.
    """
    for package in ("amaml_core", "bench", "reports"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise SystemExit('the wrong one')")
    (tmp_path / "helper.py").write_text("")
    (tmp_path / "mine.py").write_text(INSERT + shell("profile", "--template").stdout)
    began = time.monotonic()
    done = shell("profile", "mine.py:my_problem", "--steps", "2", "--minutes", "0.25", "--out", "store", "--quiet")
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 25
    assert ("Use " in done.stdout) != ("No method" in done.stdout)
    assert "Not measured" in done.stdout
    records, _ = Store(tmp_path / "store").read()
    assert {record.cell.problem_options["factory"] for record in records} == {"mine.py:my_problem"}
    assert {record.status for record in records} == {"ok"}
