"""The demo: a small model that answers questions, documents to ask about, and the run through the engines."""
