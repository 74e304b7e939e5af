"""The graph and what rewrites it: nodes and edges, their text form, the table of ops, patterns, passes, selection."""
