"""The demo's model: its language, its training script, its weights."""
