"""Where a dataset of the Hugging Face Hub is: at one commit, so that a later push changes nothing halfway."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final
from urllib.parse import quote

from capture.errors import OutliersError, one_line

_HUB: Final = re.compile(r"hf://datasets/([\w.-]+)/([\w.-]+?)(?:@([\w.%/-]+?))?/([^@]*)")
HUB_SHAPE: Final = "hf://datasets/ORG/NAME/STORE.zarr"
_SILENCE: Final = 30


@dataclass(frozen=True)
class HubDataset:
    """A folder of a dataset on the Hugging Face Hub, at one commit.

    Parameters
    ----------
    base : URL of the folder at that commit
    commit : its id
    headers : of every request, the token among them
    """

    base: str
    commit: str
    headers: tuple[tuple[str, str], ...]

    def __repr__(self) -> str:
        """Without the token."""
        return f"HubDataset({self.base!r})"


def hub_dataset(url: str) -> HubDataset:
    """Find the newest commit of a dataset, or that of the revision behind an `@`.

    Parameters
    ----------
    url : of a store, or of the folder that an archive is in, with `/` at its end

    Raises
    ------
    OutliersError
        The URL is none, huggingface_hub is not installed, or the Hub does not know the dataset or cannot be reached.
    """
    match = _HUB.fullmatch(url)
    if match is None or ".." in match[4].split("/"):
        raise OutliersError(f"{url} is no URL of a store on the Hugging Face Hub; expected {HUB_SHAPE}")
    organisation, name, revision, path = match.groups()
    if find_spec("huggingface_hub") is None:
        raise OutliersError(
            f"{url} is on the Hugging Face Hub, which takes the extra remote; "
            "install it with: pip install 'outlier-features[remote]'"
        )
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    try:
        commit = HfApi().dataset_info(f"{organisation}/{name}", revision=revision, timeout=_SILENCE).sha
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", "no answer")
        raise OutliersError(
            f"the Hugging Face Hub does not give dataset {organisation}/{name} ({status}); check its name and "
            "revision, and for a private one run: hf auth login, or set HF_TOKEN"
        ) from error
    except Exception as error:  # every way of being offline has an exception of its own
        raise OutliersError(
            f"the Hugging Face Hub cannot be reached for {url} ({type(error).__name__}: {one_line(error)}); "
            "check the network"
        ) from error
    base = f"{constants.ENDPOINT}/datasets/{organisation}/{name}/resolve/{commit}/{quote(path)}".rstrip("/")
    return HubDataset(base, str(commit), tuple(sorted(build_hf_headers().items())))
