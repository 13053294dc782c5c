"""vLLM: a KV connector, found by entry point."""
