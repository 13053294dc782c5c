"""One engine each: its tensors as a described view, its hooks as lookup, load and store."""
