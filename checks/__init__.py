"""One file per check, discovered by `agent.plugin`."""
