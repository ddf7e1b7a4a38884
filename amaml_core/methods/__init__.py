"""The meta-gradient methods and the one registry of them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from amaml_core.errors import InputError
from amaml_core.methods.amaml import AMAML
from amaml_core.methods.base import MetaGradientMethod
from amaml_core.methods.fomaml import FOMAML
from amaml_core.methods.imaml import IMAML
from amaml_core.methods.maml import MAML
from amaml_core.methods.remat_maml import RematMAML
from amaml_core.methods.reptile import Reptile

METHODS: dict[str, type[MetaGradientMethod]] = {
    "amaml": AMAML,
    "fomaml": FOMAML,
    "imaml": IMAML,
    "maml": MAML,
    "remat-maml": RematMAML,
    "reptile": Reptile,
}


def create_method(name: str, **options: Any) -> MetaGradientMethod:
    """The method of this name with these options.

    Raises:
        InputError: the name or an option is unknown, one is missing, or a value is out of range.

    Example:
        >>> import amaml_core as am
        >>> am.create_method("amaml", inner_steps=200, inner_lr=0.01).horizon
        2.0
    """
    if not isinstance(name, str) or name not in METHODS:
        raise InputError(f"Unknown method {name!r}; choose one of {', '.join(METHODS)}.")
    known = [field.name for field in fields(METHODS[name])]
    for option in options:
        if option not in known:
            raise InputError(f"{name} has no option {option!r}; it has {', '.join(known)}.")
    for option in ("inner_steps", "inner_lr"):
        if option not in options:
            raise InputError(f"{name} needs {option}=; the horizon is inner_steps * inner_lr.")
    return METHODS[name](**options)
