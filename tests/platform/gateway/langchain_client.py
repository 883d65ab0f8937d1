"""LangChain's ChatOpenAI and OpenAIEmbeddings against the gateway, unchanged but for its address and a key.

The environment names both (VA_TEST_BASE, VA_TEST_KEY). Model `smollm2` is a real one, `other` always calls a function.
"""

import os

import openai
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

base, key = os.environ["VA_TEST_BASE"], os.environ["VA_TEST_KEY"]
there = {"base_url": f"{base}/v1", "api_key": key, "max_retries": 0}
model = ChatOpenAI(model="smollm2", temperature=0, max_tokens=6, stream_usage=True, **there)
question = [SystemMessage("Be kind."), HumanMessage("Say hi.")]

reply = model.invoke(question)
assert reply.content and reply.usage_metadata["output_tokens"] == 6, reply
assert reply.response_metadata["finish_reason"] == "length", reply

whole = None
for chunk in model.stream(question):
    whole = chunk if whole is None else whole + chunk
assert whole.content == reply.content, (whole, reply)
assert whole.usage_metadata["output_tokens"] == 6, whole


def get_weather(city: str) -> str:
    """The weather of a city."""
    return f"rain in {city}"


calling = ChatOpenAI(model="other", **there).bind_tools([get_weather])
called = calling.invoke("How is the weather in Paris?")
assert [(call["name"], call["args"]) for call in called.tool_calls] == [("get_weather", {"city": "Paris"})], called
whole = None
for chunk in calling.stream("How is the weather in Paris?"):
    whole = chunk if whole is None else whole + chunk
assert whole.tool_calls[0]["args"] == {"city": "Paris"}, whole

# It sends ids of tokens unless it is told not to; those belong to one tokenizer, so the gateway takes texts only.
vectors = OpenAIEmbeddings(model="multilingual-e5-small", check_embedding_ctx_length=False, **there)
assert len(vectors.embed_query("冻结行")) == 384
assert [len(vector) for vector in vectors.embed_documents(["freeze rows", "冻结行"])] == [384, 384]

try:
    ChatOpenAI(model="nothing", **there).invoke("hi")
    raise SystemExit("an unknown model was taken")
except openai.NotFoundError as error:
    assert error.code == "model_not_found", error

print("all of it works")
