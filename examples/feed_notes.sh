#!/bin/sh
# Hands over every .txt and .md file below a folder: TOKEN=... sh feed_notes.sh ~/notes
# What the daemon has already is not stored twice, so this may run every night: crontab -e, or termux-job-scheduler.
set -eu
: "${TOKEN:?Set TOKEN: export TOKEN=\$(pocketllm token create notes --scope ingest)}"
URL=${URL:-http://localhost:2407}

find "${1:?Name the folder with the notes}" -type f \( -name '*.txt' -o -name '*.md' \) -size +0 -exec sh -c '
    for note; do
        curl --fail-with-body --silent --show-error --output /dev/null --data-binary @"$note" "$0/texts?source=notes" \
            -H "Authorization: Bearer $TOKEN" -H "Content-Type: text/plain" || echo "not taken: $note" >&2
    done' "$URL" {} +
