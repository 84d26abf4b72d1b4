"""The Sparse-MoE of RankMixer: per-token experts, their routers, and what is computed in serving."""
