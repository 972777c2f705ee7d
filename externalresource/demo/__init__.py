"""The demo with which GPUs came to Flink: with stand-ins for Flink's processes, or on real Flink."""
