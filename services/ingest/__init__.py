"""Receives the bytes of uploads."""
