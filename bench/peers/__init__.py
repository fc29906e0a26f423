"""Pando beside its peers: the same tensors, one process, every answer checked."""
