import pytest

from reports.evidence import Evidence
from reports.load import tabulate
from reports.sections import SECTIONS


@pytest.fixture
def told():
    """All findings that records give, in the order of the sections."""

    def findings(records):
        evidence = Evidence(tabulate(records))
        return [finding for section in SECTIONS for finding in section(evidence).findings]

    return findings
