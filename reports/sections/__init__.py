"""The sections of the report, a file each, and the one registry of them. The other files hold what several share."""

from __future__ import annotations

from collections.abc import Callable

from reports.evidence import Evidence
from reports.section import Section
from reports.sections import (
    advice,
    budget,
    closed_form,
    cosmixture,
    failures,
    gate,
    honesty,
    memory,
    overview,
    ratings,
    regression,
    time,
    tolerance,
    variants,
    work_precision,
)

SECTIONS: list[Callable[[Evidence], Section]] = [  # in the order of the page
    advice.section,
    overview.section,
    budget.section,
    regression.section,
    ratings.section,
    variants.section,
    work_precision.section,
    closed_form.section,
    cosmixture.section,
    honesty.section,
    tolerance.section,
    memory.section,
    time.section,
    gate.section,
    failures.section,
]
# Whose findings come first, in this order; those of all others follow in the order of the page.
FOREMOST = [regression.section, ratings.section, work_precision.section, memory.section, time.section]
