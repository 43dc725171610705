"""What a module computes, if it is a norm: told by running it on small inputs, never by its name.

A norm is tiny, so it is run even for a model without weights: a twin with random parameters of the same shapes, on
the CPU, answers for the module.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.utils._python_dispatch import _disable_current_modes

from capture.store.norms import ROUNDING_ORDERS, derive_norm_output

_ROWS = 32
_SCALES = (1e-4, 1e-3, 1.0, 100.0)
_STATE = ("_parameters", "_buffers", "_modules")


@dataclass(frozen=True)
class NormForm:
    """Formula of a norm: (x - mean if "layer") / sqrt(mean square + epsilon) * (weight + offset) + bias.

    Parameters
    ----------
    kind : "rms" or "layer"
    epsilon : as the norm's own attribute has it, where one agrees with the behaviour
    weight_offset : what is added to the weight
    rounding : one of `capture.store.norms.ROUNDING_ORDERS`, or "unknown" where none reproduces the norm in bfloat16
    weight, bias : names of the parameters; None where there is none
    """

    kind: str
    epsilon: float
    weight_offset: float
    rounding: str
    weight: str | None
    bias: str | None


def _twin(module: torch.nn.Module, generator: torch.Generator) -> torch.nn.Module:
    """Copy a module without its hooks and wrappers, with random parameters on the CPU."""
    twin: torch.nn.Module = type(module).__new__(type(module))
    torch.nn.Module.__init__(twin)
    skipped = {name for name in twin.__dict__ if name not in _STATE} | {"forward", *_STATE}
    for name, value in module.__dict__.items():
        if name not in skipped and not name.startswith("_hf_"):
            twin.__dict__[name] = copy.copy(value)
    twin.__dict__["_parameters"] = OrderedDict(
        (name, None if old is None else torch.nn.Parameter(torch.randn(old.shape, generator=generator), False))
        for name, old in module._parameters.items()
    )
    for name, buffer in module._buffers.items():
        twin._buffers[name] = None if buffer is None else torch.zeros(buffer.shape)
    for name, child in module._modules.items():
        twin._modules[name] = None if child is None else _twin(child, generator)
    twin.training = False
    return twin


def _fill(module: torch.nn.Module, value: float, only: str | None = None) -> None:
    for name, parameter in module.named_parameters():
        if only is None or name == only:
            parameter.data.fill_(value)


def _close(left: torch.Tensor, right: torch.Tensor, tolerance: float = 1e-3) -> bool:
    return bool(torch.allclose(left, right, rtol=tolerance, atol=tolerance * float(right.abs().max())))


def _unit(values: torch.Tensor, kind: str, epsilon: float) -> torch.Tensor:
    form = derive_norm_output(values.numpy(), None, None, kind, epsilon, 0.0, "float32")
    return torch.from_numpy(form)


def _measured_epsilon(twin: torch.nn.Module, unit_scale: float, kind: str, values: torch.Tensor) -> float | None:
    """Read epsilon from the gain on a signal far below it: y = x / sqrt(epsilon)."""
    faint = values * 1e-14
    if kind == "layer":
        faint = faint - faint.mean(-1, keepdim=True)
    gain = float((twin(faint).norm() / faint.norm()) / unit_scale)
    if not np.isfinite(gain) or gain <= 0:
        return None
    measured = gain**-2
    if measured < 1e-20:
        return 0.0
    named = [value for value in vars(twin).values() if isinstance(value, float)]
    # An attribute gives the exact number, the measurement says which attribute it is.
    return next((value for value in named if abs(value - measured) < 1e-3 * measured), float(f"{measured:.4g}"))


def norm_form(module: torch.nn.Module, width: int) -> NormForm | None:
    """Find the formula of a module of a stream `width` wide; None if it is not a norm."""
    if any(parameter.numel() not in (width, 1) for parameter in module.parameters()):
        return None
    if len(list(module.parameters())) > 2 or len(list(module.modules())) > 3:
        return None
    # Under someone's fake-tensor mode there would be nothing to measure.
    with torch.no_grad(), _disable_current_modes(), torch.device("cpu"):
        return _norm_form(module, width)


def _norm_form(module: torch.nn.Module, width: int) -> NormForm | None:
    generator = torch.Generator("cpu").manual_seed(0)
    try:
        twin = _twin(module, generator)
        rows = max(_ROWS, 2**14 // width)
        values = torch.randn(rows, width, generator=generator) * 3 + 1
        # So loud that no epsilon matters; that is measured on its own below.
        loud = values * 1e4
        raw = twin(loud)
        if not isinstance(raw, torch.Tensor) or raw.shape != values.shape or not bool(raw.isfinite().all()):
            return None
        # Whatever normalises does not see the scale of what it receives, and an activation or a linear map does.
        if not _close(twin(loud * 64.0), raw, 0.01):
            return None
        kind = "layer" if _close(twin(loud + 8e4), raw, 0.01) else "rms"
        _fill(twin, 0.0)
        unit = _unit(loud, kind, 0.0)
        offset = _ratio(twin(loud), unit)
        weight = bias = None
        for name, _ in list(twin.named_parameters()):
            _fill(twin, 1.0, name)
            change = twin(loud) - offset * unit
            if _close(change, unit, 0.01):
                weight = name
            elif _close(change, torch.ones_like(unit), 0.01):
                bias = name
            else:
                return None
            _fill(twin, 0.0, name)
        weight_offset = float(round(offset, 2))
        if weight is not None:
            _fill(twin, 1.0 - weight_offset, weight)
        scale = 1.0 if weight is not None else offset
        if abs(scale - 1.0) > 0.01 or weight_offset not in (0.0, 1.0):
            return None
        epsilon = _measured_epsilon(twin, scale, kind, values)
        if epsilon is None:
            return None
        form = NormForm(kind, epsilon, weight_offset if weight else 0.0, "last", weight, bias)
        for name, parameter in twin.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data.copy_(0.25 * noise + (1.0 - form.weight_offset if name == weight else 0.0))
        if not all(_close(twin(values * scale), _derived(twin, form, values * scale, "float32")) for scale in _SCALES):
            return None
        return replace(form, rounding=_rounding(twin.bfloat16(), form, values.bfloat16()))
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, NotImplementedError):
        return None


def _derived(twin: torch.nn.Module, form: NormForm, values: torch.Tensor, dtype: str) -> torch.Tensor:
    parameters = {name: parameter.float().numpy().reshape(-1) for name, parameter in twin.named_parameters()}
    weight = parameters[form.weight] if form.weight else None
    bias = parameters[form.bias] if form.bias else None
    array = values.float().numpy()
    result = derive_norm_output(
        array, weight, bias, form.kind, form.epsilon, form.weight_offset, dtype, rounding=form.rounding
    )
    return torch.from_numpy(result)


def _rounding(twin: torch.nn.Module, form: NormForm, values: torch.Tensor) -> str:
    """Name the order of rounding that gives the norm's own bfloat16 values."""
    output = twin(values).float()
    for rounding in ROUNDING_ORDERS:
        derived = _derived(twin, replace(form, rounding=rounding), values, "bfloat16")
        if float((derived == output).float().mean()) > 0.999:
            return rounding
    return "unknown"


def _ratio(output: torch.Tensor, unit: torch.Tensor) -> float:
    ratio = float((output * unit).sum() / (unit * unit).sum())
    return ratio if _close(output, ratio * unit, 0.01) or abs(ratio) < 1e-4 else float("nan")
