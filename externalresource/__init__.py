"""Gives each process on a host its own GPUs, or any other device."""
