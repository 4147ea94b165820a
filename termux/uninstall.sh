#!/data/data/com.termux/files/usr/bin/sh
# Undoes termux/install.sh: sh termux/uninstall.sh [--data]
# Your words, models and adapters stay, unless --data is given.
set -eu

: "${PREFIX:?This is for Termux: PREFIX is not set}"
venv=${POCKETLLM_VENV:-$HOME/.local/share/pocketllm-venv}
service=$PREFIX/var/service/pocketllm

if command -v sv >/dev/null 2>&1 && [ -e "$service/supervise/ok" ]; then
    sv exit "$service" || true
fi
if [ -x "$PREFIX/libexec/termux-api" ]; then
    timeout 20 "$PREFIX/libexec/termux-api" JobScheduler --ez cancel true --ei job_id 4242 || true
fi
[ "$(readlink "$PREFIX/bin/pocketllm")" != "$venv/bin/pocketllm" ] || rm "$PREFIX/bin/pocketllm"
rm -rf "$service" "$venv"
rm -f "$HOME/.termux/boot/00-pocketllm" "$HOME/.local/bin/pocketllm-idle-hook" "$PREFIX/var/run/pocketllm".*
if [ "${1:-}" = --data ]; then
    rm -rf "${XDG_DATA_HOME:-$HOME/.local/share}/pocketllm"
    echo "PocketLLM and all that it has learned are gone."
else
    echo "PocketLLM is gone. What it has learned is in ${XDG_DATA_HOME:-$HOME/.local/share}/pocketllm; --data deletes it."
fi
