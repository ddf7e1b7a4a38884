"""What a user would pick instead of this library, measured in the same cells; and the one registry of it.

An outside library is imported when a cell asks for it, never by this package.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import amaml_core as am
from bench.peers.base import Peer, PeerGradient
from bench.peers.diffrax_peer import Diffrax
from bench.peers.eager_loop import LoopFOMAML, LoopIMAML, LoopMAML, LoopReptile
from bench.peers.higher_peer import HigherMAML
from bench.peers.jax_peers import JaxMAML, JaxRematMAML
from bench.peers.torchopt_peer import TorchOptMAML

__all__ = ["PEERS", "Peer", "PeerGradient", "create"]

PEERS: dict[str, type[Peer]] = {
    "diffrax": Diffrax,
    "higher-maml": HigherMAML,
    "jax-maml": JaxMAML,
    "jax-remat-maml": JaxRematMAML,
    "loop-fomaml": LoopFOMAML,
    "loop-imaml": LoopIMAML,
    "loop-maml": LoopMAML,
    "loop-reptile": LoopReptile,
    "torchopt-maml": TorchOptMAML,
}


def create(name: str, **options: Any) -> am.MetaGradientMethod | Peer:
    """The method of this name, ours or a peer.

    Raises:
        InputError: the name or an option is unknown, one is missing, or a value is out of range.
    """
    if name in am.METHODS:
        return am.create_method(name, **options)
    if name not in PEERS:
        raise am.InputError(
            f"Unknown method {name!r}; choose one of {', '.join(am.METHODS)}, or of the peers {', '.join(PEERS)}."
        )
    known = [field.name for field in fields(PEERS[name])]
    for option in options:
        if option not in known:
            raise am.InputError(f"{name} has no option {option!r}; it has {', '.join(known)}.")
    for option in ("inner_steps", "inner_lr"):
        if option not in options:
            raise am.InputError(f"{name} needs {option}=; the horizon is inner_steps * inner_lr.")
    return PEERS[name](**options)
