"""What a model or a loss of somebody's raises, in one sentence."""

from __future__ import annotations

import re
from typing import NoReturn

import torch

from amaml_core.errors import InputError, first_line

MISTAKES = (AssertionError, RuntimeError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError)
"""What code of somebody's can raise; exceptions of one's own pass."""
DRAWS = "The model draws random numbers in its forward pass; switch dropout off."
WRITES = "The model writes to its own parameters in its forward pass; compute changed copies instead."


class FailsError(InputError):
    """A model or a loss raises something that may depend on the values that it is called with."""


def refuse(error: BaseException) -> NoReturn:
    """Raise an ``InputError`` caused by it; what is one already, and a lack of memory, is raised as it is."""
    if isinstance(error, InputError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        raise error
    told = first_line(error)
    if "called random operation" in told:  # vmap's words
        sentence = DRAWS
    elif "modified inplace" in told:
        sentence = WRITES
    elif "cannot pickle" in told or "deepcopy" in told:
        sentence = f"The model or the loss cannot be copied ({told}); keep locks, files and graphs out of it."
    elif "sparse" in told.lower():
        sentence = f"Something is sparse that must be dense ({told}); build embeddings with sparse=False."
    elif "dtype" in told or "scalar type" in told:
        sentence = f"The model or the loss cannot take these dtypes ({told}); convert one of them."
    elif "storage_offset" in str(error):
        sentence = f"The parameters are parts of one vector ({told}); clone() the one that this is asked of first."
    elif isinstance(error, RuntimeError) and re.search("size|shape", told):
        sentence = f"The model or the loss cannot take these tasks ({told}); mend the shapes."
    else:
        told = f"{type(error).__name__}: {told}"
        raise FailsError(f"The model or the loss fails on these tasks ({told}); mend it.") from error
    raise InputError(sentence) from error
