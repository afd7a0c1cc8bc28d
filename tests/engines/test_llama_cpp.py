"""The llama.cpp engine: the same tokens as the plain library, what it keeps between calls, and what it survives."""

from __future__ import annotations

import math
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import llama_cpp
import pytest

from lollms_local.engines.llama.context import Context
from lollms_local.engines.llama.files import model_files
from lollms_local.engines.llama.plan import Sizes, plan
from lollms_local.errors import Cancelled, GenerationError, LoadError, ModelBusy, UnsupportedRequest
from lollms_local.gguf import read_gguf_model
from lollms_local.modalities.base import Control
from lollms_local.modalities.chat import ChatLoadOptions, ChatOptions, ChatRequest, Piece
from tests.engines.llama_models import ask, chat, opened
from tests.tiny import gguf

TOP = Path(__file__).parents[2]
#: a vocabulary of bytes writes it in its own way, token by token, and not as its text would be split
SAYS = 'root ::= "the thing, " ("你好" | "größer" | [a-z]) [a-z]{2,4} "."'
LONG = "The old town lies between the river and the hill. " * 8


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gguf.llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="module")
def smol(models_dir: Path) -> Path:
    return models_dir / "smollm2-135m-instruct" / "SmolLM2-135M-Instruct.Q4_1.gguf"


def plain(path: Path, **options: Any) -> llama_cpp.Llama:
    given = {"n_ctx": 2048, "n_threads": 1, "n_threads_batch": 1, "flash_attn": True, **options}
    return llama_cpp.Llama(str(path), verbose=False, **given)


def written(model: llama_cpp.Llama, prompt: str, count: int, **options: Any) -> str:
    """What the plain library writes."""
    tokens = model.tokenize(prompt.encode(), add_bos=False, special=True)
    defaults = {"temp": 0.0, "repeat_penalty": 1.0, "top_k": 40, "top_p": 0.95, "min_p": 0.05}
    made = [t for t, _ in zip(model.generate(tokens, **{**defaults, **options}), range(count), strict=False)]
    text = model.detokenize(made, prev_tokens=tokens, special=True).decode("utf-8", errors="replace")
    return text.split("<|im_end|>")[0].rstrip("\ufffd")


# --- equal to the plain library ---------------------------------------------------------------------------------------


def test_the_real_model_writes_what_the_plain_library_writes(smol: Path) -> None:
    prompt = "<|im_start|>user\nName three colours.<|im_end|>\n<|im_start|>assistant\n"
    reference = plain(smol)
    expected = written(reference, prompt, 24)
    reference.close()
    with opened(smol, ctx_size=2048) as model:
        assert ask(model, prompt).text == expected
        assert "Green" in expected


def test_a_model_of_noise_writes_the_same_noise(tiny: Path) -> None:
    for flash in ("on", "off"):
        reference = plain(tiny, flash_attn=flash == "on")
        expected = written(reference, LONG, 60)
        reference.close()
        with opened(tiny, flash_attention=flash) as model:
            assert ask(model, LONG, n_predict=60).text.rstrip("\ufffd") == expected, flash


def test_equal_seeds_draw_equal_tokens(tiny: Path) -> None:
    options = {
        "temperature": 0.9,
        "top_k": 20,
        "top_p": 0.9,
        "min_p": 0.01,
        "presence_penalty": 0.5,
        "repeat_penalty": 1.1,
    }
    with opened(tiny) as model:
        drawn = ask(model, LONG, seed=7, **options).text
        assert ask(model, LONG, seed=7, **options).text == drawn
        assert ask(model, LONG, seed=8, **options).text != drawn
        assert ask(model, LONG, **options).text != ask(model, LONG, **options).text
        styles: list[dict[str, Any]] = [{"mirostat": 1}, {"mirostat": 2}, {"typical_p": 0.5}, {"top_k": 1}]
        texts = [ask(model, LONG, seed=7, temperature=0.9, **style).text for style in styles]
        assert len(set(texts)) == 4
        assert texts[3] == ask(model, LONG).text, "the likeliest one of one"


def test_the_chat_template_is_rendered_as_the_plain_library_renders_it(smol: Path) -> None:
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    reference = plain(smol, n_ctx=256)
    form = Jinja2ChatFormatter(
        template=reference.metadata["tokenizer.chat_template"], eos_token="<|im_end|>", bos_token="<|im_start|>"
    )
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "No"},
    ]
    expected = reference.tokenize(form(messages=messages).prompt.encode(), add_bos=False, special=True)
    reference.close()
    with opened(smol, ctx_size=256) as model:
        assert model._builder.build(ChatRequest(messages=messages), ChatOptions()).tokens == expected


def test_lookups_in_the_prompt_change_nothing_but_the_speed(tiny: Path) -> None:
    with opened(tiny) as model, opened(tiny, speculation="prompt_lookup", draft_tokens=4) as guessing:
        for prompt in (LONG, "abcabcabcabc", "Hello"):
            assert ask(guessing, prompt, n_predict=80).text == ask(model, prompt, n_predict=80).text


def test_smaller_batches_and_caches_of_other_formats_write_too(tiny: Path) -> None:
    with opened(tiny) as model:
        whole = ask(model, LONG).text
    with opened(tiny, n_batch=64, n_ubatch=16) as model:
        assert ask(model, LONG).text == whole
    with opened(tiny, kv_type_k="f32", kv_type_v="f32") as model:
        assert ask(model, LONG).text
    with opened(tiny, use_mmap=False) as model:
        assert ask(model, LONG).text == whole
    # 16 numbers per head are no block of 32
    with pytest.raises(LoadError, match="context of 4096"), opened(tiny, kv_type_k="q8_0", kv_type_v="q8_0"):
        pass


# --- what is kept between calls ---------------------------------------------------------------------------------------


def test_a_conversation_that_grows_reads_only_its_new_tokens(tiny: Path) -> None:
    with opened(tiny) as model, opened(tiny) as forgetful:
        turns = [LONG]
        before = 0
        for number in range(4):
            result = chat(model, *turns, grammar=SAYS)
            again = chat(forgetful, *turns, grammar=SAYS, cache_prompt=False)
            assert (result.text, again.cached_tokens) == (again.text, 0), number
            if number:
                added = len("<|im_end|>") + len("\nuser\nAnd then?\nassistant\n")
                assert result.cached_tokens >= before and result.prompt_tokens - result.cached_tokens <= added
            before = result.prompt_tokens
            turns += [result.text, "And then?"]


def test_two_conversations_in_turns_keep_their_places(tiny: Path) -> None:
    with opened(tiny) as model:
        talks = [[LONG], [LONG[::-1]]]
        for number in range(3):
            for talk in talks:
                result = chat(model, *talk, grammar=SAYS)
                if number:
                    assert result.prompt_tokens - result.cached_tokens < 60
                else:
                    assert result.cached_tokens < 40
                talk += [result.text, "More."]
        states, held = model.cached_states
        assert 1 <= states <= 2 and 0 < held <= 3 * sum(model._sizes.kv_bytes(4096))
    with opened(tiny, prompt_cache_mb=0) as model:
        chat(model, LONG)
        chat(model, LONG[::-1])
        assert chat(model, LONG).cached_tokens < 40 and model.cached_states == (0, 0)


def test_saved_states_stay_within_their_bound(tiny: Path) -> None:
    with opened(tiny, prompt_cache_mb=1) as model:
        for number in range(12):
            chat(model, f"{number} {LONG * 3}", n_predict=1)
            assert model.cached_states[1] <= 1 << 20
        assert 1 <= model.cached_states[0] < 11


def test_a_trimmed_model_keeps_the_states_it_has_and_takes_no_more_memory(tiny: Path) -> None:
    with opened(tiny) as model:
        chat(model, LONG)
        chat(model, LONG[::-1])
        states, held = model.cached_states
        assert states and model.spare_bytes["ram"] == sum(model._sizes.kv_bytes(4096)) - held
        model.trim()
        assert model.cached_states == (states, held) and model.spare_bytes["ram"] == 0
        assert chat(model, LONG).cached_tokens > 40
        for number in range(4):
            chat(model, f"{number} {LONG * 2}", n_predict=1)
            assert model.cached_states[1] <= held


def test_a_state_that_was_put_aside_goes_on_as_if_it_had_stayed(tiny: Path) -> None:
    with opened(tiny) as model:
        first = ask(model, LONG, n_predict=40).text
        ask(model, LONG[::-1])
        again = ask(model, LONG, n_predict=40)
        assert again.text == first and again.cached_tokens == again.prompt_tokens - 1


# --- stopping ---------------------------------------------------------------------------------------------------------


def test_cancel_within_one_computation_leaves_a_cache_that_is_right(tiny: Path) -> None:
    with opened(tiny, n_batch=4096, n_ubatch=64) as model:
        whole = ask(model, LONG).text
        stop = threading.Event()

        def cancelled() -> bool:
            stop.set()  # asked from the watching thread: the computation is under way
            return True

        with pytest.raises(Cancelled):
            model.generate(ChatRequest(prompt=LONG * 9), ChatOptions(), Control(cancelled=cancelled), lambda p: True)
        assert stop.is_set()
        assert ask(model, LONG).text == whole


def test_an_error_of_the_listener_passes_through_and_leaves_the_model_usable(tiny: Path) -> None:
    with opened(tiny) as model:
        whole = ask(model, LONG).text

        def fail(piece: Piece) -> bool:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            model.generate(ChatRequest(prompt=LONG), ChatOptions(), Control(), fail)
        assert ask(model, LONG).text == whole


def test_the_end_of_the_context_ends_the_answer(tiny: Path) -> None:
    with opened(tiny, ctx_size=512) as model:
        count = len(model.tokenize(LONG))
        result = ask(model, LONG, n_predict=-1, logit_bias={"<|im_end|>": -100, "<|endoftext|>": -100})
        assert (result.finish_reason, result.completion_tokens) == ("length", 512 - count)
        with pytest.raises(UnsupportedRequest, match=r"has \d+ tokens .* room for 512"):
            ask(model, LONG * 2)
        with pytest.raises(UnsupportedRequest, match="empty"):
            ask(model, "")
        assert ask(model, LONG).text


# --- files ------------------------------------------------------------------------------------------------------------


def test_an_adapter_changes_what_is_written(tiny: Path, tmp_path: Path) -> None:
    adapter = gguf.lora(tmp_path / "a=b.gguf")
    with opened(tiny) as model:
        without = ask(model, LONG).text
    texts = []
    for weight in ("", "=1", "=0", "=0.5"):
        with opened(tiny, lora=(f"{adapter}{weight}",)) as model:
            texts.append(ask(model, LONG).text)
    assert texts[0] == texts[1] != without == texts[2] and texts[3] != texts[0]


def test_adapters_that_cannot_be_are_refused_before_the_library_sees_them(tiny: Path, tmp_path: Path) -> None:
    foreign = gguf.lora(tmp_path / "foreign.gguf", architecture="gpt2")
    for path, why in ((tmp_path / "none.gguf", "is not there"), (tiny, "not a LoRA adapter"), (foreign, "for gpt2")):
        with pytest.raises(LoadError, match=why), opened(tiny, lora=(str(path),)):
            pass
    misfit = gguf.lora(tmp_path / "misfit.gguf", embedding=32)
    with pytest.raises(LoadError, match="cannot be used"), opened(tiny, lora=(str(misfit),)):
        pass


def test_a_model_in_parts_is_one_model(tiny: Path, tmp_path: Path) -> None:
    first, second = gguf.split(tiny, tmp_path)
    whole = model_files(tiny, ChatLoadOptions())
    assert model_files(tmp_path, ChatLoadOptions()).weights_bytes == whole.weights_bytes
    with opened(tiny) as model, opened(first) as parts:
        assert ask(parts, LONG).text == ask(model, LONG).text
    second.unlink()
    with pytest.raises(LoadError, match="00002-of-00002"), opened(first):
        pass


def test_the_library_s_reason_for_refusing_a_file_is_told(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "renamed.gguf"
    path.write_bytes(tiny.read_bytes().replace(b"blk.1.attn_q", b"blk.1.attn_Q"))
    with pytest.raises(LoadError, match=r"blk\.1\.attn_q\.weight' not found"), opened(path):
        pass


def test_a_folder_holds_one_model_and_perhaps_a_projector(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="no GGUF model"):
        model_files(tmp_path, ChatLoadOptions())
    (tmp_path / "a.gguf").write_bytes(tiny.read_bytes())
    assert model_files(tmp_path, ChatLoadOptions()).model.name == "a.gguf"
    (tmp_path / "b.gguf").write_bytes(tiny.read_bytes())
    with pytest.raises(LoadError, match=r"several models: a\.gguf, b\.gguf"):
        model_files(tmp_path, ChatLoadOptions())


# --- vectors ----------------------------------------------------------------------------------------------------------


def test_vectors_are_those_of_the_plain_library(tiny: Path, tmp_path: Path) -> None:
    bert = gguf.bert(tmp_path / "bert.gguf")
    texts = ["cat dog", "sun", "the cat and the dog"]
    reference = llama_cpp.Llama(str(bert), embedding=True, verbose=False, n_threads=1)
    expected = [reference.embed(text, normalize=True) for text in texts]
    reference.close()
    with opened(bert) as model:
        found = model.embed(texts, Control())
        for mine, theirs in zip(found, expected, strict=True):
            assert mine == pytest.approx(theirs, abs=2e-3)
        assert model.embed(["cat dog"] * 70, Control())[69] == pytest.approx(found[0], abs=1e-3)
        with pytest.raises(UnsupportedRequest, match="at most 128"):
            model.embed(["cat " * 200], Control())
    with opened(tiny) as model:
        text = ask(model, LONG).text
        assert math.isclose(math.hypot(*model.embed(["cat"], Control())[0]), 1, abs_tol=1e-5)
        with pytest.raises(UnsupportedRequest, match="empty"):
            model.embed([""], Control())
        assert ask(model, LONG).text == text, "the conversation is untouched"


# --- sizes ------------------------------------------------------------------------------------------------------------


def test_the_cache_s_bytes_are_the_formula_s(smol: Path) -> None:
    header, weights = read_gguf_model(smol)
    sizes = Sizes.of(header, weights)
    # 30 layers, 3 heads of 64 for keys and values, 2 bytes a number
    assert sum(sizes.kv_bytes(2048)) == 2048 * 30 * 3 * 64 * 2 * 2
    assert sum(sizes.kv_bytes(2048, "q8_0", "q8_0")) == 2048 * 30 * 2 * (3 * 64 // 32 * 34)
    assert weights == 96_570_624 or abs(weights - 96_570_624) < 100_000


def test_a_saved_state_has_the_formula_s_bytes_per_token(tiny: Path) -> None:
    with opened(tiny) as model:
        ask(model, LONG, n_predict=1)
        context = model._context
        assert isinstance(context, Context)
        state = context.save()
        assert state is not None
        per_token = sum(model._sizes.kv_bytes(256)) / 256
        assert state.nbytes / len(state.tokens) == pytest.approx(per_token, rel=0.15)


def test_a_loaded_model_takes_what_was_planned(smol: Path) -> None:
    """In a process of its own: resident bytes after a whole computation, against the plan; and again with states."""
    script = """
import sys, psutil
from pathlib import Path
from lollms_local.engines.llama.files import has_gpu
from lollms_local.engines.llama.plan import Sizes, plan
from tests.engines.llama_models import ask, load_options, opened
import numpy
has_gpu(), Sizes, plan
path, here = Path(sys.argv[1]), psutil.Process()
before = here.memory_info().rss
with opened(path, ctx_size=4096, prompt_cache_mb=20) as model:
    ask(model, 'hello ' * 520, n_predict=2)
    ask(model, 'other ' * 40, n_predict=2)
    print(here.memory_info().rss - before, model.cached_states[1])
"""
    run = subprocess.run(
        [sys.executable, "-c", script, str(smol)], cwd=TOP, capture_output=True, text=True, timeout=100
    )
    assert run.returncode == 0, run.stderr
    resident, states = map(int, run.stdout.split())
    sizes = Sizes.of(*read_gguf_model(smol))
    planned = plan(sizes, ChatLoadOptions(ctx_size=4096, prompt_cache_mb=20), room_bytes=1 << 40, gpu=False)
    assert 0 < states <= 20 << 20
    assert 0.87 < (planned.total_bytes - (20 << 20) + states) / resident < 1.15


def test_less_room_costs_saved_states_before_it_costs_context(smol: Path) -> None:
    sizes = Sizes.of(*read_gguf_model(smol))
    roomy = plan(sizes, ChatLoadOptions(), room_bytes=1 << 40, gpu=False)
    assert roomy.placement.prompt_cache_bytes == sum(sizes.kv_bytes(8192))
    tight = plan(sizes, ChatLoadOptions(), room_bytes=roomy.total_bytes - (100 << 20), gpu=False)
    assert tight.placement.n_ctx == 8192
    assert tight.placement.prompt_cache_bytes == roomy.placement.prompt_cache_bytes - (100 << 20)


def test_the_longest_context_that_fits_is_chosen(smol: Path) -> None:
    sizes = Sizes.of(*read_gguf_model(smol))
    chosen = {}
    for room in (1 << 40, 900 << 20, 500 << 20, 300 << 20, 1):
        footprint = plan(sizes, ChatLoadOptions(prompt_cache_mb=0), room_bytes=room, gpu=False)
        chosen[room] = footprint.placement.n_ctx
        assert footprint.total_bytes <= room or chosen[room] == 2048
    contexts = list(chosen.values())
    assert contexts[0] == 8192 and contexts[-1] == 2048 and contexts == sorted(contexts, reverse=True)
    assert plan(sizes, ChatLoadOptions(ctx_size=4096), room_bytes=1, gpu=False).placement.n_ctx == 4096
    with pytest.raises(UnsupportedRequest, match="32 times the 8192"):
        plan(sizes, ChatLoadOptions(ctx_size=1 << 20), room_bytes=1 << 40, gpu=False)


def test_as_many_layers_as_fit_go_to_the_gpu(smol: Path) -> None:
    sizes = Sizes.of(*read_gguf_model(smol))
    counts = []
    for room in (0, 150, 200, 250, 300, 350, 400, 1000):
        footprint = plan(sizes, ChatLoadOptions(ctx_size=8192), room_bytes=room << 20, gpu=True)
        counts.append(footprint.placement.n_gpu_layers)
        assert footprint.weights_bytes + footprint.workspace_bytes <= max(room << 20, 0) or not counts[-1]
    assert counts == sorted(counts) and counts[0] == 0 and counts[-1] == 31 and 0 < counts[4] < 31
    assert plan(sizes, ChatLoadOptions(n_gpu_layers=5), room_bytes=1 << 40, gpu=True).placement.n_gpu_layers == 5


# --- what would end the process ---------------------------------------------------------------------------------------

KILLERS = {
    "a bad grammar": (
        UnsupportedRequest,
        "with opened(path) as model: ask(model, 'Hello', grammar='root ::= root \"a\" | (')",
    ),
    "a left-recursive grammar": (
        UnsupportedRequest,
        "with opened(path) as model: ask(model, 'Hello', grammar='root ::= root \"a\"')",
    ),
    "use after close": (
        GenerationError,
        "with opened(path) as model: pass\nask(model, 'Hello')",
    ),
    "an adapter that is not there": (
        LoadError,
        "with opened(path, lora=('/nowhere/a.gguf',)) as model: ask(model, 'Hello')",
    ),
    "two threads on one model": (
        ModelBusy,
        """
        import threading
        from concurrent.futures import ThreadPoolExecutor
        both = threading.Barrier(2)
        def work(number):
            both.wait()
            return [ask(model, 'Hello ' * 50, n_predict=50) for _ in range(20)]
        with opened(path) as model, ThreadPoolExecutor(2) as pool:
            errors = [f.exception() for f in [pool.submit(work, n) for n in range(2)]]
        raise next(e for e in errors if e)
        """,
    ),
}


@pytest.mark.parametrize("name", KILLERS)
def test_the_process_survives(name: str, tiny: Path) -> None:
    error, code = KILLERS[name]
    script = (
        "import sys\nfrom pathlib import Path\nfrom tests.engines.llama_models import ask, opened\n"
        "from lollms_local.errors import LocalModelError\npath = Path(sys.argv[1])\ntry:\n"
        + textwrap.indent(textwrap.dedent(code).strip(), "    ")
        + "\nexcept LocalModelError as exc:\n    print('caught', type(exc).__name__)\n"
        "with opened(path) as model: print('alive', len(ask(model, 'Hello').text) > 0)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, str(tiny)], cwd=TOP, capture_output=True, text=True, timeout=100
    )  # fmt: skip
    assert run.stdout.splitlines() == [f"caught {error.__name__}", "alive True"], run.stderr[-2000:]
    assert run.returncode == 0


def test_a_second_caller_is_told_and_the_first_goes_on(tiny: Path) -> None:
    with opened(tiny) as model:
        whole = ask(model, LONG).text
        refused: list[BaseException] = []

        def ask_too(piece: Piece) -> bool:
            def second() -> None:
                try:
                    ask(model, "Hello")
                except ModelBusy as exc:
                    refused.append(exc)

            thread = threading.Thread(target=second)
            thread.start()
            thread.join()
            return True

        options = ChatOptions(temperature=0, n_predict=24)
        assert model.generate(ChatRequest(prompt=LONG), options, Control(), ask_too).text == whole
        assert refused


def test_close_waits_and_may_come_twice(tiny: Path) -> None:
    with opened(tiny) as model:
        model.close()
        model.close()
        with pytest.raises(GenerationError, match="closed"):
            ask(model, "Hello")
        with pytest.raises(GenerationError, match="closed"):
            model.embed(["Hello"], Control())
