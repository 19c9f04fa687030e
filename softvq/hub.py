"""Models by name: bundled with the package, in a folder, or on the Hugging Face hub.

This module finds folders and knows no model. A name on the hub is `owner/model`, or `owner/model@revision` for a
branch, a tag or a commit of it.
"""

import re
from pathlib import Path

from softvq.errors import ModelError
from softvq.files import first_line

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
BUNDLED = Path(__file__).parent / "assets" / "models"
_HUB_NAME = r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?"


def find(name_or_folder: str | Path, revision: str | None = None, cache_dir: str | Path | None = None) -> Path:
    """Return the folder of a model by its name or path.

    A path is one of the model, or of the run that made it; a name is that of a bundled model, or a hub name
    `owner/model` or `owner/model@revision`, which is downloaded once (into `cache_dir`, where it is given). Raise
    `ModelError` when there is no such model, or it cannot be downloaded.
    """
    folder, name = Path(name_or_folder), str(name_or_folder)
    try:
        local = _local(folder, name)
    except (OSError, ValueError) as error:  # too long a name, a null byte
        raise ModelError(f"{name[:80]!r} can be no model's name or folder ({first_line(error)}).") from error
    if local is not None:
        if revision is not None:
            raise ModelError(f"{name!r} is on this machine and has no revisions; {revision!r} is for a hub name.")
        return local
    if match := re.fullmatch(_HUB_NAME, name):
        owner_name, named = match.groups()
        if named and revision and named != revision:
            raise ModelError(f"{name!r} names another revision than {revision!r}; give one of them.")
        return download(owner_name, (CONFIG, WEIGHTS), "their folder", revision=named or revision, cache_dir=cache_dir)
    raise ModelError(f"there is no model folder {name!r}, and no bundled model of that name ({', '.join(bundled())}).")


def _local(folder: Path, name: str) -> Path | None:
    if folder.is_dir():
        inside = folder / "model"
        return inside if (inside / CONFIG).is_file() and not (folder / CONFIG).exists() else folder
    return BUNDLED / name if (BUNDLED / name / CONFIG).is_file() else None


def bundled() -> list[str]:
    """Return the names of the models that ship with the package."""
    return sorted(path.parent.name for path in BUNDLED.glob(f"*/{CONFIG}"))


def download(
    name: str,
    files: tuple[str, ...],
    instead: str,
    setting: str | None = None,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
) -> Path:
    """Return the local folder with these files of a hub repository `owner/name`.

    They are fetched once, with progress bars, and found without a network from then on. `instead` says what can be
    given where that fails, and `setting` as which argument; both are for the `ModelError` that is raised then.
    """
    from huggingface_hub import hf_hub_download, snapshot_download  # costs 0.3 s, and only a download needs it

    file = ""
    try:
        folder = Path(snapshot_download(name, revision=revision, cache_dir=cache_dir, allow_patterns=list(files)))
        for file in files:
            if not (folder / file).is_file():  # not there, or not downloaded before the network was lost: which?
                hf_hub_download(name, file, revision=revision, cache_dir=cache_dir)
        return folder
    except Exception as error:  # the hub raises dozens of kinds; the user needs the name and the reason
        reason, cause = _reason(error, revision, file), error
    at = f" at {revision!r}" if revision else ""
    raise ModelError(
        f"{name!r}{at} is no folder here and could not be had from the hub ({reason.removesuffix('.')}); "
        f"download its {' and '.join(files)} and give {instead}.",
        setting=setting,
    ) from cause


def _reason(error: BaseException, revision: str | None = None, file: str = "") -> str:
    """Return the reason why the hub could not be used, in words.

    An error that the client has wrapped in another is reported as what it was.
    """
    from huggingface_hub import errors

    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    kinds = {kind.__name__ for one in chain for kind in type(one).__mro__}
    if "GatedRepoError" in kinds:
        return "its owner must first grant you access: ask on its page, and sign in with `hf auth login`"
    if "RepositoryNotFoundError" in kinds:
        return "the hub has no such repository, or you may not read it"
    if "RevisionNotFoundError" in kinds:
        return f"the repository has no revision {revision or 'main'!r}"
    if any(isinstance(e, errors.EntryNotFoundError) and not _is_local(e) for e in chain):
        return f"it holds no {file}"
    stored = ""
    if any(_is_local(one) for one in chain):
        partly = "IncompleteSnapshotError" in kinds
        stored = f"{'only some of its files were' if partly else 'it was not'} downloaded before, and "
    if "OfflineModeIsEnabled" in kinds:
        return f"{stored}HF_HUB_OFFLINE is set"
    if kinds & _UNREACHABLE:
        return f"{stored}the hub cannot be reached"
    inner = [one for one in chain if not _is_local(one)]
    lines = [line.strip() for line in str(inner[-1] if inner else chain[0]).splitlines() if line.strip()]
    return " ".join(lines[:3]) or type(chain[0]).__name__


_UNREACHABLE = {"ConnectionError", "ConnectError", "ConnectTimeout", "Timeout", "TimeoutException", "ReadTimeout"}


def _is_local(error: BaseException) -> bool:
    """Return True when an error says only that a file is not in the cache."""
    return type(error).__name__ in ("LocalEntryNotFoundError", "IncompleteSnapshotError")


def push(folder: Path, name: str, private: bool) -> str:
    """Upload a model folder to the hub as `owner/name`, which is made where it is missing; return its address.

    Signing in is that of `huggingface_hub`: with `hf auth login`, or the variable HF_TOKEN.
    """
    from huggingface_hub import HfApi

    if name.count("/") != 1:
        raise ModelError(f"{name!r} is not a hub name; write owner/name.")
    try:
        hub = HfApi()
        address = hub.create_repo(name, private=private, exist_ok=True)
        hub.upload_folder(repo_id=name, folder_path=folder, allow_patterns=[CONFIG, WEIGHTS, CARD])
    except Exception as error:  # as above
        reason = _reason(error).removesuffix(".")
        raise ModelError(f"{name!r} could not be uploaded to the hub ({reason}).") from error
    return str(address)
