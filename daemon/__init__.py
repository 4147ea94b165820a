"""When and whether to learn: settings, sensors, gate, scheduler, and the processes that work for it."""
