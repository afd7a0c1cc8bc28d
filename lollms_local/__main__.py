"""`python -m lollms_local` is the command `lollms-local`, also where scripts are not on the path."""

from __future__ import annotations

from .cli import main

if __name__ == "__main__":
    main()
