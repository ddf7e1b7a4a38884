import pytest


@pytest.mark.parametrize(
    ("what", "words"),
    [("methods", "remat-maml"), ("problems", "closed_form"), ("sweeps", "smoke"), ("data", "Jester-1")],
)
def test_list(cli, what, words):
    done = cli("list", what)
    assert (done.returncode, words in done.stdout) == (0, True)
