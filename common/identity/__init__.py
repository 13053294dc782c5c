"""Which KV is this? Everything that must be equal for two engines to share, and its keys."""
