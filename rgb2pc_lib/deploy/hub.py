"""From a model hub, and to it: a run's folder under a name `owner/name`, through huggingface_hub (the extra `hub`).

Of a repository only settings, figures and weights are fetched, JSON and safetensors, which run no code. The hub's
address, its cache and whether it is asked at all can also be set as huggingface_hub reads them: HF_ENDPOINT,
HF_HUB_CACHE, HF_HUB_OFFLINE.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from rgb2pc_lib.data.files.guarded import first_line
from rgb2pc_lib.data.workspace import PROJECT
from rgb2pc_lib.encoders.weights import huggingface
from rgb2pc_lib.errors import InputError

FETCHED = ("config.json", "summary.json", "model.safetensors")  # all that an embedder reads
INSTALL = "pip install 'rgb2pc[hub]'"
LOGIN = "run `hf auth login`, or set HF_TOKEN"
_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


def is_repository(folder: str | Path) -> bool:
    """Whether this names a repository of a hub, `owner/name`, and nothing here: what is here always wins.

    `runs/frist`, where a folder `runs` is here or in the project, is a slip and no owner's.

    >>> is_repository("somebody/door-opener"), is_repository("somebody"), is_repository("/somebody/door-opener")
    (True, False, False)
    """
    owner, _, _ = str(folder).partition("/")
    return bool(_NAME.fullmatch(str(folder))) and not any((here / owner).exists() for here in (Path(), PROJECT))


def fetched(
    repository: str, revision: str | None = None, cache: str | Path | None = None, offline: bool = False
) -> Path:
    """The folder with a repository's run, in huggingface_hub's cache; only what is not there yet is fetched.

    Args:
        revision: branch, tag or commit; none: what stands on the main branch now. A commit never changes.
        cache: folder; none: huggingface_hub's own.
        offline: do not ask the hub; take what was fetched before.

    Raises InputError where the hub does not give it, or it holds no run.
    """
    (hub, refusals), whole = huggingface(INSTALL), f"{repository} at {revision}" if revision else repository
    try:
        folder = Path(
            hub.snapshot_download(
                repository, revision=revision, cache_dir=cache, local_files_only=offline, allow_patterns=[*FETCHED]
            )
        )
    except refusals as e:
        raise InputError(f"{whole}: no folder here, and not to be had from a hub: {_why(hub, e, offline)}") from None
    if missing := [name for name in FETCHED if not (folder / name).exists()]:
        raise InputError(
            f"{whole}: the hub holds no finished run under this name (no {', '.join(missing)}); upload one with "
            "tools/share.py RUN --push OWNER/NAME"
        )
    return folder


def upload(folder: Path, repository: str, ours: Collection[str], private: bool = False) -> str:
    """Upload a folder as one commit, so that nobody fetches half of it; the commit's address.

    The repository is made where there is none, public or `private`. Files of an earlier upload, of the names in `ours`,
    that the folder does not have are taken away. Raises InputError where the hub does not take it, and for a
    repository that is public where `private` is asked for.
    """
    if not _NAME.fullmatch(repository):
        raise InputError(f"expected the name of a repository, owner/name, found {repository!r}")
    hub, refusals = huggingface(INSTALL)
    here = sorted(path.name for path in folder.iterdir() if path.is_file())
    try:
        api = hub.HfApi()
        api.create_repo(repository, private=private or None, exist_ok=True)
        exposed = private and not api.repo_info(repository).private
        if not exposed:
            gone = [name for name in api.list_repo_files(repository) if name in ours and name not in here]
            changes = [hub.CommitOperationAdd(name, str(folder / name)) for name in here]
            changes += [hub.CommitOperationDelete(name) for name in gone]
            done = api.create_commit(repository, changes, commit_message="A run of rgb2pc, with its card")
    except refusals as e:
        raise InputError(f"{repository}: not uploaded: {_why(hub, e)}") from None
    if exposed:
        raise InputError(f"{repository}: is public there already; make it private on the hub, or choose another name")
    return str(done.commit_url)


def _why(hub: Any, e: BaseException, offline: bool = False) -> str:
    """What went wrong, and what helps."""
    said, errors = first_line(str(e)), hub.errors
    if offline or isinstance(e.__cause__ or e, errors.OfflineModeIsEnabled):
        return "offline, and never fetched into this cache; fetch it once with a network, or name the cache that has it"
    if isinstance(e, errors.RevisionNotFoundError):
        return f"no such revision ({said}); check its spelling"
    if isinstance(e, errors.HfHubHTTPError) and e.response.status_code in (401, 403, 404):
        return f"there is none of that name, or you may not ({said}); check the spelling, and {LOGIN}"
    if isinstance(e, errors.HFValidationError):
        return f"no name that a hub takes ({said})"
    return f"the hub did not answer as expected ({said}); check network and HF_ENDPOINT, or copy the folder by hand"
