"""Drivers: an engine in a process of its own, asked through JSON lines. One launch serves many cases."""
