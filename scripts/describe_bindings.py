"""Write every binding's description.yaml from its class: `python scripts/describe_bindings.py [--check]`."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

TOP = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP))


def load_binding(folder: Path) -> Any:
    """The binding's module, loaded by file as the host's video loader does."""
    spec = importlib.util.spec_from_file_location(f"described_{folder.name}", folder / "__init__.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def text_for(folder: Path) -> str:
    """What its description.yaml must hold."""
    from lollms_local.describe import describe

    module = load_binding(folder)
    return describe(
        getattr(module, module.BindingName),
        title=module.TITLE,
        description=module.DESCRIPTION,
        methods=module.DESCRIBED_METHODS,
    )


def main() -> int:
    """Write the files, or with --check say which are stale."""
    check = "--check" in sys.argv[1:]
    stale = []
    for folder in sorted((TOP / "bindings").glob("local_*")):
        target, text = folder / "description.yaml", text_for(folder)
        if not target.is_file() or target.read_text(encoding="utf-8") != text:
            stale.append(folder.name)
            if not check:
                target.write_text(text, encoding="utf-8")
    print(f"{'stale' if check else 'written'}: {', '.join(stale) or 'none'}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
