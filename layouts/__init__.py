"""The contract: what a KV cache looks like in memory, and how to get from one look to another."""
