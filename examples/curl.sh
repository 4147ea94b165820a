#!/bin/sh
# Hands over a sentence, shows the jobs, and asks for a continuation: TOKEN=... sh curl.sh "A sentence of mine."
set -eu
: "${TOKEN:?Set TOKEN: export TOKEN=\$(pocketllm token create curl --scope ingest --scope generate)}"
URL=${URL:-http://localhost:2407}

# As plain text nothing in the sentence needs to be escaped.
printf %s "${1:-Wind west, glass rising.}" |
    curl --fail-with-body --silent --show-error --data-binary @- "$URL/texts?source=curl" \
        -H "Authorization: Bearer $TOKEN" -H 'Content-Type: text/plain'

# Needs no token: it holds none of your words.
curl --fail-with-body --silent --show-error "$URL/jobs"

curl --fail-with-body --silent --show-error "$URL/generate" \
    -H "Authorization: Bearer $TOKEN" -H 'Content-Type: application/json' \
    -d '{"prompt": "Wind west,", "max_tokens": 20}'
