import pytest

from bench.estimate import START_SECONDS, estimate


def took(make_record, cell, seconds):
    return make_record(cell).model_copy(update={"duration_s": seconds})


def test_a_cell_takes_what_it_took(make_cell, make_record):
    cell = make_cell("maml", inner_steps=10)
    told = estimate([cell], [took(make_record, cell, 3.0), took(make_record, cell, 7.0)])
    assert (told.seconds, told.guessed) == (7.0, 0)


def test_else_what_its_nearest_relative_took_in_proportion(make_cell, make_record):
    short, longer = (make_cell("maml", inner_steps=n) for n in (10, 100))
    records = [took(make_record, short, START_SECONDS + 1), took(make_record, longer, START_SECONDS + 20)]
    told = estimate([make_cell("maml", inner_steps=200)], records)
    assert told.seconds == pytest.approx(START_SECONDS + 40)


def test_else_a_guess_that_says_so(make_cell, make_record):
    told = estimate([make_cell("maml"), make_cell("amaml")], [took(make_record, make_cell("maml"), 3.0)])
    assert told.guessed == 1


def test_failures_teach_nothing(make_cell, make_record):
    cell = make_cell("maml")
    crashed = make_record(cell, status="crashed").model_copy(update={"duration_s": 999.0})
    assert estimate([cell], [crashed]).guessed == 1
