"""vLLM 0.32: a KV connector that vLLM finds by the name `KVLingua`."""
