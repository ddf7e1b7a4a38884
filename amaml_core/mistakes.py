"""What a model or a loss of somebody's raises, in one sentence."""

from __future__ import annotations

import re
from typing import NoReturn

import torch

from amaml_core.errors import InputError, first_line

MISTAKES = (AssertionError, RuntimeError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError)
"""What code of somebody's can raise; exceptions of one's own pass."""


def refuse(error: BaseException) -> NoReturn:
    """Tell of it.

    Raises:
        InputError: caused by it; what is one already, and a lack of memory, is raised as it is.
    """
    if isinstance(error, InputError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        raise error
    told = first_line(error)
    if "called random operation" in told:  # vmap's words
        raise InputError("The model draws random numbers in its forward pass; switch dropout off.") from error
    if "modified inplace" in told:
        raise InputError(
            "The model writes to its own parameters in its forward pass; compute changed copies instead."
        ) from error
    if "dtype" in told or "scalar type" in told:
        raise InputError(f"The model or the loss cannot take these dtypes ({told}); convert one of them.") from error
    if isinstance(error, RuntimeError) and re.search("size|shape", told):
        raise InputError(f"The model or the loss cannot take these tasks ({told}); mend the shapes.") from error
    raise InputError(
        f"The model or the loss fails on these tasks ({type(error).__name__}: {told}); mend it."
    ) from error
