"""Fine-tunes on a file by OpenAI's own client, and asks the result: TOKEN=... python fine_tune.py chats.jsonl "Tea?"

pip install openai; the token needs the scopes train and generate. A line of the file is {"messages": [...]},
{"prompt", "completion"} or {"text"}. Ctrl-C leaves the job to the daemon; `pocketllm jobs` shows it.
"""

import os
import sys
import time
from pathlib import Path

import openai

path, question = sys.argv[1], " ".join(sys.argv[2:]) or "Who are you?"
client = openai.OpenAI(base_url=os.environ.get("URL", "http://localhost:2407") + "/v1", api_key=os.environ["TOKEN"])
file = client.files.create(file=Path(path), purpose="fine-tune")
job = client.fine_tuning.jobs.create(model="pocketllm:base", training_file=file.id, suffix="example")
seen: set[str] = set()
while job.finished_at is None:
    time.sleep(1)
    job = client.fine_tuning.jobs.retrieve(job.id)
    for event in reversed(list(client.fine_tuning.jobs.list_events(job.id))):
        if event.id not in seen:
            seen.add(event.id)
            print(event.message, flush=True)
if job.fine_tuned_model is None:
    sys.exit(f"{job.status}: {job.error.message if job.error else 'no model was made'}")
answer = client.chat.completions.create(
    model=job.fine_tuned_model, messages=[{"role": "user", "content": question}], max_tokens=60
)
print(f"{job.fine_tuned_model}: {answer.choices[0].message.content}")
