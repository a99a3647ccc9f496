"""Alerts: what is told, and its durable delivery."""
