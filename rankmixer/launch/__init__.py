"""The outside of the system: configuration, building, parallelising, TorchX components and the command line."""

if __name__ != "rankmixer.launch":  # reached through the link of that name at the top of a clone
    raise ImportError(f"{__name__} is a folder of rankmixer: import rankmixer.launch")
