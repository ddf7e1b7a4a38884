from reports.environments import environments
from reports.load import tabulate


def test_an_environment_shows_what_its_records_agree_on(make):
    made = [make(seed=1, environment={"load": 0.5}), make(seed=2, environment={"load": 0.7})]
    (row,) = environments(tabulate(made)).rows
    assert row[1] == "2"
    assert "torch 2.6.0" in row[2]
    assert "memory 16.0 GiB" in row[2]
    assert "load" not in row[2]
