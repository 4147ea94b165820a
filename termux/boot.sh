#!/data/data/com.termux/files/usr/bin/sh
# Started by Termux:Boot after the first unlock; termux/install.sh copies it to ~/.termux/boot/00-pocketllm. That folder
# must hold no sub-folders, or Termux:Boot stops at the first.
# Its output goes nowhere unless it is sent somewhere.
exec >>"$HOME/.pocketllm-boot.log" 2>&1
echo "boot $(date)"
export SVDIR="$PREFIX/var/service" LOGDIR="$PREFIX/var/log"
# One runsvdir: termux-services starts one for a login shell, unless this file names a process that is one. It outlasts
# a reboot, after which its number may be another program's.
pid_file="$PREFIX/var/run/service-daemon.pid"
if pid=$(cat "$pid_file" 2>/dev/null) && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = runsvdir ]; then
    echo "the services run already"
    exit 0
fi
mkdir -p "$PREFIX/var/run"
echo $$ >"$pid_file"
# runsvdir stays a task of the Termux app this way, which Android kills last.
exec runsvdir "$SVDIR"
