"""A store uploaded: to a dataset on the Hugging Face Hub with a page about it, or to a bucket.

What claims that a store is whole comes last: its metadata and its `done` flags. A reader never sees a store that says
more than is there, and an upload that stopped goes on with the same command.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from analyze.sharing.attributes import without_paths
from analyze.sharing.bucket import BucketUpload
from analyze.sharing.card import card
from analyze.sharing.files import check_sound, entries, left_out_line
from analyze.sharing.hub import HubUpload
from analyze.sharing.plan import BUCKET, HUB, Push, bucket_url, check_hub_limits, hub_url, is_last
from analyze.types import Progress
from capture.errors import OutliersError
from capture.store.group import open_group
from capture.store.paths import user_path


def push(
    store: Path | str,
    target: str,
    *,
    name: str | None = None,
    licence: str | None = None,
    private: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    keep_paths: bool = False,
    progress: Progress | None = None,
    report: Callable[[str], None] | None = None,
) -> Push:
    """Upload a store, after reading every chunk of it back.

    Parameters
    ----------
    store : folder of a whole store
    target : `hf://datasets/ORG/NAME`, a dataset, which is created where there is none; or `s3://BUCKET/PREFIX/NAME.zarr`
    name : of the store's folder in the dataset; that of `store` where None
    licence : of the data, as a licence id of the Hub
    private : make a new dataset private
    overwrite : replace another store of this name at the target
    dry_run : check everything that can be checked here, and leave the network alone
    keep_paths : leave the paths in attributes and page as they are; of others only the last part is handed on
    progress : is called with (sequences read back, sequences in all)
    report : is told in one line what happens

    Returns
    -------
    what was uploaded, or would be

    Raises
    ------
    OutliersError
        The store is missing, damaged or unfinished, the target cannot take it or holds another store, there is no
        token or permission, or the network fails.
    """
    store = user_path(store)
    plan = _plan(store, target, name, licence, private, keep_paths)
    if plan.left_out and report is not None:
        report(left_out_line(plan.left_out))
    upload = None
    if not dry_run:
        upload = _uploader(plan, overwrite=overwrite, report=(lambda line: None) if report is None else report)
    check_sound(store, progress)
    if upload is not None:
        upload()
    return plan


def _plan(store: Path, target: str, name: str | None, licence: str | None, private: bool, keep_paths: bool) -> Push:
    if store.is_file():
        raise OutliersError(f"{store} is a file; expected the folder of a store, as outliers unpack makes it")
    open_group(store)
    found, left_out = entries(store)
    found = found if keep_paths else without_paths(found)
    files = tuple(sorted(found, key=lambda entry: (is_last(entry.name), entry.name == "zarr.json")))
    if target.startswith(HUB):
        url = hub_url(target, store, name)
        check_hub_limits(files)
        page = card(store, url.rpartition("/")[2], url, licence=licence, keep_paths=keep_paths)
        return Push(store, url, files, left_out, page, private)
    if target.startswith(BUCKET):
        given = {"--name": name is not None, "--license": licence is not None, "--private": private}
        if asked := [option for option, value in given.items() if value]:
            raise OutliersError(f"{' and '.join(asked)} mean nothing for {BUCKET}; leave them out")
        return Push(store, bucket_url(target), files, left_out, None, private)
    raise OutliersError(f"{target} is no target; expected {HUB}ORG/NAME or {BUCKET}BUCKET/PREFIX/NAME.zarr")


def _uploader(plan: Push, *, overwrite: bool, report: Callable[[str], None]) -> Callable[[], None]:
    """The upload, ready to start: libraries, credentials and target are checked."""
    if plan.card is not None:
        return HubUpload(plan, plan.card, overwrite=overwrite, report=report).run
    return BucketUpload(plan, overwrite=overwrite, report=report).run
