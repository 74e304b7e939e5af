"""Questions about a graph: which codes flow where, in which order channels lie."""
