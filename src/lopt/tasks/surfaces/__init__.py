"""Analytic problems: surfaces and models without a network."""
