"""Files of a Hugging Face repository, by that library's own client: its endpoints, tokens and resume."""

from __future__ import annotations

import fnmatch
import hashlib
import inspect
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
from .safety import inside

__all__ = ["HubSource"]

log = logging.getLogger(__name__)

#: tries that bring nothing new; each goes on where the one before stopped
TRIES = 6


class HubSource:
    """Files of an `hf:` source.

    Args:
        endpoint: the hub's address; "" = the library's own (HF_ENDPOINT).
        pause: called with the seconds to wait before another try.
    """

    def __init__(self, endpoint: str = "", pause: Callable[[float], None] = time.sleep) -> None:
        self._endpoint = endpoint or None
        self._pause = pause

    def plan(self, spec: ModelSpec, token: str) -> DownloadPlan:
        """Ask the hub for names, sizes and digests, and choose."""
        _refuse_offline(spec)
        from huggingface_hub import HfApi

        def ask() -> Any:
            api = HfApi(endpoint=self._endpoint, token=token or None)
            return api.model_info(spec.origin.name, revision=spec.origin.version or None, files_metadata=True)

        info = self._try(spec, ask)
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
        return DownloadPlan(tuple(chosen), str(info.sha or spec.origin.version or "main"))

    def fetch(self, spec: ModelSpec, plan: DownloadPlan, folder: Path, report: Report, token: str) -> None:
        """Fetch each file into `folder`; what is there whole is not fetched again, a part is continued."""
        parts = folder / ".parts"
        done = 0
        for file in plan.files:
            target = inside(folder, file.path)
            if not file.bytes or not target.is_file() or target.stat().st_size != file.bytes:
                self._bring(spec, plan, file, target, parts, _meter(report, file.path, done), token)
            _check_blob(target, file)
            done += file.bytes
            report(file.path, done)
        shutil.rmtree(parts, ignore_errors=True)

    def _bring(
        self, spec: ModelSpec, plan: DownloadPlan, file: PlannedFile, target: Path, parts: Path, meter: type, token: str
    ) -> None:
        """One file, over plain HTTP and through a part that outlives this process: the client's own function for whole
        repositories forgets a part when its process ends."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.constants import MAX_HTTP_DOWNLOAD_SIZE
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined,unused-ignore]

        if file.bytes > MAX_HTTP_DOWNLOAD_SIZE:
            raise DownloadError(
                f"{file.path} of {spec.origin.name} is larger than the hub gives out over HTTP.",
                hint=f"Run: hf download {spec.origin.name}; lollms-local finds it in that tool's cache.",
            )
        part = parts / hashlib.sha256(f"{plan.revision}/{file.remote}".encode()).hexdigest()[:16]
        for folder in (parts, target.parent):
            folder.mkdir(parents=True, exist_ok=True)
        url = hf_hub_url(spec.origin.name, file.remote, revision=plan.revision, endpoint=self._endpoint)
        headers = {**build_hf_headers(token=token or None), "Accept-Encoding": "identity"}

        bar: dict[str, Any] = {"tqdm_class": meter} if "tqdm_class" in inspect.signature(http_get).parameters else {}

        def go_on() -> None:
            if file.bytes and _size(part) > file.bytes:
                part.unlink()
            with part.open("ab") as out:
                http_get(
                    url,
                    out,
                    resume_size=out.tell(),
                    headers=headers,
                    expected_size=file.bytes or None,
                    **bar,
                )

        self._try(spec, go_on, lambda: _size(part))
        os.replace(part, target)

    def _try(self, spec: ModelSpec, action: Callable[[], Any], progress: Callable[[], int] = lambda: 0) -> Any:
        """Run an action that reaches the hub; faults that pass are tried again, the others become our errors.

        Args:
            progress: bytes that are here; as long as they grow, it is worth another try.
        """
        attempt, before = 1, progress()
        while True:
            try:
                with _hub_errors(spec):
                    return action()
            except _Passing as exc:
                attempt, before = (1, progress()) if progress() > before else (attempt + 1, before)
                if attempt > TRIES:
                    raise DownloadError(
                        f"{spec.origin.name} could not be fetched after {TRIES} tries: {exc}.",
                        hint="Check the network (and HF_ENDPOINT); run it again, it goes on where it stopped.",
                    ) from exc.__cause__
                log.info("%s: a try failed (%s)", spec.id, exc)
                self._pause(exc.wait_s or min(2.0 ** (attempt - 1), 20.0))


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


class _Passing(Exception):
    """A fault that may be gone at the next try."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


def _refuse_offline(spec: ModelSpec) -> None:
    if offline.user_is_offline():
        raise DownloadError(
            f"{spec.id} is not on this disk, and HF_HUB_OFFLINE forbids to ask the hub.",
            hint="Unset HF_HUB_OFFLINE, or copy the model's folder here from another machine.",
        )


@contextmanager
def _hub_errors(spec: ModelSpec) -> Iterator[None]:
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
        raise _Passing(f"the transfer broke off ({type(exc).__name__})") from exc
    except (hub.FileMetadataError, EOFError) as exc:
        raise _Passing("the hub's answer was not complete") from exc
    except OSError as exc:
        if exc.errno is not None:  # the disk's own; `downloads` has words for it
            raise
        # the client says so when fewer bytes came than announced
        raise _Passing("a file did not come whole") from exc


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


def _meter(report: Report, path: str, before: int) -> type:
    """A progress bar that shows nothing and passes the count on; what `report` raises stops the transfer."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined,unused-ignore]

    class Meter(tqdm):  # type: ignore[misc,type-arg,unused-ignore]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._count = int(kwargs.get("initial") or 0)
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call,unused-ignore]

        def update(self, n: float | None = 1) -> bool | None:
            self._count += int(n or 0)
            report(path, before + self._count)
            return None

    return Meter


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
