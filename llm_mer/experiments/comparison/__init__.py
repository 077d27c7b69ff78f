"""Adapters × ablations × seeds on one backbone."""
