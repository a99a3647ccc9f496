"""One file per inference engine, discovered by `agent.plugin`."""
