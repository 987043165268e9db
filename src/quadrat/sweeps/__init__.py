"""Many jobs from one command: all frozen at the launch, known by their ledger, launched again to go on."""
