#!/data/data/com.termux/files/usr/bin/sh
# Run by Android's JobScheduler every 15 minutes while the phone is idle and charging; the daemon reads the file's time.
# It is not told when that ends, and need not be: the stamp only ever lengthens what the daemon has watched itself.
# With --register: ask JobScheduler for that, as the daemon does at each start, since an update of Termux:API, or a
# force stop, forgets it. The same number again replaces what was asked before.
if [ "${1-}" != --register ]; then
    touch "${XDG_DATA_HOME:-$HOME/.local/share}/pocketllm/idle.stamp"
    # SIGUSR1: the daemon looks at once, with the wake lock. Of itself it would sleep again with the phone.
    exec sv 1 "$PREFIX/var/service/pocketllm"
fi
# The script termux-job-scheduler has no flag for idleness, but the app reads it.
# Without the app this call never ends. It takes a network, even if none is used: for "none" the app schedules the job
# and then fails, on Android 9 and later.
exec timeout 20 "$PREFIX/libexec/termux-api" JobScheduler --es script "$0" --ei job_id 4242 --ei period_ms 900000 \
    --es network any --ez charging true --ez idle true --ez battery_not_low true --ez persisted true </dev/null
