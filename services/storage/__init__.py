"""Serves and deletes stored files."""
