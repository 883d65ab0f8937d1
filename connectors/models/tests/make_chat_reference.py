"""Writes what llama.cpp makes of a language model, for generate.rs: make_chat_reference.py MODEL.gguf NAME >data/NAME.json

Runs in the environment that `deploy/dev/llama.sh install` makes, on one thread: tokens of texts, prompts by the model's chat
template, the tokens of greedy replies, and by how much the best token led each time.
"""

import contextlib
import json
import os
import sys
import urllib.request

TEXTS = [
    "Hello, world!",
    "The quick brown fox jumps over 13 lazy dogs.",
    "  leading and   inner spaces\n\nand\tlines  ",
    "I don't think we've 1234567 reasons, it's 3.14!",
    "你好，世界！今天天气怎么样？",
    "流式数据平台 streaming 平台 2026年",
    "emoji 😀👩‍👩‍👧‍👦 and flags 🇩🇪🇨🇳 done",
    'fn main() { println!("{}", x[0] + 42); }',
    "naïve café — “quotes” … ½ Ⅷ ①",
    "cafe\u0301 a\u030a",
    "\r\n\r\n  x \n",
    "٣٤٥ १२३ 价格￥9.99",
    "",
    "a",
    "👍",
    "word " * 20,
]
QUESTIONS = [
    ["What is the capital of France?"],
    ["You answer briefly.", "Write one sentence about the sea."],
    ["Say hello."],
    ["Repeat after me: one two three four five"],
    ["Write the numbers from 1 to 20, separated by commas."],
    ["Count from 1 to 10.", "1, 2, 3, 4, 5, 6, 7, 8, 9, 10", "Now name three colours."],
]
CHINESE = ["用一句话介绍北京。"]
ROLES = {1: ["user"], 2: ["system", "user"], 3: ["user", "assistant", "user"]}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def main(path, name):
    with contextlib.redirect_stdout(sys.stderr):
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = path
        params.hostnames = ["127.0.0.1"]
        params.port = int(os.environ.get("PORT", "18977"))
        params.n_parallel = 1
        params.n_ctx = 2048
        params.cpuparams.n_threads = 1
        params.cpuparams_batch.n_threads = 1
        params.use_jinja = True
        params.warmup = False
        server = xllamacpp.Server(params)

    def post(where, body):
        request = urllib.request.Request(
            server.listening_address + where, json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=600) as response:
            return json.load(response)

    def tokens(text, special):
        return post("/tokenize", {"content": text, "add_special": False, "parse_special": special})["tokens"]

    def greedy(messages):
        prompt = tokens(post("/apply-template", {"messages": messages})["prompt"], True)
        reply = post(
            "/completion",
            {"prompt": prompt, "n_predict": 48, "temperature": 0, "n_probs": 2, "cache_prompt": False, "return_tokens": True},
        )
        best = [step["top_logprobs"] for step in reply["completion_probabilities"]]
        return {
            "messages": messages,
            "prompt_ids": prompt,
            "text": reply["content"],
            "ids": reply["tokens"],
            "stop": reply["stop_type"],
            "margins": [round(pair[0]["logprob"] - pair[1]["logprob"], 3) for pair in best],
        }

    is_bilingual = "qwen" in name
    questions = QUESTIONS + ([CHINESE] if is_bilingual else [])
    conversations = [
        [{"role": role, "content": text} for role, text in zip(ROLES[len(texts)], texts)] for texts in questions
    ]
    reference = {
        "tokenize": [{"text": text, "ids": tokens(text, False)} for text in TEXTS],
        "greedy": [greedy(messages) for messages in conversations],
    }
    if is_bilingual:
        messages = [{"role": "user", "content": "What is the weather in Paris?"}]
        prompt = post("/apply-template", {"messages": messages, "tools": [WEATHER]})["prompt"]
        reference["tools"] = {"messages": messages, "tools": [WEATHER], "prompt_ids": tokens(prompt, True)}

    def line(value):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

    # A line each, so that a change can be read.
    parts = [f'"{part}":[\n' + ",\n".join(map(line, reference[part])) + "\n]" for part in ("tokenize", "greedy")]
    if "tools" in reference:
        parts.append(f'"tools":{line(reference["tools"])}')
    print("{" + ",".join(parts) + "}")


main(sys.argv[1], sys.argv[2])
