"""Why has a Flink cluster no GPUs? One room for each place where a reason may be; `examination` visits them."""
