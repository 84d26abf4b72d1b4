"""The data plane and the model-agnostic step loop: schema, Parquet reader, batches, loop, metrics, checkpoints."""

if __name__ != "rankmixer.pipeline":  # reached through the link of that name at the top of a clone
    raise ImportError(f"{__name__} is a folder of rankmixer: import rankmixer.pipeline")
