"""ncnn: .param and .bin with int8 layers."""
