"""The upload to a dataset of the Hugging Face Hub: data in as many commits as it takes, then one makes it a store."""

from __future__ import annotations

import glob
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from analyze.sharing.card import UNKNOWN, Card, picture_name
from analyze.sharing.plan import HUB, Push, Uploaded, unlike
from capture.errors import OutliersError, one_line

EXTRA: Final = "install with: pip install 'outlier-features[remote]'"
_PAGE: Final = "README.md"
_HIDDEN: Final = (".*", "*/.*")  # as in `entries`


class HubUpload:
    """An upload that is ready to start.

    Parameters
    ----------
    plan : what is uploaded
    card : the page about it
    overwrite : replace another store of this name
    report : is told in one line what happens

    Raises
    ------
    OutliersError
        huggingface_hub is not installed, there is no token, the Hub cannot be reached or refuses the token, or a public
        dataset was asked to be private.
    """

    def __init__(self, plan: Push, card: Card, *, overwrite: bool, report: Callable[[str], None]) -> None:
        try:
            import huggingface_hub
        except ModuleNotFoundError as error:
            raise OutliersError(
                f"huggingface_hub is not installed, which uploading to the Hub needs; {EXTRA}"
            ) from error
        self._plan, self._card, self._overwrite, self._report = plan, card, overwrite, report
        organisation, name, self._folder = plan.url.removeprefix(HUB).split("/")
        self._repo = f"{organisation}/{name}"
        if huggingface_hub.get_token() is None:
            raise OutliersError(
                "no token of the Hugging Face Hub; make one with write permission at "
                "https://huggingface.co/settings/tokens, then run: hf auth login, or set HF_TOKEN"
            )
        self._api = huggingface_hub.HfApi()
        with self._told():
            self._exists = self._looked_up()

    def _looked_up(self) -> bool:
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            info = self._api.dataset_info(self._repo)
        except RepositoryNotFoundError:
            self._api.whoami()  # the Hub answers alike to a missing dataset and to a token that it does not know
            return False
        if self._plan.private and not info.private:
            raise OutliersError(
                f"{HUB}{self._repo} exists and is public, and --private only makes new datasets private; "
                "change it in its settings on the Hub, or choose another name"
            )
        return True

    def run(self) -> None:
        """Upload.

        Raises
        ------
        OutliersError
            The target holds another store, a permission is missing, or the network fails.
        """
        from huggingface_hub import CommitOperationAdd

        plan, card = self._plan, self._card
        # With what makes a store comes what goes up otherwise than it lies in the folder.
        late = [file for file in plan.files if file in plan.last or isinstance(file.source, bytes)]
        with self._told(), _progress():
            if not self._exists:
                self._api.create_repo(self._repo, repo_type="dataset", private=plan.private, exist_ok=True)
                self._report(f"created {HUB}{self._repo}")
            self._clear()
            self._api.upload_folder(
                repo_id=self._repo,
                repo_type="dataset",
                folder_path=plan.store,
                path_in_repo=self._folder,
                ignore_patterns=[*_HIDDEN, *map(glob.escape, (*(file.name for file in late), *plan.left_out))],
                commit_message=f"Data of {self._folder}",
            )
            sources: dict[str, Any] = {f"{self._folder}/{file.name}": file.source for file in late}
            sources[picture_name(self._folder)] = card.picture
            sources[_PAGE] = self._page().encode()
            self._api.create_commit(
                self._repo,
                [CommitOperationAdd(path, source) for path, source in sources.items()],
                repo_type="dataset",
                commit_message=f"Add {self._folder}",
            )
            there = self._there()
        lacking = [file.name for file in plan.files if file.name not in there or there[file.name].size != file.size]
        if lacking:
            raise OutliersError(
                f"{plan.url} lacks {len(lacking)} files after the upload, {lacking[0]} for one; "
                "run the same command again"
            )

    def _clear(self) -> None:
        """Refuse another store at the target, or remove it; what an upload that stopped has left is gone on with."""
        from huggingface_hub import CommitOperationDelete

        other = unlike(self._plan.url, self._plan.files, self._there())
        if not other:
            return
        if not self._overwrite:
            raise OutliersError(
                f"{self._plan.url} holds another store ({other[0]} differs); choose another --name, "
                "or pass --overwrite to replace it"
            )
        self._report(f"removing what {self._plan.url} holds")
        self._api.create_commit(
            self._repo,
            [CommitOperationDelete(f"{self._folder}/", is_folder=True)],
            repo_type="dataset",
            commit_message=f"Remove {self._folder}",
        )

    def _there(self) -> dict[str, Uploaded]:
        """Files of the target's folder, by their names inside it."""
        from huggingface_hub import RepoFile
        from huggingface_hub.errors import RemoteEntryNotFoundError

        found = {}
        try:
            for file in self._api.list_repo_tree(self._repo, self._folder, recursive=True, repo_type="dataset"):
                if isinstance(file, RepoFile):
                    digest = ("git", file.blob_id) if file.lfs is None else ("sha256", file.lfs.sha256)
                    found[file.path.removeprefix(f"{self._folder}/")] = Uploaded(file.size, *digest)
        except RemoteEntryNotFoundError:
            return {}
        return found

    def _page(self) -> str:
        """The page with this store's section; whatever else an existing one says stays."""
        from huggingface_hub import DatasetCard
        from huggingface_hub.errors import RemoteEntryNotFoundError

        try:
            with tempfile.TemporaryDirectory() as folder:
                path = self._api.hf_hub_download(self._repo, _PAGE, repo_type="dataset", local_dir=folder)
                existing = Path(path).read_text(encoding="utf-8")
        except RemoteEntryNotFoundError:
            return self._card.page()
        page = self._card.page(existing)
        if self._card.licence != UNKNOWN:
            edited = DatasetCard(page, ignore_metadata_errors=True)
            if edited.data.get("license") != self._card.licence:
                edited.data["license"] = self._card.licence
                page = str(edited)
        return page

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Failures of the Hub and of the network as one line that says what to do."""
        # Its HTTP library has changed with its versions; the base of its own error is that of whichever it uses.
        from huggingface_hub.errors import (  # type: ignore[attr-defined]
            HfHubHTTPError,
            HTTPError,
            OfflineModeIsEnabled,
        )

        where = f"{HUB}{self._repo}"
        try:
            yield
        except OutliersError:
            raise
        except HfHubHTTPError as error:
            raise OutliersError(_refused(where, error)) from error
        except OfflineModeIsEnabled as error:
            raise OutliersError(f"cannot reach {where}: HF_HUB_OFFLINE is set; unset it to upload") from error
        except (HTTPError, OSError, RuntimeError) as error:
            raise OutliersError(
                f"the upload to {where} failed ({one_line(error)}); check the network, then run the same "
                "command again: it goes on where it stopped"
            ) from error
        except ValueError as error:  # what the library itself finds wrong, such as a licence that the Hub does not know
            said = " ".join(str(error).split())  # the choices that it names stand on lines of their own
            raise OutliersError(f"{where} does not take this ({said})") from error


@contextmanager
def _progress() -> Iterator[None]:
    """The library's own progress: bars on a terminal, plain lines elsewhere."""
    from huggingface_hub import logging as talk

    bars: Any = import_module("huggingface_hub.utils")
    terminal, verbosity, disabled = sys.stderr.isatty(), talk.get_verbosity(), bars.are_progress_bars_disabled()
    talk.set_verbosity(logging.ERROR if terminal else logging.INFO)
    if not terminal:
        bars.disable_progress_bars()
    try:
        yield
    finally:
        talk.set_verbosity(verbosity)
        if not disabled:
            bars.enable_progress_bars()


def _refused(where: str, error: Any) -> str:
    status = error.response.status_code
    said = error.server_message if error.server_message else f"HTTP {status}"
    advice = {
        400: "see what it says",
        401: "make a new token with write permission, then run: hf auth login, or set HF_TOKEN",
        403: "ask for write permission there, use a token that has it, or choose another ORG/NAME",
        404: "check ORG and NAME, and that the token may see them",
        413: "share the peaks instead: outliers pack --peaks-only",
        429: "wait, then run the same command again: it goes on where it stopped",
    }.get(status, "run the same command again later: it goes on where it stopped")
    return f"the Hub refuses {where} ({status}: {' '.join(said.split())}); {advice}"
