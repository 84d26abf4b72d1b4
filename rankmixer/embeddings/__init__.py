"""TorchRec embedding tables from the feature schema: build, initialise, plan."""

if __name__ != "rankmixer.embeddings":  # reached through the link of that name at the top of a clone
    raise ImportError(f"{__name__} is a folder of rankmixer: import rankmixer.embeddings")
