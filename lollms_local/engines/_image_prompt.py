"""Prompts longer than the 77 tokens that a CLIP text encoder reads.

Where CLIP is all that reads the prompt (SD 1.x and 2.x, SDXL) the text is cut at words into pieces of up to 75 tokens,
each piece is encoded by the pipeline's own method, and the embeddings are laid end to end. Where T5 or a language model
reads it too (SD3, FLUX, Qwen-Image ...) that one gets its full length, and what is beyond is said, not cut silently.
"""

from __future__ import annotations

import inspect
from typing import Any

__all__ = ["PromptArguments", "prompt_arguments"]

PromptArguments = tuple[dict[str, Any], tuple[str, ...]]


def prompt_arguments(pipe: Any, prompt: str, negative: str | None, *, clip_skip: int, guided: bool) -> PromptArguments:
    """Arguments for `pipe(...)` that carry the prompt, and notes for the user.

    Args:
        pipe: the job's pipeline.
        prompt: what to show.
        negative: what not to show; None = nothing was said.
        clip_skip: layers to skip, for the pieces that are encoded here.
        guided: whether the call uses classifier-free guidance.
    """
    plain = {"prompt": prompt, "negative_prompt": negative}
    if _only_clip(pipe):
        limit = pipe.tokenizer.model_max_length - 2
        if max(_tokens(pipe.tokenizer, prompt), _tokens(pipe.tokenizer, negative or "")) <= limit:
            return plain, ()
        return _in_pieces(pipe, prompt, negative, limit, clip_skip, guided)
    return _for_long_readers(pipe, prompt, plain)


def _only_clip(pipe: Any) -> bool:
    readers = [getattr(pipe, name, None) for name in ("text_encoder", "text_encoder_2", "text_encoder_3")]
    named = [type(reader).__name__ for reader in readers if reader is not None]
    known = inspect.signature(pipe.__call__).parameters
    return bool(named) and all(n.startswith("CLIPText") for n in named) and "prompt_embeds" in known


def _tokens(tokenizer: Any, text: str) -> int:
    """Tokens of a text without the two marks around it."""
    return len(tokenizer(text, add_special_tokens=False).input_ids)


def _in_pieces(
    pipe: Any, prompt: str, negative: str | None, limit: int, clip_skip: int, guided: bool
) -> PromptArguments:
    import torch

    pieces = _split(pipe.tokenizer, prompt, limit)
    unwanted = _split(pipe.tokenizer, negative, limit) if negative is not None else None
    count = max(len(pieces), len(unwanted or ()))
    pieces += [""] * (count - len(pieces))
    if unwanted is not None:
        unwanted += [""] * (count - len(unwanted))
    with torch.no_grad():
        encoded = pipe.encode_prompt(
            prompt=pieces,
            device=pipe._execution_device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=guided,
            negative_prompt=unwanted,
            **({"clip_skip": clip_skip} if clip_skip else {}),
        )
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    arguments = {name: _joined(tensor) for name, tensor in zip(names, encoded, strict=False) if tensor is not None}
    note = f"The prompt has {_tokens(pipe.tokenizer, prompt)} tokens: encoded in {count} pieces of up to {limit}."
    return arguments, (note,)


def _joined(tensor: Any) -> Any:
    """[pieces, 77, width] -> [1, pieces * 77, width]; of pooled vectors [pieces, width] the first piece's counts."""
    return tensor.reshape(1, -1, tensor.shape[-1]) if tensor.ndim == 3 else tensor[:1]


def _split(tokenizer: Any, text: str, limit: int) -> list[str]:
    """Pieces of whole words with up to `limit` tokens each; a word longer than that is cut."""
    pieces: list[str] = []
    current = ""
    for word in text.split():
        longer = f"{current} {word}".strip()
        if _tokens(tokenizer, longer) <= limit:
            current = longer
            continue
        if current:
            pieces.append(current)
        while _tokens(tokenizer, word) > limit:
            head = _longest_head(tokenizer, word, limit)
            pieces.append(word[:head])
            word = word[head:]
        current = word
    return [*pieces, current] if current or not pieces else pieces


def _longest_head(tokenizer: Any, word: str, limit: int) -> int:
    low, high = 1, len(word)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _tokens(tokenizer, word[:middle]) <= limit else (low, middle - 1)
    return low


def _for_long_readers(pipe: Any, prompt: str, plain: dict[str, Any]) -> PromptArguments:
    """Give the longest reader room for the whole prompt, up to what the pipeline allows."""
    parameter = inspect.signature(pipe.__call__).parameters.get("max_sequence_length")
    readers = [getattr(pipe, name, None) for name in ("tokenizer_3", "tokenizer_2", "tokenizer")]
    tokenizer = next((reader for reader in readers if reader is not None), None)
    if parameter is None or tokenizer is None:
        return plain, ()
    cut = _cut_by_clip(pipe, prompt)
    count = _tokens(tokenizer, prompt) + 1
    usual, most = int(parameter.default), max(512, int(parameter.default))
    if type(pipe).__name__.startswith("QwenImage"):
        most = 1024
    if count <= usual:
        return plain, cut
    notes = cut if count <= most else (*cut, f"The prompt has {count} tokens; this model reads the first {most}.")
    return {**plain, "max_sequence_length": min(most, max(usual, count))}, notes


def _cut_by_clip(pipe: Any, prompt: str) -> tuple[str, ...]:
    """A sentence if a CLIP encoder beside the long reader sees only the beginning."""
    tokenizer = pipe.tokenizer
    if not type(tokenizer).__name__.startswith("CLIP") or _tokens(tokenizer, prompt) <= tokenizer.model_max_length - 2:
        return ()
    seen = tokenizer.model_max_length - 2
    return (f"The prompt has {_tokens(tokenizer, prompt)} CLIP tokens: CLIP reads the first {seen}, T5 reads on.",)
