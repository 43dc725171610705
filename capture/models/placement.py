"""On which devices a model is put, and where accelerate keeps what does not fit on them."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, Final

from capture.errors import OutliersError, one_line

_MEMORY: Final = re.compile(r"(?P<place>\d{1,4}|cpu)=(?P<size>\d{1,9}(?:\.\d{1,9})?\s?[KMGT]i?B)", re.IGNORECASE)


def memory_limits(text: str) -> dict[int | str, str]:
    """Read `--max-memory`: comma-separated PLACE=SIZE, where PLACE is the number of a GPU, or cpu.

    Returns
    -------
    as accelerate takes it

    Raises
    ------
    OutliersError
        It is not of this form.
    """
    limits: dict[int | str, str] = {}
    for part in text.split(","):
        found = _MEMORY.fullmatch(part.strip())
        if found is None:
            raise OutliersError(
                f"--max-memory {part.strip()!r} is not understood; expected PLACE=SIZE, separated by commas, with the "
                "number of a GPU or cpu; for example 0=20GiB,cpu=60GiB"
            )
        place = found["place"].lower()
        limits[int(place) if place.isdecimal() else place] = found["size"].upper().replace("IB", "iB")
    return limits


def input_device(model: Any) -> Any:
    """The torch device that token ids go to.

    Weights that accelerate keeps elsewhere are on none themselves. Its hook knows where they will be; under nnsight,
    where the hook is not seen, the CPU is as good, for the hook moves what comes.
    """
    import torch

    embedding = model.get_input_embeddings()
    device = embedding.weight.device
    if device.type != "meta":
        return device
    hook = getattr(embedding, "_hf_hook", None)
    return torch.device("cpu" if hook is None else hook.execution_device)


def whole_parameter(module: Any, name: str) -> Any:
    """A parameter's values, fetched from where accelerate keeps them if they are offloaded.

    Parameters
    ----------
    module : any module
    name : dotted path of the parameter within it
    """
    from accelerate.utils import align_module_device, has_offloaded_params

    owner, _, last = name.rpartition(".")
    holder = module.get_submodule(owner)
    if not has_offloaded_params(holder):
        return getattr(holder, last).detach().clone()
    with align_module_device(holder, execution_device="cpu"):
        return getattr(holder, last).detach().clone()


def placed_where(model: Any) -> str:
    """What of a model lies where, in words."""
    places = getattr(model, "hf_device_map", None)  # only where there was more than one place
    sizes: Counter[str] = Counter()
    for path, place in (places if places else {"": model.device}).items():
        name = f"cuda:{place}" if isinstance(place, int) else str(place)
        parameters = model.get_submodule(path).parameters()
        sizes[name] += sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    return ", ".join(f"{size / 1e9:.2f} GB on {name}" for name, size in sizes.items())


def torch_device(device: str) -> Any:
    """The torch device of that name, tried out."""
    import torch

    try:
        target = torch.device(device)
        torch.empty(0, device=target)
        if target.type == "meta":
            raise RuntimeError("it has no values")
    except (RuntimeError, AssertionError) as error:
        raise OutliersError(
            f"--device {device} is not there ({one_line(error)}); expected auto, cpu or cuda:0"
        ) from error
    return target
