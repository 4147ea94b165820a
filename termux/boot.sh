#!/data/data/com.termux/files/usr/bin/sh
# Started by Termux:Boot after the first unlock. Install (the folder must hold no sub-folders, or Termux:Boot stops):
#   mkdir -p ~/.termux/boot && cp termux/boot.sh ~/.termux/boot/00-pocketllm && chmod +x ~/.termux/boot/00-pocketllm
# Its output goes nowhere unless it is sent somewhere.
exec >>"$HOME/.pocketllm-boot.log" 2>&1
echo "boot $(date)"
# runsvdir stays a task of the Termux app this way, which Android kills last.
export SVDIR="$PREFIX/var/service" LOGDIR="$PREFIX/var/log"
exec runsvdir "$SVDIR"
