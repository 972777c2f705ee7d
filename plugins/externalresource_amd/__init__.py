"""The driver of AMD's GPUs."""
