"""How a solve ended."""

from __future__ import annotations

from typing import Literal

Code = Literal["ok", "inaccurate", "diverged", "not_converged"]


class Status(str):
    """How a task ended, "ok", "inaccurate", "diverged" or "not_converged", with its remedy in words."""

    remedy: str

    def __new__(cls, code: Code, remedy: str = "") -> Status:
        """A status of this code."""
        self = super().__new__(cls, code)
        self.remedy = remedy
        return self


OK = Status("ok")
