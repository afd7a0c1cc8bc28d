"""Six local modalities for the LoLLMS client, in one process, over one memory."""

from __future__ import annotations

__version__ = "0.1.0"
