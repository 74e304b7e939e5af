"""The command line: one subcommand per file."""

from qgraph.processor import choose_kernels

choose_kernels()  # before any of them imports NumPy
