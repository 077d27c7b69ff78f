"""Several processes: their group, and everything that touches the insides of DeepSpeed, FSDP and accelerate."""
