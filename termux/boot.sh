#!/data/data/com.termux/files/usr/bin/sh
# Started by Termux:Boot after the first unlock; termux/install.sh copies it to ~/.termux/boot/00-pocketllm. That folder
# must hold no sub-folders, or Termux:Boot stops at the first.
# Its output goes nowhere unless it is sent somewhere.
exec >>"$HOME/.pocketllm-boot.log" 2>&1
echo "boot $(date)"
export SVDIR="$PREFIX/var/service" LOGDIR="$PREFIX/var/log"
# One runsvdir: termux-services may have started one already, for a login shell.
if [ -f "$PREFIX/var/run/service-daemon.pid" ] && kill -0 "$(cat "$PREFIX/var/run/service-daemon.pid")" 2>/dev/null; then
    echo "the services run already"
    exit 0
fi
# runsvdir stays a task of the Termux app this way, which Android kills last.
exec runsvdir "$SVDIR"
