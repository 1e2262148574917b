"""Benchmarks: the real services, as processes of their own, beside bounds and peers.

Each table is measured in one run on one machine, subjects in turn, so its ratios mean
something and its absolute figures little. Nothing here asserts; nothing here is imported by
the services.
"""
