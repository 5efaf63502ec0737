"""The graph rewrites, one per file."""
