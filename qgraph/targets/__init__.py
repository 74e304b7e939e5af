"""What qgraph writes for: a folder per engine, behind the interface of `qgraph.targets.base`."""
