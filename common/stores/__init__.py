"""Where objects are kept: the protocol of a store, the ones there are, and the suite that they all pass."""
