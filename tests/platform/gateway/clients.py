"""The official Python clients of OpenAI and Anthropic against the gateway, unchanged but for its address and a key.

The environment names both (VA_TEST_BASE, VA_TEST_KEY). Model `smollm2` is a real one, `other` always calls a function.
"""

import json
import os

import anthropic
import openai

base, key = os.environ["VA_TEST_BASE"], os.environ["VA_TEST_KEY"]
client = openai.OpenAI(base_url=f"{base}/v1", api_key=key, max_retries=0)
claude = anthropic.Anthropic(base_url=base, api_key=key, max_retries=0)
question = [{"role": "user", "content": "Say hi."}]
tools = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]

# OpenAI: models, chat, streams.
assert "smollm2" in [model.id for model in client.models.list()]
assert client.models.retrieve("smollm2").id == "smollm2"
reply = client.chat.completions.create(model="smollm2", messages=question, max_tokens=6, temperature=0)
assert reply.choices[0].message.content and reply.choices[0].finish_reason == "length", reply
assert reply.usage.completion_tokens == 6, reply

chunks = list(
    client.chat.completions.create(
        model="smollm2", messages=question, max_tokens=6, temperature=0, stream=True, stream_options={"include_usage": True}
    )
)
text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
assert text == reply.choices[0].message.content, (text, reply)
assert chunks[-1].usage.completion_tokens == 6 and chunks[-1].choices == []

legacy = client.completions.create(model="smollm2", prompt="Say hi.", max_tokens=6, temperature=0)
assert legacy.choices[0].text == text, legacy

# Functions, whole and streamed.
message = client.chat.completions.create(model="other", messages=question, tools=tools, tool_choice="required").choices[0].message
call = message.tool_calls[0]
assert (call.id, call.function.name) == ("call_1", "get_weather"), message
assert json.loads(call.function.arguments) == {"city": "Paris"}, message
name, arguments = "", ""
for chunk in client.chat.completions.create(model="other", messages=question, tools=tools, stream=True):
    for piece in chunk.choices[0].delta.tool_calls or []:
        name += piece.function.name or ""
        arguments += piece.function.arguments or ""
assert (name, json.loads(arguments)) == ("get_weather", {"city": "Paris"}), (name, arguments)

# Responses, whole and streamed.
response = client.responses.create(model="smollm2", input="Say hi.", max_output_tokens=6, temperature=0)
assert response.output_text == text and response.status == "incomplete", response
assert response.usage.output_tokens == 6
with client.responses.stream(model="smollm2", input=question, max_output_tokens=6, temperature=0) as events:
    seen = list(events)
deltas = [event.delta for event in seen if event.type == "response.output_text.delta"]
assert "".join(deltas) == text, deltas
assert seen[-1].type == "response.incomplete" and seen[-1].response.output_text == text, seen[-1]
call = None
for event in client.responses.create(model="other", input="Weather?", stream=True, tools=[{"type": "function", **tools[0]["function"]}]):
    if event.type == "response.completed":
        call = event.response.output[0]
assert call.type == "function_call" and json.loads(call.arguments) == {"city": "Paris"}, call

# Vectors: the client asks for base64 by itself.
vectors = client.embeddings.create(model="multilingual-e5-small", input=["冻结行", "freeze rows"])
assert [len(item.embedding) for item in vectors.data] == [384, 384]
floats = client.embeddings.create(model="multilingual-e5-small", input="冻结行", encoding_format="float")
assert all(abs(a - b) < 1e-3 for a, b in zip(vectors.data[0].embedding, floats.data[0].embedding))

# Errors, as the clients' own exceptions.
try:
    client.chat.completions.create(model="nothing", messages=question)
    raise SystemExit("an unknown model was taken")
except openai.NotFoundError as error:
    assert error.code == "model_not_found", error
try:
    client.chat.completions.create(model="smollm2", messages=[])
    raise SystemExit("no messages were taken")
except openai.BadRequestError as error:
    assert error.param == "messages", error
try:
    openai.OpenAI(base_url=f"{base}/v1", api_key="va_wrong", max_retries=0).models.list()
    raise SystemExit("a wrong key was taken")
except openai.AuthenticationError as error:
    assert error.code == "invalid_api_key", error

# Anthropic: messages, streams, functions, errors. Its client has no argument for the temperature any more, its API has.
steady = {"extra_body": {"temperature": 0}}
message = claude.messages.create(model="smollm2", max_tokens=6, messages=question, **steady)
assert message.content[0].text == text and message.stop_reason == "max_tokens", message
assert message.usage.output_tokens == 6
with claude.messages.stream(model="smollm2", max_tokens=6, messages=question, system="Be kind.", **steady) as events:
    pieces = "".join(events.text_stream)
    final = events.get_final_message()
assert pieces and final.content[0].text == pieces and final.usage.output_tokens == 6, final
function = {"name": "get_weather", "description": "x", "input_schema": tools[0]["function"]["parameters"]}
with claude.messages.stream(model="other", max_tokens=50, messages=question, tools=[function]) as events:
    final = events.get_final_message()
assert final.stop_reason == "tool_use" and final.content[0].input == {"city": "Paris"}, final
assert "smollm2" in [model.id for model in claude.models.list()]
try:
    anthropic.Anthropic(base_url=base, api_key="wrong", max_retries=0).messages.create(model="x", max_tokens=1, messages=question)
    raise SystemExit("a wrong key was taken")
except anthropic.AuthenticationError as error:
    assert error.body["error"]["type"] == "authentication_error", error
try:
    claude.messages.create(model="nothing", max_tokens=1, messages=question)
    raise SystemExit("an unknown model was taken")
except anthropic.NotFoundError:
    pass

print("all of it works")
