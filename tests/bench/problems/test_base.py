import pytest

from bench.problems import PROBLEMS, make_problem, resolved_options


@pytest.mark.parametrize("name", PROBLEMS)
def test_resolved_options_make_the_same_problem(name, tmp_path):
    (tmp_path / "mine.py").write_text("")
    problem = make_problem(name, {"factory": f"{tmp_path}/mine.py:make"} if name == "custom" else {})
    assert make_problem(name, resolved_options(problem)) == problem
