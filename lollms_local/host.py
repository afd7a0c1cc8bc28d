"""LocalBinding: what the LoLLMS host asks of every local binding, answered from the Runtime.

A binding is this mixin plus the host's base class plus the methods of its modality. Nothing is loaded at construction;
every generation asks the Runtime for its model again, because the host may have unloaded it at any time.
"""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from . import weights
from .catalog import ModelSpec
from .engines import engine_row
from .errors import EngineNotInstalled, LocalModelError
from .host_edge import BindingOptions, console, edge, progress_dict
from .host_models import ModelCommands
from .modalities.base import Control, LoadOptions, Modality
from .options import Options
from .runtime import Job, get_runtime

__all__ = ["BindingOptions", "LocalBinding", "edge"]

log = logging.getLogger(__name__)

M = TypeVar("M")
R = TypeVar("R")


class LocalBinding(ModelCommands, Generic[M]):
    """The resource contract of the host, for one modality.

    Class attributes that a binding sets: ``folder`` (`Path(__file__).parent`: the host's video loader registers no
    module that could be asked), ``modality``, ``load_options``, ``call_options``, ``default_model`` (a catalogue id).
    """

    folder: ClassVar[Path]
    modality: ClassVar[Modality]
    load_options: ClassVar[type[LoadOptions]]
    call_options: ClassVar[type[Options]]
    default_model: ClassVar[str]

    config: dict[str, Any]
    model_name: str | None

    def __init__(self, **kwargs: Any) -> None:
        kwargs.pop("binding_name", None)  # hosts 1.7.7 to 1.7.13 pass it
        self.binding_name = self.folder.name
        self.debug = str(kwargs.get("debug", False)).lower() in ("true", "1", "yes", "on")
        self._last_error: str | None = None
        self._used: dict[Any, Job] = {}
        self._running: set[threading.Event] = set()
        self._init_host(kwargs)
        self.config = dict(kwargs)
        name = str(kwargs.get("model_name") or "").strip()
        self.model_name = name if name not in ("", "None") else None

    def _init_host(self, kwargs: Mapping[str, Any]) -> None:
        """Call the host's base class in the form its version has (section 5 of its history: 1.7.0 knew no **kwargs)."""
        base = super().__init__
        takes_any = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(base).parameters.values())
        name, debug = self.binding_name, self.debug
        try:
            base(binding_name=name, **kwargs) if takes_any else base(binding_name=name)  # type: ignore[call-arg]
        except OSError as exc:  # it makes its system folder; a read-only disk must not cost the user the binding
            self._note(exc)
        self.binding_name, self.debug = name, debug
        self.binding_dir = self.folder
        self.description = _read_yaml(self.binding_dir / "description.yaml")

    # --- options ----------------------------------------------------------------------------------------------

    def settings_now(self) -> BindingOptions:
        """The binding's own settings as configured now."""
        return BindingOptions.merge(self.config)

    def spec(self, model: str | None = None) -> ModelSpec:
        """The record of the model to use: named in the call, else configured, else the default.

        Raises:
            ModelNotFound: the name is unknown.
        """
        runtime = get_runtime()
        name = model or self.model_name
        if name:
            return runtime.resolve(str(name), self.modality, self._models_dir())
        return runtime.default(self.default_model, self.modality, self._models_dir())

    def job(self, model: str | None = None) -> Job:
        """The model to use with the options that shape it in memory."""
        return self._job(self.spec(model))

    def _job(self, spec: ModelSpec) -> Job:
        settings = self.settings_now()
        job = Job(
            spec=spec,
            options=self.load_options.merge(self.config, spec.defaults),
            models_dir=self._models_dir(),
            idle_unload_s=settings.idle_unload_s,
            holder=self.binding_name,
        )
        self._used[job.key] = job
        return job

    def options(self, given: Mapping[str, Any], spec: ModelSpec) -> Any:
        """Effective call options: the call's, then the binding's configuration, then what suits the model."""
        return self.call_options.merge(given, self.config, spec.defaults)

    def _models_dir(self) -> Path:
        configured = str(self.config.get("models_path") or "").strip()
        return weights.models_dir(configured) if configured not in ("", "None") else get_runtime().models_dir

    # --- use --------------------------------------------------------------------------------------------------

    def run(
        self,
        use: Callable[[M, Any, Control], R],
        given: Mapping[str, Any],
        *,
        model: str | None = None,
        job: Job | None = None,
    ) -> R:
        """Run ``use(model, options, control)`` under a lease.

        Args:
            use: the work; it may run twice if memory ran out the first time.
            given: the call's keyword arguments: options, and optionally `progress_callback` (or `callback`), told a
                dictionary after every step, and `cancelled`, a function or `threading.Event` polled while it works.
            model: name of the model; None = the configured one.
            job: instead of `model`, where the binding has already chosen.
        """
        job = job or self.job(model)
        options = self.options(given, job.spec)
        with self.control(given) as control:

            def work() -> R:
                return get_runtime().call(job, lambda model: use(model, options, control), options.shape)

            return self._installing(job, work)

    @contextmanager
    def control(self, given: Mapping[str, Any]) -> Iterator[Control]:
        """A Control that obeys the caller's own switch and this binding's `cancel()`."""
        stop = threading.Event()
        asked = given.get("cancelled")
        poll = asked.is_set if isinstance(asked, threading.Event) else asked
        callback = given.get("progress_callback") or given.get("callback")
        self._running.add(stop)
        try:
            yield Control(
                cancelled=lambda: stop.is_set() or bool(poll is not None and poll()),
                on_progress=(lambda p: callback(progress_dict(p))) if callable(callback) else None,
            )
        finally:
            self._running.discard(stop)

    def cancel(self) -> None:
        """Stop every job of this binding at its next step; from any thread."""
        for stop in list(self._running):
            stop.set()

    def _installing(self, job: Job, work: Callable[[], R]) -> R:
        """Run the work; if a library is missing and the user allowed it, install it and run again."""
        try:
            return work()
        except EngineNotInstalled:
            if not self.settings_now().auto_install:
                raise
        self._say(f"Installing what {job.spec.engine} needs...")
        import pipmaster

        pipmaster.ensure_packages(list(engine_row(job.spec.engine).requirements))
        return work()

    # --- the host's resource contract -------------------------------------------------------------------------

    def is_local(self) -> bool:
        """True: the host may ask us to load, and to give memory back."""
        return True

    def is_model_loaded(self, model_name: str | None = None) -> bool:
        """Whether the model (default: the configured one) is in memory."""
        try:
            return get_runtime().is_loaded(self.job(model_name))
        except LocalModelError as exc:
            self._note(exc, quiet=True)
            return False

    def load_model(self, model_name: str | None = None) -> bool:
        """Load now. False on failure, with the reason in `get_last_error()`: raising would end the host's start-up."""
        if model_name:
            self.model_name = str(model_name)
        try:
            job = self.job(model_name)
            self._say(f"Loading {job.spec.id}...")
            self._installing(job, lambda: get_runtime().call(job, lambda model: None))
        except Exception as exc:  # the host's edge: whatever goes wrong in a library, the client must still be built
            self._note(exc)
            return False
        self._last_error = None
        return True

    def unload_model(self, model_name: str | None = None) -> bool:
        """Free the named model, or all that this binding has used. False, and nothing changed, while one is in use."""
        runtime = get_runtime()
        jobs = [self.job(model_name)] if model_name else list(self._used.values())
        return all([runtime.unload(job) for job in jobs])

    def get_loaded_models(self) -> list[str]:
        """Ids of the models this binding holds in memory."""
        runtime = get_runtime()
        return [job.spec.id for job in list(self._used.values()) if runtime.is_loaded(job)]

    def has_active_resources(self) -> bool:
        """Whether there is anything for the host to unload."""
        return bool(self.get_loaded_models())

    def get_last_error(self) -> str | None:
        """The last failure, one sentence and a hint."""
        return self._last_error

    def get_server_logs(self) -> str:
        """There is no server."""
        return ""

    # --- settings ---------------------------------------------------------------------------------------------

    def get_settings(self, **kwargs: Any) -> dict[str, Any]:
        """The effective settings by name; secrets are left out."""
        spec_defaults = self._spec_defaults()
        found: dict[str, Any] = {"model_name": self.model_name or self.default_model}
        for cls in (BindingOptions, self.load_options, self.call_options):
            effective = cls.merge(self.config, spec_defaults).model_dump()
            found.update({k: v for k, v in effective.items() if k != "hf_token"})
        return found

    def _spec_defaults(self) -> Mapping[str, Any]:
        try:
            return self.spec().defaults
        except LocalModelError as exc:
            self._note(exc, quiet=True)
            return {}

    def set_settings(self, settings: Mapping[str, Any] | Sequence[Mapping[str, Any]], **kwargs: Any) -> bool:
        """Change settings; they hold from the next call. All or nothing: a bad value changes nothing and gives False.

        Args:
            settings: a mapping, or a list of ``{"name": ..., "value": ...}``.
        """
        new = dict(settings) if isinstance(settings, Mapping) else {s["name"]: s.get("value") for s in settings}
        config = {**self.config, **new}
        try:
            for cls in (BindingOptions, self.load_options, self.call_options):
                cls.merge(config)
        except LocalModelError as exc:
            self._note(exc)
            return False
        before = dict(self._used)
        self.config = config
        if new.get("model_name"):
            self.model_name = str(new["model_name"])
        for key, job in before.items():
            if self._job(job.spec).key != key and get_runtime().unload(job):
                self._used.pop(key, None)
        return True

    # --- messages ---------------------------------------------------------------------------------------------

    def _say(self, text: str) -> None:
        console().info(f"[{self.binding_name}] {text}")

    def _note(self, exc: BaseException, *, quiet: bool = False) -> None:
        """Remember and show a failure; the whole trace only in debug mode."""
        self._last_error = str(exc) or type(exc).__name__
        if quiet:
            log.debug("%s: %s", self.binding_name, self._last_error)
            return
        console().error(f"[{self.binding_name}] {self._last_error}")
        if self.debug and not isinstance(exc, LocalModelError):
            from ascii_colors import trace_exception

            trace_exception(exc)


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    data = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    return data if isinstance(data, dict) else {}
