"""Options to a sampler, and sampling under a grammar."""

from __future__ import annotations

import codecs
import ctypes
import secrets
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from ...errors import UnsupportedRequest
from ...modalities.chat import ChatOptions
from .context import Context
from .native import NativeModel, complaint
from .vocabulary import Tokens

__all__ = ["Sampler"]

#: tokens passed over in one draw because they would break a character
MAX_BARRED = 256


class Sampler:
    """A chain of the library's samplers for one generation. A context manager: it is freed at the end of the block.

    The order is llama-cpp-python's own, so equal options and seed give equal tokens. A grammar is asked only whether
    it allows the token that was drawn; only if it does not are all tokens filtered and another one drawn. That is
    the same distribution where the draw is the likeliest token, and saves checking the whole vocabulary each time.

    Raises:
        UnsupportedRequest: the grammar cannot be parsed (the library would end the process), or a bias is no token.
    """

    def __init__(self, model: NativeModel, tokens: Tokens, options: ChatOptions, grammar: str = "") -> None:
        lib = self._lib = model.lib
        self._n_vocab = tokens.size
        self._grammar = self._made_grammar(model, grammar) if grammar else None
        bias = self._biases(tokens, options)
        seed = options.seed if options.seed >= 0 else secrets.randbits(31)
        self._chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        for stage in self._stages(options, seed, bias):
            lib.llama_sampler_chain_add(self._chain, stage)
        self._candidates: Any = None
        self._tokens = tokens
        self._text = codecs.getincrementaldecoder("utf-8")()

    def _stages(self, o: ChatOptions, seed: int, bias: Any) -> list[Any]:
        lib = self._lib
        stages = [lib.llama_sampler_init_logit_bias(self._n_vocab, len(bias), bias)] if len(bias) else []
        look_back = o.repeat_last_n
        stages.append(
            lib.llama_sampler_init_penalties(
                self._n_vocab, look_back, o.repeat_penalty, o.frequency_penalty, o.presence_penalty
            )
        )
        if o.temperature == 0:
            return [*stages, lib.llama_sampler_init_greedy()]
        if o.mirostat:
            made = (
                lib.llama_sampler_init_mirostat(self._n_vocab, seed, o.mirostat_tau, o.mirostat_eta, 100)
                if o.mirostat == 1
                else lib.llama_sampler_init_mirostat_v2(seed, o.mirostat_tau, o.mirostat_eta)
            )
            return [*stages, lib.llama_sampler_init_temp(o.temperature), made]
        return [
            *stages,
            lib.llama_sampler_init_top_k(o.top_k),
            lib.llama_sampler_init_typical(o.typical_p, 1),
            lib.llama_sampler_init_top_p(o.top_p, 1),
            lib.llama_sampler_init_min_p(o.min_p, 1),
            lib.llama_sampler_init_temp(o.temperature),
            lib.llama_sampler_init_dist(seed),
        ]

    def _made_grammar(self, model: NativeModel, grammar: str) -> Any:
        complaint()
        made = self._lib.llama_sampler_init_grammar(model.vocab, grammar.encode("utf-8"), b"root")
        if not made:
            raise UnsupportedRequest(
                f"The grammar cannot be used: {complaint() or 'it is not valid GBNF'}.",
                hint='It must be GBNF with a rule named "root" and no left recursion.',
            )
        return made

    def _biases(self, tokens: Tokens, options: ChatOptions) -> Any:
        wanted: dict[int, float] = {}
        for name, value in options.logit_bias.items():
            ids = [int(name)] if name.lstrip("-").isdigit() else tokens.tokenize(name)
            for token in ids:
                if not 0 <= token < self._n_vocab:
                    raise UnsupportedRequest(
                        f"logit_bias: there is no token {token}; the vocabulary has {self._n_vocab}."
                    )
                wanted[token] = value
        bias = (self._lib.llama_logit_bias * len(wanted))()
        for row, (token, value) in zip(bias, wanted.items(), strict=True):
            row.token, row.bias = token, value
        return bias

    def sample(self, context: Context, index: int = -1) -> int:
        """Draw the next token from the logits of the last computation's `index`-th output."""
        lib = self._lib
        if self._grammar is None:
            return int(lib.llama_sampler_sample(self._chain, context.handle, index))
        logits = lib.llama_get_logits_ith(context.handle, index)
        token = self._draw(logits, constrained=False)
        if not self._allowed(token):
            token = self._draw(logits, constrained=True)
        barred: list[int] = []
        while not self._is_text(token) and len(barred) < MAX_BARRED:
            barred.append(token)
            token = self._draw(logits, constrained=True, barred=barred)
        lib.llama_sampler_accept(self._grammar, token)
        lib.llama_sampler_accept(self._chain, token)
        return token

    def _is_text(self, token: int) -> bool:
        """Whether the answer is still UTF-8 with this token. The grammar takes any byte for the rest of a character."""
        before = self._text.getstate()
        try:
            self._text.decode(self._tokens.piece(token))
        except UnicodeDecodeError:
            self._text.setstate(before)
            return False
        return True

    def _draw(self, logits: Any, *, constrained: bool, barred: Sequence[int] = ()) -> int:
        import numpy as np

        lib = self._lib
        if self._candidates is None:
            self._candidates = np.zeros(
                self._n_vocab, dtype=[("id", np.int32), ("logit", np.float32), ("p", np.float32)]
            )
        rows = self._candidates
        rows["id"] = np.arange(self._n_vocab, dtype=np.int32)
        rows["logit"] = np.ctypeslib.as_array(logits, shape=(self._n_vocab,))
        rows["logit"][list(barred)] = -np.inf
        array = self._array(rows.ctypes.data_as(lib.llama_token_data_p), self._n_vocab)
        if constrained:
            lib.llama_sampler_apply(self._grammar, ctypes.byref(array))
        lib.llama_sampler_apply(self._chain, ctypes.byref(array))
        chosen = array.selected if 0 <= array.selected < array.size else 0
        return int(array.data[chosen].id)

    def _allowed(self, token: int) -> bool:
        one = (self._lib.llama_token_data * 1)()
        one[0].id, one[0].logit = token, 1.0
        array = self._array(ctypes.cast(one, self._lib.llama_token_data_p), 1)
        self._lib.llama_sampler_apply(self._grammar, ctypes.byref(array))
        return bool(one[0].logit != float("-inf"))

    def _array(self, data: Any, size: int) -> Any:
        return self._lib.llama_token_data_array(data=data, size=size, selected=-1, sorted=False)

    def __enter__(self) -> Sampler:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        chain, self._chain = self._chain, None
        if chain:
            self._lib.llama_sampler_free(chain)
        grammar, self._grammar = self._grammar, None
        if grammar:
            self._lib.llama_sampler_free(grammar)
