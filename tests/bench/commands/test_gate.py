import pytest


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--accept", " "], "--accept needs a reason"),
        (["--accept", "a", "--against", "HEAD"], "use one of them"),
        (["--against", "HEAD", "--blocks", "9"], "with fewer than 10 no case can be called slower"),
        (["--against", "no-such-revision"], "give a revision of this repository"),
    ],
)
def test_gate_refuses_what_makes_no_sense(cli, arguments, sentence):
    done = cli("gate", *arguments, "--out", "g")
    assert done.returncode == 2
    assert sentence in done.stderr
