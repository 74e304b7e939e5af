"""MXNet's own files: int8 on its oneDNN kernels (mxnet), and quantization simulated in float (mxnet-sim)."""
