#!/usr/bin/env python3
"""The same as `lollms-local models download`: python3 scripts/download_models.py --set starter --yes"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lollms_local.cli import main

if __name__ == "__main__":
    main(["models", "download", *sys.argv[1:]])
