"""The official Python SDKs, unmodified, against a running cortex.

    sdk_python.py ENDPOINT MODEL KIND

KIND is scripted, real (a model whose words nobody knows) or eyes (a real one that sees; only asked about pictures).
"""

import base64
import struct
import sys
import zlib

import anthropic
import httpx
import openai

ENDPOINT, MODEL, KIND = sys.argv[1:4]
SCRIPTED = KIND == "scripted"
LONGEST = 24

oa = openai.OpenAI(base_url=ENDPOINT + "/v1", api_key="unused", max_retries=0)
an = anthropic.Anthropic(base_url=ENDPOINT, api_key="unused", max_retries=0)
GREETING = "Hello 🧑‍🚀, this was scripted."
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}, "note": {"type": "string"}}, "required": ["city"]}
OA_TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "The weather", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}},
]
AN_TOOLS = [{"name": "weather", "description": "The weather", "input_schema": WEATHER}, {"name": "clock", "input_schema": {"type": "object", "properties": {}}}]
failed = []


def check(test):
    """Runs it now; a failure is told and does not stop the others."""
    if KIND == "eyes" and not test.__name__.endswith("images"):
        return test
    try:
        test()
        print("  ok", test.__name__.replace("_", " "), flush=True)
    except Exception as error:  # noqa: BLE001: whatever it is, it is the finding
        failed.append(test.__name__)
        print(f"  FAILED {test.__name__}: {type(error).__name__}: {error}", flush=True)
    return test


def scripted(test):
    """Only against the scripted node."""
    return check(test) if SCRIPTED else test


def seeing(test):
    """Only against what takes pictures."""
    return check(test) if KIND in ("scripted", "eyes") else test


def user(text):
    return [{"role": "user", "content": text}]


def png(width=64, height=64):
    """A small red picture, made here so that no file is needed."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    rows = b"".join(b"\0" + b"\xff\0\0" * width for _ in range(height))
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


PICTURE = base64.b64encode(png()).decode()

# ---------------------------------------------------------------------------------------- openai, chat


@check
def openai_chat():
    answer = oa.chat.completions.create(model=MODEL, messages=user("Say hello"), max_tokens=LONGEST)
    assert answer.object == "chat.completion" and answer.choices[0].finish_reason in ("stop", "length")
    assert answer.choices[0].message.content
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0
    if SCRIPTED:
        assert answer.choices[0].message.content == GREETING
        assert answer.usage.prompt_tokens_details.cached_tokens == 2


@check
def openai_chat_streams():
    asked = dict(model=MODEL, messages=user("Say hello"), max_tokens=LONGEST, stream_options={"include_usage": True})
    chunks = list(oa.chat.completions.create(**asked, stream=True))
    assert chunks[-1].usage.total_tokens > 0 and not chunks[-1].choices
    assert len([c for c in chunks if c.choices and c.choices[0].delta.content]) > 1
    if SCRIPTED:  # the SDK's own fold refuses an answer that was cut off
        with oa.chat.completions.stream(**asked) as stream:
            pieces = [event.delta for event in stream if event.type == "content.delta"]
            final = stream.get_final_completion()
        assert "".join(pieces) == final.choices[0].message.content == GREETING


@check
def openai_chat_the_same_whole_and_streamed():
    asked = dict(model=MODEL, messages=user("Tell me one fact about the moon"), max_tokens=LONGEST, temperature=0, seed=7)
    whole = oa.chat.completions.create(**asked).choices[0]
    chunks = [c for c in oa.chat.completions.create(**asked, stream=True) if c.choices]
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole.message.content
    assert chunks[-1].choices[0].finish_reason == whole.finish_reason


@scripted
def openai_chat_tools():
    asked = user("please use weather")
    first = oa.chat.completions.create(model=MODEL, messages=asked, tools=OA_TOOLS)
    assert first.choices[0].finish_reason == "tool_calls"
    call = first.choices[0].message.tool_calls[0]
    assert call.function.name == "weather" and '"Paris"' in call.function.arguments
    asked += [first.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    second = oa.chat.completions.create(model=MODEL, messages=asked, tools=OA_TOOLS)
    assert second.choices[0].message.content == "The tool said: sunny"
    with oa.chat.completions.stream(model=MODEL, messages=user("parallel"), tools=OA_TOOLS) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion().choices[0].message
    assert [t.function.name for t in final.tool_calls] == ["weather", "clock"]


@seeing
def openai_chat_images():
    content = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64," + PICTURE}}]
    answer = oa.chat.completions.create(model=MODEL, max_tokens=LONGEST, messages=[{"role": "user", "content": content}])
    blind = oa.chat.completions.create(model=MODEL, max_tokens=1, messages=user("What is this?"))
    assert answer.usage.prompt_tokens > blind.usage.prompt_tokens, answer
    assert not SCRIPTED or answer.choices[0].message.content.startswith("1 image"), answer


@scripted
def openai_chat_reasoning():
    answer = oa.chat.completions.create(model=MODEL, messages=user("think"))
    assert answer.choices[0].message.reasoning_content == "hm, let me see"


# ---------------------------------------------------------------------------------- openai, other routes


@check
def openai_completions():
    answer = oa.completions.create(model=MODEL, prompt="Once upon", max_tokens=LONGEST)
    assert answer.choices[0].text
    pieces = [c.choices[0].text for c in oa.completions.create(model=MODEL, prompt="Once upon", max_tokens=LONGEST, stream=True) if c.choices]
    assert "".join(pieces)


@check
def openai_responses():
    answer = oa.responses.create(model=MODEL, input="Say hello", max_output_tokens=LONGEST)
    assert answer.status in ("completed", "incomplete") and answer.output_text and answer.usage.total_tokens > 0
    with oa.responses.stream(model=MODEL, input="Say hello", max_output_tokens=LONGEST) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response() if "response.completed" in kinds else None
    assert kinds[0] == "response.created" and "response.output_text.delta" in kinds, kinds
    assert kinds[-1] in ("response.completed", "response.incomplete"), kinds
    assert final is None or final.output_text
    if SCRIPTED:
        assert answer.output_text == GREETING and final.output_text == GREETING


@scripted
def openai_responses_tools():
    tools = [{"type": "function", "name": "weather", "parameters": WEATHER, "strict": False}]
    first = oa.responses.create(model=MODEL, input="please use weather", tools=tools)
    call = next(item for item in first.output if item.type == "function_call")
    assert call.name == "weather" and '"Paris"' in call.arguments
    history = [{"role": "user", "content": "please use weather"}, call.model_dump(exclude_none=True), {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}]
    second = oa.responses.create(model=MODEL, input=history, tools=tools)
    assert second.output_text == "The tool said: sunny", second


@check
def openai_models():
    assert MODEL in [model.id for model in oa.models.list()]
    assert oa.models.retrieve(MODEL).id == MODEL


@check
def openai_embeddings_are_refused_properly():
    try:
        oa.embeddings.create(model=MODEL, input="x")
    except openai.APIStatusError as error:
        assert 400 <= error.status_code < 500 and error.body and error.body.get("message"), error
        return
    raise AssertionError("it answered")


# ------------------------------------------------------------------------------------- openai, failures


@check
def openai_unknown_model():
    try:
        oa.chat.completions.create(model="no-such-model", messages=user("x"))
    except openai.NotFoundError as error:
        assert error.code == "model_not_found" and "no-such-model" in str(error) and error.request_id
        return
    raise AssertionError("it answered")


@check
def openai_bad_requests():
    try:
        oa.chat.completions.create(model=MODEL, messages=user("x"), temperature=9)
        assert SCRIPTED, "a node checks its parameters"
    except openai.BadRequestError as error:
        assert error.param == "temperature", error
    answer = httpx.post(ENDPOINT + "/v1/chat/completions", content=b"{nonsense")
    assert answer.status_code == 400 and answer.json()["error"]["type"] == "invalid_request_error"


@scripted
def openai_failures_of_the_node():
    for words, kind in [
        ("fail 429", openai.RateLimitError),
        ("fail 500", openai.InternalServerError),
        ("fail 503", openai.InternalServerError),
        ("fail 400 context_length_exceeded", openai.BadRequestError),
    ]:
        for stream in (False, True):
            try:
                list(oa.chat.completions.create(model=MODEL, messages=user(words), stream=stream))
                raise AssertionError(f"{words} passed")
            except kind as error:
                assert "context" not in words or error.code == "context_length_exceeded"
    for words in ("break", "event error"):
        try:
            for _ in oa.chat.completions.create(model=MODEL, messages=user(words), stream=True):
                pass
            raise AssertionError(f"{words} was no error")
        except openai.APIError as error:
            assert error.message


# ---------------------------------------------------------------------------------- anthropic, messages


@check
def anthropic_messages():
    answer = an.messages.create(model=MODEL, max_tokens=LONGEST, messages=user("Say hello"))
    assert answer.type == "message" and answer.role == "assistant" and answer.model == MODEL
    assert answer.content[0].type == "text" and answer.content[0].text
    assert answer.stop_reason in ("end_turn", "max_tokens") and answer.usage.output_tokens > 0
    assert answer._request_id
    if SCRIPTED:
        assert answer.content[0].text == GREETING and answer.usage.cache_read_input_tokens == 2


@check
def anthropic_messages_stream():
    with an.messages.stream(model=MODEL, max_tokens=LONGEST, messages=user("Say hello")) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text and final.content[0].text == text and final.usage.input_tokens > 0


@check
def anthropic_system_and_stop_sequences():
    system = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    asked = user("Count") + [{"role": "assistant", "content": "1"}] + user("Go on")
    answer = an.messages.create(model=MODEL, max_tokens=LONGEST, system=system, messages=asked, stop_sequences=["\n\n\n"])
    assert answer.stop_reason in ("end_turn", "max_tokens", "stop_sequence")


@scripted
def anthropic_tools():
    asked = user("please use weather")
    first = an.messages.create(model=MODEL, max_tokens=99, messages=asked, tools=AN_TOOLS)
    assert first.stop_reason == "tool_use"
    call = next(block for block in first.content if block.type == "tool_use")
    assert call.name == "weather" and call.input["city"] == "Paris" and "🧑‍🚀" in call.input["note"]
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "sunny"}]}
    asked += [{"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    second = an.messages.create(model=MODEL, max_tokens=99, messages=asked, tools=AN_TOOLS)
    assert second.content[0].text == "The tool said: sunny", second
    with an.messages.stream(model=MODEL, max_tokens=99, messages=user("parallel"), tools=AN_TOOLS) as stream:
        final = stream.get_final_message()
    assert [b.name for b in final.content if b.type == "tool_use"] == ["weather", "clock"]
    for choice, name in [({"type": "any"}, "weather"), ({"type": "tool", "name": "clock"}, "clock")]:
        forced = an.messages.create(model=MODEL, max_tokens=99, messages=user("go"), tools=AN_TOOLS, tool_choice=choice)
        assert forced.content[-1].name == name


@scripted
def anthropic_tool_result_with_an_image():
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PICTURE}}
    asked = user("please use weather") + [
        {"role": "assistant", "content": [{"type": "tool_use", "id": "call_9", "name": "weather", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "call_9", "content": [picture]}]},
    ]
    answer = an.messages.create(model=MODEL, max_tokens=99, messages=asked, tools=AN_TOOLS)
    assert answer.content[0].text.startswith("1 image"), answer


@seeing
def anthropic_images():
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PICTURE}}
    answer = an.messages.create(model=MODEL, max_tokens=99, messages=[{"role": "user", "content": [picture, {"type": "text", "text": "What is this?"}]}])
    blind = an.messages.create(model=MODEL, max_tokens=1, messages=user("What is this?"))
    assert answer.usage.input_tokens > blind.usage.input_tokens, answer
    assert not SCRIPTED or answer.content[0].text.startswith("1 image"), answer


@scripted
def anthropic_thinking():
    asked = dict(model=MODEL, max_tokens=4096, messages=user("think"), thinking={"type": "enabled", "budget_tokens": 1024})
    answer = an.messages.create(**asked)
    assert [b.type for b in answer.content] == ["thinking", "text"] and answer.content[0].signature
    with an.messages.stream(**asked) as stream:
        final = stream.get_final_message()
    assert final.content[0].thinking == answer.content[0].thinking == "hm, let me see"
    again = asked["messages"] + [{"role": "assistant", "content": answer.content}] + user("and?")
    assert an.messages.create(**(asked | {"messages": again})).content


@check
def anthropic_count_tokens():
    few = an.messages.count_tokens(model=MODEL, messages=user("one"))
    many = an.messages.count_tokens(model=MODEL, messages=user("one two three four five six " * 20))
    assert 0 < few.input_tokens < many.input_tokens


@check
def anthropic_models():
    page = an.models.list(limit=1000)
    assert MODEL in [model.id for model in page] and not page.has_more
    assert an.models.retrieve(MODEL).id == MODEL


@check
def anthropic_failures():
    try:
        an.messages.create(model="no-such-model", max_tokens=9, messages=user("x"))
        raise AssertionError("it answered")
    except anthropic.NotFoundError as error:
        assert error.body["error"]["type"] == "not_found_error" and error.body["request_id"] == error.request_id
    try:
        an.messages.create(model=MODEL, max_tokens=9, messages=[])
        raise AssertionError("it answered")
    except anthropic.BadRequestError as error:
        assert error.body["error"]["type"] == "invalid_request_error"


@scripted
def anthropic_failures_of_the_node():
    for words, kind in [
        ("fail 429", anthropic.RateLimitError),
        ("fail 500", anthropic.InternalServerError),
        ("fail 503", anthropic.APIStatusError),
        ("fail 400 context_length_exceeded", anthropic.BadRequestError),
    ]:
        try:
            an.messages.create(model=MODEL, max_tokens=9, messages=user(words))
            raise AssertionError(f"{words} passed")
        except kind as error:
            assert error.body["type"] == "error", error.body
            assert "context" not in words or "prompt is too long" in error.body["error"]["message"]
    for words in ("break", "event error"):
        try:
            with an.messages.stream(model=MODEL, max_tokens=9, messages=user(words)) as stream:
                stream.get_final_message()
            raise AssertionError(f"{words} was no error")
        except anthropic.APIStatusError as error:
            assert error.body["type"] == "error", error.body


@scripted
def anthropic_hears_something_while_a_node_is_silent():
    # The SDK keeps pings to itself, so the bytes are looked at as well.
    with an.messages.stream(model=MODEL, max_tokens=9, messages=user("silence 3")) as stream:
        assert stream.get_final_message().content[0].text == GREETING
    asked = {"model": MODEL, "max_tokens": 9, "stream": True, "messages": user("silence 3")}
    answer = httpx.post(ENDPOINT + "/v1/messages", json=asked, timeout=60).text
    pings = answer.count("event: ping")
    assert answer.count("event: message_start") == 1 and answer.count("event: message_stop") == 1, answer
    assert pings >= 2, pings


print(f"  {len(failed)} failed" if failed else "  all passed", f"(openai {openai.__version__}, anthropic {anthropic.__version__})")
sys.exit(bool(failed))
