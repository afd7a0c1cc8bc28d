"""Build hook: a real wheel carries the bindings inside the host's folders; an editable install does not.

The host finds a binding only as a physical folder of its own package, so the wheel maps ``bindings/local_x`` to
``lollms_client/<x>_bindings/local_x``. It never ships an ``__init__.py`` of the host: pip would overwrite the host's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

MODALITIES = ("llm", "tti", "stt", "tts", "ttv", "ttm")


class BindingsHook(BuildHookInterface):  # type: ignore[type-arg]
    """Adds the six bindings and models.yaml to a standard wheel."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before a build; `version` is "standard" or "editable"."""
        if version == "editable":
            return
        root = Path(self.root)
        files = {root / "models.yaml": "lollms_local/models.yaml"}
        for modality in MODALITIES:
            folder = f"bindings/local_{modality}"
            for name in ("__init__.py", "description.yaml"):
                files[root / folder / name] = f"lollms_client/{modality}_bindings/local_{modality}/{name}"
        missing = [str(path.relative_to(root)) for path in files if not path.is_file()]
        if missing:
            raise FileNotFoundError(f"the wheel needs these files: {', '.join(missing)}")
        build_data["force_include"].update({str(path): target for path, target in files.items()})
