"""The data plane and the model-agnostic step loop: schema, Parquet reader, batches, loop, metrics, checkpoints."""
