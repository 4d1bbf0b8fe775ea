"""Networks as functions: topology in, nn.Module out."""
