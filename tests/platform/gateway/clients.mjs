// The official Node clients of OpenAI and Anthropic against the gateway, unchanged but for its address and a key.
//
// The environment names both (VA_TEST_BASE, VA_TEST_KEY). Model `smollm2` is a real one, `other` always calls a function.
// Run from the folder that has the clients in its `node_modules`.

import assert from "node:assert/strict";
import { createRequire } from "node:module";

const load = createRequire(`${process.cwd()}/`);
const OpenAI = load("openai").default;
const Anthropic = load("@anthropic-ai/sdk").default;

const base = process.env.VA_TEST_BASE;
const apiKey = process.env.VA_TEST_KEY;
const client = new OpenAI({ baseURL: `${base}/v1`, apiKey, maxRetries: 0 });
const claude = new Anthropic({ baseURL: base, apiKey, maxRetries: 0 });
const messages = [{ role: "user", content: "Say hi." }];
const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const tools = [{ type: "function", function: { name: "get_weather", description: "The weather of a city", parameters } }];
const hurry = { model: "smollm2", messages, max_tokens: 6, temperature: 0 };

// OpenAI: models, chat, streams.
const ids = [];
for await (const model of client.models.list()) ids.push(model.id);
assert(ids.includes("smollm2"), ids);
const reply = await client.chat.completions.create(hurry);
const text = reply.choices[0].message.content;
assert(text && reply.choices[0].finish_reason === "length");
assert.equal(reply.usage.completion_tokens, 6);

let streamed = "";
let usage = null;
for await (const chunk of await client.chat.completions.create({
  ...hurry,
  stream: true,
  stream_options: { include_usage: true },
})) {
  streamed += chunk.choices[0]?.delta.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(streamed, text);
assert.equal(usage.completion_tokens, 6);

// Functions, whole and put together by the client from a stream.
const called = await client.chat.completions.create({ model: "other", messages, tools, tool_choice: "required" });
const call = called.choices[0].message.tool_calls[0];
assert.equal(call.function.name, "get_weather");
assert.deepEqual(JSON.parse(call.function.arguments), { city: "Paris" });
const final = await client.chat.completions.stream({ model: "other", messages, tools }).finalChatCompletion();
assert.deepEqual(JSON.parse(final.choices[0].message.tool_calls[0].function.arguments), { city: "Paris" });

// Responses, whole and streamed.
const asked = { model: "smollm2", input: "Say hi.", max_output_tokens: 6, temperature: 0 };
const response = await client.responses.create(asked);
assert.equal(response.output_text, text);
let deltas = "";
for await (const event of await client.responses.create({ ...asked, stream: true })) {
  if (event.type === "response.output_text.delta") deltas += event.delta;
}
assert.equal(deltas, text);

// Vectors: the client asks for base64 by itself.
const vectors = await client.embeddings.create({ model: "multilingual-e5-small", input: ["冻结行", "freeze rows"] });
assert.deepEqual(
  vectors.data.map((item) => item.embedding.length),
  [384, 384],
);

// Errors, as the clients' own exceptions.
await assert.rejects(client.chat.completions.create({ model: "nothing", messages }), (error) => {
  assert(error instanceof OpenAI.NotFoundError);
  assert.equal(error.code, "model_not_found");
  return true;
});
await assert.rejects(client.chat.completions.create({ model: "smollm2", messages: [] }), (error) => {
  assert(error instanceof OpenAI.BadRequestError);
  assert.equal(error.param, "messages");
  return true;
});
const stranger = new OpenAI({ baseURL: `${base}/v1`, apiKey: "va_wrong", maxRetries: 0 });
await assert.rejects(stranger.chat.completions.create(hurry), OpenAI.AuthenticationError);

// Anthropic: messages, streams, functions, counting, errors.
const message = await claude.messages.create(hurry);
assert.equal(message.content[0].text, text);
assert.equal(message.stop_reason, "max_tokens");
assert.equal(message.usage.output_tokens, 6);
const stream = claude.messages.stream({ ...hurry, system: "Be kind." });
let pieces = "";
stream.on("text", (piece) => (pieces += piece));
const whole = await stream.finalMessage();
assert(pieces && whole.content[0].text === pieces);
const functions = [{ name: "get_weather", description: "x", input_schema: parameters }];
const used = await claude.messages.stream({ model: "other", max_tokens: 50, messages, tools: functions }).finalMessage();
assert.equal(used.stop_reason, "tool_use");
assert.deepEqual(used.content[0].input, { city: "Paris" });
const counted = await claude.messages.countTokens({ model: "smollm2", messages });
assert(counted.input_tokens > 0);
const wrong = new Anthropic({ baseURL: base, apiKey: "wrong", maxRetries: 0 });
await assert.rejects(wrong.messages.create(hurry), Anthropic.AuthenticationError);
await assert.rejects(claude.messages.create({ ...hurry, model: "nothing" }), Anthropic.NotFoundError);

console.log("all of it works");
