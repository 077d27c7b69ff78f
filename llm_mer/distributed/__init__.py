"""Multi-process runs: the process group, and all code that relies on internals of DeepSpeed, FSDP and accelerate."""
