"""Holdfast: the daemon, the root runner and the command line."""
