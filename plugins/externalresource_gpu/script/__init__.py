"""The discovery script `nvidia-gpu-discovery`."""
