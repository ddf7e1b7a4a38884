"""Modules of many kinds, each with a loss and two small tasks in float64: what people bring."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.checkpoint import checkpoint

import amaml_core as am

TASKS, POINTS = 2, 4


class Forward(nn.Module):
    """A module whose forward is a function of itself and the inputs."""

    def __init__(self, call: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.call = call
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self.call(self, *inputs, **named)


class OldFunction(torch.autograd.Function):
    """Sine, with ``ctx`` in forward: what vmap cannot take."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grads[0] * x.cos()


class NewFunction(torch.autograd.Function):
    """Sine, as vmap wants it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.sin()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grads[0] * x.cos()


class Once(torch.autograd.Function):
    """Sine, whose backward has no derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grads[0] * x.cos()


@dataclass(frozen=True)
class Animal:
    """One kind of module.

    Attributes:
        build: () -> the model and its loss, the same values each time.
        inputs: (generator) -> the inputs of a set of examples.
        targets: (generator) -> their targets.
        masks: whether the tasks have different numbers of examples.
        refused: methods -> words of the sentence that refuses them; the key "" stands for all.
        compiled: whether the compiled engine takes it, where the others do.
        adapt: which parameters are adapted.
    """

    build: Callable[[], tuple[nn.Module, Callable[..., Tensor]]]
    inputs: Callable[[torch.Generator], Any]
    targets: Callable[[torch.Generator], Any]
    masks: bool = False
    refused: dict[str, str] = field(default_factory=dict)
    compiled: bool = True
    adapt: str | None = None

    def made(self) -> tuple[nn.Module, Callable[..., Tensor]]:
        """The model and its loss, in float64."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model, loss = self.build()
            return model.double(), loss

    def tasks(self) -> am.TaskBatch:
        """Two tasks."""
        generator = torch.Generator().manual_seed(1)
        parts = [make(generator) for _ in "12" for make in (self.inputs, self.targets)]
        mask = torch.ones(TASKS, POINTS, dtype=torch.bool)
        mask[1, -1] = False
        masks = {"support_mask": mask, "query_mask": mask} if self.masks else {}
        return am.TaskBatch(*parts, **masks)


def normal(*shape: int) -> Callable[[torch.Generator], Tensor]:
    """Normal numbers of such examples."""
    return lambda generator: torch.randn(TASKS, POINTS, *shape, generator=generator, dtype=torch.float64)


def labels(classes: int) -> Callable[[torch.Generator], Tensor]:
    """A class for each example."""
    return lambda generator: torch.randint(classes, (TASKS, POINTS), generator=generator)


def words(count: int) -> Callable[[torch.Generator], Tensor]:
    """Five of so many words, some of them padding."""
    return lambda generator: torch.randint(count, (TASKS, POINTS, 5), generator=generator)


def images(*layers: nn.Module, channels: int = 3) -> Animal:
    """A convolution and what comes after it, on images of one channel, in three classes."""
    head = nn.Linear(channels * 4 * 4, 3)

    def build() -> tuple[nn.Module, Callable[..., Tensor]]:
        model = nn.Sequential(nn.Conv2d(1, channels, 3, padding=1), *layers, nn.Flatten(), head)
        return _reset(model), cross_entropy

    return Animal(build, normal(1, 4, 4), labels(3))


def _reset(model: nn.Module) -> nn.Module:
    for part in model.modules():
        if callable(reset := getattr(part, "reset_parameters", None)):
            reset()
    return model


def vectors(build: Callable[[], nn.Module], **options: Any) -> Animal:
    """A module from three numbers to one, with the mean squared error."""
    return Animal(lambda: (build(), mse_loss), normal(3), normal(1), **options)


def series(build: Callable[[], nn.Module], width: int = 2, **options: Any) -> Animal:
    """A module from a series of five vectors to one number."""
    return Animal(lambda: (build(), mse_loss), normal(5, width), normal(1), **options)


def mlp(activation: Callable[[], nn.Module]) -> nn.Module:
    """A small perceptron."""
    return nn.Sequential(nn.Linear(3, 4), activation(), nn.Linear(4, 1))


def recurrent(kind: type[nn.RNNBase], **options: Any) -> nn.Module:
    """The last state of a recurrent net, read out."""
    net = kind(2, 3, batch_first=True, **options)
    return Forward(lambda m, x: m.o(m.r(x)[0][:, -1]), r=net, o=nn.Linear(3, 1))


def cells() -> nn.Module:
    """A cell of an LSTM, step by step."""

    def call(m: Any, x: Tensor) -> Tensor:
        state = None
        for t in range(x.shape[1]):
            state = m.c(x[:, t], state)
        assert state is not None
        return m.o(state[0])

    return Forward(call, c=nn.LSTMCell(2, 3), o=nn.Linear(3, 1))


def encoder(train: bool) -> nn.Module:
    """A layer of a transformer."""
    layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0 if train else 0.1, batch_first=True)
    return Forward(lambda m, x: m.o(m.l(x).mean(1)), l=layer, o=nn.Linear(4, 1)).train(train)


def attention() -> nn.Module:
    """Multi-head attention, and causal attention by torch's own function."""

    def call(m: Any, x: Tensor) -> Tensor:
        x = x + m.a(x, x, x, need_weights=False)[0]
        return m.o(functional.scaled_dot_product_attention(m.q(x), x, x, is_causal=True).mean(1))

    return Forward(call, a=nn.MultiheadAttention(4, 2, batch_first=True), q=nn.Linear(4, 4), o=nn.Linear(4, 1))


def block() -> nn.Module:
    """A residual block."""
    norm = lambda: nn.BatchNorm2d(2, track_running_stats=False)  # noqa: E731
    parts = {"c1": nn.Conv2d(1, 2, 3, padding=1), "n1": norm(), "c2": nn.Conv2d(2, 2, 3, padding=1), "n2": norm()}
    call = lambda m, x: m.o((m.s(x) + m.n2(m.c2(m.n1(m.c1(x)).relu()))).relu().mean((2, 3)))  # noqa: E731
    return Forward(call, s=nn.Conv2d(1, 2, 1), o=nn.Linear(2, 3), **parts)


def tied() -> nn.Module:
    """An embedding that is the read-out too."""
    model = Forward(lambda m, x: m.o(m.e(x).mean(1).tanh()), e=nn.Embedding(5, 3), o=nn.Linear(3, 5, bias=False))
    model.o.weight = model.e.weight
    return model


def counted() -> nn.Module:
    """A model that counts its calls in a buffer, which nothing depends on."""

    def call(m: Any, x: Tensor) -> Tensor:
        m.calls += 1
        m.last = m.l(x).tanh()
        return m.o(m.last)

    model = Forward(call, l=nn.Linear(3, 4), o=nn.Linear(4, 1))
    model.register_buffer("calls", torch.zeros((), dtype=torch.long))
    return model


def frozen() -> nn.Module:
    """A model whose first layer is not trained."""
    model = mlp(nn.Tanh)
    model[0].requires_grad_(False)
    return model


def statistics() -> nn.Module:
    """Batch norm with the statistics of an earlier training."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1))
    model[1].running_mean.add_(0.3)
    return model.eval()


def scattered(m: Any, x: Tensor) -> Tensor:
    """Messages along the edges of a graph."""
    source, target = torch.tensor([0, 1, 2, 2]), torch.tensor([1, 2, 0, 1])
    nodes = m.l(x.unsqueeze(-1)).tanh()
    return m.o(torch.zeros_like(nodes).index_add(1, target, nodes[:, source]).flatten(1))


def indexed(m: Any, x: Tensor) -> Tensor:
    """Advanced indexing, gather, sort and a mask."""
    h = m.l(x).tanh()
    picked = h.gather(1, h.argsort(1)[:, :2])
    h = torch.cat([picked, h[:, [3, 0]] * (h[:, [1, 2]] > 0)], 1)
    return m.o(h + h.flip(1).roll(1, 0))


def branching(m: Any, x: Tensor) -> Tensor:
    """What is done depends on values."""
    h = m.l(x).tanh()
    return m.o(h * 2 if x.sum() > 0 else h)


def penalised() -> tuple[nn.Module, Callable[..., Tensor]]:
    """A loss with a weight decay of the model's parameters, which it closes over."""
    model = mlp(nn.Tanh)
    return model, lambda p, t: mse_loss(p, t) + 0.1 * sum(q.square().sum() for q in model.parameters())


def checkpointed(reentrant: bool) -> nn.Module:
    """A model whose body is worked out again on the way back."""
    body = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh())
    return Forward(lambda m, x: m.h(checkpoint(m.b, x, use_reentrant=reentrant)), b=body, h=nn.Linear(4, 1))


def compiled_part() -> nn.Module:
    """A model with a part that ``torch.compile`` was put around."""
    part = torch.compile(nn.Sequential(nn.Linear(3, 4), nn.Tanh()))
    return Forward(lambda m, x: m.o(m.p(x)), p=part, o=nn.Linear(4, 1))


def two_layers(call: Callable[[Any, Tensor], Tensor], width: int = 4) -> Callable[[], nn.Module]:
    """A function of a first layer, read out."""
    return lambda: Forward(call, l=nn.Linear(3, width), o=nn.Linear(width, 1))


def by_name(generator: torch.Generator) -> dict[str, Tensor]:
    """Two inputs by name."""
    return {"a": normal(3)(generator), "b": normal(2)(generator)}


NO_SECOND = dict.fromkeys(("maml", "remat-maml", "imaml", "amaml"), "has no second derivative")

ZOO: dict[str, Animal] = {
    "perceptron, tanh": vectors(lambda: mlp(nn.Tanh)),
    "perceptron, ReLU": vectors(lambda: mlp(nn.ReLU)),
    "convolution, batch norm": images(nn.BatchNorm2d(3, track_running_stats=False), nn.Tanh()),
    "convolution, group norm": images(nn.GroupNorm(3, 3), nn.GELU()),
    "convolution, layer norm": images(nn.LayerNorm([3, 4, 4]), nn.SiLU()),
    "convolution, ReLU, max-pool": images(nn.ReLU(), nn.MaxPool2d(2), nn.Upsample(scale_factor=2)),
    "residual block": Animal(lambda: (block(), cross_entropy), normal(1, 4, 4), labels(3)),
    "batch norm in eval mode": vectors(statistics),
    "dropout in eval mode": vectors(lambda: nn.Sequential(mlp(nn.Tanh), nn.Dropout(0.5)).eval()),
    "dropout in train mode": vectors(
        lambda: nn.Sequential(mlp(nn.Tanh), nn.Dropout(0.5)), refused={"": "active dropout"}
    ),
    "RReLU in train mode": vectors(lambda: mlp(nn.RReLU), refused={"": "draws random numbers"}),
    "RNN": series(lambda: recurrent(nn.RNN)),
    "GRU": series(lambda: recurrent(nn.GRU)),
    "LSTM, two layers": series(lambda: recurrent(nn.LSTM, num_layers=2)),
    "LSTM cell": series(cells),
    "transformer encoder layer, train mode": series(lambda: encoder(True), 4),
    "transformer encoder layer, eval mode": series(lambda: encoder(False), 4),
    "attention, multi-head and causal": series(attention, 4),
    "embedding with padding": Animal(
        lambda: (nn.Sequential(nn.Embedding(6, 2, padding_idx=0), nn.Flatten(1), nn.Linear(10, 3)), cross_entropy),
        words(6),
        labels(3),
    ),
    "embedding bag": Animal(
        lambda: (nn.Sequential(nn.EmbeddingBag(6, 2), nn.Tanh(), nn.Linear(2, 3)), cross_entropy),
        words(6),
        labels(3),
        refused=NO_SECOND,
    ),
    "tied weights": Animal(lambda: (tied(), cross_entropy), words(5), labels(5)),
    "weight norm, by hook": vectors(
        lambda: nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 1))
    ),
    "weight norm, by parametrization": vectors(
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 1))
    ),
    "spectral norm in train mode": vectors(
        lambda: nn.Sequential(nn.utils.spectral_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 1)),
        refused={"": "changes its '0.weight_u'"},
    ),
    "spectral norm in eval mode": vectors(
        lambda: nn.Sequential(nn.utils.spectral_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 1)).eval()
    ),
    "autograd function, old style": vectors(two_layers(lambda m, x: m.o(OldFunction.apply(m.l(x))))),
    "autograd function, new style": vectors(two_layers(lambda m, x: m.o(NewFunction.apply(m.l(x))))),
    "autograd function, once differentiable": vectors(
        two_layers(lambda m, x: m.o(Once.apply(m.l(x)))), refused=NO_SECOND
    ),
    "activation in place, on the input": vectors(lambda: nn.Sequential(nn.LeakyReLU(0.2, inplace=True), mlp(nn.Tanh))),
    "activation in place, inside": vectors(lambda: mlp(lambda: nn.ELU(inplace=True))),
    "checkpointed": vectors(lambda: checkpointed(False)),
    "checkpointed, reentrant": vectors(lambda: checkpointed(True), refused={"": "use_reentrant=False"}),
    "several inputs": Animal(
        lambda: (
            Forward(
                lambda m, a, b: m.o((m.l(a) * m.r(b)).tanh()), l=nn.Linear(3, 4), r=nn.Linear(2, 4), o=nn.Linear(4, 1)
            ),
            mse_loss,
        ),
        lambda generator: (normal(3)(generator), normal(2)(generator)),
        normal(1),
    ),
    "inputs and outputs by name": Animal(
        lambda: (
            Forward(lambda m, a, b: {"y": m.l(a).tanh(), "z": m.r(b)}, l=nn.Linear(3, 1), r=nn.Linear(2, 3)),
            lambda p, t: mse_loss(p["y"], t[0]) + cross_entropy(p["z"], t[1]),
        ),
        by_name,
        lambda generator: (normal(1)(generator), labels(3)(generator)),
    ),
    "tasks of unequal size, by a mask": vectors(lambda: mlp(nn.Tanh), masks=True),
    "boolean mask in the loss": Animal(
        lambda: (mlp(nn.Tanh), lambda p, t: (p - t)[t > -1].square().mean()), normal(3), normal(1)
    ),
    "class weights in the loss": Animal(
        lambda: (nn.Sequential(nn.Linear(3, 3)), nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]).double())),
        normal(3),
        labels(3),
    ),
    "weight decay in the loss": Animal(penalised, normal(3), normal(1)),
    "advanced indexing": vectors(two_layers(indexed)),
    "scatter along a graph": vectors(
        lambda: Forward(scattered, l=nn.Linear(1, 2), o=nn.Linear(6, 1)),
    ),
    "branch on a value": vectors(two_layers(branching), compiled=False),
    "number out of a tensor": vectors(
        two_layers(lambda m, x: m.o(m.l(x).tanh() * x.abs().max().item())), compiled=False
    ),
    "complex numbers": vectors(two_layers(lambda m, x: m.o(torch.fft.fft(m.l(x)).abs()))),
    "a part that torch.compile made": vectors(compiled_part, compiled=False),
    "calls counted in a buffer": vectors(counted),
    "frozen first layer": vectors(frozen),
    "head alone adapted": vectors(lambda: mlp(nn.Tanh), adapt=r"2\..*"),
    "lazy layer": vectors(lambda: nn.Sequential(nn.LazyLinear(1)), refused={"": "has no shape yet"}),
    "scripted": vectors(lambda: torch.jit.script(nn.Linear(3, 1)), refused={"": "is scripted"}),
    "data parallel": vectors(lambda: nn.DataParallel(nn.Linear(3, 1)), refused={"": "pass its .module"}),
}
