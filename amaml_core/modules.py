"""Modules of anybody's: which can be used, how they hold other parameters, and take inputs of any structure."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from amaml_core.errors import InputError, first_line
from amaml_core.mistakes import DRAWS
from amaml_core.surroundings import random_state
from amaml_core.tasks import Tree

Loss = Callable[[Any, Any], Tensor]
"""(prediction, target) of one task -> a scalar."""

OPAQUE = "The model returns a {}, in which no predictions are found; return a tensor, or a tuple, list or dict of such."
WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name; a tied one by its first."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def first_names(module: nn.Module) -> dict[str, str]:
    """For every name of a parameter the first one that it has: a tied one has several."""
    first = {id(value): name for name, value in module.named_parameters()}
    return {name: first[id(value)] for name, value in module.named_parameters(remove_duplicate=False)}


def predict(model: nn.Module, x: Tree) -> Tree:
    """A model's outputs: a tuple or list of inputs are its arguments, a dict its keywords."""
    if isinstance(x, dict):
        return model(**x)
    return model(*x) if isinstance(x, tuple | list) else model(x)


@contextmanager
def holding(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """A model with these tensors in the places of its parameters and buffers, by name, wherever they are shared.

    (``functional_call`` exchanges the tensors of a module that is used under two names twice, and cannot undo it.)
    """
    new = {id(value): values[name] for name, value in tensors(model).items()}
    dicts: list[dict[str, Any]] = [own for part in model.modules() for own in (part._parameters, part._buffers)]
    before = [(own, dict(own)) for own in dicts if own]
    cached = parametrize._cache_enabled, parametrize._cache
    parametrize._cache_enabled, parametrize._cache = 0, {}  # of weights that follow from other parameters than these
    try:
        for own, kept in before:
            for name, value in kept.items():
                if value is not None:
                    own[name] = new[id(value)]
        yield
    finally:
        parametrize._cache_enabled, parametrize._cache = cached
        for own, kept in before:
            own.clear()
            own.update(kept)


def evaluate(
    model: nn.Module,
    loss: Loss | None,
    x: Tree,
    y: Tree = None,
    mask: Tensor | None = None,
    *,
    batched: bool,
    copied: bool,
) -> Any:
    """The loss of one task, or the prediction where no loss is given.

    Where there is a mask ``[n]`` it is the mean over the single examples that count, by vmap if ``batched``. If
    ``copied``, a copy of the model is called, which keeps the parameters that this one holds now.
    """
    if copied:
        model = copy.deepcopy(model, {id(value): value for value in tensors(model).values()})
    prediction = predict(model, x)
    if loss is None:
        return prediction
    if mask is None:
        return _scalar(loss(prediction, y))
    if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(prediction)):
        raise InputError(OPAQUE.format(type(prediction).__name__))
    leaves, structure = tree_flatten((prediction, y))
    each = [isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) == len(mask) for leaf in leaves]

    def of_one(*own: Any) -> Tensor:
        rows = [leaf[None] if one else leaf for leaf, one in zip(own, each, strict=True)]
        return _scalar(loss(*tree_unflatten(rows, structure)))

    if batched:
        values = vmap(of_one, in_dims=tuple(0 if one else None for one in each))(*leaves)
    else:
        columns = [leaf.unbind() if one else [leaf] * len(mask) for leaf, one in zip(leaves, each, strict=True)]
        values = torch.stack([of_one(*row) for row in zip(*columns, strict=True)])
    return torch.where(mask, values, 0).sum() / mask.sum()


def converted(loss: Loss, model: nn.Module, dtype: torch.dtype) -> Loss:
    """A copy in another dtype of a loss that is a module; what it holds of the model remains the model's own."""
    if not isinstance(loss, nn.Module):
        return loss
    kept = {id(part): part for part in (*model.modules(), *tensors(model).values())}
    if not tensors(loss):  # nothing to convert, and what it holds may not be copied
        return loss
    own = copy.deepcopy(loss, dict(kept))
    for value in tensors(own).values():
        if id(value) not in kept and value.is_floating_point():
            value.data = value.data.to(dtype)
    return own


def one_by_one(call: Callable[[Tensor, Tree], Any], u: Tensor, data: Tree, *, draws: bool) -> Any:
    """What a call gives for each task, stacked; ``draws``: that it draws random numbers is looked for.

    Raises:
        InputError: it does. (vmap notices that by itself.)
    """
    leaves, structure = tree_flatten(data)
    drawn = random_state(u) if draws else None
    tasks = zip(u.unbind(), *(leaf.unbind() for leaf in leaves), strict=True)
    each = [call(one, tree_unflatten(own, structure)) for one, *own in tasks]
    if drawn is not None and drawn != random_state(u):
        raise InputError(DRAWS)
    stack = lambda *results: torch.stack(results) if isinstance(results[0], Tensor) else results  # noqa: E731
    return tree_map(stack, each[0], *each[1:])


def _scalar(value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise InputError(f"The loss returned {type(value).__name__}; it must return a tensor that holds one number.")
    if value.ndim:
        raise InputError(f'The loss returned shape {list(value.shape)}; it must return a scalar (reduction="mean").')
    return value


def detached(values: Tree) -> Tree:
    """The same values without their graphs."""
    return tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, values)


def size(prediction: Tree, *_: Tree) -> Tensor:
    """A loss for a model of which only the predictions are wanted."""
    leaves = [leaf for leaf in tree_leaves(prediction) if isinstance(leaf, Tensor)]
    floats = [leaf for leaf in leaves if leaf.is_floating_point() or leaf.is_complex()]
    if not floats:
        raise InputError(OPAQUE.format(type(prediction).__name__))
    return torch.stack([leaf.abs().square().sum() for leaf in floats]).sum()


def seeded(model: nn.Module, seed: int) -> tuple[nn.Module, list[str]]:
    """A copy of a model, initialised under a seed, and the names of the parameters that nothing there wrote to."""
    try:
        source = copy.deepcopy(model)
    except Exception as error:
        raise InputError(
            f"The model cannot be copied ({first_line(error)}), as a seed needs it; initialise it yourself, and start "
            "from its own values, seed=None."
        ) from error
    before = {name: (value._version, value.detach().clone()) for name, value in source.named_parameters()}
    cuda = sorted({p.get_device() for p in source.parameters() if p.is_cuda})
    with torch.random.fork_rng(devices=cuda):  # only the generators that are used are seeded, and restored
        torch.default_generator.manual_seed(seed)
        for index in cuda:
            torch.cuda.default_generators[index].manual_seed(seed)
        source.apply(_reset)  # the parts of a module before itself
    # a parametrised module has its reset_parameters write to what it makes of its parameters, not to those
    untouched = lambda value, version, old: value._version == version and torch.equal(value, old)  # noqa: E731
    return source, [n for n, value in source.named_parameters() if n in before and untouched(value, *before[n])]


def _reset(module: nn.Module) -> None:
    own = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
    if callable(own):
        own()


def refuse_unusable(model: nn.Module) -> None:
    """An ``InputError`` for modules that cannot be called with other parameters than their own: what to pass."""
    for name, module in model.named_modules():
        kind = f"{type(module).__name__} {name!r}" if name else type(module).__name__
        if isinstance(module, torch.jit.ScriptModule):
            raise InputError(f"{kind} is scripted, and cannot be called with other parameters; pass the module itself.")
        if isinstance(module, WRAPPERS):
            raise InputError(f"{kind} spreads a model over devices; pass its .module.")
    if lazy := [name for name, value in tensors(model).items() if is_lazy(value)]:
        raise InputError(f"The parameter {lazy[0]!r} has no shape yet; call the model once on an input of its own.")
    if strange := [name for name, value in tensors(model).items() if value.is_inference()]:
        raise InputError(
            f"The model's {strange[0]!r} was made in inference_mode and cannot be differentiated; make it outside."
        )
    if not tensors(model):
        raise InputError(f"{type(model).__name__} has no parameters; there is nothing to learn.")


def adapted(model: nn.Module, adapt: str | None) -> tuple[dict[str, nn.Parameter], list[str]]:
    """The parameters that a pattern asks for, under any of their names; and which of them are frozen.

    Raises:
        InputError: it is no pattern, there are none, or they are of several dtypes.
    """
    every = dict(model.named_parameters())
    try:
        pattern = re.compile(".*" if adapt is None else adapt)
    except re.error as error:
        raise InputError(f"adapt={adapt!r} is not a regular expression ({error}); correct it.") from None
    matching = {first for name, first in first_names(model).items() if pattern.fullmatch(name)}
    if not matching:
        raise InputError(f"adapt={adapt!r} matches none of the parameters {', '.join(every)}; correct the pattern.")
    found = {name: value for name, value in every.items() if name in matching}
    if adapt is None:
        found = {name: value for name, value in found.items() if value.requires_grad}
        if not found:
            raise InputError("All parameters are frozen by requires_grad_(False); name those to adapt by adapt=.")
    own = {value.dtype for value in found.values()}
    if len(own) > 1 or not next(iter(own)).is_floating_point:
        raise InputError(f"The adapted parameters have dtypes {own}; convert the model to one floating dtype.")
    return found, [name for name, value in found.items() if not value.requires_grad]


def refuse_shared(model: nn.Module, names: Collection[str]) -> None:
    """An ``InputError`` where a parameter of these, which are adapted, lies in another tensor's memory."""
    together: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors(model).items():
        if value.layout == torch.strided and type(value.data) is Tensor and value.numel():
            together.setdefault(value.untyped_storage().data_ptr(), {})[name] = value
    for several in together.values():
        order = sorted(several, key=lambda name: name not in names)  # what is not adapted may share among itself
        if len(order) == 1 or order[0] not in names:
            continue
        owners = torch.zeros(several[order[0]].untyped_storage().nbytes(), dtype=torch.int32)  # of each byte
        for number, name in enumerate(order):
            value, size = several[name], several[name].element_size()
            here = owners.as_strided(value.shape, [size * n for n in value.stride()], size * value.storage_offset())
            if owner := int(here.max()):
                raise InputError(
                    f"The model's {order[owner - 1]!r} and {name!r} lie in the same memory, so that optimizers change "
                    "both at once; use one nn.Parameter under both names, or clone() one of them."
                )
            if name in names:
                here.fill_(number + 1)


def refuse_stateful(model: nn.Module) -> None:
    """An ``InputError`` for modules in a mode in which they draw random numbers or remember: the remedy."""
    for name, module in model.named_modules():
        kind = f"{type(module).__name__} {name!r}" if name else type(module).__name__
        if isinstance(module, _NormBase) and module.track_running_stats and module.training:
            raise InputError(
                f"{kind} keeps running statistics, which adaptation would change in silence; "
                "build it with track_running_stats=False (or put it in eval mode to hold them constant)."
            )
        rate = module.p if isinstance(module, _DropoutNd) else getattr(module, "dropout", 0.0)
        if module.training and isinstance(rate, int | float) and rate > 0:
            raise InputError(f"{kind} has active dropout {rate:g}; set it to 0 or call model.eval().")
