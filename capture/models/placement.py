"""On which devices a model is put."""

from __future__ import annotations

from typing import Any

from capture.errors import OutliersError, one_line


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
