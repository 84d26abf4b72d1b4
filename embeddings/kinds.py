"""Sharding kinds and compute kernels a table may have. Imports no torchrec: checking a configuration is quick."""

# data_parallel is absent: such a table would silently join the dense optimizer (torchrec #2394).
SHARDINGS = ("table_wise", "row_wise", "column_wise", "table_row_wise", "table_column_wise", "grid_shard")

# With any kernel but a fused one the table would lose its optimizer in the backward.
KERNELS = ("fused", "fused_uvm", "fused_uvm_caching")

DTYPES = ("fp32", "fp16")
