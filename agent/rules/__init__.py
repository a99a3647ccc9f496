"""One file per cause, discovered by `agent.plugin`."""
