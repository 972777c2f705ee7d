"""The GPUs as nvidia-smi lists them."""
