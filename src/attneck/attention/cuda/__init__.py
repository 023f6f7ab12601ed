"""Attention on CUDA: Triton kernels, PyTorch's fused attention with a longer head, and which one serves."""
