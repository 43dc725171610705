"""Datasets of the Hugging Face Hub, streamed at one commit; what breaks off goes on where it was."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from capture.errors import OutliersError, one_line
from capture.models.retry import patiently
from capture.progress import Reporter
from capture.texts.files import KINDS, Record, field_of

HUB_DATASETS: Final = {
    "fineweb-edu": ("HuggingFaceFW/fineweb-edu", "sample-10BT"),
    "c4": ("allenai/c4", "en"),
}
"""Repository and configuration behind each short name."""


class HubDataset:
    """The rows of a dataset as it is now.

    Parameters
    ----------
    source : a key of `HUB_DATASETS`, or `hf:ORG/NAME[:CONFIG[:SPLIT]]`
    reporter : is told where the hub keeps one waiting

    Raises
    ------
    OutliersError
        The source names no dataset, or the hub cannot be reached or has none of that name.
    """

    def __init__(self, source: str, reporter: Reporter) -> None:
        import datasets
        import huggingface_hub

        name, config, split = _parsed(source)
        self._source, self._reporter = source, reporter
        self.name = name
        self.revision: str | None = self._asked(
            lambda: huggingface_hub.HfApi().dataset_info(name, timeout=20).sha, first_contact=True
        )
        self._stream = self._asked(
            lambda: datasets.load_dataset(name, config, split=split, revision=self.revision, streaming=True)
        )

    def records(self, field: str) -> Iterator[Record]:
        """What a field of each row holds, one after another.

        Raises
        ------
        OutliersError
            The stream cannot be read, or a row has no such field.
        """
        rows = _Rows(self._stream)
        while (row := self._asked(rows.following)) is not None:
            where = f"record {rows.taken} of {self.name}"
            yield Record(field_of(row, field, where), where)

    def _asked(self, call: Any, **settings: Any) -> Any:
        """What the hub answers, patiently; what it cannot is told in one line."""
        try:
            return patiently(f"text {self._source}", call, self._reporter, **settings)
        except OutliersError:
            raise
        except Exception as error:
            raise OutliersError(
                f"cannot stream --text {self._source} from the Hugging Face Hub ({one_line(error)}); "
                f"offline, use --text python-docs, or a local {KINDS}"
            ) from error


class _Rows:
    """The rows of a stream; an iterator that raised has ended, and a new one goes on behind what was taken."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._rows = stream, iter(stream)
        self._broken = False
        self.taken = 0

    def following(self) -> Any:
        """The next row; None behind the last."""
        if self._broken:
            self._rows, self._broken = iter(self._stream.skip(self.taken)), False
        try:
            row = next(self._rows, None)
        except Exception:
            self._broken = True
            raise
        self.taken += row is not None
        return row


def _parsed(source: str) -> tuple[str, str | None, str]:
    """Repository, configuration and split of a source."""
    if source in HUB_DATASETS:
        return *HUB_DATASETS[source], "train"
    name, config, split = [*source.removeprefix("hf:").split(":"), "", ""][:3]
    if name.count("/") != 1 or not all(name.split("/")):
        raise OutliersError(f"--text {source} names no dataset; expected hf:ORG/NAME, or hf:ORG/NAME:CONFIG:SPLIT")
    return name, config if config else None, split if split else "train"
