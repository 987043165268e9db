"""Where the jobs of a sweep run: here one after another, on the GPUs of this machine, or on a cluster."""
