"""The model in transformers' triple (configuration, modeling, processing), its batches, packing and fused kernels."""
