"""The outside of the system: configuration, building, parallelising, TorchX components and the command line."""
