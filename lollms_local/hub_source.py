"""Files of a Hugging Face repository, by that library's own client: its endpoints, tokens and resume."""

from __future__ import annotations

import fnmatch
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import offline
from .catalog import ModelSpec
from .downloads import DownloadPlan, PlannedFile, Report
from .errors import DownloadError
from .hub_choice import usual_files
from .hub_transfer import SlowTransfer, transfer
from .safety import inside

__all__ = ["HubSource"]

log = logging.getLogger(__name__)

#: tries that bring nothing new; each goes on where the one before stopped
TRIES = 6
#: tries of a question; somebody waits for the answer
ASK_TRIES = 3


class HubSource:
    """Files of an `hf:` source.

    Args:
        endpoint: the hub's address; "" = the library's own (HF_ENDPOINT).
        pause: called with the seconds to wait before another try.
        stall_s: longest silence of the server, in seconds; 0 = the library's own (HF_HUB_DOWNLOAD_TIMEOUT).
    """

    def __init__(self, endpoint: str = "", pause: Callable[[float], None] = time.sleep, stall_s: float = 0.0) -> None:
        self._endpoint = endpoint or None
        self._pause = pause
        self._stall_s = stall_s

    def purpose(self, spec: ModelSpec, token: str) -> str:
        """What the hub says the repository is for (its pipeline tag, e.g. "text-generation"); "" = it does not."""
        return str(self._info(spec, token).pipeline_tag or "")

    def plan(self, spec: ModelSpec, token: str) -> DownloadPlan:
        """Ask the hub for names, sizes and digests, and choose."""
        info = self._info(spec, token)
        every = tuple(
            PlannedFile(
                path=s.rfilename,
                bytes=s.size or 0,
                sha256=(s.lfs.sha256 or "") if s.lfs else "",
                remote=s.rfilename,
                blob_id="" if s.lfs else (s.blob_id or ""),
            )
            for s in info.siblings or ()
        )
        chosen = _by_rules(spec, every) if spec.files else usual_files(spec, every)
        return DownloadPlan(
            tuple(chosen),
            str(info.sha or spec.origin.version or "main"),
            licence=next((t.removeprefix("license:") for t in info.tags or () if t.startswith("license:")), ""),
            gated=bool(info.gated),
        )

    def _info(self, spec: ModelSpec, token: str) -> Any:
        _refuse_offline(spec)
        from huggingface_hub import HfApi

        def ask() -> Any:
            api = HfApi(endpoint=self._endpoint, token=token or None)
            return api.model_info(
                spec.origin.name,
                revision=spec.origin.version or None,
                files_metadata=True,
                timeout=self._patience_s(),  # the client itself would wait for ever
            )

        return self._try(spec, ask, tries=ASK_TRIES)

    def fetch(self, spec: ModelSpec, plan: DownloadPlan, folder: Path, report: Report, token: str) -> None:
        """Fetch each file into `folder`; what is there whole is not fetched again, a part is continued."""
        parts = folder / ".parts"
        done = 0
        for file in plan.files:
            target = inside(folder, file.path)
            if not file.bytes or _size(target) != file.bytes:
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(self._bring(spec, plan, file, parts, _meter(report, file.path, done), token), target)
            _check_blob(target, file)
            done += file.bytes
            report(file.path, done)
        shutil.rmtree(parts, ignore_errors=True)

    def _bring(
        self,
        spec: ModelSpec,
        plan: DownloadPlan,
        file: PlannedFile,
        parts: Path,
        tell: Callable[[int], None],
        token: str,
    ) -> Path:
        """One file, over plain HTTP and through a part that outlives this process; returns the part, whole."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.constants import MAX_HTTP_DOWNLOAD_SIZE
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined,unused-ignore]

        if file.bytes > MAX_HTTP_DOWNLOAD_SIZE:
            raise DownloadError(
                f"{file.path} of {spec.origin.name} is larger than the hub gives out over HTTP.",
                hint=f"Run: hf download {spec.origin.name}; lollms-local finds it in that tool's cache.",
            )
        parts.mkdir(parents=True, exist_ok=True)
        part = parts / hashlib.sha256(f"{plan.revision}/{file.remote}".encode()).hexdigest()[:16]
        url = hf_hub_url(spec.origin.name, file.remote, revision=plan.revision, endpoint=self._endpoint)
        headers = build_hf_headers(token=token or None)

        def go_on() -> None:
            tell(_size(part))  # also the moment at which a caller who gave up is heard
            transfer(url, part, headers=headers, total_bytes=file.bytes, stall_s=self._patience_s(), on_bytes=tell)

        self._try(spec, go_on, lambda: _size(part))
        return part

    def _patience_s(self) -> float:
        """The longest silence: HF_HUB_DOWNLOAD_TIMEOUT, which is 10 s where the user has not set it."""
        from huggingface_hub import constants

        return self._stall_s or float(constants.HF_HUB_DOWNLOAD_TIMEOUT)

    def _try(
        self, spec: ModelSpec, action: Callable[[], Any], progress: Callable[[], int] = lambda: 0, tries: int = 0
    ) -> Any:
        """Run an action that reaches the hub; faults that pass are tried again, the others become our errors.

        Args:
            progress: bytes that are here; as long as they grow, it is worth another try.
        """
        tries = tries or TRIES
        attempt, before = 1, progress()
        while True:
            try:
                with _hub_errors(spec, self._patience_s()):
                    return action()
            except _Passing as exc:
                gained = progress() > before and exc.gain_counts
                attempt, before = (1 if gained else attempt + 1), progress()
                if attempt > tries:
                    raise DownloadError(
                        f"{spec.origin.name} could not be fetched after {tries} tries: {exc}.",
                        hint="Check the network (and HF_ENDPOINT); run it again, it goes on where it stopped.",
                    ) from exc.__cause__
                log.info("%s: a try failed (%s)", spec.id, exc)
                self._pause(exc.wait_s or min(2.0 ** (attempt - 1), 20.0))


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


class _Passing(Exception):
    """A fault that may be gone at the next try.

    Args:
        wait_s: what the hub asks to wait; 0 = nothing said.
        gain_counts: bytes that came before the fault are worth a fresh count of tries.
    """

    def __init__(self, reason: str, wait_s: float = 0.0, gain_counts: bool = True) -> None:
        super().__init__(reason)
        self.wait_s = wait_s
        self.gain_counts = gain_counts


def _refuse_offline(spec: ModelSpec) -> None:
    if offline.user_is_offline():
        raise DownloadError(
            f"{spec.id} is not on this disk, and HF_HUB_OFFLINE forbids to ask the hub.",
            hint="Unset HF_HUB_OFFLINE, or copy the model's folder here from another machine.",
        )


@contextmanager
def _hub_errors(spec: ModelSpec, stall_s: float) -> Iterator[None]:
    """The one place where this library's errors become ours."""
    from huggingface_hub import errors as hub

    name = spec.origin.name
    try:
        yield
    except hub.GatedRepoError as exc:
        raise DownloadError(
            f"{name} is gated: its owner asks for a login and an accepted licence.",
            hint=f"Accept it at https://huggingface.co/{name} and set HF_TOKEN.",
        ) from exc
    except hub.RepositoryNotFoundError as exc:
        raise DownloadError(
            f"The hub has no model {name}, or your token may not see it.",
            hint="Check the name; private ones need HF_TOKEN.",
        ) from exc
    except (hub.RevisionNotFoundError, hub.RemoteEntryNotFoundError) as exc:
        raise DownloadError(
            f"{name} has no such revision or file.", hint="Check the part after @ in its source."
        ) from exc
    except hub.HFValidationError as exc:
        raise DownloadError(f"{name!r} is not a name that the hub can have.", hint="It has the form org/repo.") from exc
    except hub.OfflineModeIsEnabled as exc:
        _refuse_offline(spec)
        raise _Passing("a model was being loaded, which keeps the hub's client off the network", 0.5) from exc
    except hub.HfHubHTTPError as exc:
        raise _by_status(name, exc) from exc
    except hub.LocalEntryNotFoundError as exc:
        _refuse_offline(spec)
        raise _Passing("the hub did not answer") from exc
    except hub.HTTPError as exc:  # type: ignore[attr-defined,unused-ignore]  # of the HTTP library that the client uses
        raise _by_name(exc, stall_s) from exc
    except SlowTransfer as exc:
        raise _Passing("next to nothing came for a long time", gain_counts=False) from exc
    except (hub.FileMetadataError, EOFError) as exc:
        raise _Passing("a file did not come whole") from exc


def _by_name(exc: Exception, stall_s: float) -> Exception:
    """Errors of the client's HTTP library, which is another one in newer clients: known by their names."""
    kinds = {kind.__name__ for kind in type(exc).__mro__}
    if "TimeoutException" in kinds:
        return _Passing(f"nothing came for {stall_s:g} seconds")
    if "UnsupportedProtocol" in kinds:
        return DownloadError(
            "The hub's address is not one that a program can open.", hint="HF_ENDPOINT must begin with https://."
        )
    if "CERTIFICATE" in str(exc):
        return DownloadError(
            "The hub's certificate is not trusted on this machine.",
            hint="Behind a proxy that reads traffic, set SSL_CERT_FILE to its certificate.",
        )
    if "ConnectError" in kinds:
        return _Passing("the hub cannot be reached")
    return _Passing("the transfer broke off")


def _by_status(name: str, exc: Any) -> Exception:
    code = getattr(getattr(exc, "response", None), "status_code", 0)
    if code in (401, 403):
        return DownloadError(
            f"The hub refuses {name} (status {code}).", hint="Set HF_TOKEN to a token that may read it."
        )
    if code in (408, 409, 425, 429) or code >= 500 or not code:
        try:
            wait = float(exc.response.headers.get("Retry-After", 0))
        except (AttributeError, ValueError):
            wait = 0.0
        return _Passing(f"the hub answered with status {code}", min(wait, 60.0))
    return DownloadError(f"The hub answered {name} with status {code}.", hint="Check the name and HF_ENDPOINT.")


def _check_blob(path: Path, file: PlannedFile) -> None:
    """Small files have git's digest: sha1 over a header and the content."""
    if not file.blob_id or len(file.blob_id) != 40 or not path.is_file() or path.stat().st_size > 64 << 20:
        return
    content = path.read_bytes()
    digest = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    if digest != file.blob_id:
        path.unlink()
        raise DownloadError(f"The file {file.path} is not what the hub announced.", hint="Run the download again.")


def _meter(report: Report, path: str, before: int) -> Callable[[int], None]:
    """Tells the bytes of the whole model, from those of one file; what `report` raises stops the transfer."""
    return lambda here: report(path, before + here)


def _by_rules(spec: ModelSpec, every: Sequence[PlannedFile]) -> list[PlannedFile]:
    chosen: dict[str, PlannedFile] = {}
    for rule in spec.files:
        matched = [f for f in every if fnmatch.fnmatch(f.path, rule.path)]
        if not matched:
            raise DownloadError(
                f"{spec.source} has no file {rule.path!r}.", hint="The catalogue's entry is out of date."
            )
        chosen.update({f.path: f for f in matched})
    return list(chosen.values())
