"""One file per action a runbook step may use, discovered by `agent.plugin`."""
