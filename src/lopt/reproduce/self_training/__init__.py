"""Metz et al. 2021, *Training Learned Optimizers with Randomly Initialized Learned Optimizers*."""
