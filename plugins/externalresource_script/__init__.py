"""The driver of whatever a discovery script finds."""
