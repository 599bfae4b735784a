"""Weights from elsewhere: of another run, or from a safetensors file, in this program's layout or PyTorch's."""
