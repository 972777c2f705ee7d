"""The GPU driver of externalresource, with the discovery script that it runs."""
