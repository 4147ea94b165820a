"""Which job runs when: queue, worker process, memory, plans."""
