"""Which state a prompt continues: the live one, or one of those put aside when another conversation took its place."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence

from .context import Context, State

__all__ = ["PromptCache", "common_prefix"]

log = logging.getLogger(__name__)

#: what is lost must be worth a copy: reading so few tokens again is as fast
MIN_LOST_TOKENS = 32
MAX_LOST_SHARE = 16


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences begin with in common."""
    length = min(len(a), len(b))
    if a[:length] == b[:length]:  # one comparison in C; the usual case of a conversation that grows
        return length
    low, high = 0, length
    while low + 1 < high:
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low if a[low] != b[low] else low + 1


class PromptCache:
    """States of conversations that are not the live one, the latest used kept, at most `limit_bytes` together."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._states: OrderedDict[int, State] = OrderedDict()
        self._next = 0

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(s.nbytes for s in self._states.values())

    def __len__(self) -> int:
        return len(self._states)

    def prepare(self, context: Context, tokens: Sequence[int]) -> int:
        """Make the context hold the longest known prefix of `tokens`; returns its length.

        At least one token is left to read, because the library has logits only for what it has just read.
        """
        usable = len(tokens) - 1
        live = min(common_prefix(context.tokens, list(tokens)), usable)
        key, best = self._best(tokens, usable)
        if best > live + MIN_LOST_TOKENS and key is not None:
            state = self._states[key]
            self._states.move_to_end(key)
            self._put_aside(context, live)
            if context.restore(state):
                return context.truncate(best)
            self._states.pop(key, None)
            return 0
        self._put_aside(context, live)
        return context.truncate(live)

    def _best(self, tokens: Sequence[int], usable: int) -> tuple[int | None, int]:
        wanted = tuple(tokens)
        best: tuple[int | None, int] = (None, 0)
        for key, state in self._states.items():
            length = min(common_prefix(state.tokens, wanted), usable)
            if length > best[1]:
                best = (key, length)
        return best

    def _put_aside(self, context: Context, kept: int) -> None:
        """Save the live state if more than its end would be lost, in place of older states of that conversation."""
        live = context.tokens
        lost = len(live) - kept
        if self.limit_bytes <= 0 or lost < max(MIN_LOST_TOKENS, len(live) // MAX_LOST_SHARE):
            return
        for key, state in list(self._states.items()):
            known = common_prefix(state.tokens, tuple(live))
            if known == len(live):
                self._states.move_to_end(key)
                return  # it is there already
            if known >= len(state.tokens) - MIN_LOST_TOKENS:
                del self._states[key]
        saved = context.save()
        if saved is None or saved.nbytes > self.limit_bytes:
            return
        self._states[self._next] = saved
        self._next += 1
        while self.nbytes > self.limit_bytes:
            _, dropped = self._states.popitem(last=False)
            log.debug("The state of a conversation of %d tokens was dropped.", len(dropped.tokens))

    def clear(self) -> None:
        """Forget everything."""
        self._states.clear()
