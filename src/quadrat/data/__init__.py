"""Pictures and their truth, from files or drawn on demand, augmented and batched."""
