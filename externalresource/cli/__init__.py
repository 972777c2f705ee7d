"""The command `externalresource`."""
