"""SGLang: a radix cache backend, found by entry point."""
