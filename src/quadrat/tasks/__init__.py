"""LightningModules, one per task, on one base with the only training step."""
