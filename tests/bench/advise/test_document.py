import json

import pytest
from pydantic import ValidationError

from bench.advise.advice import recommend
from bench.advise.candidate import candidates
from bench.advise.document import ADVICE, Document


@pytest.fixture
def document(cells, make_record):
    numbers = {"peak_allocated_bytes": 8, "outer_update_seconds": 1.0, "rel_error_flow": 0.01}
    rows = [make_record(cell, **numbers) for cell in cells if cell.method == "remat-maml"]
    rows.append(make_record(next(cell for cell in cells if cell.method == "maml"), status="oom"))
    found = candidates(rows)
    return recommend(found, 100, 0.05).document(found, "mine.py:make", 100, 0.05)


def test_it_is_read_back_as_it_was_written_and_takes_the_place_of_an_older_one(document, tmp_path):
    (tmp_path / ADVICE).write_text("older")
    path = document.write(tmp_path)
    assert Document.model_validate_json(path.read_bytes()) == document
    assert [other.name for other in tmp_path.glob("*.json*")] == [ADVICE]


def test_what_was_measured_says_what_came_of_it(document):
    outcomes = [(one.method, one.options["inner_steps"], one.outcome) for one in document.measured]
    assert outcomes == [("remat-maml", 4, "recommended"), ("maml", 4, "oom"), ("remat-maml", 20, "")]
    assert (
        document.recommendation.call == "am.create_method(\"remat-maml\", inner_steps=4, inner_lr=0.05, segment='sqrt')"
    )
    assert [one.error for one in document.measured] == [0.01, None, 0.01]


def test_another_file_of_that_name_is_not_taken_for_it(document):
    other = json.loads(document.text()) | {"more": 1}
    with pytest.raises(ValidationError):
        Document.model_validate(other)
