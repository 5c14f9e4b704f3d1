"""One run, whatever is learnt: its step, schedule, loop, log and checkpoints."""
