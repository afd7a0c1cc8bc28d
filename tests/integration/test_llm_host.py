"""local_llm inside the real host: the real SmolLM2 for words, a tiny model of noise for everything that is a rule."""

from __future__ import annotations

import base64
import io
import json
import math
import random
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pydantic
import pytest
from lollms_client import LollmsClient, LollmsDiscussion
from lollms_client.lollms_types import MSG_TYPE
from PIL import Image

from lollms_local.client import connect
from lollms_local.errors import GenerationError, LocalModelError, MediaError, UnsupportedRequest
from lollms_local.runtime import Runtime, Settings, get_runtime, set_runtime
from tests.schemas import random_schema
from tests.tiny import gguf
from tests.tiny.projector import projector

SMOL = "smollm2-135m-instruct"
#: as text, as configurations give it. One thread: two fight with whatever else runs on the machine
PLAIN = {"temperature": "0", "n_threads": "1", "ctx_size": "4096"}
#: a discussion's system prompt is 6,000 tokens long with everything that the host can offer, 800 without
BARE = dict.fromkeys(
    (
        "enable_image_generation", "enable_image_editing", "auto_activate_artefacts", "enable_notes", "enable_skills",
        "enable_artefacts", "prehydrate_rag", "enable_data_tools",
    ),
    False,
)  # fmt: skip
CHUNK, THOUGHT = MSG_TYPE.MSG_TYPE_CHUNK, MSG_TYPE.MSG_TYPE_THOUGHT_CHUNK


@pytest.fixture(scope="module")
def runtime(models_dir: Path) -> Iterator[Runtime]:
    """One for the file: a model that is not loaded anew for every test."""
    fresh = Runtime(Settings(models_dir=str(models_dir)))
    before = set_runtime(fresh)
    yield fresh
    set_runtime(before)
    fresh.manager.close()


@pytest.fixture(scope="module")
def smol(runtime: Runtime) -> LollmsClient:
    return connect(chat=SMOL, llm_binding_config={**PLAIN, "n_predict": "24"})


@pytest.fixture(scope="module")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gguf.llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="module")
def tiny(runtime: Runtime, tiny_path: Path) -> LollmsClient:
    return connect(chat=str(tiny_path), llm_binding_config=PLAIN)


def other(folder: Path, template: str = gguf.CHATML, **config: Any) -> LollmsClient:
    """A client over a tiny model of its own."""
    path = gguf.llama(folder / "other.gguf", template=template)
    return connect(chat=str(path), llm_binding_config={**PLAIN, **config})


def words(text: str) -> str:
    """A grammar that allows this text alone."""
    return f"root ::= {json.dumps(text, ensure_ascii=False)}"


def dot(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def system(text: str) -> dict[str, Any]:
    """A system message as the host sends it."""
    return {"role": "system", "content": [{"type": "text", "text": text}]}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


# --- words, by the real model -----------------------------------------------------------------------------------------


def test_generate_text_answers_by_the_chat_template(smol: LollmsClient) -> None:
    assert "4" in smol.generate_text("What is 2 + 2?")
    assert "cold" in smol.generate_text("What is the opposite of hot?")


def test_raw_continues_the_text_as_it_stands(smol: LollmsClient) -> None:
    assert smol.generate_text("1, 2, 3, 4, 5, 6,", raw=True, n_predict=9).startswith(" 7, 8, 9")
    assert "Paris" in smol.generate_text("The capital of France is", raw=True, n_predict="4")


def test_a_system_message_made_of_parts_steers_the_answer(smol: LollmsClient) -> None:
    french = smol.generate_from_messages([system("You only answer in French."), user("Hello, who are you?")])
    assert "Bonjour" in french
    assert smol.generate_text("Hello, who are you?", system_prompt="You only answer in French.") == french


def test_split_cuts_a_discussion_at_the_keywords(smol: LollmsClient) -> None:
    text = "!@>user:\nMy name is Zebedee.\n!@>assistant:\nHello Zebedee!\n!@>user:\nWhat is my name?"
    messages = [
        user("My name is Zebedee."),
        {"role": "assistant", "content": "Hello Zebedee!"},
        user("What is my name?"),
    ]
    answer = smol.generate_text(text, split=True)
    assert answer == smol.generate_from_messages(messages)
    assert answer != smol.generate_text("What is my name?")
    assert smol.generate_text(text.replace("!@>user:", "U>"), split=True, user_keyword="U>") == answer


def test_a_discussion_of_five_turns_streams_what_it_stores(smol: LollmsClient) -> None:
    discussion = LollmsDiscussion.create_new(lollms_client=smol)
    for turn, question in enumerate(("Hello.", "What is 2 + 2?", "Are you sure?", "Name a colour.", "Goodbye.")):
        streamed: list[str] = []

        def tell(text: str, kind: MSG_TYPE, meta: Any, *, streamed: list[str] = streamed) -> None:
            if kind == CHUNK:
                streamed.append(text)

        message = discussion.chat(question, streaming_callback=tell, n_predict=12, **BARE)["ai_message"]
        assert message.content.strip() and len(streamed) > 1, turn
        assert "".join(streamed).endswith(message.content)  # the host puts its own mark of the round before it
    assert len(discussion.get_branch(discussion.active_branch_id)) == 10


def test_the_guide_s_own_chat_method_answers_a_discussion(smol: LollmsClient) -> None:
    discussion = LollmsDiscussion.create_new(lollms_client=smol)
    discussion.add_message(sender="user", sender_type="user", content="What is 2 + 2?")
    assert "4" in smol.llm.chat(discussion)


def test_structured_calls_of_the_host_succeed_with_a_small_model(smol: LollmsClient) -> None:
    fields = {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "city": {"enum": ["London", "Paris", "Rome"]},
    }
    schema = {"type": "object", "properties": fields, "required": list(fields)}
    found = smol.generate_structured_content("Alice is 31 years old and lives in Paris.", schema=schema)
    assert found == {"name": "Alice", "age": 31, "city": "Paris"}

    found = smol.generate_structured_content("A dog called Rex.", schema={"name": "string", "legs": "integer"})
    assert set(found) == {"name", "legs"} and isinstance(found["name"], str) and isinstance(found["legs"], int)

    class Town(pydantic.BaseModel):
        name: str = pydantic.Field(max_length=16)
        inhabitants: int = pydantic.Field(ge=1000, le=9_999_999)

    town = smol.llm.tp.generate_structured_content_pydantic("Describe Oslo.", Town)
    assert isinstance(town, Town)


def test_yes_no_and_choices_give_an_answer_of_the_right_kind(smol: LollmsClient) -> None:
    full = smol.llm.tp.yes_no("Is the sun hot?", return_explanation=True)
    assert isinstance(full["answer"], bool) and full["explanation"] != "Failed"
    assert smol.multichoice_question("Which animal barks?", ["cat", "dog", "fish"]) in (0, 1, 2)


def test_vectors_have_length_one_and_tell_near_from_far(smol: LollmsClient) -> None:
    texts = ["The cat sleeps on the sofa.", "A kitten is lying on the couch.", "The stock market fell sharply today."]
    cat, kitten, stocks = smol.llm.embed(texts)
    assert all(math.isclose(math.hypot(*v), 1, abs_tol=1e-5) for v in (cat, kitten, stocks))
    assert dot(cat, kitten) > dot(cat, stocks) + 0.05
    alone = smol.llm.embed(texts[1])
    assert dot(alone, kitten) > 0.999
    assert math.hypot(*smol.llm.embed(texts[0], normalize=False)) > 2


def test_four_threads_get_the_answers_that_each_gets_alone(smol: LollmsClient) -> None:
    questions = ["What is 2 + 2?", "Name three colours.", "Which animal barks?", "Write a haiku about the sea."]
    alone = [smol.generate_text(q) for q in questions]
    found: dict[str, str] = {}
    threads = [threading.Thread(target=lambda q=q: found.update({q: smol.generate_text(q)})) for q in questions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[q] for q in questions] == alone


# --- streaming and stopping -------------------------------------------------------------------------------------------


def test_a_callback_is_given_text_and_kind_and_only_false_stops(tiny: LollmsClient) -> None:
    for result in (None, 0, "", True):
        pieces: list[str] = []

        def tell(text: str, kind: MSG_TYPE, pieces: list[str] = pieces, result: Any = result) -> Any:
            assert kind == CHUNK
            pieces.append(text)
            return result

        answer = tiny.generate_text("Hello", streaming_callback=tell, grammar=words("one two three"))
        assert "".join(pieces) == answer == "one two three" and len(pieces) > 3


def test_false_stops_at_once_and_the_next_answer_is_right(tiny: LollmsClient) -> None:
    whole = tiny.generate_text("Hello", grammar=words("one two three"))
    pieces: list[str] = []

    def stop(text: str, kind: MSG_TYPE) -> bool:
        pieces.append(text)
        return len(pieces) < 3

    assert tiny.generate_text("Hello", streaming_callback=stop, grammar=words("one two three")) == "".join(pieces)
    assert len(pieces) == 3
    assert tiny.generate_text("Hello", grammar=words("one two three")) == whole


def test_a_callback_that_raises_ends_the_answer_with_its_own_error(tiny: LollmsClient) -> None:
    free = tiny.generate_text("Hello", n_predict=40)

    def fail(text: str, kind: MSG_TYPE) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        tiny.generate_text("Hello", streaming_callback=fail, n_predict=40)
    assert tiny.generate_text("Hello", n_predict=40) == free


def test_cancel_while_writing_returns_what_was_written(tiny: LollmsClient) -> None:
    free = tiny.generate_text("Hello", n_predict=300)
    pieces: list[str] = []

    def cancel(text: str, kind: MSG_TYPE) -> None:
        pieces.append(text)
        if len(pieces) == 5:
            thread = threading.Thread(target=tiny.cancel)
            thread.start()
            thread.join()

    answer = tiny.generate_text("Hello", n_predict=300, streaming_callback=cancel)
    assert answer == "".join(pieces) and len(pieces) == 5
    assert tiny.generate_text("Hello", n_predict=300) == free, "the host leaves its flag set; we do not obey an old one"


def test_cancel_while_a_long_prompt_is_read_ends_within_it(runtime: Runtime) -> None:
    """All of the prompt in one computation: only the library's own abort can end it before it is read."""
    client = connect(chat=SMOL, llm_binding_config={**PLAIN, "n_predict": "12", "n_batch": "4096", "n_ubatch": "4096"})
    before = client.generate_text("What is 2 + 2?")
    parts: list[float] = []
    started = threading.Event()
    asked: list[bool] = []

    def poll() -> bool:  # asked by the engine, as soon as it works
        started.set()
        asked.append(True)
        return False

    cancel = threading.Thread(target=lambda: (started.wait(), client.cancel()))
    cancel.start()
    answer = client.generate_text(
        "word " * 3500, cancelled=poll, progress_callback=lambda p: parts.append(p["completed"])
    )
    cancel.join()
    assert answer == "" and parts == [] and asked
    assert client.generate_text("What is 2 + 2?") == before
    assert client.llm.unload_model()


def test_a_discussion_can_be_stopped_and_goes_on(tiny: LollmsClient) -> None:
    discussion = LollmsDiscussion.create_new(lollms_client=tiny)
    pieces: list[str] = []

    def tell(text: str, *more: Any) -> None:
        pieces.append(text)
        if len(pieces) == 4:
            discussion.cancel_generation()

    discussion.chat("Hello", streaming_callback=tell, **BARE)
    assert 4 <= len(pieces) < 12
    assert discussion.chat("Again", n_predict=9, **BARE)["ai_message"].content


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_prompt_beyond_the_context_is_refused_with_both_numbers(tiny: LollmsClient) -> None:
    count = tiny.llm.count_tokens("x" * 5000)
    with pytest.raises(UnsupportedRequest, match=r"The prompt has 50\d\d tokens .* room for 4096\.") as caught:
        tiny.generate_text("x" * 5000)
    assert count == 5000 and "ctx_size" in caught.value.hint
    assert tiny.generate_text("Hello", n_predict=9)


def test_images_are_refused_in_every_form_without_a_projector(tiny: LollmsClient, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, format="JPEG")
    data = buffer.getvalue()
    text = base64.b64encode(data).decode()
    (tmp_path / "red.jpg").write_bytes(data)
    assert text.startswith("/9j/") and tiny.llm.vision_enabled is False
    for image in (data, text, f"data:image/jpeg;base64,{text}", str(tmp_path / "red.jpg")):
        with pytest.raises(UnsupportedRequest, match="cannot see images"):
            tiny.llm.generate_text("What is this?", images=[image])
    part = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{text}"}}
    with pytest.raises(UnsupportedRequest, match="cannot see images"):
        tiny.llm.generate_from_messages([{"role": "user", "content": [{"type": "text", "text": "?"}, part]}])
    with pytest.raises(MediaError, match="on the web"):
        tiny.llm.generate_text("What is this?", images=["https://example.org/a.jpg"])
    assert tiny.generate_text("What is this?", images=[text], n_predict=9), "the client itself leaves images out"


def test_a_model_with_a_projector_is_shown_each_picture_once_in_every_form(runtime: Runtime, tmp_path: Path) -> None:
    (tmp_path / "eyes").mkdir()
    gguf.llama(tmp_path / "eyes" / "eyes.gguf", endless=True)
    projector(tmp_path / "eyes" / "mmproj-eyes.gguf")
    client = connect(chat=str(tmp_path / "eyes"), llm_binding_config=PLAIN)
    assert client.llm.vision_enabled is True and client.has_vision_capability()
    answers = []
    for color in ("red", "blue"):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), color).save(buffer, format="PNG")
        data = buffer.getvalue()
        text = base64.b64encode(data).decode()
        (tmp_path / "seen.png").write_bytes(data)
        part = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{text}", "detail": "auto"}}
        for image in (data, text, f"data:image/png;base64,{text}", str(tmp_path / "seen.png")):
            answers.append(client.llm.generate_text("What is this?", images=[image], n_predict=12))
        answers.append(client.generate_text("What is this?", images=[text], n_predict=12))
        content = [part, {"type": "text", "text": "What is this?"}]
        for beside in (None, [text]):  # the host gives the same picture in the message and again beside it
            messages = [{"role": "user", "content": content}]
            answers.append(client.llm.generate_from_messages(messages, images=beside, n_predict=12))
    red, blue = answers[:7], answers[7:]
    assert len(set(red)) == len(set(blue)) == 1 and red[0] != blue[0]
    for path in (tmp_path / "eyes", tmp_path / "eyes" / "eyes.gguf"):
        assert client.llm._find_mmproj(path) == tmp_path / "eyes" / "mmproj-eyes.gguf"
    blind = connect(chat=str(tmp_path / "eyes"), llm_binding_config={**PLAIN, "mmproj": "none"})
    assert blind.llm.vision_enabled is False and blind.llm._find_mmproj(tmp_path / "eyes") is None


def test_bad_grammars_schemas_and_options_are_one_sentence_each(tiny: LollmsClient) -> None:
    wrong: list[dict[str, Any]] = [
        {"grammar": "root ::= ("},
        {"grammar": 'start ::= "a"'},
        {"grammar": 'root ::= root "a"'},
        {"json_schema": "{"},
        {"json_schema": {"type": "banana"}},
        {"json_schema": {"$ref": "#/nowhere"}},
        {"json_schema": {}, "grammar": words("a")},
        {"response_format": {"type": "banana"}},
        {"logit_bias": {"999999": 1}},
        {"temperature": "warm"},
        {"tools": [{"type": "function"}]},
        {"prompt": "\ud800"},
    ]
    for given in wrong:
        with pytest.raises(UnsupportedRequest) as caught:
            tiny.llm.generate_text(**{"prompt": "Hello", **given})
        assert str(caught.value).count("\n") <= 1, given
    for messages in ([], [{"content": "no role"}], ["text"]):
        with pytest.raises(UnsupportedRequest):
            tiny.llm.generate_from_messages(messages)
    assert tiny.generate_text("Hello", n_predict=9)


def test_error_mode_dict_gives_the_form_of_the_written_guide(tiny_path: Path, runtime: Runtime) -> None:
    binding = connect(chat=str(tiny_path), llm_binding_config={**PLAIN, "error_mode": "dict"}).llm
    answer = binding.generate_text("x" * 5000)
    assert answer["status"] == "error" and "4096" in answer["message"] and answer["hint"]


def test_a_missing_or_damaged_file_is_said_and_the_client_still_built(
    tiny_path: Path, tmp_path: Path, runtime: Runtime
) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny_path.read_bytes()[:-1000])
    client = connect(chat=str(cut))
    assert client.llm.load_model(str(cut)) is False
    assert "lies outside the file" in client.llm.get_last_error()
    with pytest.raises(LocalModelError):
        client.generate_text("Hello")
    assert connect(chat=str(tmp_path / "none.gguf")).llm.load_model("none.gguf") is False


# --- text -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["héllo — größer", "你好，世界", "🙂👩‍👩‍👧‍👦🏳️‍🌈", "עברית العربية", "नमस्ते ไทย", "a\u0301\u200b𝒳"]
)
def test_every_script_streams_in_whole_characters(tiny: LollmsClient, text: str) -> None:
    pieces: list[str] = []
    answer = tiny.generate_text("Hello", streaming_callback=lambda t, k: pieces.append(t), grammar=words(text))
    assert answer == text == "".join(pieces)
    assert not any("\ufffd" in piece for piece in pieces)
    assert tiny.llm.count_tokens(text) > len(text), "so characters came in several tokens"
    assert tiny.llm.detokenize(tiny.llm.tokenize(text)) == text


def test_an_answer_cut_within_a_character_ends_before_it(tiny: LollmsClient) -> None:
    assert tiny.generate_text("Hello", n_predict=5, grammar=words("你好")) == "你"


def test_stop_texts_end_the_answer_and_are_never_seen(tiny: LollmsClient) -> None:
    pieces: list[str] = []
    answer = tiny.generate_text(
        "Hello", stop=["END", "n’t"], grammar=words("fine EN ENDless"), streaming_callback=lambda t, k: pieces.append(t)
    )
    assert answer == "fine EN " == "".join(pieces)


def test_tokens_are_counted_without_waiting_for_an_answer(tiny: LollmsClient) -> None:
    counts: list[int] = []

    def count(text: str, kind: MSG_TYPE) -> bool:
        counts.append(tiny.llm.count_tokens("the thing"))
        return len(counts) < 2

    tiny.generate_text("Hello", streaming_callback=count)
    assert counts == [5, 5]  # "the", " ", "th", "in", "g"
    assert tiny.count_tokens("") == 0


# --- thoughts and tools -----------------------------------------------------------------------------------------------


def test_thoughts_arrive_as_thoughts_and_never_in_the_answer(tiny: LollmsClient) -> None:
    pieces: list[tuple[str, MSG_TYPE]] = []
    answer = tiny.generate_text(
        "Hello",
        grammar=words("<think>Let me see 🙂</think>\n\nIt is < 3 </b>."),
        streaming_callback=lambda t, k: pieces.append((t, k)),
    )
    assert answer == "It is < 3 </b>."
    assert "".join(t for t, k in pieces if k == THOUGHT) == "Let me see 🙂"
    assert "".join(t for t, k in pieces if k == CHUNK) == answer


def test_wishes_about_thinking_reach_the_template(tmp_path: Path, runtime: Runtime) -> None:
    told = "{{ raise_exception('think=' ~ enable_thinking ~ ' effort=' ~ reasoning_effort ~ ' mine=' ~ mine) }}"
    client = other(tmp_path, told)
    with pytest.raises(UnsupportedRequest, match="think=True effort=low"):
        client.generate_text("Hello", think=True, reasoning_effort="low")
    with pytest.raises(UnsupportedRequest, match="think=False effort= "):
        client.generate_text("Hello")
    with pytest.raises(UnsupportedRequest, match=r"think=True .* mine=x"):
        client.llm.generate_text("Hello", chat_template_kwargs={"enable_thinking": True, "mine": "x"})


def test_a_thought_that_the_template_opens_is_a_thought(tmp_path: Path, runtime: Runtime) -> None:
    client = other(tmp_path, gguf.THINKING, logit_bias=json.dumps({"</think>": 100}))
    pieces: list[tuple[str, MSG_TYPE]] = []
    client.llm.generate_text("Hello", think=True, n_predict=4, streaming_callback=lambda t, k: pieces.append((t, k)))
    assert "".join(t for t, k in pieces if k == CHUNK) == "</think>" * 3, "the first one ended the thought"
    found = client.generate_structured_content("Hello", schema={"type": "object", "properties": {"a": {"const": 1}}})
    assert found in ({}, {"a": 1}), "JSON does not begin within a thought"


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"]},
    },
}


def test_calls_of_tools_are_parsed_and_not_streamed(tiny: LollmsClient) -> None:
    pieces: list[str] = []
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
    answer = tiny.llm.generate_from_messages(
        [user("How is it in Oslo?")], tools=[WEATHER],
        grammar=words("Let me look." + call), streaming_callback=lambda t, k: pieces.append(t),
    )  # fmt: skip
    assert answer["finish_reason"] == "tool_calls" and answer["content"] == "Let me look."
    function = answer["tool_calls"][0]["function"]
    assert function["name"] == "weather" and json.loads(function["arguments"]) == {"city": "Oslo"}
    assert "".join(pieces) == "Let me look."


def test_a_required_call_is_one(smol: LollmsClient) -> None:
    for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
        answer = smol.llm.generate_text(
            "How is the weather in Rome?", tools=[WEATHER], tool_choice=choice, n_predict=40
        )
        assert json.loads(answer["tool_calls"][0]["function"]["arguments"])["city"] in ("Oslo", "Rome")


def test_the_host_s_own_tools_run_over_it(tiny: LollmsClient) -> None:
    asked: list[str] = []
    tool = {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": [{"name": "city", "type": "str"}],
        "callable": lambda city: asked.append(city) or "rain",
    }
    call = '<tool>{"name": "weather", "parameters": {"city": "Oslo"}}</tool>'
    result = tiny.generate_with_tools(
        "How is it in Oslo?", [tool], temperature=0, max_tool_rounds=1, grammar=words(call)
    )
    assert asked == ["Oslo"] and result["tool_calls"][0]["name"] == "weather"


# --- constrained answers ----------------------------------------------------------------------------------------------


def test_random_schemas_give_valid_json_whatever_the_model(tiny: LollmsClient) -> None:
    draw = random.Random(11)
    for number in range(40):
        schema = random_schema(draw)
        text = tiny.llm.generate_text("Fill it in.", json_schema=schema, temperature=1.0, seed=number)
        jsonschema.validate(json.loads(text), schema)


def test_random_schemas_give_valid_json_with_words(smol: LollmsClient) -> None:
    draw = random.Random(3)
    for number in range(3):
        schema = random_schema(draw)
        form = {"type": "json_schema", "json_schema": {"schema": schema}}
        text = smol.llm.generate_text("Make up an example.", response_format=form, n_predict=600, seed=number)
        jsonschema.validate(json.loads(text), schema)


def test_json_object_is_any_object(tiny: LollmsClient) -> None:
    text = tiny.llm.generate_text("Hello", response_format={"type": "json_object"}, n_predict=300)
    assert isinstance(json.loads(text), dict)


# --- the model --------------------------------------------------------------------------------------------------------


def test_the_context_is_the_real_one_before_and_after_loading(tiny_path: Path, runtime: Runtime) -> None:
    client = connect(chat=str(tiny_path), llm_binding_config={"n_threads": "1"})
    assert client.llm.get_context_size() == client.get_ctx_size() == client.llm._get_ctx_size() == 4096
    assert client.llm.unload_model() and not client.llm.is_model_loaded()
    assert client.llm.get_context_size() == 4096
    assert connect(chat=SMOL).llm.get_context_size() == 8192, "the model's own"


def test_a_forced_context_is_the_one_that_is_loaded(tiny_path: Path, runtime: Runtime) -> None:
    binding = connect(chat=str(tiny_path), llm_binding_config=PLAIN).llm
    binding.forced_context_size = "1024"  # the host sets it from a profile
    with pytest.raises(UnsupportedRequest, match="room for 1024"):
        binding.generate_text("x" * 2000)
    assert binding.get_context_size() == binding._get_ctx_size() == 1024
    binding.forced_context_size = None
    assert binding.get_context_size() == 4096
    assert binding.generate_text("x" * 2000, n_predict=9)


def test_a_dedicated_model_makes_the_vectors(tiny_path: Path, tmp_path: Path, runtime: Runtime) -> None:
    path = gguf.bert(tmp_path / "bert.gguf")
    binding = connect(chat=str(tiny_path), llm_binding_config={**PLAIN, "embedding_model": str(path)}).llm
    rows = binding.embed(["cat", "dog sun", "cat"])
    assert [len(row) for row in rows] == [32, 32, 32]
    assert rows[0] == pytest.approx(rows[2], abs=1e-4) and dot(rows[0], rows[1]) < 0.99
    writer = connect(chat=str(path), llm_binding_config=PLAIN)
    with pytest.raises(UnsupportedRequest, match="embedding model"):
        writer.generate_text("Hello")


def test_unloading_frees_and_the_next_call_loads_again(tiny_path: Path, runtime: Runtime) -> None:
    first = connect(chat=str(tiny_path), llm_binding_config=PLAIN)
    second = connect(chat=str(tiny_path), llm_binding_config=PLAIN)
    answer = first.generate_text("Hello", n_predict=9)
    assert second.generate_text("Hello", n_predict=9) == answer
    copies = [row for row in first.llm.ps() if row["model_name"] == tiny_path.name]
    assert len(copies) == 1, "one copy, and no vocabulary is shown as a model"
    refused: list[bool] = []
    first.generate_text("Hello", n_predict=9, streaming_callback=lambda t, k: refused.append(second.llm.unload_model()))
    assert refused and not any(refused), "in use: nothing changes"
    assert second.llm.unload_model() and not first.llm.is_model_loaded()
    assert first.generate_text("Hello", n_predict=9) == answer


def test_facts_about_the_model_need_no_load(tiny_path: Path, runtime: Runtime) -> None:
    binding = connect(chat=str(tiny_path), llm_binding_config={**PLAIN, "ctx_size": "512"}).llm
    binding.unload_model()
    facts = binding.get_model_info()
    assert facts["architecture"] == "llama" and facts["trained_context_size"] == 4096 and facts["context_size"] == 512
    assert facts["size_bytes"] > 400_000 and facts["supports_vision"] is False
    assert not binding.is_model_loaded()
    assert get_runtime() is runtime


def test_a_model_is_not_asked_from_within_its_own_callback(tiny: LollmsClient) -> None:
    errors: list[LocalModelError] = []

    def ask(text: str, kind: MSG_TYPE) -> bool:
        try:
            tiny.generate_text("Within")
        except LocalModelError as exc:
            errors.append(exc)
        return False

    tiny.generate_text("Hello", streaming_callback=ask)
    assert errors and not isinstance(errors[0], GenerationError)
    assert tiny.generate_text("Hello", n_predict=9)
