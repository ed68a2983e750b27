"""The loss, the optimizers, the schedules and the number formats of training."""

# Generated from notebooks/08_optimization.ipynb: edit that, then `make build`.

# %% auto #0
__all__ = [
    "SCHEDULES", "cosine_schedule", "linear_schedule", "PRECISIONS", "cross_entropy",
    "SGD", "AdamW", "parameter_groups", "set_learning_rate", "clip_grad_norm",
    "autocast", "LossScale",
]  # fmt: skip

# %%
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

import torch
from torch import Tensor, nn


# %%
def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """How surprised the model is by the token that came, in nats: -log p(label).

    logits (..., V) in any float format, labels (...) integers; worked out in float32.
    Positions labeled `ignore_index` count 0 and get no gradient. "mean" divides by the
    number of the others, and is 0 where there are none; "sum" adds; "none" gives (...).
    """
    if logits.shape[:-1] != labels.shape:
        raise ValueError(f"{tuple(logits.shape)=} does not fit {tuple(labels.shape)=}")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"{reduction=} is not one of 'mean', 'sum', 'none'")
    counted = labels != ignore_index
    index = labels.where(counted, 0).unsqueeze(-1)
    surprise = -logits.float().log_softmax(-1).gather(-1, index).squeeze(-1)  # (...)
    surprise = surprise.where(counted, 0.0)
    if reduction == "none":
        return surprise
    return surprise.sum() / (counted.sum().clamp(min=1) if reduction == "mean" else 1)


# %%
def _check_settings(**settings: float) -> None:
    """Refuse what no optimizer can work with: a negative number, a beta of 1."""
    for name, value in settings.items():
        limit = 1.0 if name in ("beta1", "beta2", "momentum") else math.inf
        if not 0 <= value < limit:
            raise ValueError(f"{name}={value} is not in the range [0, {limit})")


class SGD(torch.optim.Optimizer):
    """Gradient descent with momentum and L2 decay; the arithmetic of torch.optim.SGD.

    The decay is added to the gradient, so momentum and learning rate act on it too.
    """

    def __init__(
        self, params: Iterable, lr: float, momentum: float = 0, weight_decay: float = 0
    ):
        settings = dict(lr=lr, momentum=momentum, weight_decay=weight_decay)
        _check_settings(**settings)
        super().__init__(params, settings)

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in [p for p in group["params"] if p.grad is not None]:
                grad = p.grad.add(p, alpha=group["weight_decay"])
                if group["momentum"] and "momentum_buffer" in self.state[p]:
                    buffer = self.state[p]["momentum_buffer"]
                    grad = buffer.mul_(group["momentum"]).add_(grad)
                elif group["momentum"]:
                    self.state[p]["momentum_buffer"] = grad
                p.sub_(grad, alpha=group["lr"])


# %%
def _adamw_update(params, states, lr, betas, eps, weight_decay) -> None:
    """One step of algorithm 2 for lists of tensors and of their states."""
    grads, (beta1, beta2) = [p.grad for p in params], betas
    keys = ("exp_avg", "exp_avg_sq", "step")
    means, squares, steps = ([state[key] for state in states] for key in keys)
    torch._foreach_add_(steps, 1)
    torch._foreach_mul_(params, 1 - lr * weight_decay)
    torch._foreach_lerp_(means, grads, 1 - beta1)
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
    ages = [step.item() for step in steps]
    sizes = torch._foreach_sqrt(squares)
    torch._foreach_div_(sizes, [(1 - beta2**age) ** 0.5 for age in ages])
    torch._foreach_add_(sizes, eps)
    rates = [-lr / (1 - beta1**age) for age in ages]
    torch._foreach_addcdiv_(params, means, sizes, rates)


class AdamW(torch.optim.Optimizer):
    """Adam with decoupled weight decay: Loshchilov and Hutter 2019, algorithm 2.

    Equal to torch.optim.AdamW to the last digit. The state of a parameter is three
    tensors: exp_avg and exp_avg_sq, shaped like it, and step, a number.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
    ):
        settings = dict(lr=lr, eps=eps, weight_decay=weight_decay)
        _check_settings(**settings, beta1=betas[0], beta2=betas[1])
        super().__init__(params, settings | dict(betas=tuple(betas)))

    def new_state(self, p: Tensor) -> dict[str, Tensor]:
        exp_avg, exp_avg_sq = torch.zeros_like(p), torch.zeros_like(p)
        return dict(step=torch.tensor(0.0), exp_avg=exp_avg, exp_avg_sq=exp_avg_sq)

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            for p in params:
                self.state[p] = self.state[p] or self.new_state(p)
            options = {
                key: group[key] for key in ("lr", "betas", "eps", "weight_decay")
            }
            if params:
                _adamw_update(params, [self.state[p] for p in params], **options)


# %%
def parameter_groups(
    model: nn.Module, weight_decay: float = 0.1, embedding_lr_scale: float = 1.0
) -> list[dict]:
    """Groups for an optimizer: matrices decay; embeddings, norms and biases do not.

    The embedding's learning rate is multiplied by `embedding_lr_scale`: every group has
    an "lr_scale" that `set_learning_rate` reads. A tied head is the embedding.
    """
    tables = [m.weight for m in model.modules() if isinstance(m, nn.Embedding)]
    groups = [
        dict(name="matrices", weight_decay=weight_decay, lr_scale=1.0),
        dict(name="vectors", weight_decay=0.0, lr_scale=1.0),
        dict(name="embeddings", weight_decay=0.0, lr_scale=embedding_lr_scale),
    ]
    groups = [dict(group, params=[]) for group in groups]
    for p in model.parameters():
        if p.requires_grad:
            embedding = any(p is table for table in tables)
            groups[2 if embedding else 0 if p.dim() >= 2 else 1]["params"].append(p)
    return [group for group in groups if group["params"]]


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Give every group `learning_rate` times its lr_scale (1 where it has none)."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("lr_scale", 1.0)


# %%
def _scheduled(
    left: Callable[[float], float],
    step: int,
    max_steps: int,
    learning_rate: float,
    warmup_steps: int = 0,
    min_learning_rate: float = 0.0,
) -> float:
    """The rate of step 0, 1, ..., max_steps - 1: a warm-up, then a fall.

    `left` maps the share of the fall that is done, 0 to 1, to what is left of it. The
    last step of the warm-up, `warmup_steps - 1`, is at `learning_rate`; the minimum is
    reached at `max_steps`, one after the last: no step is spent on a rate of 0.
    """
    if step < warmup_steps:
        return learning_rate * (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, max_steps - warmup_steps)
    height = learning_rate - min_learning_rate
    return min_learning_rate + height * left(min(1.0, done))


SCHEDULES = {
    "linear": partial(_scheduled, lambda done: 1 - done),
    "cosine": partial(_scheduled, lambda done: (1 + math.cos(math.pi * done)) / 2),
    "constant": partial(_scheduled, lambda done: 1.0),
}  # name -> schedule(step, max_steps, learning_rate, warmup_steps, min_learning_rate)
cosine_schedule = SCHEDULES["cosine"]  # SGDR, Loshchilov and Hutter 2017, equation 5
linear_schedule = SCHEDULES["linear"]


# %%
def learning_rate_sweep(
    optimizer: torch.optim.Optimizer,
    loss_of_step: Callable[[int], Tensor],
    lowest: float = 1e-5,
    highest: float = 1.0,
    steps: int = 60,
) -> list[tuple[float, float]]:
    """Train while the rate grows by a constant factor: (rate, loss before it) pairs.

    Smith 2017, section 3.3. Stops early when the loss is not finite or is 3 above the
    best. It changes the weights: use a copy.
    """
    found, best = [], math.inf
    for step in range(steps):
        rate = lowest * (highest / lowest) ** (step / (steps - 1))
        loss = loss_of_step(step)
        found.append((rate, loss.item()))
        best = min(best, loss.item())
        if not loss.item() < best + 3:
            break
        optimizer.zero_grad()
        loss.backward()
        set_learning_rate(optimizer, rate)
        optimizer.step()
    return found


# %%
def clip_grad_norm(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale all gradients down together if their common norm is above `max_norm`.

    Returns the norm before clipping. The same arithmetic as torch.nn.utils.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    if not grads:
        return torch.tensor(0.0)
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
    torch._foreach_mul_(grads, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


# %%
PRECISIONS = ("float32", "medium", "bf16", "fp16")
_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


@contextmanager
def autocast(device: str | torch.device, precision: str) -> Iterator[None]:
    """Run the forward AND the backward pass in here, in one of `PRECISIONS`.

    "medium" lets the matrix products of float32 tensors round their inputs to bf16:
    a setting of the process, put back at the end, so backward() belongs inside. "bf16"
    and "fp16" make the products themselves bf16 or float16; float16 needs a
    `LossScale`. Weights, and what sums over many numbers, stay float32 in all four.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"{precision=} is not one of {', '.join(PRECISIONS)}")
    before = torch.get_float32_matmul_precision()
    kind, low = torch.device(device).type, _HALF.get(precision)
    torch.set_float32_matmul_precision("medium" if precision == "medium" else "highest")
    try:
        with torch.autocast(kind, dtype=low, enabled=low is not None):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


# %%
class LossScale:
    """The factor by which a loss is multiplied so that float16 holds its gradients.

    Micikevicius et al. 2018, section 3.2. It is 1, for good, unless `precision` is
    "fp16"; there it starts at 65,536, is halved by each step whose gradients overflow
    (skip it), and doubled after `growth_interval` steps in a row that did not.
    """

    def __init__(self, precision: str, growth_interval: int = 2000):
        self.dynamic = precision == "fp16"
        self.growth_interval = growth_interval
        self.value = 65536.0 if self.dynamic else 1.0
        self.good_steps = 0

    @torch.no_grad()
    def unscale(self, parameters: Iterable[Tensor]) -> None:
        """Divide the gradients by the factor."""
        grads = [p.grad for p in parameters if p.grad is not None]
        if self.dynamic and grads:
            torch._foreach_div_(grads, self.value)

    def update(self, finite: bool) -> bool:
        """Adapt to whether the gradients were finite; False if that can't help."""
        if finite:
            self.good_steps += 1
            if self.dynamic and self.good_steps % self.growth_interval == 0:
                self.value *= 2
            return True
        self.good_steps = 0
        helps = self.dynamic and self.value > 1
        self.value /= 2 if helps else 1
        return helps

    def state_dict(self) -> dict[str, float]:
        return {"value": self.value, "good_steps": self.good_steps}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.value = state.get("value", self.value) if self.dynamic else 1.0
        self.good_steps = int(state.get("good_steps", 0))


# %%
CANDIDATES = PRECISIONS[:3]  # fp16 is for cards that have no bf16


def training_seconds(model: nn.Module, input_ids: Tensor, precision: str) -> float:
    """Seconds of one forward and backward pass; weights and gradients stay as is."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    with autocast(input_ids.device, precision):
        start = time.perf_counter()
        loss = cross_entropy(model(input_ids), input_ids)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        gradients[0].sum().item()  # a GPU is done only when a number comes back
    return time.perf_counter() - start


def seconds_in_turn(
    ways: dict[str, tuple[nn.Module, str]], input_ids: Tensor, rounds: int
) -> dict[str, float]:
    """The least `training_seconds` of each (model, precision); they take turns."""
    best = {}
    for turn in range(rounds + 1):  # turn 0 warms up
        for name, (model, precision) in ways.items():
            spent = training_seconds(model, input_ids, precision)
            if turn > 0:
                best[name] = min(spent, best.get(name, spent))
    return best


# %%
def precision_speeds(
    model: nn.Module,
    rows: int = 4,
    context: int = 256,
    rounds: int = 4,
    compiled: bool = False,
) -> dict[str, float]:
    """Training tokens per second of `model` here, by precision, the fastest first.

    The best of `rounds`, taken in turn. With `compiled`, the fastest is then timed
    under torch.compile too: "bf16, compiled", unless the compiler fails here. Needs
    `model.config.vocab_size`. Leaves weights, gradients and random state alone.
    """
    device, shape = next(model.parameters()).device, (rows, context)
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, shape, generator=random).to(device)
    ways = {precision: (model, precision) for precision in CANDIDATES}
    with torch.random.fork_rng():
        times = seconds_in_turn(ways, ids, rounds)
        if compiled:
            best = min(times, key=times.__getitem__)
            both = {best: ways[best], f"{best}, compiled": (torch.compile(model), best)}
            with suppress(RuntimeError):  # no C++ compiler, or one that fails
                times |= seconds_in_turn(both, ids, rounds)
    speeds = {name: rows * context / seconds for name, seconds in times.items()}
    return dict(sorted(speeds.items(), key=lambda item: -item[1]))


# %%
def advise(speeds: dict[str, float], gain: float = 1.1) -> str:
    """The name in `speeds` to train with: the most exact that none beats by `gain`.

    The order is CANDIDATES, then what is compiled. Example:
    `advise({"float32": 100, "medium": 105, "bf16": 200}) == "bf16"`
    """
    best = "float32"
    for name in [*CANDIDATES[1:], *(f"{kind}, compiled" for kind in CANDIDATES)]:
        if speeds.get(name, 0.0) > gain * speeds[best]:
            best = name
    return best


def fastest_precision(model: nn.Module, gain: float = 1.1, **settings: int) -> str:
    """What "auto" means on this machine: the advice for `model`, without compiling.

    `settings` go to `precision_speeds`.
    """
    return advise(precision_speeds(model, **settings), gain)
