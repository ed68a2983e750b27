"""The memory that a run needs, and what to change if there is less."""

from minillm.pretraining import TrainingConfig
from minillm.support.devices import is_out_of_memory
from minillm.transformer import ModelConfig, estimate_memory


def memory_needed(shape: ModelConfig, config: TrainingConfig) -> dict[str, int]:
    """Bytes by purpose that a step of this training uses at most, in one pass."""
    tokens = config.per_device_train_batch_size * config.context_length
    return estimate_memory(shape, tokens)


def describe_needs(needs: dict[str, int]) -> str:
    """A budget in words, for the console."""
    parts = ", ".join(f"{name} {size / 1e6:,.0f}" for name, size in needs.items())
    return f"memory: {sum(needs.values()) / 1e6:,.0f} MB ({parts})"


def check_memory(
    needs: dict[str, int], there: int | None, config: TrainingConfig
) -> str:
    """ValueError if a run can't fit; a warning if it may not; "" if it does."""
    if there is None or sum(needs.values()) <= there:
        return ""
    fixed = sum(size for name, size in needs.items() if name != "activations")
    text = f"{describe_needs(needs)}, but only {there / 1e6:,.0f} MB are free. "
    if fixed > there:
        raise ValueError(text + "No batch is small enough: take a smaller preset")
    return f"warning: {text}{describe_memory(config)}"


def describe_memory(config: TrainingConfig) -> str:
    """What to change, so that the same training needs half the memory."""
    rows = config.per_device_train_batch_size
    if rows == 1:
        length = f"a context_length below {config.context_length}"
        return f"With 1 row in a pass, what is left is {length}, or a smaller preset"
    return (
        f"The same training in smaller passes: per_device_train_batch_size={rows // 2},"
        f" gradient_accumulation_steps={config.gradient_accumulation_steps * 2}"
    )


def explain_failure(error: RuntimeError, config) -> Exception:
    """The error that says what to change, where that is known; else the same."""
    if is_out_of_memory(error):
        return MemoryError(f"out of memory. {describe_memory(config)}")
    if config.torch_compile and type(error).__module__.startswith("torch._"):
        first = str(error).partition("\n")[0]
        return ValueError(f"torch_compile fails here, leave it out: {first}")
    return error
