"""Which of the GPUs a process gets. Pure: nothing here touches a file, a clock or a process."""
