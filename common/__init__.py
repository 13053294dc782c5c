"""What all engines share: identity and keys, container, stores, the KVCache facade, config, metrics, command line."""
