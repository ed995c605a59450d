"""Interrogate an optimizer: pass/fail questions."""
