"""One file per kind of receiver, discovered by `agent.plugin`."""
