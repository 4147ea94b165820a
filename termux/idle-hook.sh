#!/data/data/com.termux/files/usr/bin/sh
# Run by Android's JobScheduler every 15 minutes while the phone is idle and charging; the daemon reads the file's time.
# It is not told when that ends, and need not be: the stamp only ever lengthens what the daemon has watched itself.
touch "${XDG_DATA_HOME:-$HOME/.local/share}/pocketllm/idle.stamp"
