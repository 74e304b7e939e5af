"""What an op computes: its shape rule above its kernel, a file per family. Importing them fills RULES and KERNELS."""

from qgraph.semantics import (  # noqa: F401
    attention,
    detect,
    elementwise,
    heads,
    index,
    linear,
    make,
    matmul,
    move,
    norm,
    pool,
    recurrent,
    reduce,
)
