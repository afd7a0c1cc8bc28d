"""What the live cache holds, as text."""

from __future__ import annotations

from collections.abc import Sequence

from .context import Context
from .prompt import Prompt
from .vocabulary import Tokens

__all__ = ["LiveText"]


class LiveText:
    """The prompt and the answer that the cache holds, as one text.

    A model's own tokens need not be those that its text would be split into. So a prompt that goes on where the last
    answer ended is continued by its text, and none of the answer is read again.
    """

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._held: tuple[str, bytes] | None = None

    def forget(self) -> None:
        """Another prompt takes the cache."""
        self._held = None

    def remember(self, context: Context, prompt: Prompt, written: Sequence[int]) -> None:
        """The cache holds `prompt` and of `written` what fits."""
        count = len(context.tokens) - len(prompt.tokens)
        if not 0 <= count <= len(written):
            self._held = None
            return
        said = b"".join(self._tokens.piece(token, special=True) for token in written[:count])
        self._held = (prompt.text, said)

    def held(self, context: Context) -> tuple[str, list[int]] | None:
        """Text and tokens; None if they are not known or end within a character."""
        if self._held is None:
            return None
        try:
            return self._held[0] + self._held[1].decode("utf-8"), context.tokens
        except UnicodeDecodeError:
            return None
