"""Shipped facts with their sources."""
