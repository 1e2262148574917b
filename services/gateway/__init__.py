"""Fans progress out to those who watch."""
