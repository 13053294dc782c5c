"""Which producer's KV was reused by which consumer: cells as data, measured results, and a page rendered from both."""
