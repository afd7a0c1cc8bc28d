"""The loop: read the prompt, draw tokens, hand out text, until something says stop."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from ...errors import Cancelled
from ...modalities.base import Control
from ...modalities.chat import ChatOptions, Piece, PieceSink
from .context import Context
from .sampling import Sampler
from .stream import AnswerStream
from .vocabulary import Tokens

__all__ = ["Outcome", "generate", "obeying"]

#: how often a running computation looks whether the caller has asked to stop
POLL_S = 0.02
#: n-gram that prompt lookup searches for in what was read before
NGRAM = 3

Reason = Literal["stop", "length", "sink"]


@dataclass
class Outcome:
    """How a generation went."""

    reason: Reason = "stop"
    completion_tokens: int = 0
    prompt_s: float = 0.0
    generate_s: float = 0.0
    written: list[int] = field(default_factory=list)


@contextmanager
def obeying(context: Context, control: Control) -> Iterator[None]:
    """Let the caller's wish to stop reach a running computation: a thread looks every 20 ms and sets the abort flag.

    Raises:
        Cancelled: instead of whatever the aborted computation raised.
    """
    done = threading.Event()

    def watch() -> None:
        while not done.wait(POLL_S):
            if control.cancelled():
                context.abort.set()
                return

    context.abort.clear()
    watcher = threading.Thread(target=watch, name="lollms-local-cancel", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
        context.abort.clear()


def generate(
    context: Context,
    vocabulary: Tokens,
    sampler: Sampler,
    prompt: Sequence[int],
    stream: AnswerStream,
    options: ChatOptions,
    control: Control,
    sink: PieceSink,
    *,
    draft_tokens: int = 0,
) -> Outcome:
    """Write an answer after `prompt`, of which the context already holds the beginning.

    Args:
        draft_tokens: tokens to guess ahead by prompt lookup; 0 = none.

    Raises:
        Cancelled: `control` said so. GenerationError: the library failed.
    """
    outcome = Outcome()
    started = time.perf_counter()
    context.read(prompt[len(context.tokens) :], control, report=True)
    outcome.prompt_s = time.perf_counter() - started
    room = context.n_ctx - len(prompt)
    limit = min(options.n_predict, room) if options.n_predict > 0 else room
    started = time.perf_counter()
    for token in _tokens(context, sampler, control, draft_tokens):
        if vocabulary.is_end(token):
            break
        outcome.written.append(token)
        if not _hand_out(stream.feed(vocabulary.piece(token)), sink):
            outcome.reason = "sink"
            break
        if stream.stopped:
            break
        if len(outcome.written) >= limit:
            outcome.reason = "length"
            break
    if outcome.reason != "sink" and not _hand_out(stream.finish(), sink):
        outcome.reason = "sink"
    outcome.generate_s = time.perf_counter() - started
    outcome.completion_tokens = len(outcome.written)
    return outcome


def _hand_out(pieces: Sequence[Piece], sink: PieceSink) -> bool:
    return all(sink(piece) is not False for piece in pieces)


def _tokens(context: Context, sampler: Sampler, control: Control, draft_tokens: int) -> Iterator[int]:
    """Drawn tokens, one after the other. With a draft, several are computed at once and those drawn alike are kept."""
    token = sampler.sample(context)
    while True:
        if control.cancelled():
            raise Cancelled()
        yield token
        draft = _lookup([*context.tokens, token], draft_tokens) if draft_tokens else []
        draft = draft[: max(0, context.n_ctx - len(context.tokens) - 1)][: context.n_batch - 1]
        if not draft:
            context.read([token], control)
            token = sampler.sample(context)
            continue
        before = len(context.tokens)
        context.read([token, *draft], control, all_logits=True)
        for index, guess in enumerate([*draft, None]):
            token = sampler.sample(context, index)
            if token != guess:
                context.truncate(before + 1 + index)
                break
            yield token


def _lookup(tokens: list[int], count: int) -> list[int]:
    """What followed the latest earlier occurrence of the last few tokens."""
    for size in range(NGRAM, 1, -1):
        if len(tokens) <= size:
            continue
        tail = tokens[-size:]
        for start in range(len(tokens) - size - 1, -1, -1):
            if tokens[start] == tail[0] and tokens[start : start + size] == tail:
                return list(itertools.takewhile(lambda token: token >= 0, tokens[start + size : start + size + count]))
    return []
