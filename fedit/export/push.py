"""An export on the hub."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented all the same

from fedit.errors import ConfigError, HubError
from fedit.export.formats import Options
from fedit.export.write import Exported, export


@dataclass(frozen=True, slots=True)
class Pushed:
    """What went, or would go, to the hub: the export and the address of its commit ("" where nothing was sent)."""

    exported: Exported
    address: str


def push(
    run: Path,
    repo: str,
    *,
    to: str = "peft",
    options: Options | None = None,
    clients: Sequence[str] = (),
    private: bool = False,
    dry_run: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Pushed:
    """Export ``run`` into a temporary folder and upload that to the model repository ``repo``.

    The token comes from the environment (HF_TOKEN) or from ``hf auth login``; fedit keeps none. Files of the same
    name are replaced in one commit, others stay.

    Raises:
        ConfigError: the name of the repository cannot be one, or there is no token.
        HubError: the hub refuses, or cannot be reached.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError(f"--repo {repo}: {error}") from error
    if not dry_run and huggingface_hub.get_token() is None:
        raise ConfigError("there is no token for the hub: set HF_TOKEN, or run `hf auth login`.")
    with tempfile.TemporaryDirectory(prefix="fedit-push-") as scratch:
        done = export(run, to, Path(scratch) / "export", options=options, clients=clients, say=say)
        if dry_run:
            return Pushed(done, "")
        say(f"uploading to {repo}")
        return Pushed(done, _upload(done, repo, private=private))


def _upload(done: Exported, repo: str, *, private: bool) -> str:
    api = huggingface_hub.HfApi(library_name="fedit")
    try:
        full = api.create_repo(repo, private=private, exist_ok=True).repo_id
        commit = api.upload_folder(
            repo_id=full, folder_path=done.folder, commit_message=f"{done.record['name']}: {done.record['format']}"
        )
    except HfHubHTTPError as error:
        raise HubError(
            f"the hub refused '{repo}': {str(error).splitlines()[0]} "
            "Does the name begin with your account or organisation, and may the token write?"
        ) from error
    except (OSError, RuntimeError) as error:  # the HTTP library's own errors are OSErrors in some versions only
        raise HubError(f"the hub cannot be reached: {error}") from error
    except Exception as error:
        if type(error).__module__.split(".")[0] in ("httpx", "httpx2", "httpcore", "hf_xet", "requests"):
            raise HubError(f"the hub cannot be reached: {error}") from error
        raise
    return str(commit.commit_url)
