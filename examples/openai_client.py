"""Chats with what the daemon serves, by OpenAI's own client: TOKEN=... python openai_client.py "What did I do today?"

pip install openai; the token needs the scope generate.
"""

import os
import sys

import openai

client = openai.OpenAI(base_url=os.environ.get("URL", "http://localhost:2407") + "/v1", api_key=os.environ["TOKEN"])
question = " ".join(sys.argv[1:]) or "What was the weather like?"
stream = client.chat.completions.create(
    model="pocketllm:latest",  # what was learned last; "pocketllm:base" is the model before that
    messages=[{"role": "user", "content": question}],
    max_tokens=60,
    stream=True,
)
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
